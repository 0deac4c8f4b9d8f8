"""Atomic file writes, folders and locks, and the rule for what a command may write.

A reader sees the old or the new content of a file, even after a crash.
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import UserError


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the block, which writes ``path``, into a :class:`UserError` that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Write as :func:`replacing`, but flush the file to disk before it is renamed; an OSError is a UserError."""
    with writing(path), replacing(path, mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path``; if the block succeeds, rename it to ``path``.

    Text is UTF-8 with ``\\n`` line ends. If the block raises, ``path`` is unchanged and the temporary file is removed.
    A power cut may truncate the renamed file: :func:`atomic_write` prevents that, but is slower.
    """
    path = Path(path)
    # The end of a long name, as the whole might exceed what a file system takes (255 bytes) with what is added.
    temporary = path.with_name(f".{path.name[-60:]}.{secrets.token_hex(4)}.tmp")
    # backslashreplace, because text files here may hold file names, which need not be UTF-8.
    text: dict[str, Any] = {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}
    try:
        with open(temporary, mode, **({} if "b" in mode else text)) as file:
            yield file
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it is gone or cannot be removed: the first error matters more
            temporary.unlink()


def sync(path: str | os.PathLike[str]) -> None:
    """Flush a file's content, or a folder's entries, to disk; do nothing if it does not exist."""
    try:
        number = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create the folder ``path`` (and its parents) unless it exists, and return it; an OSError is a UserError."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def check_folder(path: str | os.PathLike[str]) -> Path:
    """Raise the errors of :func:`make_folder`, but create nothing; return the nearest folder that exists."""
    absolute = Path(os.path.abspath(path))
    existing = next(folder for folder in (absolute, *absolute.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise UserError(f"cannot write {path}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {existing} is not writable")
    return existing


def lock_folder(folder: Path, writer: str, option: str = "--out") -> IO[str]:
    """Make ``folder`` and lock it, if its file system has locks, until the returned file is closed.

    Raises:
        UserError: another ``writer`` holds the lock, or the folder cannot be written.
    """
    with writing(folder):
        file = open(make_folder(folder) / ".lock", "a")  # noqa: SIM115 (the caller closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another {writer} is writing {folder}: wait for it, or choose another {option}") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
    return file


def check_outputs(
    outputs: Iterable[str | os.PathLike[str]],
    inputs: Iterable[str | os.PathLike[str]],
    mark: bytes = b"",
) -> None:
    """Check, before any work is done, that writing ``outputs`` loses nothing but our own earlier output.

    Args:
        inputs: all files and folders that the command reads. A path that does not exist (a Whisper name) is ignored;
            a new file inside a folder that is read is fine.
        mark: bytes among the first 64 KiB of every file of this kind that we write, and of no other: an existing file
            with them is our own earlier output, and may be replaced. ``b""``: anything may, unless it is an input.

    Raises:
        UserError: an output is the same file as an input (under another name, through a link or in another case, too)
            or a folder that holds one; something else has its place; or its folder cannot be written.
    """
    read = {}
    for source in map(Path, inputs):
        if source.exists():
            for path in (source, *Path(os.path.abspath(source)).parents, *source.resolve().parents):
                read[_identity(path)] = source
    for output in map(Path, outputs):
        check_folder(output.parent)
        if output.exists() and _identity(output) in read:
            source = read[_identity(output)]
            raise UserError(f"{output} is, or holds, {source}, which is read: choose another name for the output")
        if mark and os.path.lexists(output) and not _is_own(output, mark):
            raise UserError(f"{output} is there already, and is not this command's own: choose another name")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_own(path: Path, mark: bytes) -> bool:
    """Return True for a regular file that is empty or has ``mark`` near its start."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    return not head or mark in head
