"""Decode any audio file to 16 kHz mono int16.

Two decoders are tried in order:

1. soundfile (libsndfile): WAV, FLAC, OGG, Opus and MP3, 1000 times faster than real time.
2. ffmpeg as a subprocess: M4A, WMA, video, odd sampling rates, broken FLAC. Slow to start, reads nearly everything.

Channels are averaged, and the samples are clipped to 16 bits. A file that is cut short or damaged gives what can be
decoded and is marked ``damaged``. libmpg123 (inside libsndfile) reports damaged frames only on file descriptor 2,
hundreds of lines for one file: they are captured, and are how the damage is known.

:func:`decode_files` decodes in parallel. Its workers run this file as a script, by its path, with requests on standard
input and answers on standard output, so there are no relative imports in here. multiprocessing does not do: its fork
breaks once CUDA is in use, and its spawn runs the user's ``__main__`` again. A worker that crashes takes only the file
that it was reading with it. Resampling is left to the parent, which has torch loaded already: importing it takes each
worker 5 s of CPU and 500 MB.
"""

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
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Decoded:
    """A recording: ``samples`` int16 (n,), mono, at ``rate`` Hz; ``damaged`` if parts of the file were broken."""

    samples: np.ndarray
    rate: int
    decoder: str
    damaged: bool


class AudioError(Exception):
    """No decoder reads this file. The message is one line with each decoder's reason.

    ``final`` if another try would end the same: not if ffmpeg was missing, or the file could not be opened.
    """

    def __init__(self, message: str, *, final: bool = True):
        super().__init__(message)
        self.final = final


class WorkerError(Exception):
    """The workers cannot start, or die one after the other."""


# Resampling.


@cache
def torchaudio_problem() -> str | None:
    """Return why torchaudio cannot be imported, in one line, or None. A torch it was not built for raises all three."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchaudio cannot be imported ({_one_line(error)})"
    return None


@cache
def _resampler(rate: int) -> Any:
    import torchaudio

    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)  # computes its kernel once


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample int16 (n,) at ``rate`` Hz to int16 (ceil(n * 16000 / rate),) at 16 kHz, with torchaudio's defaults."""
    import torch

    divisor = math.gcd(rate, SAMPLE_RATE)
    orig, new = rate // divisor, SAMPLE_RATE // divisor
    # In blocks, so that an hour needs little memory. The margin is far wider than half the kernel.
    block, margin = -(-10 * rate // orig) * orig, -(-rate // (50 * orig)) * orig
    out = np.empty(-(-len(samples) * new // orig), np.int16)
    with torch.inference_mode():
        for start in range(0, len(samples), block):
            first = max(0, start - margin)
            # Zeros at the end, as torchaudio has it. Without them its length, counted in float32, may be one too short.
            piece = np.pad(samples[first : start + block + margin].astype(np.float32), (0, margin))
            resampled = (
                _resampler(rate)(torch.from_numpy(piece))[(start - first) // orig * new :]
                .round_()
                .clamp_(-32768, 32767)
            )
            place = out[start // orig * new :][: block // orig * new]
            place[:] = resampled[: len(place)].to(torch.int16).numpy()
    return out


def _to_16_khz(decoded: Decoded) -> Decoded:
    if decoded.rate == SAMPLE_RATE:
        return decoded
    return replace(decoded, samples=resample(decoded.samples, decoded.rate), rate=SAMPLE_RATE)


# Decoding one file.


def decode_file(path: str | os.PathLike[str]) -> Decoded:
    """Decode ``path`` to 16 kHz, in this process. Meanwhile its file descriptor 2 is captured.

    Raises:
        AudioError: no decoder reads the file, or there is no audio in it.
    """
    return _to_16_khz(_decode(os.fspath(path), torchaudio_problem()))


def _decode(path: str, no_resampling: str | None) -> Decoded:
    """Decode at the file's own rate, or at 16 kHz if there is a reason why it cannot be resampled later."""
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise AudioError("the file is empty")
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})", final=False) from error
    reasons = []
    for name, decoder in (("soundfile", _soundfile), ("ffmpeg", _ffmpeg)):
        try:
            decoded = decoder(path)
            if not len(decoded.samples):
                raise AudioError("no audio in it")
            if decoded.rate != SAMPLE_RATE and no_resampling:
                raise AudioError(no_resampling)
            return decoded
        except Exception as error:  # Whatever stops one decoder, the next may still read the file.
            reasons.append(f"{name}: {_one_line(error)}")
    raise AudioError("; ".join(reasons), final=shutil.which("ffmpeg") is not None)


def header_seconds(path: str | os.PathLike[str]) -> float | None:
    """Read how long the header says a file is; None if soundfile cannot tell. Quick, but a guess for some MP3s."""
    try:
        import soundfile

        with _stderr_captured(), open(path, "rb", buffering=0) as file:
            sound = soundfile.SoundFile(file.fileno(), closefd=False)
            return sound.frames / sound.samplerate
    except Exception:
        return None


def _soundfile(path: str) -> Decoded:
    import soundfile

    # By descriptor, so that any file name will do, and so that the place where libsndfile stopped reading is known.
    with _stderr_captured() as captured, open(path, "rb", buffering=0) as file:
        try:
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                rate, frames, is_mp3 = sound.samplerate, sound.frames, sound.format == "MP3"
                if max(rate, SAMPLE_RATE) // math.gcd(rate, SAMPLE_RATE) > 2000:
                    raise AudioError(f"resampling {rate} Hz would need a kernel of gigabytes")
                blocks, block = [], np.empty((1 << 16, sound.channels), np.float32)
                # Block by block: a header may promise more than memory holds (a WAV written to a pipe says 4 GB).
                while n := len(sound.read(out=block)):
                    blocks.append(_to_mono(block[:n]))
        except soundfile.LibsndfileError as error:
            raise AudioError(error.error_string.rstrip(".")) from error
        unread = os.fstat(file.fileno()).st_size - os.lseek(file.fileno(), 0, os.SEEK_CUR)
        complaints = _read_back(captured).lower()
    # Without a Xing header an MP3's length is guessed from its first frames, and libsndfile stops at the guess: a
    # loud beginning can cost most of the recording. Otherwise it reads to the end of the file, or of all but its tags.
    if is_mp3 and unread > 4096:
        raise AudioError(f"stops {unread} bytes before the end of the file")
    mono = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    blocks.clear()  # Of an hour they are 0.6 GB.
    damaged = b"error" in complaints or b"warning" in complaints or (not is_mp3 and len(mono) < frames)
    if not np.isfinite(mono).all():
        mono, damaged = np.nan_to_num(mono, nan=0.0, posinf=1.0, neginf=-1.0), True
    return Decoded(_to_int16(mono), rate, "soundfile", damaged)


def _ffmpeg(path: str) -> Decoded:
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
    samples = np.frombuffer(run.stdout, "<i2").astype(np.int16, copy=False)
    return Decoded(samples, SAMPLE_RATE, "ffmpeg", damaged=bool(run.stderr))


def _to_mono(frames: np.ndarray) -> np.ndarray:
    """(n, channels) float32 -> (n,) float32, the mean of the channels, in memory of its own."""
    channels = frames.shape[1]
    return frames[:, 0].copy() if channels == 1 else frames @ np.full(channels, 1 / channels, np.float32)


def _to_int16(samples: np.ndarray) -> np.ndarray:
    """float32 in -1..1 -> int16, rounded and clipped; what came from 16 bits is again what it was."""
    scaled = samples * np.float32(32768)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)


# Many files at once.


def decode_files(paths: Sequence[str | os.PathLike[str]], workers: int) -> Generator[Decoded | AudioError, None, None]:
    """Decode ``paths`` in up to ``workers`` processes; yields a result for each, at 16 kHz, in the order of ``paths``.

    A file on which its worker dies is tried once more in a fresh one; if that dies too, its result is an
    :class:`AudioError` that says so. Close the iterator (``contextlib.closing``) if it may be left early.

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

    threads = ThreadPoolExecutor(len(pool))  # They wait for answers, and resample.
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
    """A decoding process, started when needed and again after it died, and the pipes to it, which carry pickles."""

    MAX_DEATHS = 6

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0  # In a row.
        self.killed = False

    def decode(self, path: str) -> Decoded | AudioError:
        """Decode ``path``; the death of the process is an error of the file."""
        for _ in range(2):
            try:
                if self.process is None:
                    self._start()
                answer = self._ask(path)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                code, reason = self._ending()
                self.deaths += 1
                if self.deaths == self.MAX_DEATHS or self.killed:
                    raise WorkerError(f"{reason}, at {path}") from None
            else:
                self.deaths = 0
                return answer
        # SIGKILL comes from outside, mostly for want of memory; any other signal is the decoder's own doing.
        return AudioError(f"the decoder crashed on it ({reason})", final=code < 0 and code != -signal.SIGKILL)

    def _start(self) -> None:
        start = "import sys, runpy; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            self.stderr = tempfile.TemporaryFile()  # noqa: SIM115
            self.process = subprocess.Popen(
                [sys.executable, "-c", start, os.path.abspath(__file__), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr,
                env=os.environ | one_thread,
                start_new_session=True,  # Ctrl-C reaches the parent alone.
            )
        except OSError as error:
            raise WorkerError(_one_line(error)) from error

    def _ask(self, path: str) -> Decoded | AudioError:
        assert self.process and self.process.stdin and self.process.stdout
        _send(self.process.stdin, (path, torchaudio_problem()))
        answer = pickle.load(self.process.stdout)
        return AudioError(answer[0], final=answer[1]) if isinstance(answer[0], str) else _to_16_khz(Decoded(*answer))

    def _ending(self) -> tuple[int, str]:
        """Return the exit code of the process, which has died, and what is known about its end."""
        assert self.process is not None
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
            with suppress(BrokenPipeError):  # Popen closes its pipes.
                self.process.__exit__(None, None, None)
            self.stderr.close()
            self.process = None


def _serve() -> None:
    """Run a worker: answer each request until standard input ends, that is until the parent does."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is not an answer.
    while True:
        path, no_resampling = pickle.load(requests)
        try:
            decoded = _decode(path, no_resampling)
        except AudioError as error:
            _send(answers, (str(error), error.final))
        else:
            _send(answers, (decoded.samples, decoded.rate, decoded.decoder, decoded.damaged))


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe, protocol=5)
    pipe.flush()


# File descriptor 2.


@contextmanager
def _stderr_captured() -> Iterator[IO[bytes]]:
    """Redirect file descriptor 2 to a temporary file, which is yielded: C libraries know no other standard error."""
    with tempfile.TemporaryFile() as captured:
        kept = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield captured
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
