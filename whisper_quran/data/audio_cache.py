"""AudioCache, decoded once: 16 kHz mono int16 on disk, which every later run maps into memory.

Decoding a 10 s ayah takes 5 to 15 ms, and reading it from here 0.1 ms. So the first use of a reciter decodes all that
is wanted of it, into one folder under the cache:

    <cache>/<reciter>-<8 hex digits>/
        index.jsonl             the name of the audio file, then a line for each source file; append-only
        <8 hex digits>.int16    the samples of all recordings, one after the other; append-only
        lock                    held by the process that appends

The digits in the folder's name stand for this format, the reciter and the resolved folder of the sources: two data
sets, or two versions of the format, are never taken for each other. A line of the index has a source file (relative to
that folder), its size and modification time, and where its samples are or why it has none. A source that has changed
is decoded again, and its newest line counts.

**Whatever happens, the index is true.** Lines are appended once their samples are safe on disk (fsync), a batch at a
time. A process killed at any instant leaves at most a torn line, and samples that no line speaks of; both are cut off
before the next append. Lines that cannot be read, or that point beyond the end of the audio, are struck out, and their
files decoded again. Results are written in the order of the sources, so that any number of workers, interrupted or
not, writes the same samples to the same places.

**Readers need no lock**, because samples that a line speaks of are never moved or overwritten. That is also why
superseded samples are not squeezed out: they come from changed sources alone, and when they are most of a file, that
is said; deleting the folder is the remedy. If that is done during a training run, the next preparation writes an audio
file of another name, and the run stops rather than read other ayat under the old offsets.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..runtime.errors import UserError
from ..runtime.files import atomic_write, make_folder, storage_error
from .audio import SAMPLE_RATE, AudioError, Decoded, WorkerError, decode_files, header_seconds, torchaudio_problem

FORMAT = 1
BYTES_PER_SAMPLE = 2
COMMIT_SECONDS = 1.0


class Clip(NamedTuple):
    """Where a recording's samples are: ``length`` of them from the ``offset``-th of ``file`` on."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class AudioCache:
    """Decoded recordings, by the path of their source file as it was given to :func:`prepare`.

    Holds places, not samples: it is small, and can be pickled or forked into loader processes.
    """

    clips: dict[str, Clip]
    skipped: list[tuple[Path, str]]  # What could not be decoded, and every decoder's reason.
    damaged: list[Path]  # What was decoded although parts of the file are broken.

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        return os.fspath(path) in self.clips

    def length(self, path: str | os.PathLike[str]) -> int:
        """Samples at 16 kHz."""
        return self.clips[os.fspath(path)].length

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """The samples, int16 (n,), read-only: mapped while the array lives, so memory does not grow with reading."""
        file, offset, length = self.clips[os.fspath(path)]
        return np.memmap(file, np.int16, "r", offset=offset * BYTES_PER_SAMPLE, shape=(length,))


def default_cache() -> Path:
    """Where decoded recordings are kept unless ``--cache`` says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "whisper_quran"


def prepare_audio(
    sources: Mapping[str, Sequence[Path]], cache: Path, workers: int, *, quiet: bool = False
) -> AudioCache:
    """See to it that ``sources`` (reciter -> audio files) are decoded in ``cache``, and return where they are.

    What is not there yet is decoded in up to ``workers`` processes; where another process is at a reciter, it is waited
    for. Says what it does unless ``quiet``; where nothing is missing, nothing is said or written.

    Raises:
        UserError: the cache cannot be written or has too little space, or the decoding processes cannot run.
    """
    folders = [_Folder(reciter, files, cache) for reciter, files in sources.items() if files]
    with ExitStack() as locks:
        # In one order for all processes, so that no two wait for each other.
        for folder in sorted(folders, key=lambda folder: folder.path):
            if folder.missing():
                locks.enter_context(_locked(folder, quiet))
                folder.load()
        unfinished = [folder for folder in folders if folder.missing()]
        if unfinished:
            _announce(unfinished, cache, quiet)
            _decode(unfinished, workers, quiet)
    recordings = AudioCache({}, [], [])
    for folder in folders:
        folder.report(recordings)
    return recordings


def _announce(folders: Sequence["_Folder"], cache: Path, quiet: bool) -> None:
    """Say what decoding will take, and refuse what clearly does not fit on the disk."""
    seconds = sum(folder.estimate_seconds() for folder in folders)
    size = seconds * SAMPLE_RATE * BYTES_PER_SAMPLE
    free = shutil.disk_usage(cache).free
    if size > 1.2 * free:
        raise UserError(
            f"decoding needs about {_size(size)} in {cache}, where {_size(free)} are free: "
            "free some disk space or choose another folder (--cache)"
        )
    if not quiet:
        count = sum(len(folder.missing()) for folder in folders)
        files = f"{count} file{'s' if count > 1 else ''}"
        reciters = folders[0].reciter if len(folders) == 1 else f"{len(folders)} reciters"
        hours = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
        print(f"Decoding {files} of {reciters}, about {hours}: {_size(size)} in {cache}", flush=True)
        if problem := torchaudio_problem():
            print(f"{problem}: ffmpeg decodes what is not at {SAMPLE_RATE} Hz", flush=True)


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _decode(folders: Sequence["_Folder"], workers: int, quiet: bool) -> None:
    """Decode what is missing in ``folders``, which are locked, with the same workers for all of them."""
    files = [file for folder in folders for file in folder.missing()]
    started, seconds = time.monotonic(), 0.0
    try:
        with (
            closing(decode_files(files, workers)) as results,
            tqdm(total=len(files), desc="Decoding", unit="file", disable=quiet) as bar,
        ):
            for folder in folders:
                with _Writer(folder) as writer:
                    for file in folder.missing():
                        result = next(results)
                        writer.add(file, result)
                        if isinstance(result, Decoded):
                            seconds += len(result.samples) / SAMPLE_RATE
                        bar.set_postfix_str(f"{seconds / (time.monotonic() - started):.0f}x real time", refresh=False)
                        bar.update()
                if folder.superseded() > folder.end / 2 and not quiet:
                    bar.write(f"Most of {folder.path} is superseded: delete it to free the space")
    except WorkerError as error:
        raise UserError(
            f"decoding processes keep dying ({error}): free memory, try fewer --workers, or leave that file out"
        ) from error


class _Source(NamedTuple):
    """A source file: its path below the folder that they share, and by what a change is noticed."""

    path: str
    size: int
    mtime_ns: int


class _Record(NamedTuple):
    """A line of the index, what became of a source: samples, or the ``reason`` why there are none."""

    path: str
    size: int
    mtime_ns: int
    offset: int = 0
    length: int = 0
    decoder: str = ""
    damaged: bool = False
    reason: str = ""


class _Folder:
    """A reciter's folder in the cache, and the source files that are wanted from it."""

    def __init__(self, reciter: str, files: Sequence[Path], cache: Path):
        self.reciter = reciter
        self.sources: dict[str, _Source] = {}
        self.failed: dict[str, str] = {}  # Why a file has no samples, for this run alone.
        absolute = {os.fspath(file): os.path.abspath(file) for file in files}
        root = os.path.commonpath({os.path.dirname(path) for path in absolute.values()})
        for file, path in absolute.items():
            try:
                status = os.stat(path)
            except OSError as error:
                self.failed[file] = f"cannot be read ({error.strerror})"
                continue
            if stat.S_ISREG(status.st_mode):
                self.sources[file] = _Source(path[len(root) :].lstrip(os.sep), status.st_size, status.st_mtime_ns)
            else:
                self.failed[file] = "is not a regular file"
        identity = json.dumps([FORMAT, reciter, os.path.realpath(root)])
        name = re.sub(r"[^\w.-]", "_", reciter)[:60]
        self.path = cache / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        self.index = self.path / "index.jsonl"
        self.load()

    def load(self) -> None:
        """Read the index as it is on disk, and keep of it what is true."""
        self.audio: Path | None = None
        self.records: dict[str, _Record] = {}
        self.end = 0  # Samples, from the beginning of the audio file, that the index speaks of.
        self.intact = False  # Whether all of the index is true.
        with _disk(self.path):
            try:
                header, *lines = self.index.read_bytes().splitlines(keepends=True)
                audio = self.path / json.loads(header)["audio"]
                there = audio.stat().st_size // BYTES_PER_SAMPLE
            except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
                return
        self.audio = audio
        records = [_parse(line, there) for line in lines]
        self.intact = None not in records
        for record in filter(None, records):
            self.records[record.path] = record
            self.end = max(self.end, record.offset + record.length)

    def missing(self) -> list[str]:
        """The files that are yet to be decoded, or have changed since they were."""
        return [file for file in self.sources if file not in self.failed and self._record(file) is None]

    def _record(self, file: str) -> _Record | None:
        source = self.sources[file]
        record = self.records.get(source.path)
        return record if record and record[:3] == source else None

    def estimate_seconds(self) -> float:
        """How long the missing files are together, from their sizes and the headers of 16 of them."""
        missing = self.missing()
        seconds, size = 0.0, 0
        for file in missing[:: -(-len(missing) // 16)]:
            if (length := header_seconds(file)) is not None:
                seconds, size = seconds + length, size + self.sources[file].size
        seconds_per_byte = seconds / size if size else 1 / 16000  # 128 kbit/s, where soundfile knows none of them.
        return seconds_per_byte * sum(self.sources[file].size for file in missing)

    def superseded(self) -> int:
        """Samples in the audio file that no line speaks of any more."""
        return self.end - sum(record.length for record in self.records.values())

    def report(self, recordings: AudioCache) -> None:
        """Enter into ``recordings`` what became of the files."""
        recordings.skipped.extend((Path(file), reason) for file, reason in self.failed.items())
        for file in self.sources:
            if file in self.failed:
                continue
            record = self._record(file)
            if record.reason:
                recordings.skipped.append((Path(file), record.reason))
            else:
                recordings.clips[file] = Clip(str(self.audio), record.offset, record.length)
            if record.damaged:
                recordings.damaged.append(Path(file))


def _line(record: _Record) -> str:
    return json.dumps(record._asdict()) + "\n"


def _parse(line: bytes, there: int) -> _Record | None:
    """A line of the index; None where it is torn or garbled, or its samples are not among those ``there``."""
    try:
        record = _Record(**json.loads(line))
        true = 0 <= record.offset <= record.offset + record.length <= there and (record.length or record.reason)
    except (ValueError, TypeError):
        return None
    return record if true and line.endswith(b"\n") else None


class _Writer:
    """Appends to a locked folder: samples at once and, in batches, when they are safe on disk, the lines for them."""

    def __init__(self, folder: _Folder):
        self.folder = folder
        self.pending: list[_Record] = []
        with _disk(folder.path):
            if folder.audio is None:
                for orphan in folder.path.glob("*.int16"):
                    orphan.unlink()
                folder.audio = folder.path / f"{secrets.token_hex(4)}.int16"
            if not folder.intact:
                with atomic_write(folder.index) as file:
                    file.write(json.dumps({"audio": folder.audio.name}) + "\n")
                    file.writelines(_line(record) for record in folder.records.values())
            self.audio = os.open(folder.audio, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            self.index = os.open(folder.index, os.O_WRONLY | os.O_APPEND)
        self._mark()
        os.ftruncate(self.audio, self.whole[0])

    def _mark(self) -> None:
        """Remember how much of the two files is whole, and when that was."""
        self.whole = self.folder.end * BYTES_PER_SAMPLE, os.fstat(self.index).st_size
        self.marked = time.monotonic()

    def add(self, file: str, result: Decoded | AudioError) -> None:
        """Append what ``file`` came to. A reason that need not last is kept for this run alone."""
        folder, source = self.folder, self.folder.sources[file]
        if isinstance(result, Decoded):
            record = _Record(*source, folder.end, len(result.samples), result.decoder, result.damaged)
            with _disk(folder.path):
                _write(self.audio, result.samples)
            folder.end += record.length
        elif result.final:
            record = _Record(*source, reason=str(result))
        else:
            folder.failed[file] = str(result)
            return
        folder.records[source.path] = record
        self.pending.append(record)
        if time.monotonic() - self.marked > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make what was added last."""
        with _disk(self.folder.path):
            os.fsync(self.audio)
            _write(self.index, "".join(map(_line, self.pending)).encode())
            os.fsync(self.index)
        self.pending.clear()
        self._mark()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or not issubclass(kind, UserError):  # Ctrl-C loses nothing; a full disk takes no more.
                self.commit()
        finally:
            for descriptor, size in zip((self.audio, self.index), self.whole, strict=True):
                os.ftruncate(descriptor, size)
                os.close(descriptor)


def _write(descriptor: int, data: bytes | np.ndarray) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def _locked(folder: _Folder, quiet: bool) -> Iterator[None]:
    """Hold the folder's lock. However a process that held it ends, the lock is free again."""
    with _disk(folder.path):
        make_folder(folder.path)
        file = open(folder.path / "lock", "w")  # noqa: SIM115
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not quiet:
                    print(f"Waiting for another process that is decoding {folder.reciter}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(f"cannot lock {file.name} ({error.strerror}): choose another folder (--cache)") from error
        yield


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """What the disk refuses, as the user must hear it."""
    try:
        yield
    except (OSError, UserError) as error:
        told = storage_error(error, path) if isinstance(error, OSError) else error
        if isinstance(told, UserError):
            raise UserError(f"{told} (--cache)") from error
        raise
