"""What counts as the MP3 of an ayah, and how such files are taken out of an archive that nobody vouches for."""

import hashlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from ..runtime.files import atomic_write
from .polite import Failed
from .reciters import Key

LARGEST_FILE = 64 << 20  # bytes: the longest ayah of the slowest reciter takes a third of it

# The start of an MPEG layer III frame. Text in UTF-8, such as a web page, never holds the byte 0xFF.
_MP3_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")


# What zipfile raises for an archive that was damaged or made up.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError)


class Disowned(Failed):
    """The same bytes came twice, and they are not those of EveryAyah's checksum list."""


def file_name(key: Key) -> str:
    """EveryAyah's name for an ayah: ``SSSAAA.mp3``."""
    return f"{key[0]:03}{key[1]:03}.mp3"


def mp3_check(digests: set[str]) -> Callable[[bytes], bytes]:
    """A check for one file's bodies: it returns a body that is an MP3, with one of ``digests`` where there are any."""
    last = ""

    def check(body: bytes) -> bytes:
        nonlocal last
        if not _MP3_FRAME.search(body):
            raise Failed("what comes is no MP3")
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        if digests and digest not in digests:
            if digest == last:
                raise Disowned("not the file that 000_checksum.md5 lists", again=False)
            last = digest
            raise Failed("damaged on the way: not the file that 000_checksum.md5 lists")
        return body

    return check


def unpack(
    archive: Path, folder: Path, keys: Iterable[Key], digests: dict[str, set[str]], progress: Callable[[], object]
) -> list[str]:
    """Write the ayat ``keys`` that ``archive`` holds to ``folder``; return what was refused, with the reason.

    No path is taken from the archive: a member's last part says which ayah it is, and the file is named for that.
    """
    refused = []
    wanted = {file_name(key) for key in keys}
    try:
        zip = zipfile.ZipFile(archive)
    except _DAMAGE as error:
        return [f"the archive as a whole: {error}"]
    with zip:
        for member in zip.infolist():
            name = PurePosixPath(member.filename).name
            try:
                _require_honest(member)
                body = _read(zip, member, digests.get(name, set())) if name in wanted else None
            except Failed as failure:
                refused.append(f"{member.filename!r}: {failure}")
                continue
            if body:
                with atomic_write(folder / name, "wb") as file:
                    file.write(body)
                wanted.remove(name)
                progress()
    return refused


def _read(zip: zipfile.ZipFile, member: zipfile.ZipInfo, digests: set[str]) -> bytes:
    try:
        body = zip.read(member)
    except _DAMAGE as error:
        raise Failed(str(error)) from error
    return mp3_check(digests)(body)


def _require_honest(member: zipfile.ZipInfo) -> None:
    """Raise :class:`Failed` for a member that has no place in an archive of MP3s."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.filename:
        raise Failed("it would land outside the folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise Failed("it is a link")
    if member.flag_bits & 1:
        raise Failed("it is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Failed("it is compressed in an unusual way")
    # MP3 hardly compresses: what grows this much is no recitation.
    if member.file_size > min(LARGEST_FILE, 10 * member.compress_size + 10_000):
        raise Failed(f"it would unpack from {member.compress_size:,} to {member.file_size:,} bytes")
