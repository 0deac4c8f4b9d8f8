"""Keep decoded recordings on disk: 16 kHz mono int16, one ``.npy`` file each, memory-mapped when read.

Decoding a 10 s ayah takes 5 to 15 ms, and reading it from here 0.1 ms. The recordings of a folder of sources are in

    <cache>/<name of the folder>-<8 hex digits of its path>/
        <source>-<digest>-<samples>.npy    "-damaged.npy", "-mended.npy": see audio.py
        <source>-failed.json               why the source cannot be used

where <source> consists of the source's file name (hashed), size, modification time and the decoder's version, so that a
changed source is decoded again, and <digest> is that of its bytes. The rows of a parquet file are sources in a folder.
Recordings are kept whole: pieces are cut when they are read. One listing of the folder finds all recordings. A file is
written under a temporary name and renamed, and is used only if its size matches its samples, so neither a killed
process nor a power cut leaves half a recording. Only one process decodes at a time; readers need no lock,
because files are never changed.
"""

import fcntl
import hashlib
import json
import math
import mmap
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache as memoized
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..runtime.console import Log, format_duration, format_size, no_log, progress_bar
from ..runtime.errors import UserError
from ..runtime.files import check_folder, replacing
from .audio import MAX_SECONDS, SAMPLE_RATE, AudioError, Decoded, Part, as_part, decode_files, header_seconds
from .parquet import read_recordings

DECODER_VERSION = 4
BYTES_PER_SAMPLE = 2
_HEADER_BYTES = 128  # of a .npy with one axis
# source, then digest, samples, damaged, mended
_NAME = re.compile(r"(.+)-(?:([0-9a-f]{16})-([0-9]+)(-damaged)?(-mended)?\.npy|failed\.json)")
_PAST_THE_END = 0.1  # seconds that a piece may end after its recording: times are rounded


class Clip(NamedTuple):
    """A cached recording: the path of its ``.npy`` file, its number of samples, and the digest of its source.

    A piece of a recording has its first sample, and its digest has its place.
    """

    file: str
    length: int
    digest: str = ""
    start: int = 0


@dataclass(frozen=True)
class AudioCache:
    """Decoded recordings, by the path of their source file as given to :func:`prepare_audio`.

    It holds paths, not samples: it is small, and can be pickled or forked into loader processes.
    """

    clips: dict[str, Clip]
    skipped: list[tuple[Path | Part, str]]  # those that cannot be decoded, and why
    damaged: list[Path | Part]  # those that were decoded although parts of the file are broken
    mended: list[Path | Part] = field(default_factory=list)  # whose channels cancelled out, or with another scale

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        return os.fspath(path) in self.clips

    def length(self, path: str | os.PathLike[str]) -> int:
        """Return the number of samples at 16 kHz."""
        return self.clips[os.fspath(path)].length

    def digest(self, path: str | os.PathLike[str]) -> str:
        """Return the digest of the source's bytes."""
        return self.clips[os.fspath(path)].digest

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Memory-map the samples, int16 (n,), read-only; the file is closed with the array.

        Raises:
            UserError: the cached file was removed.
        """
        file, length, _, start = self.clips[os.fspath(path)]
        try:
            with open(file, "rb") as opened:
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            return np.frombuffer(mapped, np.int16, length, _HEADER_BYTES + BYTES_PER_SAMPLE * start)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} was removed while in use ({error}): run the command again") from error


def default_cache() -> Path:
    """Return the folder of decoded recordings that is used without ``--cache``.

    Raises:
        UserError: there is no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "whisper_quran"
    except RuntimeError:
        raise UserError("there is no home folder to keep decoded recordings in: name a folder with --cache") from None


@dataclass
class _Source:
    """An audio file, or row, and its entry in the cache: a ``recording``, or the ``reason`` why it cannot be used."""

    audio: Part
    reciter: str
    size: int = 0
    folder: Path = Path()
    key: str = ""  # prefix of the names of its files in the cache
    recording: re.Match[str] | None = None  # the file's name, see _NAME
    reason: str = ""

    @property
    def is_missing(self) -> bool:
        return not self.recording and not self.reason


def prepare_audio(
    sources: Mapping[str, Sequence[Path | Part]], cache: Path, workers: int, log: Log = print
) -> AudioCache:
    """Decode the ``sources`` (reciter -> audio files or parts of files) that ``cache`` lacks, and return what it holds.

    Use up to ``workers`` processes. If another process is decoding into ``cache``, wait for it first. If nothing is
    missing, nothing is logged or written: the cache may then be read-only.

    Raises:
        UserError: the cache cannot be written or has too little space, or a file must be resampled without torchaudio.
    """
    wanted = {audio: reciter for reciter, each in sources.items() for audio in each}
    by_whole = _identify({as_part(audio).whole: reciter for audio, reciter in wanted.items()}, cache)
    files = list(by_whole.values())
    try:
        _look_up(files)
        if any(file.is_missing for file in files):
            with _locked(cache, log):
                _look_up(files)
                missing = [file for file in files if file.is_missing]
                if missing:
                    missing.sort(key=lambda file: (file.audio.column and str(file.audio.path), file.audio.row))
                    _announce(missing, cache, log)
                    _decode(missing, workers, log)
    except OSError as error:
        raise UserError(f"cannot write {cache}: {error.strerror or error} (--cache)") from error
    found = AudioCache({}, [], [])
    for audio in wanted:
        part = as_part(audio)
        file = by_whole[part.whole]
        if not file.recording:
            found.skipped.append((audio, file.reason))
            continue
        _, digest, samples, damaged, mended = file.recording.groups()
        clip = Clip(str(file.folder / file.recording[0]), int(samples), digest)
        if part != part.whole:
            seconds = clip.length / SAMPLE_RATE
            if part.start > seconds - _PAST_THE_END or seconds + _PAST_THE_END < part.end < math.inf:
                found.skipped.append((audio, f"the piece is not in the recording, which has {seconds:.2f} s"))
                continue
            start, end = (round(min(time, seconds) * SAMPLE_RATE) for time in (part.start, part.end))
            clip = Clip(clip.file, end - start, f"{digest}-{start}-{end}", start)
        found.clips[os.fspath(audio)] = clip
        if damaged:
            found.damaged.append(audio)
        if mended:
            found.mended.append(audio)
    return found


def _identify(reciters: Mapping[Part, str], cache: Path) -> dict[Part, _Source]:
    """Make a :class:`_Source` of every recording (given with its reciter): with its place in ``cache``, or a reason."""
    stat_once, real_once = memoized(os.stat), memoized(os.path.realpath)
    files = {audio: _Source(audio, reciter) for audio, reciter in reciters.items()}
    for audio, file in files.items():
        try:
            status = stat_once(audio.path)
        except OSError as error:
            file.reason = f"cannot be read ({error.strerror})"
            continue
        if not stat.S_ISREG(status.st_mode):
            file.reason = "is not a regular file"
            continue
        parent, name = os.path.split(os.path.abspath(audio.path))
        if audio.column:
            parent, name = os.path.join(parent, name), str(audio.row)
        real = real_once(parent)
        readable = re.sub(r"[^\w.-]", "_", os.path.basename(real))[:60]
        file.size, file.folder = audio.size or status.st_size, cache / f"{readable}-{_hash(real, 4)}"
        file.key = f"{_hash(name, 8)}-{status.st_size}-{status.st_mtime_ns}-v{DECODER_VERSION}"
    return files


def _hash(name: str, size: int) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=size).hexdigest()


def _look_up(files: Sequence[_Source]) -> None:
    """Find the cache entries of ``files`` by listing their folders."""
    listings = {folder: _list(folder) for folder in {file.folder for file in files if file.is_missing}}
    for file in files:
        if not file.is_missing or not (found := listings[file.folder].get(file.key)):
            continue
        if found[0].endswith(".npy"):
            file.recording = found
        else:
            with suppress(OSError, ValueError, LookupError, TypeError):
                file.reason = str(json.loads((file.folder / found[0]).read_bytes())["reason"])


def _list(folder: Path) -> dict[str, re.Match[str]]:
    """Return the entries of ``folder``: the names of the files, matched by ``_NAME``, by the key of their source."""
    names = {}
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name and (not name[3] or entry.stat().st_size == _HEADER_BYTES + BYTES_PER_SAMPLE * int(name[3])):
                names[name[1]] = name
    return names


def _announce(missing: Sequence[_Source], cache: Path, log: Log) -> None:
    """Log the amount to decode; raise a :class:`UserError` if it clearly does not fit on the disk."""
    seconds = _estimate_seconds(missing)
    size = seconds * SAMPLE_RATE * BYTES_PER_SAMPLE
    free = shutil.disk_usage(check_folder(cache)).free
    if size > 1.2 * free:
        raise UserError(
            f"decoding needs about {format_size(size)} in {cache}, where {format_size(free)} are free: "
            "free some disk space or choose another folder (--cache)"
        )
    files = f"{len(missing)} file{'s' if len(missing) > 1 else ''}"
    reciters = {file.reciter for file in missing}
    names = missing[0].reciter if len(reciters) == 1 else f"{len(reciters)} reciters"
    log(f"Decoding {files} of {names}, about {format_duration(seconds)} of audio: {format_size(size)} in {cache}")


def _estimate_seconds(missing: Sequence[_Source]) -> float:
    """Estimate the total duration of the files, from their sizes and the headers of 64 of them."""
    # To find a row, those before it in its group are read: that takes longer than a header.
    sample = missing[:: -(-len(missing) // (8 if missing[-1].audio.column else 64))]
    seconds, size = 0.0, 0
    for file, content in zip(sample, _contents(sample), strict=True):
        if not isinstance(content, AudioError) and (duration := header_seconds(content)) is not None:
            bytes_read = len(content) if isinstance(content, bytes) else file.size
            # A wrong header must not dominate: no speech codec takes less than 500 bytes a second.
            seconds, size = seconds + min(duration, bytes_read / 500, MAX_SECONDS), size + bytes_read
    seconds_per_byte = seconds / size if size else 1 / 16000  # 128 kbit/s, if no header tells it
    return seconds_per_byte * sum(file.size for file in missing)


def _contents(files: Iterable[_Source]) -> Iterator[Path | bytes | AudioError]:
    """Yield what :func:`.audio.decode_files` decodes: paths, and the bytes of rows, which are read as they are needed.

    The rows of a parquet file are together, and in order.
    """
    for (path, column), each in groupby(files, key=lambda file: (file.audio.path, file.audio.column)):
        yield from read_recordings(path, column, [file.audio.row for file in each]) if column else [path]


def _decode(missing: Sequence[_Source], workers: int, log: Log) -> None:
    """Decode ``missing`` into the cache. A failure that is not final is not written to the cache."""
    started, seconds = time.monotonic(), 0.0
    with (
        closing(decode_files(_contents(missing), workers)) as results,
        progress_bar(len(missing), "file", "Decoding", disable=log is no_log) as bar,
    ):
        for file, result in zip(missing, results, strict=True):
            if isinstance(result, Decoded):
                marks = ("-damaged" if result.damaged else "") + ("-mended" if result.mended else "")
                name = f"{file.key}-{result.digest}-{len(result.samples)}{marks}.npy"
                try:
                    _write(file.folder / name, result.samples)
                    file.recording = _NAME.fullmatch(name)
                except (IsADirectoryError, FileExistsError, NotADirectoryError) as error:  # not the disk's fault
                    file.reason = f"cannot be kept in {file.folder / name} ({error.strerror})"
                seconds += len(result.samples) / SAMPLE_RATE
            else:
                file.reason = str(result)
                if result.final:
                    with suppress(IsADirectoryError):
                        _write(file.folder / f"{file.key}-failed.json", json.dumps({"reason": file.reason}))
            bar.set_postfix_str(f"{seconds / (time.monotonic() - started):.0f}x real time", refresh=False)
            bar.update()


def _write(path: Path, content: np.ndarray | str) -> None:
    """Write a file of the cache under a temporary name, and rename it.

    There is no fsync, which would take longer than decoding: a file that a power cut truncates is decoded again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        if isinstance(content, str):
            file.write(content.encode())
        else:
            header = np.lib.format.header_data_from_array_1_0(content)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(content.data)


@contextmanager
def _locked(cache: Path, log: Log) -> Iterator[None]:
    """Lock ``cache`` for decoding. The lock is released however the process that holds it ends."""
    with suppress(FileExistsError):
        cache.mkdir(parents=True)
    with open(cache / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"Waiting for another process that is decoding into {cache}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # some network disks have no locks: then two processes only do the same work twice
        yield
