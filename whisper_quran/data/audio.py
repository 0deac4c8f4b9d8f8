"""Decode any audio file to 16 kHz mono int16.

Two decoders are tried in order:

1. soundfile (libsndfile): WAV, FLAC, OGG, Opus and MP3, 1000 times faster than real time.
2. ffmpeg as a subprocess: M4A, WMA, video, odd sampling rates, broken FLAC. Slow to start, reads nearly everything.

Channels are averaged, and the samples are clipped to 16 bits. A truncated or damaged file is decoded as far as possible
and marked ``damaged``. One whose channels cancel out, or whose float samples have another scale, is corrected and
marked ``mended``. One that cannot hold speech is rejected. libmpg123 (inside libsndfile) reports damaged frames only on
file descriptor 2, hundreds of lines for one file: these are captured to detect the damage.

A file cannot take unlimited time or memory: there is a limit of length, a deadline that depends on its size, and a
memory limit for each worker. ffmpeg opens no other file, even if the file is a playlist.

:func:`decode_files` decodes in parallel. Its workers run this file as a script, by its path, with requests on standard
input and results on standard output, so this file has no relative imports. multiprocessing is not used: its fork breaks
once CUDA is in use, and its spawn runs the user's ``__main__`` again. If a worker crashes, only the file that it was
reading is lost. Resampling is done in the parent, which has torch loaded already: importing it would take each worker
5 s of CPU and 500 MB.
"""

import hashlib
import io
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
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
MAX_SECONDS = 3 * 3600  # No surah is longer.
NO_SPEECH = "no speech"  # prefix of the reasons why a decoded file cannot be used
MIN_RATE = 4000  # Hz; below this, speech is unintelligible
MEMORY_LIMIT = 6 << 30  # bytes of a worker's address space
DEADLINE = 60.0  # seconds, plus one for each 200 kB of the file
_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,gsm,loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg,rm,tak,"
    "tta,voc,w64,wav,webm,wv,xwma"
)
# Signals by which a decoder crashes on a bad file. Others come from outside: SIGKILL if memory is short.
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@dataclass(frozen=True)
class Decoded:
    """A recording: ``samples`` int16 (n,), mono, at ``rate`` Hz.

    ``damaged``: parts of the file were broken. ``mended``: its channels cancelled out, or its float samples had another
    scale. ``digest`` is that of the file's bytes.
    """

    samples: np.ndarray
    rate: int
    decoder: str
    damaged: bool
    mended: bool = False
    digest: str = ""


class AudioError(Exception):
    """A file that cannot be used. The message is one line; if no decoder reads the file, with each decoder's reason.

    ``final`` means that the bytes are the cause, and not a missing ffmpeg or a lack of time or memory.
    """

    def __init__(self, message: str, *, final: bool = True):
        super().__init__(message)
        self.final = final


class UnusableAudio(AudioError):
    """A file that was decoded but is too long or cannot hold speech: no other decoder is tried."""


class WorkerError(Exception):
    """An error of the workers: they cannot start, or crash repeatedly."""


# Resampling.


@cache
def torchaudio_problem() -> str | None:
    """Return in one line why torchaudio cannot be imported, or None. An incompatible torch may raise any of these."""
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
            # Zeros at the end, as torchaudio pads. Without them its length, computed in float32, may be one too short.
            piece = np.pad(samples[first : start + block + margin].astype(np.float32), (0, margin))
            resampled = (
                _resampler(rate)(torch.from_numpy(piece))[(start - first) // orig * new :]
                .round_()
                .clamp_(-32768, 32767)
            )
            target = out[start // orig * new :][: block // orig * new]
            target[:] = resampled[: len(target)].to(torch.int16).numpy()
    return out


def _to_16_khz(decoded: Decoded) -> Decoded:
    if decoded.rate == SAMPLE_RATE:
        return decoded
    return replace(decoded, samples=resample(decoded.samples, decoded.rate), rate=SAMPLE_RATE)


# Decoding one file.


def decode_file(path: str | os.PathLike[str]) -> Decoded:
    """Decode ``path`` to 16 kHz in this process, capturing its file descriptor 2 meanwhile.

    Raises:
        AudioError: no decoder reads the file, or there is no audio in it.
    """
    return _to_16_khz(_decode(os.fspath(path), torchaudio_problem()))


def _digest(path: str) -> str:
    """Digest the bytes of a file: 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _decode(path: str, no_resampling: str | None) -> Decoded:
    """Decode at the file's own rate or, if ``no_resampling`` says why it cannot be resampled later, at 16 kHz."""
    try:
        if not os.stat(path).st_size:
            raise AudioError("the file is empty")
        digest = _digest(path)
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})", final=False) from error
    reasons, final = [], shutil.which("ffmpeg") is not None
    for name, decoder in (("soundfile", _soundfile), ("ffmpeg", _ffmpeg)):
        try:
            decoded = decoder(path)
            if not len(decoded.samples):
                raise AudioError("no audio in it")
            if decoded.rate != SAMPLE_RATE and no_resampling:
                raise AudioError(no_resampling, final=False)
            _require_speech(decoded.samples, decoded.rate)
            return replace(decoded, digest=digest)
        except UnusableAudio:
            raise
        except Exception as error:  # whatever the error, the next decoder may read the file
            reasons.append(f"{name}: {_one_line(error)}")
            out_of_memory = isinstance(error, MemoryError) or re.search(r"memory|malloc", str(error), re.IGNORECASE)
            if out_of_memory or isinstance(error, OSError) or not getattr(error, "final", True):
                final = False
    raise AudioError("; ".join(reasons), final=final)


def _require_speech(samples: np.ndarray, rate: int) -> None:
    """Raise :class:`UnusableAudio` if int16 (n,) is too short, silent, or clipped beyond recognition."""
    if len(samples) < rate / 10:
        raise UnusableAudio(f"{NO_SPEECH}: shorter than 0.1 s ({len(samples)} samples at {rate} Hz)")
    offset, quiet = int(np.mean(samples)), 32  # 60 dB below full scale
    if np.count_nonzero((samples > offset + quiet) | (samples < offset - quiet)) < rate / 50:
        raise UnusableAudio(f"{NO_SPEECH}: silence")
    clipped = float(np.mean((samples >= 32700) | (samples <= -32700)))
    if clipped > 0.3:
        raise UnusableAudio(f"{NO_SPEECH}: {100 * clipped:.0f} % of the samples are at full scale")


def header_seconds(path: str | os.PathLike[str]) -> float | None:
    """Read the duration from a file's header; None if soundfile cannot. Fast, but only an estimate for some MP3s."""
    try:
        import soundfile

        with _stderr_captured(), open(path, "rb", buffering=0) as file:
            sound = soundfile.SoundFile(file.fileno(), closefd=False)
            return sound.frames / sound.samplerate
    except Exception:
        return None


def _soundfile(path: str) -> Decoded:
    import soundfile

    # By descriptor, to allow any file name and to know where libsndfile stopped reading.
    with _stderr_captured() as captured, open(path, "rb", buffering=0) as file:
        try:
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                rate, frames, is_mp3 = sound.samplerate, sound.frames, sound.format == "MP3"
                if rate < MIN_RATE:
                    raise UnusableAudio(f"{NO_SPEECH}: sampled at {rate} Hz")
                if max(rate, SAMPLE_RATE) // math.gcd(rate, SAMPLE_RATE) > 2000:
                    raise AudioError(f"resampling {rate} Hz would need a kernel of gigabytes")
                # Otherwise soundfile seeks to its position after every read, and MP3 frames that depend on earlier ones
                # would be decoded without them.
                sound._info.seekable = 0
                mono, damaged, mended = _read_mono(sound)
        except soundfile.LibsndfileError as error:
            raise AudioError(error.error_string.rstrip(".")) from error
        unread = os.fstat(file.fileno()).st_size - os.lseek(file.fileno(), 0, os.SEEK_CUR)
        messages = _read_back(captured).lower()
    # Without a Xing header an MP3's length is estimated from its first frames, and libsndfile stops there: after a loud
    # beginning, most of the recording can be lost. With one it reads to the end of the file or to its tags.
    if is_mp3 and unread > 4096:
        raise AudioError(f"stops {unread} bytes before the end of the file")
    damaged |= b"error" in messages or b"warning" in messages or (not is_mp3 and len(mono) < frames)
    return Decoded(mono, rate, "soundfile", damaged, mended)


def _read_mono(sound: Any) -> tuple[np.ndarray, bool, bool]:
    """Read an open ``SoundFile``; return int16 (n,), if it is damaged (NaN, infinity), and if it was mended."""
    weights = np.full(sound.channels, 1 / sound.channels, np.float32)
    mono, products, damaged = _read_mixed(sound, weights)
    loudest = int(np.argmax(np.diag(products) >= 0.999 * products.max()))  # the first of equals, despite rounding
    mended = bool(products.mean() < products[loudest, loudest] / 100)
    if mended:  # The channels cancel out: their mean is 20 dB below the loudest, so only the loudest is used.
        sound.seek(0)
        mono, _, _ = _read_mixed(sound, np.eye(sound.channels, dtype=np.float32)[loudest])
    if mono.dtype != np.int16:
        scale = _float_scale(mono)
        mono, mended = _to_int16(mono / np.float32(scale)), mended or scale != 1
    return mono, damaged, mended


def _read_mixed(sound: Any, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read to the end, channels mixed by ``weights``: (n,) float32 from a file of floats, otherwise int16.

    Also return the sums of the products of every two channels, and True if some samples were NaN or infinite.
    """
    is_float, channels, damaged = sound.subtype in ("FLOAT", "DOUBLE"), sound.channels, False
    blocks, block, products = [], np.empty((1 << 16, channels), np.float32), np.zeros((channels, channels))
    # In blocks: a header may state more than fits in memory (a WAV written to a pipe states 4 GB).
    while read := len(sound.read(out=block)):
        part = block[:read]
        if is_float and not np.isfinite(part).all():
            part, damaged = np.nan_to_num(part, nan=0.0, posinf=1.0, neginf=-1.0), True
        products += part.T @ part
        blocks.append(part @ weights if is_float else _to_int16(part @ weights))
        if (len(blocks) - 1) * len(block) > MAX_SECONDS * sound.samplerate:
            raise UnusableAudio(f"longer than {MAX_SECONDS / 3600:g} h")
    return np.concatenate(blocks) if blocks else np.empty(0, np.int16), products, damaged


def _float_scale(mono: np.ndarray) -> float:
    """Return the full scale of float samples: 1, or a larger one if more than 1 % of the samples are above 1."""
    if not len(mono) or np.mean(np.abs(mono) > 1) <= 0.01:
        return 1.0
    peak = float(np.abs(mono).max())
    for scale in (peak if peak < 128 else 0.0, 2.0**15, 2.0**23, 2.0**31):
        if peak <= scale:
            return scale
    raise UnusableAudio(f"{NO_SPEECH}: samples of up to {peak:.0e}")


def _ffmpeg(path: str) -> Decoded:
    """Decode and resample with ffmpeg. Its output is AU, whose header can leave the length of a pipe unknown."""
    import soundfile

    if shutil.which("ffmpeg") is None:
        raise AudioError("not installed", final=False)
    source = ["-protocol_whitelist", "file,pipe", "-format_whitelist", _FORMATS, "-i", f"file:{path}", "-map", "0:a:0"]
    target = ["-t", str(MAX_SECONDS + 1), "-ar", str(SAMPLE_RATE), "-c:a", "pcm_s16be", "-f", "au", "pipe:1"]
    run = subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", *source, *target], stdin=subprocess.DEVNULL, capture_output=True
    )
    messages = re.sub(r"\[.*? @ 0x\w+\] ", "", os.fsdecode(run.stderr).replace(f"file:{path}: ", ""))
    if run.returncode < 0:
        raise AudioError(f"ended by signal {-run.returncode}", final=-run.returncode in _CRASHES)
    if "not on whitelist" in messages:
        raise AudioError("not audio, or a playlist of other files")
    if run.returncode and (len(run.stdout) < 24 or "Cannot allocate memory" in messages):
        raise AudioError(messages or f"exit code {run.returncode}")
    with soundfile.SoundFile(io.BytesIO(run.stdout)) as sound:
        mono, _, mended = _read_mono(sound)
    return Decoded(mono, SAMPLE_RATE, "ffmpeg", bool(run.stderr), mended)


def _to_int16(samples: np.ndarray) -> np.ndarray:
    """Convert float32 in [-1, 1] to int16, rounded and clipped; samples that were 16-bit are restored exactly."""
    scaled = samples * np.float32(32768)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)


# Many files at once.


def decode_files(paths: Sequence[str | os.PathLike[str]], workers: int) -> Generator[Decoded | AudioError, None, None]:
    """Decode ``paths`` in up to ``workers`` processes; yield a result for each, at 16 kHz, in the order of ``paths``.

    A file on which its worker dies is tried once more in a new worker; if that dies too, the result is an
    :class:`AudioError`. Close the iterator (``contextlib.closing``) if it may be left early.

    Raises:
        WorkerError: the workers cannot start, or crash repeatedly.
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

    threads = ThreadPoolExecutor(len(pool))  # wait for results, and resample
    waiting: deque[Future[Decoded | AudioError]] = deque()
    try:
        for path in paths:
            # Queue more than are being decoded, so that one long recording does not leave workers idle.
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
    """A decoding process, started on demand and restarted after a crash, with pipes that carry pickles."""

    MAX_DEATHS = 6

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0  # in a row
        self.killed = False

    def decode(self, path: str) -> Decoded | AudioError:
        """Decode ``path``; a crash or a timeout of the process becomes an :class:`AudioError` of the file."""
        for _ in range(2):
            try:
                answer = self._ask(path)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                code, reason = self._ending()
                if code == -signal.SIGALRM:
                    return AudioError("decoding it took too long", final=False)
                self.deaths += 1
                if self.deaths == self.MAX_DEATHS or self.killed:
                    raise WorkerError(f"{reason}, at {path}") from None
            else:
                self.deaths = 0
                return answer
        return AudioError(f"the decoder crashed on it ({reason})", final=-code in _CRASHES)

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
                start_new_session=True,  # so that Ctrl-C reaches only the parent
            )
        except OSError as error:
            raise WorkerError(_one_line(error)) from error

    def _ask(self, path: str) -> Decoded | AudioError:
        if self.process is None:
            self._start()
        assert self.process and self.process.stdin and self.process.stdout
        size = os.path.getsize(path) if os.path.exists(path) else 0
        _send(self.process.stdin, (path, torchaudio_problem(), DEADLINE + size / 200_000))
        answer = pickle.load(self.process.stdout)
        return _to_16_khz(Decoded(**answer)) if "samples" in answer else AudioError(**answer)

    def _ending(self) -> tuple[int, str]:
        """Return the exit code of the process, which has died, and the reason as far as it is known."""
        assert self.process is not None
        code = self.process.wait()
        message = _read_back(self.stderr).decode(errors="replace").strip().rpartition("\n")[2]
        self.close()
        return code, f"signal {-code}" if code < 0 else message or f"exit code {code}"

    def kill(self) -> None:
        """Kill the process, so that a thread that waits for it continues."""
        self.killed = True
        if process := self.process:
            _kill_group(process.pid)

    def close(self) -> None:
        """Kill the process and the ffmpeg that it may have started, and close the pipes."""
        if self.process:
            _kill_group(self.process.pid)
            self.process.wait()
            with suppress(BrokenPipeError):  # Popen closes its pipes
                self.process.__exit__(None, None, None)
            self.stderr.close()
            self.process = None


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has already ended
        os.killpg(group, signal.SIGKILL)


def _serve() -> None:
    """Run a worker: answer requests until standard input ends, which means that the parent has ended."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that output of a library is not taken for a result
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends this process, even inside a C library
    requests: SimpleQueue[tuple[str, str | None, float]] = SimpleQueue()

    def receive() -> None:
        with suppress(EOFError):
            while True:
                requests.put(pickle.load(sys.stdin.buffer))
        _kill_group(os.getpgrp())  # the parent has ended: kill this process, and ffmpeg if it is running

    threading.Thread(target=receive, daemon=True).start()
    while True:
        path, no_resampling, deadline = requests.get()
        signal.setitimer(signal.ITIMER_REAL, deadline)
        try:
            answer = vars(_decode(path, no_resampling))
        except AudioError as error:
            answer = {"message": str(error), "final": error.final}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, answer)


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe, protocol=5)
    pipe.flush()


# File descriptor 2.


@contextmanager
def _stderr_captured() -> Iterator[IO[bytes]]:
    """Redirect file descriptor 2, which C libraries write to, to a temporary file; yield that file."""
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
    with suppress(BrokenPipeError):  # the parent has ended
        _serve()
