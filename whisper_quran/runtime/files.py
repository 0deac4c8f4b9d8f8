"""Atomic file writes, locks and folders. A reader sees the old or the new content of a file, even after a crash."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import UserError

# Errors that another folder would not have.
_MENDABLE = {getattr(errno, name) for name in "EACCES EPERM EROFS ENOENT ENAMETOOLONG EIO EISDIR ENOTDIR ELOOP".split()}


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Write as :func:`replacing`, but flush the file to disk before it is renamed.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        with replacing(path, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(error, path) from error


def check_outputs(
    outputs: Iterable[str | os.PathLike[str]],
    inputs: Iterable[str | os.PathLike[str]],
    mark: bytes | None = None,
) -> None:
    """Check, before any work is done, that writing ``outputs`` loses nothing but our own earlier output.

    Every command calls this for each kind of file (or whole folder) that it writes, once its options are parsed::

        check_outputs([config.html], [*config.files, config.text, config.model], mark=b'content="whisper_quran"')
        check_outputs([out / "results.md"], config.models, mark=b"| model |")
        check_outputs([dest], [source], mark=b"" if force else None)

    Args:
        inputs: all files and folders that the command reads. A path that does not exist (a Whisper name) is ignored;
            a new file inside a folder that is read is fine.
        mark: bytes among the first 64 KiB of every file of this kind that we write, and of no other: an existing file
            with them is our own earlier output, and may be replaced. None: nothing may be replaced. ``b""``, for
            --force: anything may, unless it is an input.

    Raises:
        UserError: an output is the same file as an input (under another name, through a link or in another case, too)
            or a folder that holds one; something else has its place; or its folder cannot be written.
    """
    read = {}
    for source in map(Path, inputs):
        if source.exists():
            for path in (source, *Path(os.path.abspath(source)).parents, *source.resolve().parents):
                status = path.stat()
                read[status.st_dev, status.st_ino] = source
    for output in map(Path, outputs):
        check_folder(output.parent)
        if output.exists():
            status = output.stat()
            if (status.st_dev, status.st_ino) in read:
                source = read[status.st_dev, status.st_ino]
                raise UserError(f"{output} is, or holds, {source}, which is read: choose another name for the output")
        if not os.path.lexists(output) or mark == b"":
            continue
        if output.is_dir():
            raise UserError(f"{output} is a folder that is there already: choose the name of a new file or folder")
        if mark is None or not _holds(output, mark):
            raise UserError(f"{output} is there already, and is not this command's own: choose another name")


def _holds(path: Path, mark: bytes) -> bool:
    """Return True for a regular file that is empty or has ``mark`` near its start."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    return not head or mark in head


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path``; if the block succeeds, rename it to ``path``.

    Text is UTF-8 with ``\\n`` line ends. If the block raises, ``path`` is unchanged and the temporary file is removed.
    A power cut may truncate the renamed file: :func:`atomic_write` prevents that, but is slower.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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


def lock_folder(folder: Path, writer: str) -> IO[str]:
    """Make ``folder`` and lock it (its file ``.lock``) until the returned file is closed or this process ends.

    On a file system without locks it stays unlocked.

    Raises:
        UserError: another ``writer`` holds the lock, or the folder cannot be written.
    """
    path = make_folder(folder) / ".lock"
    try:
        path.touch()
        file = open(path)  # noqa: SIM115 (the caller closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            file = open(path, "a")  # noqa: SIM115 (NFS locks only what is open for writing)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _locked(folder, writer) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise storage_error(error, folder) from error
    return file


def check_lock(folder: Path, writer: str) -> None:
    """Raise the errors of :func:`lock_folder`, but create nothing and hold no lock."""
    check_folder(folder)
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _locked(folder, writer) from None
    except OSError:
        pass  # it does not exist, or the file system has no locks


def _locked(folder: Path, writer: str) -> UserError:
    return UserError(f"another {writer} is writing {folder}: wait for it, or choose another --out")


def storage_error(error: OSError, path: str | os.PathLike[str]) -> Exception:
    """Return the exception for ``error`` while writing ``path``: a :class:`UserError` if the user can fix it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left to write {path}: free some disk space or choose another folder")
    if error.errno in _MENDABLE:
        return UserError(f"cannot write {path} ({error.strerror}): choose a folder that can be written")
    return error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create the folder ``path`` (and its parents) unless it exists, and return it.

    Raises:
        UserError: it cannot be created, or a file has its name.
    """
    path = Path(path)
    with _folder_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_folder(path: Path) -> Path:
    """Return :func:`nearest_folder`, raising the errors of :func:`make_folder`; create nothing."""
    with _folder_errors(path):
        return nearest_folder(path)


def nearest_folder(path: Path) -> Path:
    """Return ``path`` or, if it does not exist, the nearest existing folder above it.

    Raises:
        OSError: that is no folder, or cannot be written.
    """
    absolute = Path(os.path.abspath(path))
    existing = next(folder for folder in (absolute, *absolute.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return existing


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path} cannot be a folder: a file stands in the way; choose another name") from None
    except OSError as error:
        raise storage_error(error, path) from error
