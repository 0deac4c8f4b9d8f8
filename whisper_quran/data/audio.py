"""Any audio file a user has, as 16 kHz mono int16: the one form that the rest of the house knows.

Three decoders stand in a row, and a file falls through to the next until one reads it:

1. soundfile (libsndfile): WAV, FLAC, OGG, Opus and MP3, 1000 times faster than real time and more.
2. torchaudio: whatever its backends add on this machine. Since 2.9 that is torchcodec, which is seldom there.
3. ffmpeg as a subprocess: M4A, WMA, video, odd sampling rates, broken FLAC. Slow to start, reads nearly everything.

Channels are averaged before resampling, and the result is clipped before it becomes int16. A file that is cut short or
damaged gives what can be decoded and is marked ``damaged``. libmpg123 (inside libsndfile) reports damaged frames
straight to file descriptor 2, hundreds of lines for one file: they are caught, and are how the damage is known.

**Resampling** is torchaudio's: its default windowed sinc, from its own kernel. The kernel is applied here, as matrix
products, which gives torchaudio's samples three times faster and without torch: processes that only decode start in
0.3 s instead of 3 s and weigh 40 MB instead of 600 MB. Where torchaudio cannot be imported, ffmpeg resamples.

**Decoding in parallel** runs this very file as a script, by its path: :func:`decode_files` starts workers that read
requests from standard input and answer on standard output. Not multiprocessing: its fork breaks once CUDA is in use,
and its spawn runs the user's ``__main__`` again. Hence no relative imports in here. A worker has the import path of its
parent and a session of its own (Ctrl-C reaches the parent alone), and it ends when its standard input does, that is
when the parent ends, in whatever way. One that dies takes only the file that it was reading with it.
"""

import importlib.metadata
import importlib.util
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from typing import IO

import numpy as np

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Decoded:
    """A recording: ``samples`` int16 (n,) at 16 kHz, mono; who read it; and whether parts of the file were broken."""

    samples: np.ndarray
    decoder: str
    damaged: bool


class AudioError(Exception):
    """No decoder reads this file. The message is one line with each decoder's reason.

    ``final`` where another try would end the same: not if ffmpeg was missing, or the file could not be opened.
    """

    def __init__(self, message: str, *, final: bool = True):
        super().__init__(message)
        self.final = final


class WorkerError(Exception):
    """The decoding processes themselves do not run here: they cannot start, or die one after the other."""


# Resampling.


@cache
def torchaudio_problem() -> str | None:
    """Why torchaudio cannot be imported here, in one line; None where it can.

    It fails in all three of these ways beside a torch that it was not built for.
    """
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchaudio cannot be imported ({_one_line(error)})"
    return None


@cache
def resample_kernel(rate: int) -> np.ndarray:
    """torchaudio's default kernel from ``rate`` to 16 kHz: float32 (new, taps), one row for each output sample.

    Its ``new`` outputs stand on ``taps`` inputs that begin ``(taps - orig) / 2`` before ``orig = new * rate / 16000``
    fresh ones, after which the pattern repeats. Simple ratios (48 kHz: new = 1) are repeated within the kernel, shifted
    along, so that there is a matrix to multiply with.

    Raises:
        AudioError: torchaudio cannot be imported, or the ratio is so odd that the kernel would not fit in memory.
    """
    if problem := torchaudio_problem():
        raise AudioError(problem)
    import torchaudio

    divisor = math.gcd(rate, SAMPLE_RATE)
    if max(rate, SAMPLE_RATE) // divisor > 2000:
        raise AudioError(f"torchaudio cannot resample {rate} Hz in reasonable memory")
    sinc = torchaudio.transforms.Resample(rate, SAMPLE_RATE).kernel[:, 0].numpy()
    new, taps = sinc.shape
    orig = rate // divisor
    repeats = max(1, 128 // new)
    kernel = np.zeros((repeats * new, (repeats - 1) * orig + taps), np.float32)
    for i in range(repeats):
        kernel[i * new : (i + 1) * new, i * orig : i * orig + taps] = sinc
    return kernel


def _resample(mono: np.ndarray, rate: int, kernel: np.ndarray) -> np.ndarray:
    """(n,) float32 at ``rate`` -> (ceil(n * 16000 / rate),) int16, as ``torchaudio.transforms.Resample`` has it."""
    new, taps = kernel.shape
    orig = new * rate // SAMPLE_RATE
    length = -(-len(mono) * SAMPLE_RATE // rate)
    rows = -(-length // new)
    padded = np.zeros((rows - 1) * orig + taps, np.float32)
    start = (taps - orig) // 2
    padded[start : start + len(mono)] = mono
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)[::orig]
    out = np.empty((rows, new), np.int16)
    # A stretch at a time: the overlapping windows are copied out for BLAS, and the copy stays in the cache.
    for row in range(0, rows, 128):
        out[row : row + 128] = _to_int16(np.ascontiguousarray(windows[row : row + 128]) @ kernel.T)
    return out.reshape(-1)[:length]


def _to_int16(samples: np.ndarray) -> np.ndarray:
    """float32 in -1..1 -> int16, rounded and clipped; what came from 16 bits is again what it was."""
    scaled = samples * np.float32(32768)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)


# Decoding one file.


def decode_file(path: str | os.PathLike[str], kernel: Callable[[int], np.ndarray] = resample_kernel) -> Decoded:
    """Decode ``path`` to 16 kHz mono int16; ``kernel`` gives the resampling kernel of a rate (:func:`resample_kernel`).

    While it decodes, file descriptor 2 of the process is turned away, so it belongs in a process with nothing
    else to say at the time, as the workers of :func:`decode_files` are.

    Raises:
        AudioError: none of the decoders reads the file, or there is no audio in it.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise AudioError("the file is empty")
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})", final=False) from error

    reasons = []
    for name, decode in (("soundfile", _soundfile), ("torchaudio", _torchaudio), ("ffmpeg", _ffmpeg)):
        try:
            samples, damaged = decode(path, kernel)
        except Exception as error:  # Whatever stops one decoder, the next may still read the file.
            reasons.append(f"{name}: {_one_line(error)}")
            continue
        if len(samples):
            return Decoded(samples, name, damaged)
        reasons.append(f"{name}: no audio in it")
    raise AudioError("; ".join(reasons), final=shutil.which("ffmpeg") is not None)


def header_seconds(path: str | os.PathLike[str]) -> float | None:
    """How long the file's header says it is, or None where soundfile cannot tell. Quick, but a guess for some MP3s."""
    try:
        import soundfile

        with _stderr_captured(), open(path, "rb", buffering=0) as file:
            sound = soundfile.SoundFile(file.fileno(), closefd=False)
            return sound.frames / sound.samplerate
    except Exception:
        return None


def _soundfile(path: str, kernel: Callable[[int], np.ndarray]) -> tuple[np.ndarray, bool]:
    import soundfile

    # By descriptor, so that any file name will do, and so that the place where libsndfile stopped reading is known.
    with _stderr_captured() as noise, open(path, "rb", buffering=0) as file:
        try:
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                rate, frames, is_mp3 = sound.samplerate, sound.frames, sound.format == "MP3"
                blocks, block = [], np.empty((1 << 16, sound.channels), np.float32)
                # Block by block: a header may promise more than memory holds (a WAV written to a pipe says 4 GB).
                while n := len(sound.read(out=block)):
                    blocks.append(_to_mono(block[:n]))
        except soundfile.LibsndfileError as error:
            raise AudioError(error.error_string.rstrip(".")) from error
        unread = os.fstat(file.fileno()).st_size - os.lseek(file.fileno(), 0, os.SEEK_CUR)
        complaints = _read_back(noise).lower()
    # Without a Xing header an MP3's length is guessed from its first frames, and libsndfile stops at the guess: a
    # loud beginning can cost most of the recording. Otherwise it reads to the end of the file, or of all but its tags.
    if is_mp3 and unread > 4096:
        raise AudioError(f"stops {unread} bytes before the end of the file")
    mono = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    blocks.clear()  # Of an hour they are 0.6 GB.
    damaged = b"error" in complaints or b"warning" in complaints or (not is_mp3 and len(mono) < frames)
    return _finish(mono, rate, kernel, damaged)


def _torchaudio(path: str, kernel: Callable[[int], np.ndarray]) -> tuple[np.ndarray, bool]:
    # Asked beforehand, because importing torchaudio, only to hear of it, takes a worker 3 s and 600 MB.
    version = [int(part) for part in importlib.metadata.version("torchaudio").split(".")[:2]]
    if version >= [2, 9] and importlib.util.find_spec("torchcodec") is None:
        raise AudioError("torchcodec is not installed")
    import torchaudio

    with _stderr_captured():
        waveform, rate = torchaudio.load(path)
    return _finish(_to_mono(waveform.numpy().T), rate, kernel, damaged=False)


def _ffmpeg(path: str, kernel: Callable[[int], np.ndarray]) -> tuple[np.ndarray, bool]:
    """ffmpeg mixes and resamples by itself. Only the file itself is opened: a playlist named .mp3 stays unread."""
    if shutil.which("ffmpeg") is None:
        raise AudioError("not installed")
    source = ["-protocol_whitelist", "file,pipe", "-i", f"file:{path}", "-map", "0:a:0"]
    target = ["-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", "pipe:1"]
    run = subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", *source, *target], stdin=subprocess.DEVNULL, capture_output=True
    )
    if run.returncode and not run.stdout:
        complaints = os.fsdecode(run.stderr).replace(f"file:{path}: ", "")
        raise AudioError(re.sub(r"\[.*? @ 0x\w+\] ", "", complaints) or f"exit code {run.returncode}")
    return np.frombuffer(run.stdout, "<i2").astype(np.int16, copy=False), bool(run.stderr)


def _to_mono(frames: np.ndarray) -> np.ndarray:
    """(n, channels) float32 -> (n,) float32, the mean of the channels, in memory of its own."""
    channels = frames.shape[1]
    return frames[:, 0].copy() if channels == 1 else frames @ np.full(channels, 1 / channels, np.float32)


def _finish(mono: np.ndarray, rate: int, kernel: Callable[[int], np.ndarray], damaged: bool) -> tuple[np.ndarray, bool]:
    """(n,) float32 at ``rate`` -> (m,) int16 at 16 kHz, and whether it is damaged: NaN and infinity are too."""
    if not np.isfinite(mono).all():
        mono, damaged = np.nan_to_num(mono, nan=0.0, posinf=1.0, neginf=-1.0), True
    if rate == SAMPLE_RATE or not len(mono):
        return _to_int16(mono), damaged
    return _resample(mono, rate, kernel(rate)), damaged


# Many files at once.


def decode_files(paths: Sequence[str | os.PathLike[str]], workers: int) -> Iterator[Decoded | AudioError]:
    """Decode ``paths`` in up to ``workers`` processes; yields, in the order of ``paths``, what each came to.

    A file on which its worker dies is tried once more in a fresh one; if that dies too, the file is an
    :class:`AudioError` that says so. Close the iterator (``contextlib.closing``) where it may be left early.

    Raises:
        WorkerError: the workers cannot start, or die one after the other.
    """
    pool = [_Worker() for _ in range(max(1, min(workers, len(paths), os.cpu_count() or 1)))]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in pool:
        idle.put(worker)

    def decode(path: str) -> Decoded | AudioError:
        worker = idle.get()
        try:
            return worker.decode(path)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(len(pool))  # They only wait for answers.
    waiting: deque[Future[Decoded | AudioError]] = deque()
    try:
        for path in paths:
            # More than are being decoded, so that a long recording at the head keeps no worker idle.
            if len(waiting) == 4 * len(pool):
                yield waiting.popleft().result()
            waiting.append(threads.submit(decode, os.fspath(path)))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in pool:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in pool:
            worker.close()


class _Worker:
    """A decoding process, started when needed and again when it died, and the pipes to it, which carry pickles."""

    MOST_DEATHS = 6

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.deaths = 0  # In a row.
        self.killed = False

    def decode(self, path: str) -> Decoded | AudioError:
        """What ``path`` comes to, the death of the process included."""
        for _ in range(2):
            try:
                if self.process is None:
                    self._start()
                answer = self._ask(path)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                code, reason = self._ending()
                self.deaths += 1
                if self.deaths == self.MOST_DEATHS or self.killed:
                    raise WorkerError(f"{reason}, at {path}") from None
            else:
                self.deaths = 0
                return answer
        # SIGKILL comes from outside, mostly for want of memory; any other signal is the decoder's own doing.
        return AudioError(f"the decoder crashed on it ({reason})", final=code < 0 and code != -signal.SIGKILL)

    def _start(self) -> None:
        start = "import sys, runpy; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", start, os.path.abspath(__file__), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr,
                env=os.environ | one_thread,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerError(_one_line(error)) from error

    def _ask(self, path: str) -> Decoded | AudioError:
        requests, answers = self.process.stdin, self.process.stdout
        _send(requests, path)
        while isinstance(answer := pickle.load(answers), int):
            try:
                _send(requests, resample_kernel(answer))
            except AudioError as error:
                _send(requests, str(error))
        return AudioError(answer[0], final=answer[1]) if isinstance(answer[0], str) else Decoded(*answer)

    def _ending(self) -> tuple[int, str]:
        """The exit code of the process, which has died, and what is known about its end."""
        code = self.process.wait()
        complaint = _read_back(self.stderr).decode(errors="replace").strip().rpartition("\n")[2]
        self.close()
        return code, f"signal {-code}" if code < 0 else complaint or f"exit code {code}"

    def kill(self) -> None:
        """End the process, and with it what a thread may be waiting for."""
        self.killed = True
        if process := self.process:
            process.kill()

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            with suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.stdout.close()
            self.stderr.close()
            self.process = None


def _serve() -> None:
    """The worker: for each path it reads, answers with what that came to; asks for a kernel by answering a rate."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is not an answer.

    @cache
    def kernel(rate: int) -> np.ndarray:
        _send(answers, rate)
        answer = pickle.load(requests)
        if isinstance(answer, str):
            raise AudioError(answer)
        return answer

    while True:
        path = pickle.load(requests)
        try:
            decoded = decode_file(path, kernel)
        except AudioError as error:
            _send(answers, (str(error), error.final))
        else:
            _send(answers, (decoded.samples, decoded.decoder, decoded.damaged))


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe, protocol=5)
    pipe.flush()


# File descriptor 2.


@contextmanager
def _stderr_captured() -> Iterator[IO[bytes]]:
    """Turn file descriptor 2 into a temporary file, which is yielded: C libraries know no other standard error."""
    with tempfile.TemporaryFile() as noise:
        kept = os.dup(2)
        os.dup2(noise.fileno(), 2)
        try:
            yield noise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _read_back(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    with suppress(EOFError, BrokenPipeError):  # The parent has ended.
        _serve()
