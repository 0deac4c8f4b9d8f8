"""Writing files so that a reader, or a run after a crash, sees the old content or the new, never half of it."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import UserError

# Errors that another folder has not.
_MENDABLE = {getattr(errno, name) for name in "EACCES EPERM EROFS ENOENT ENAMETOOLONG EIO EISDIR ENOTDIR ELOOP".split()}


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """:func:`replacing`, with the file flushed to disk before it is renamed.

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


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Open a new file beside ``path``; when the block ends well, rename it over ``path``.

    Text is UTF-8 with ``\\n`` line ends. If the block raises, ``path`` is as it was and the new file is gone. A
    power cut may leave what was renamed short: :func:`atomic_write` is safe from that, and slower.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # File names need not be UTF-8, and are what text files here may hold.
    text: dict[str, Any] = {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}
    try:
        with open(beside, mode, **({} if "b" in mode else text)) as file:
            yield file
        os.replace(beside, path)
    finally:
        with suppress(OSError):  # it is not there, or may not be removed: what went wrong before says more
            beside.unlink()


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk; do nothing if it is not there."""
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

    On a file system that has no locks it is not locked.

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
    """Raise what :func:`lock_folder` would; make, write and keep nothing."""
    check_folder(folder)
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _locked(folder, writer) from None
    except OSError:
        pass  # it is not there, or the file system has no locks


def _locked(folder: Path, writer: str) -> UserError:
    return UserError(f"another {writer} is writing {folder}: wait for it, or choose another --out")


def storage_error(error: OSError, path: str | os.PathLike[str]) -> Exception:
    """What to raise for ``error`` while writing ``path``: a :class:`UserError` where the user can mend it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left to write {path}: free some disk space or choose another folder")
    if error.errno in _MENDABLE:
        return UserError(f"cannot write {path} ({error.strerror}): choose a folder that can be written")
    return error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create the folder ``path`` (and its parents) unless it is there, and return it.

    Raises:
        UserError: it cannot be created, or something that is no folder stands in its place.
    """
    path = Path(path)
    with _folder_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_folder(path: Path) -> Path:
    """Return :func:`nearest_folder`, and raise what :func:`make_folder` would; make nothing."""
    with _folder_errors(path):
        return nearest_folder(path)


def nearest_folder(path: Path) -> Path:
    """Return the folder ``path`` or, if it is not there, the one it would be made in.

    Raises:
        OSError: that is no folder, or cannot be written.
    """
    absolute = Path(os.path.abspath(path))
    there = next(folder for folder in (absolute, *absolute.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return there


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path} cannot be a folder: a file stands in the way; choose another name") from None
    except OSError as error:
        raise storage_error(error, path) from error
