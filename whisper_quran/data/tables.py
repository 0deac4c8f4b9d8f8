"""Tables as people write them: CSV from spreadsheets, other programs and other systems.

Nothing is dropped silently: a row that cannot be used is returned as :class:`Skipped`, with the reason, and a file that
is no such table is refused with what it is.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.console import Log, printable
from ..runtime.errors import UserError

AUDIO_EXTENSIONS = frozenset(
    ".mp3 .wav .flac .ogg .oga .opus .m4a .m4b .mp4 .aac .wma .webm .aif .aiff .au .amr .3gp .mka".split()
)
ARCHIVES = frozenset(".zip .tar .gz .tgz .bz2 .xz .7z .rar".split())
_MISSING = {"nan", "<na>", "#n/a", "null"}  # as programs write missing values
# Our columns, with the names that other tools give them.
_OTHER_NAMES = {
    "audio": "file_name filename file path audio_path audio_filepath audio_file wav wav_path clip",
    "text": "transcription transcript sentence normalized_text label ayah_text",
    "sorah": "surah sura sura_number surah_number chapter",
    "ayah": "aya verse ayah_number aya_number verse_number",
}
# Columns that make a row a part of a recording.
_PART = re.compile(r"(start|begin|end|stop|offset|duration)([ _-]?(time|s|sec|seconds|ms))?")


@dataclass(frozen=True)
class Skipped:
    """Something left out: the file (or place in a file), and why; both :func:`printable`."""

    file: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", printable(self.file))
        object.__setattr__(self, "reason", printable(self.reason))


def summary(skipped: Iterable[Skipped]) -> str:
    """Count the skipped files by reason, the most common first."""
    reasons = Counter(item.reason.split(":")[0] for item in skipped)
    return " · ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "nothing was left out"


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str], option: str, log: Log
) -> tuple[list[tuple[str, dict[str, str]]], list[Skipped]]:
    """Read a UTF-8 table separated by comma, tab or semicolon: (place, stripped cells by column) for each row.

    Each line is one row, so that a stray quote affects only its own line. A line with an open quote, with more or fewer
    fields than the header, or with a missing value is returned as skipped. Column names are case-insensitive; those
    of columns that are not used are logged.
    """
    lines = _read_lines(path, ",".join(columns), option)
    separator, header = _read_header(path, lines[0], columns)
    unused = [printable(name) for name in header if name and name not in (*columns, *optional)]
    if "audio" in columns and (parts := [name for name in unused if _PART.fullmatch(name)]):
        raise UserError(
            f"{path} has {', '.join(parts)}: rows that are parts of a recording are not read. Cut each part into a "
            "file of its own; or remove these columns, if every row is a whole file"
        )
    if unused:
        log(f"text       {path}: only {', '.join((*columns, *optional))} are read, not {', '.join(unused)}")
    rows, skipped = [], []
    for number, line in enumerate(lines[1:], start=2):
        place, fields = f"{path}, line {number}", _fields(line, separator)
        row = dict(zip(header, fields or [], strict=False))
        missing = [name for name in (*columns, *optional) if row.get(name, "").lower() in _MISSING]
        if fields is None:
            reason = "a quote is not closed in this line (a field must not go on in the next one)"
        elif not line.strip():
            continue
        elif len(fields) != len(header):
            reason = f"{len(fields)} fields, where the first line has {len(header)}"
        elif missing:
            reason = f"the {missing[0]} is {row[missing[0]]}, which stands for a missing value"
        else:
            rows.append((place, row))
            continue
        skipped.append(Skipped(place, reason))
    return rows, skipped


def _read_header(path: Path, line: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """Return the separator of a table and its columns' names, in lower case.

    Raises:
        UserError: one of ``columns`` is missing, or a name is there twice.
    """
    headers = {separator: [name.lower() for name in _fields(line, separator) or []] for separator in ",\t;"}
    separator = max(headers, key=lambda each: (len({*headers[each]} & {*columns}), len(headers[each])))
    header = headers[separator]
    if missing := [column for column in columns if column not in header]:
        others = [f"{name} to {ours}" for ours in missing for name in header if name in _OTHER_NAMES[ours].split()]
        rename = f": rename {', '.join(others)}" if others else ""
        raise UserError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}: its first line must name "
            f"{','.join(columns)}; it reads {printable(line[:80]) or 'nothing'!r}{rename}"
        )
    named = [name for name in header if name]  # a spreadsheet may write empty columns at the end
    if len({*named}) < len(named):
        raise UserError(f"{path} names a column twice in its first line ({', '.join(header)}): rename one of them")
    return separator, header


def _fields(line: str, separator: str) -> list[str] | None:
    """Split a line of a table into its fields, stripped; None if a quote is not closed."""
    if line.count('"') % 2:
        return None
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True), [])]
    except csv.Error:
        return None


def _read_lines(path: Path, columns: str, option: str) -> list[str]:
    """Read the lines (at least one) of a UTF-8 text, with or without BOM.

    Raises:
        UserError: it is missing, unreadable, of another kind, or not UTF-8.
    """
    try:
        if not path.is_file():
            what = f"{path} is a folder" if path.is_dir() else f"no file {path}"
            raise UserError(f"{what}: name a CSV with the columns {columns} with {option}")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from None
    suffix, kind = path.suffix.lower(), ""
    if suffix in AUDIO_EXTENSIONS or content.startswith((b"ID3", b"RIFF", b"fLaC", b"OggS", b"\xff\xfb")):
        kind = "audio"
    elif suffix in (".xlsx", ".xls", ".ods"):
        kind = "a spreadsheet"
    elif suffix in ARCHIVES or content.startswith((b"PK\x03\x04", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf")):
        kind = "an archive, to be unpacked"
    elif suffix in (".json", ".jsonl") or content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        kind = "JSON"
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:1000]:
        kind = "not UTF-8 but UTF-16 or binary"
    if kind:
        raise UserError(f"{path} is {kind}: {option} takes a CSV in UTF-8 with the columns {columns}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 (line {line}): save it as UTF-8 and try again") from None
    # Not splitlines, which also splits at U+2028 and other characters that may be inside a text.
    return re.split(r"\r\n|\n|\r", text)
