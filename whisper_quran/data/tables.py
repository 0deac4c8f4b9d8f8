"""Tables as people write them: CSV from spreadsheets, JSONL and parquet from other programs."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.console import printable
from ..runtime.errors import UserError, did_you_mean
from .audio import Part
from .parquet import open_parquet, read_cells
from .segments import TIMED, rows_of_segments

_MISSING = {"nan", "<na>", "#n/a", "null", "none"}  # as programs write missing values
# What columns hold, and their names, in the order in which they are preferred.
NAMES = {
    "audio": ("audio", "file_name", "audio_filepath", "path"),
    "text": ("text", "transcription", "sentence", "text_ar_simple"),
    "reciter": ("reciter", "reciter_id", "speaker"),
    "surah": ("surah", "sorah", "surah_id"),
    "ayah": ("ayah", "aya", "ayah_id"),
    "start": ("start", "offset", "begin"),
    "end": ("end", "stop"),
    "duration": ("duration",),
    "words": (TIMED,),
}
# Columns that make a row a part of a recording, in other units or by other names.
_PART = re.compile(r"(start|begin|end|stop|offset)([ _-]?(time|s|sec|seconds|ms))?")
_Record = tuple[str, dict[str, Any] | str]  # its place, and its cells, or why they cannot be read


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


@dataclass(frozen=True)
class Table:
    """The rows of a table that can be read: the place of each, and its cells by what they hold (see :data:`NAMES`).

    ``columns`` are the names in the table by what they hold. Cells are stripped texts; audio may be a :class:`Part`.
    """

    path: Path
    columns: dict[str, str]
    unused: list[str]
    rows: list[tuple[str, dict[str, Any]]]
    skipped: list[Skipped]

    def __str__(self) -> str:
        """Say what was understood: ``"audio from file_name, text are read, not page"``."""
        read = ", ".join(role if role == name else f"{role} from {name}" for role, name in self.columns.items())
        return f"{read} are read" + (f", not {', '.join(self.unused)}" if self.unused else "")


def parse_columns(text: str | None) -> dict[str, str]:
    """Parse which column holds what: ``"audio=file,text=words"``.

    Raises:
        UserError: not such a list, or nothing of that name is read.
    """
    known = [role for role in NAMES if role != "words"]
    pairs = (pair.partition("=")[::2] for pair in text.split(",")) if text else ()
    columns = {role.strip(): name.strip() for role, name in pairs}
    if not all(role in known and name for role, name in columns.items()):
        some = ", ".join(f"{role}=NAME" for role in known)
        raise UserError(f"--columns {text}: give some of {some}, separated by commas")
    return columns


def read_table(
    path: Path, roles: Sequence[str], needed: Sequence[str], option: str, named: Mapping[str, str] | None = None
) -> Table:
    """Read a table: parquet, JSON, JSONL, or a CSV separated by comma, tab or semicolon; the last three in UTF-8.

    Rows with a missing value, or one that is neither text nor a number, are skipped. Of a CSV, each line is one row,
    so that a stray quote affects only its own line. ``named`` are columns by what they hold, whatever their names say.

    Raises:
        UserError: it cannot be read, there is no column for one of ``needed``, or none of those ``named``.
    """
    names, records = _open_table(path, option)
    by_name = {name.lower(): name for name in names}
    columns = {role: by_name[known] for role in roles for known in reversed(NAMES[role]) if known in by_name}
    for role, name in (named or {}).items():
        if name not in names:
            near = did_you_mean(name, names)
            raise UserError(f"{path} has no column {name}: {near}--columns names some of {printable(', '.join(names))}")
        columns = {other: column for other, column in columns.items() if column != name} | {role: name}
    if "start" not in columns and "end" not in columns:
        columns.pop("duration", None)  # of the whole file
    if missing := [role for role in needed if role not in columns]:
        one = "; ".join(f"{role} ({', '.join(NAMES[role])})" for role in missing)
        raise UserError(
            f"{path} lacks a column of {one}: {option} takes CSV, JSON, JSONL or parquet with these names, and finds "
            f"{printable(', '.join(names))[:80] or 'nothing'!r}"
        )
    unused = [printable(name) for name in names if name and name not in columns.values()]
    if "start" in roles and (parts := [name for name in unused if _PART.fullmatch(name.lower())]):
        raise UserError(
            f"{path} has {', '.join(parts)}: name them start and end, in seconds; or remove them, if rows are files"
        )
    table = Table(path, columns, unused, [], [])
    for place, record in records(list(columns.values())):
        row, reason = {}, record if isinstance(record, str) else ""
        cells = {} if isinstance(record, str) else record
        for role, name in columns.items():
            row[role], problem = _cell(cells.get(name))
            reason = reason or (problem and f"the {role} {problem}")
        if reason:
            table.skipped.append(Skipped(f"{path}, {place}", reason))
        else:
            table.rows.append((f"{path}, {place}", row))
    return table


def _cell(value: Any) -> tuple[Any, str]:
    """Return a cell as a stripped text, or as a :class:`Part`; and why it cannot be used."""
    if isinstance(value, dict) and "path" in value:  # audio, as some programs write it
        value = value["path"]
    if isinstance(value, Part):
        return value, ""
    if value is None:
        return "", "is missing"
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return "", f"is a {type(value).__name__}, not a text or a number"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).encode(errors="replace").decode().strip()
    return text, f"is {text}, which stands for a missing value" if text.lower() in _MISSING else ""


def _open_table(path: Path, option: str) -> tuple[list[str], Callable[[Sequence[str]], Iterable[_Record]]]:
    """Return the names of a table's columns, and a function that reads the rows of some of them."""
    kinds = f"{option} takes CSV, JSON or JSONL in UTF-8, or parquet"
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            if start == b"PAR1":
                with open_parquet(path) as table:
                    names = list(table.schema_arrow.names)
                return names, lambda chosen: ((f"row {n}", cells) for n, cells in enumerate(read_cells(path, chosen)))
            text = (start + file.read()).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): {kinds}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{path} is not UTF-8: {kinds}; save a table as one of these, and unpack an archive")
    # Not splitlines, which also splits at U+2028 and other characters that may be inside a text.
    lines = re.split(r"\r\n|\n|\r", text)
    if text.lstrip().startswith(("{", "[")):
        names, records = _read_json(path, text, lines)
    else:
        names, records = _read_csv(path, lines)
    return names, lambda chosen: records


def _read_json(path: Path, text: str, lines: Sequence[str]) -> tuple[list[str], list[_Record]]:
    """Read JSON: times of ayat (:mod:`.segments`), a list of objects, or one a line. Columns are all names in them."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    records = rows_of_segments(document, path)
    if records and isinstance(records[0][1], str) and not any(isinstance(each, dict) for _, each in records):
        raise UserError(f"{path} has no ayah that can be used ({records[0][0]}: {records[0][1]})")
    if records is None and isinstance(document, list):
        records = [(f"item {number}", each) for number, each in enumerate(document, start=1)]
    elif records is None:
        records = [(f"line {number}", _json(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    names = dict.fromkeys(name for _, record in records if isinstance(record, dict) for name in record)
    is_row = (dict, str)  # a text says why it is none
    return list(names), [(place, each if isinstance(each, is_row) else "not a JSON object") for place, each in records]


def _json(line: str) -> Any:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return value if isinstance(value, dict) else None


def _read_csv(path: Path, lines: Sequence[str]) -> tuple[list[str], list[_Record]]:
    """Read a CSV, whose first line names the columns.

    Raises:
        UserError: a column is named twice.
    """
    known = {name for names in NAMES.values() for name in names}
    headers = {separator: _fields(lines[0], separator) or [] for separator in ",\t;"}
    separator = max(headers, key=lambda each: (len(known & {*map(str.lower, headers[each])}), len(headers[each])))
    header = headers[separator]
    named = [name.lower() for name in header if name]  # a spreadsheet may write empty columns at the end
    if len({*named}) < len(named):
        raise UserError(f"{path} names a column twice in its first line ({', '.join(named)}): rename one of them")
    records: list[_Record] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        fields = _fields(line, separator)
        record: dict[str, Any] | str
        if fields is None:
            record = "a quote is not closed in this line (a field must not go on in the next one)"
        elif len(fields) != len(header):
            record = f"{len(fields)} fields, where the first line has {len(header)}"
        else:
            record = dict(zip(header, fields, strict=True))
        records.append((f"line {number}", record))
    return header, records


def _fields(line: str, separator: str) -> list[str] | None:
    """Split a line of a table into its fields, stripped; None if a quote is not closed."""
    if line.count('"') % 2:
        return None
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True), [])]
    except csv.Error:
        return None
