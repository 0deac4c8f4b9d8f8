"""Tables as people write them: CSV from spreadsheets, other programs and other systems."""

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
_MISSING = {"nan", "<na>", "#n/a", "null"}  # as programs write missing values
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

    Raises:
        UserError: it cannot be read, is not UTF-8, or its first line lacks one of ``columns``.
    """
    lines = _read_lines(path, ",".join(columns), option)
    headers = {separator: [name.lower() for name in _fields(lines[0], separator) or []] for separator in ",\t;"}
    separator = max(headers, key=lambda each: (len({*headers[each]} & {*columns}), len(headers[each])))
    header = headers[separator]
    if missing := [column for column in columns if column not in header]:
        raise UserError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}: its first line must name "
            f"{','.join(columns)}, and reads {printable(lines[0][:80]) or 'nothing'!r}"
        )
    named = [name for name in header if name]  # a spreadsheet may write empty columns at the end
    if len({*named}) < len(named):
        raise UserError(f"{path} names a column twice in its first line ({', '.join(header)}): rename one of them")
    unused = [printable(name) for name in named if name not in (*columns, *optional)]
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


def _fields(line: str, separator: str) -> list[str] | None:
    """Split a line of a table into its fields, stripped; None if a quote is not closed."""
    if line.count('"') % 2:
        return None
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True), [])]
    except csv.Error:
        return None


def _read_lines(path: Path, columns: str, option: str) -> list[str]:
    """Read the lines (at least one) of a UTF-8 text, with or without BOM."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): name a CSV with the columns {columns} with {option}"
        ) from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(
            f"{path} is not UTF-8: {option} takes a CSV in UTF-8 with the columns {columns}; save a table as one, and "
            "unpack an archive"
        )
    # Not splitlines, which also splits at U+2028 and other characters that may be inside a text.
    return re.split(r"\r\n|\n|\r", text)
