"""Decode any audio file to 16 kHz mono int16, with PyAV, which carries FFmpeg: MP3, M4A, Opus, WAV, video and others.

Channels are averaged, and the samples are clipped to 16 bits. A truncated or damaged file is decoded as far as possible
and marked ``damaged``. One whose channels cancel out, or whose float samples have another scale, is corrected and
marked ``mended``. One that cannot hold speech is rejected.

:func:`decode_files` decodes in processes that run this file as a script, which therefore has no relative imports at its
top. It is no ProcessPoolExecutor: a pool that forks breaks once CUDA is in use, and one that spawns runs the user's
script again; if a worker is killed while it sends its result, a pool waits for ever, and its other workers outlive the
parent. Here each worker has its own pipes: if it crashes, only the file that it was reading is lost, and if the parent
ends, it ends. torchaudio resamples in the parent, as a worker would need 5 s and 500 MB to import torch.
"""

import hashlib
import io
import math
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

SAMPLE_RATE = 16000
AUDIO_EXTENSIONS = frozenset(
    ".mp3 .wav .flac .ogg .oga .opus .m4a .m4b .mp4 .aac .wma .webm .aif .aiff .au .amr .3gp .mka".split()
)
MAX_SECONDS = 3 * 3600  # No surah is longer.
NO_SPEECH = "no speech"  # prefix of the reasons why a decoded file cannot be used
MIN_RATE = 4000  # Hz; below this, speech is unintelligible
DEADLINE = 60  # seconds, plus one for each 200 kB of the file
AHEAD = 64 << 20  # bytes of files that are decoded before their results are taken
# Not among these formats are playlists, which would open other files.
_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,gsm,loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg,rm,tak,"
    "tta,voc,w64,wav,webm,wv,xwma"
)
_ESTIMATED = "Estimating duration"  # FFmpeg's message if the header does not tell it
_BLOCK = 1 << 16  # samples


@dataclass(frozen=True)
class Decoded:
    """A recording: ``samples`` int16 (n,), mono, at ``rate`` Hz.

    ``damaged``: parts of the file were broken. ``mended``: its channels cancelled out, or its float samples had another
    scale. ``digest`` is that of the file's bytes.
    """

    samples: np.ndarray
    rate: int
    damaged: bool
    mended: bool
    digest: str = ""


@dataclass(frozen=True)
class Part(os.PathLike[str]):
    """A recording that need not be a whole file: a ``row`` of a parquet file, a piece of a recording, or both.

    ``column`` holds the bytes of the rows, of ``size`` on average. A piece is from ``start`` to ``end``, in seconds. As
    a path, it is ``table.parquet#12`` or ``surah.mp3#t=4.1,8.2``.
    """

    path: Path
    column: str = ""
    row: int = 0
    size: int = 0
    start: float = 0.0
    end: float = math.inf

    def __fspath__(self) -> str:
        return f"{self.path}" + (f"#{self.row}" if self.column else "") + self.fragment

    __str__ = __fspath__

    @property
    def fragment(self) -> str:
        """The piece as a page addresses it, ``#t=4.1,8.2``; ``""`` for a whole recording."""
        return f"#t={self.start},{self.end}" if self != self.whole else ""

    @property
    def whole(self) -> "Part":
        """The recording that it is a piece of."""
        return replace(self, start=0.0, end=math.inf)


def is_audio(file: Path) -> bool:
    """Return True if a file's name is that of a recording. Hidden files are none: ``._001001.mp3`` is a Mac's own."""
    return file.suffix.lower() in AUDIO_EXTENSIONS and not file.name.startswith(".")


def as_part(audio: os.PathLike[str]) -> Part:
    return audio if isinstance(audio, Part) else Part(Path(audio))


class AudioError(Exception):
    """A file that cannot be used, and why, in one line; ``final`` if its bytes are the cause, however often tried."""

    def __init__(self, message: str, *, final: bool = True):
        super().__init__(message)
        self.final = final


# Resampling.


def import_torchaudio(purpose: str) -> Any:
    """Return the module torchaudio.

    Raises:
        UserError: it cannot be imported; the message begins with ``purpose`` and ends with the command that mends it.
    """
    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError) as error:  # an incompatible torch may raise any of these
        import torch

        from ..runtime.errors import UserError

        number = torch.__version__.partition("+")[0]
        if tuple(map(int, number.split(".")[:2])) > (2, 11):
            number = "2.11.0"  # the last torch that a torchaudio was built for
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise UserError(
            f"{purpose}, and torchaudio cannot be loaded beside torch {torch.__version__} ({reason}): "
            f"pip install --force-reinstall torch=={number} torchaudio=={number}"
        ) from error
    return torchaudio


@cache
def _resampler(rate: int) -> Any:
    torchaudio = import_torchaudio(f"a recording at {rate} Hz must be resampled")
    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)  # computes its kernel once


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample int16 (n,) at ``rate`` Hz to int16 (ceil(n * 16000 / rate),) at 16 kHz, with torchaudio's defaults.

    Raises:
        UserError: torchaudio cannot be imported.
    """
    resampler = _resampler(rate)
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
            resampled = resampler(torch.from_numpy(piece))[(start - first) // orig * new :]
            target = out[start // orig * new :][: block // orig * new]
            target[:] = resampled[: len(target)].round_().clamp_(-32768, 32767).to(torch.int16).numpy()
    return out


def _to_16_khz(decoded: Decoded) -> Decoded:
    if decoded.rate == SAMPLE_RATE:
        return decoded
    return replace(decoded, samples=resample(decoded.samples, decoded.rate), rate=SAMPLE_RATE)


# Decoding one file.


def decode_file(path: str | os.PathLike[str]) -> Decoded:
    """Decode ``path`` to 16 kHz in this process.

    Raises:
        AudioError: it cannot be decoded, or there is no speech in it.
        UserError: it must be resampled, and torchaudio cannot be imported.
    """
    return _to_16_khz(_decode(os.fspath(path)))


def _open(file: IO[bytes]) -> Any:
    import av

    # A title need not be UTF-8. PyAV 19 has no such option any more, and does not need it.
    lenient: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(file, "r", options={"format_whitelist": _FORMATS}, **lenient)


def _opened(file: str | os.PathLike[str] | bytes) -> IO[bytes]:
    """Open a file, or the bytes of one, for reading."""
    return io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb")


def header_seconds(file: str | os.PathLike[str] | bytes) -> float | None:
    """Read the duration from a file's header; None if there is none. Fast, but only an estimate for some MP3s."""
    import av

    try:
        with _opened(file) as opened, _open(opened) as container:
            if container.duration is not None and container.streams.audio:
                return container.duration / av.time_base
    except (OSError, ValueError, av.error.FFmpegError):
        pass
    return None


def _decode(source: str | bytes) -> Decoded:
    """Decode a path, or the bytes of a file, at its own rate.

    FFmpeg's messages are on for as long as that takes: they tell what is damaged.
    """
    import av

    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)  # or one that is repeated is reported while the next file is decoded
    try:
        with _opened(source) as file:
            digest = hashlib.blake2b(digest_size=8)
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            if not file.tell():
                raise AudioError("the file is empty")
            decoded = _read(file)
        _require_speech(decoded.samples, decoded.rate)
        return replace(decoded, digest=digest.hexdigest())
    except MemoryError as error:
        raise AudioError("out of memory", final=False) from error
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise AudioError(f"not audio, or a playlist of other files ({reason})") from error
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})", final=False) from error
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)


def _read(file: IO[bytes], channel: int | None = None) -> Decoded:
    """Decode an open file to the mean of its channels, or to one ``channel``."""
    import av

    parts, energies, mixed, damaged, mended = [], np.zeros(1), 0.0, False, False
    file.seek(0)
    with av.logging.Capture(local=False) as messages, _open(file) as container:
        if not container.streams.audio:
            raise AudioError("no audio in it")
        stream = container.streams.audio[0]
        rate = stream.rate
        if rate < MIN_RATE:
            raise AudioError(f"{NO_SPEECH}: sampled at {rate} Hz")
        if max(rate, SAMPLE_RATE) // math.gcd(rate, SAMPLE_RATE) > 2000:
            rate = SAMPLE_RATE  # FFmpeg resamples: torchaudio would need a kernel of gigabytes
        is_float = stream.codec_context.name.startswith("pcm_f")
        for block in _blocks(stream, rate):
            if block is None:
                damaged = True
                continue
            if not np.isfinite(block).all():
                block, damaged = np.nan_to_num(block, nan=0.0, posinf=1.0, neginf=-1.0), True
            mono = block.mean(axis=0) if channel is None else block[channel]
            energies = energies + np.einsum("ij,ij->i", block, block)
            mixed += float(mono @ mono)
            parts.append(mono if is_float else _to_int16(mono))
            # A header may state more than fits in memory, so only what is decoded counts.
            if len(parts) * _BLOCK > MAX_SECONDS * rate:
                raise AudioError(f"longer than {MAX_SECONDS / 3600:g} h")
        header = (container.duration or 0) / av.time_base
    if channel is None and mixed < energies.max() / 100:
        # The channels cancel out: their mean is 20 dB below the loudest, so only the loudest is used.
        loudest = int(np.argmax(energies >= 0.999 * energies.max()))  # the first of equals, despite rounding
        return replace(_read(file, loudest), mended=True)
    samples = np.concatenate(parts) if parts else np.empty(0, np.int16)
    if is_float:
        scale = _float_scale(samples)
        samples, mended = _to_int16(samples / np.float32(scale)), scale != 1
    estimated = any(_ESTIMATED in text for _, _, text in messages)
    damaged |= any(_ESTIMATED not in text for _, _, text in messages)
    damaged |= not estimated and len(samples) / rate < header - 0.1
    return Decoded(samples, rate, damaged, mended)


def _blocks(stream: Any, rate: int) -> Iterator[np.ndarray | None]:
    """Decode to blocks of float32 (channels, n) at ``rate``, most of :data:`_BLOCK` samples or a little more.

    None stands for what cannot be decoded. Rate and channels may change within a file: the first frame's are kept.
    """
    import av

    layout: Any = None
    resampler: Any = None
    setup = None
    parts: list[np.ndarray] = []
    length = 0
    try:
        for packet in stream.container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                yield None
                continue
            for frame in frames:
                layout = layout or frame.layout
                if setup != (setup := (frame.format.name, frame.layout.name, frame.sample_rate)):
                    parts += [each.to_ndarray() for each in resampler.resample(None)] if resampler else []
                    resampler = av.AudioResampler("fltp", layout, rate)
                parts += [each.to_ndarray() for each in resampler.resample(frame)]
                length += frame.samples
            if length >= _BLOCK:
                yield np.concatenate(parts, axis=1)
                parts, length = [], 0
    except av.error.FFmpegError:
        if layout is None:
            raise
        yield None
    parts += [each.to_ndarray() for each in resampler.resample(None)] if resampler else []
    if parts:
        yield np.concatenate(parts, axis=1)


def _require_speech(samples: np.ndarray, rate: int) -> None:
    """Raise :class:`AudioError` if int16 (n,) is too short, silent, or clipped beyond recognition."""
    if len(samples) < rate / 10:
        raise AudioError(f"{NO_SPEECH}: shorter than 0.1 s ({len(samples)} samples at {rate} Hz)")
    offset, quiet = int(np.mean(samples)), 32  # 60 dB below full scale
    if np.count_nonzero((samples > offset + quiet) | (samples < offset - quiet)) < rate / 50:
        raise AudioError(f"{NO_SPEECH}: silence")
    clipped = float(np.mean((samples >= 32700) | (samples <= -32700)))
    if clipped > 0.3:
        raise AudioError(f"{NO_SPEECH}: {100 * clipped:.0f} % of the samples are at full scale")


def _float_scale(mono: np.ndarray) -> float:
    """Return the full scale of float samples: 1, or a larger one if more than 1 % of the samples are above 1."""
    if not len(mono) or np.mean(np.abs(mono) > 1) <= 0.01:
        return 1.0
    peak = float(np.abs(mono).max())
    for scale in (peak if peak < 128 else 0.0, 2.0**15, 2.0**23, 2.0**31):
        if peak <= scale:
            return scale
    raise AudioError(f"{NO_SPEECH}: samples of up to {peak:.0e}")


def _to_int16(samples: np.ndarray) -> np.ndarray:
    """Convert float32 in [-1, 1] to int16, rounded and clipped; samples that were 16-bit are restored exactly."""
    scaled = samples * np.float32(32768)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)


# Many files at once.


def decode_files(
    files: Iterable[str | os.PathLike[str] | bytes | AudioError], workers: int
) -> Generator[Decoded | AudioError, None, None]:
    """Decode ``files`` in up to ``workers`` processes; yield a result for each, at 16 kHz, in the order of ``files``.

    Each is a path, the bytes of a file, or the reason why there are none, which is then the result.
    A file on which its worker dies is tried once more in a new worker; if that dies too, or takes too long, the result
    is an :class:`AudioError`. Only a little is decoded ahead: see :data:`AHEAD`. Close the iterator
    (``contextlib.closing``) if it may be left early.

    Raises:
        UserError: a file must be resampled, and torchaudio cannot be imported.
    """
    pool = [_Worker() for _ in range(max(1, min(workers, os.cpu_count() or 1)))]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in pool:
        idle.put(worker)

    def decode(file: str | bytes | AudioError, size: int) -> Decoded | AudioError:
        if isinstance(file, AudioError):
            return file
        worker = idle.get()
        try:
            return worker.decode(file, size)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(len(pool))  # wait for results, and resample
    waiting: deque[tuple[Future[Decoded | AudioError], int]] = deque()
    try:
        for each in files:
            file = each if isinstance(each, bytes | AudioError) else os.fspath(each)
            size = len(file) if isinstance(file, bytes) else 0
            if isinstance(file, str) and os.path.exists(file):
                size = os.path.getsize(file)
            # Queue more than are being decoded, so that one long recording does not leave workers idle.
            while len(waiting) == 4 * len(pool) or (waiting and sum(each[1] for each in waiting) + size > AHEAD):
                yield waiting.popleft()[0].result()
            waiting.append((threads.submit(decode, file, size), size))
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        for worker in pool:
            worker.stop()
        threads.shutdown(cancel_futures=True)
        for worker in pool:
            worker.end()


class _Worker:
    """A decoding process, started on demand and again after a crash, with pipes that carry pickles."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def decode(self, file: str | bytes, size: int) -> Decoded | AudioError:
        """Decode a path, or the bytes of a file; a crash or a timeout of the process becomes an :class:`AudioError`."""
        code = 0
        for _ in range(2):
            if self.stopped:
                break
            try:
                answer = self._ask(file, DEADLINE + size // 200_000)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                code = self.end()
                if code == -signal.SIGALRM:
                    return AudioError("decoding it took too long", final=False)
            except OSError as error:
                return AudioError(f"no process can be started to decode it ({error.strerror})", final=False)
            else:
                return _to_16_khz(Decoded(**answer)) if "samples" in answer else AudioError(**answer)
        # Other signals come from outside: SIGKILL if memory is short.
        final = -code in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        return AudioError(f"the decoder crashed on it ({reason})", final=final)

    def _ask(self, file: str | bytes, deadline: int) -> dict[str, Any]:
        if self.process is None:
            start = "import sys, runpy; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
            self.process = subprocess.Popen(
                [sys.executable, "-c", start, os.path.abspath(__file__), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                start_new_session=True,  # so that Ctrl-C reaches only the parent
            )
        assert self.process.stdin and self.process.stdout
        _send(self.process.stdin, (file, deadline))
        return pickle.load(self.process.stdout)

    def stop(self) -> None:
        """Kill the process, so that a thread that waits for it continues, and start no other."""
        self.stopped = True
        if process := self.process:
            process.kill()

    def end(self) -> int:
        """Wait for the process, which has died or was stopped, and return its exit code."""
        code = 0
        if self.process:
            with suppress(BrokenPipeError), self.process:  # closes its pipes
                code = self.process.wait()
            self.process = None
        return code


def _serve() -> None:
    """Run a worker: answer requests until standard input ends, which means that the parent has ended."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that output of a library is not taken for a result
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends this process, even inside a C library
    while True:
        source, deadline = pickle.load(sys.stdin.buffer)
        signal.alarm(deadline)
        try:
            answer = vars(_decode(source))
        except AudioError as error:
            answer = {"message": str(error), "final": error.final}
        signal.alarm(0)
        _send(answers, answer)


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe, protocol=5)
    pipe.flush()


if __name__ == "__main__":
    with suppress(EOFError, BrokenPipeError):  # the parent has ended
        _serve()
