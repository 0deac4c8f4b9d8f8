"""``predictions.csv``: what each model heard, ayah by ayah, saved as it is decoded.

A row is appended when its ayah is decoded, so that an interrupted evaluation continues where it stopped. A row is
current as long as its model, the precision it ran in, its text and the bytes of its audio are unchanged.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import EvaluationConfig
from ..data.prepare import Passage
from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, lock_folder, writing
from .word_errors import Alignment, ErrorCounts, align

COLUMNS = (
    *("model", "reciter", "sorah", "ayah", "duration", "reference", "hypothesis"),
    *("hits", "substitutions", "deletions", "insertions", "wer", "fallback", "boundaries", "boundaries_found"),
    *("segments", "diacritics", "letters", "diacritic_errors", "place", "located", "audio"),
)
Key = tuple[str, str, str, str]  # model, reciter, and the two columns that name the ayah


@dataclass(frozen=True)
class Prediction:
    """One ayah, or passage, as one model heard it: a row of the file. Both texts are normalised, as they are compared.

    A recording from a manifest has no surah; the path of its audio is then its ``ayah``.
    """

    model: str
    reciter: str
    sorah: str
    ayah: str
    duration: float  # seconds
    reference: str
    hypothesis: str
    fallback: float = 0.0  # the temperature it was decoded at: 0 unless the greedy text failed whisper's tests
    boundaries: int = 0  # between its ayat
    boundaries_found: int = 0  # those near which a decoded timestamp is
    segments: int = 0  # that the timestamps enclose
    diacritics: int = 0  # of the reference before it was normalised: 0 if it is not vocalised
    letters: int = 0  # whose diacritics were compared
    diacritic_errors: int = 0
    place: str = ""  # of the runs of the Qur'an that were said, in order, separated by "; "
    located: int = 0  # 1 if these are the ayat that were recited
    audio: str = ""  # digest of the bytes of its files

    @property
    def key(self) -> Key:
        return self.model, self.reciter, self.sorah, self.ayah

    @cached_property
    def alignment(self) -> Alignment:
        """The alignment of the two texts, computed on first access."""
        return align(self.reference, self.hypothesis)

    @property
    def errors(self) -> ErrorCounts:
        """All counts of the row: those of the alignment, and of the diacritics."""
        return self.alignment.errors + ErrorCounts(letters=self.letters, diacritic_errors=self.diacritic_errors)

    def cells(self) -> list[Any]:
        """Return the values of the row's columns."""
        errors = self.alignment.errors
        values = [getattr(self, name) if hasattr(self, name) else getattr(errors, name) for name in COLUMNS]
        return [_to_cell(value) if isinstance(value, str) else value for value in values]

    @property
    def is_possible(self) -> bool:
        """Whether the numbers that cannot be derived again from the texts are within their bounds."""
        return (
            (not self.sorah or self.sorah.isdecimal())
            and 0 < self.duration < math.inf
            and 0 <= self.fallback <= 1
            and 0 <= self.boundaries_found <= self.boundaries < 10_000
            and 0 <= self.segments <= 1 + 50 * self.duration  # a timestamp is a multiple of 20 ms
            and 0 <= self.diacritic_errors <= self.letters < 10**6
            and self.located in (0, 1)
        )


def key_of(model: str, passage: Passage) -> Key:
    """Return the key of the prediction of ``passage`` by ``model`` (a :func:`printable` name)."""
    first, last = passage.parts[0], passage.parts[-1]
    if first.surah is None:
        return model, passage.reciter, "", printable(str(first.audio))
    numbers = str(first.number) if first == last else f"{first.number}-{last.number}"
    return model, passage.reciter, str(first.surah), numbers


def read_predictions(path: Path, log: Log = no_log) -> Iterator[Prediction]:
    """Yield the rows of a predictions.csv, also of one that a spreadsheet saved.

    A row that was cut short or edited is left out, and their number is logged: a row is whole if its counts are those
    of its texts, and its other numbers are possible.

    Raises:
        UserError: it cannot be read, or is another kind of file.
    """
    try:
        header, *lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    if not header and not lines:
        return
    names = (tuple(header.decode(errors="replace").replace('"', "").strip().split(mark)) for mark in ",;\t")
    separator = dict(zip(names, ",;\t", strict=True)).get(COLUMNS)
    if separator is None:
        raise UserError(f"{path} is not what this evaluate.py writes: move it away, or choose another --out")
    # No cell has a line end in it. The last piece is empty, or a row that was cut short.
    left_out = int(any(lines[-1:]))
    for line in lines[:-1]:
        try:
            yield _read_row(next(csv.reader([line.decode().rstrip("\r")], delimiter=separator)))
        except (ValueError, StopIteration, csv.Error):
            left_out += 1
    if left_out:
        log(f"{path}: {left_out} rows were cut short or edited: they are left out")


def _number(cell: str) -> float:
    return float(cell.replace(",", "."))  # as spreadsheets write it in some languages


def _read_row(cells: list[str]) -> Prediction:
    """Read the cells of a row; raise ValueError if they are not what was written."""
    cell = dict(zip(COLUMNS, cells, strict=True))
    readers: dict[Any, Callable[[str], Any]] = {str: _from_cell, int: int, float: _number}
    row = Prediction(**{field.name: readers[field.type](cell[field.name]) for field in fields(Prediction)})
    errors = row.alignment.errors
    counts = all(int(cell[name]) == getattr(errors, name) for name in COLUMNS[7:11])
    wer = _number(cell["wer"])
    # A spreadsheet saves as many digits as it shows.
    if counts and (math.isclose(wer, errors.wer, abs_tol=1e-4) or not errors.words) and row.is_possible:
        return row
    raise ValueError


# What a spreadsheet runs as a formula: at the start, and after the semicolon that it may take for the end of a cell.
_FORMULA = re.compile("(^|;)(?=[=+\\-@'＝＋－＠])")


def _to_cell(text: str) -> str:
    """Quote a text that a spreadsheet would run as a formula: after a ``'`` it is shown as text."""
    return _FORMULA.sub(r"\1'", text)


def _from_cell(text: str) -> str:
    return re.sub("(^|;)'", r"\1", text)


class Predictions:
    """The predictions in a folder, with what ``results.json`` there records of how they were made.

    ``made`` is that record: the ``options``, and for each of the ``models`` its ``identity`` (files and precision) and
    the ``seconds`` [wall, audio] that decoding each reciter took.
    """

    def __init__(self, folder: Path, options: dict[str, Any], log: Log = no_log):
        """Read the predictions that are there, and log how many rows of the file cannot be used.

        Raises:
            UserError: it was made with other ``options``, or nothing records how it was made; another evaluation is
                writing there; or the folder cannot be written.
        """
        self.path = folder / "predictions.csv"
        self._lock = lock_folder(folder, "evaluation")
        self.rows = {row.key: row for row in read_predictions(self.path, log)} if self.path.exists() else {}
        self.made: dict[str, Any] = {"options": options, "models": {}}
        if not self.rows:
            return  # nothing to keep, whatever was recorded
        made = _made_with(folder / "results.json")
        if made is None:
            raise UserError(
                f"{folder / 'results.json'} does not say how the predictions beside it were made: "
                "choose another --out, or delete predictions.csv"
            )
        # An option that did not exist yet had the value that is now its default.
        before = {field.name: field.default for field in fields(EvaluationConfig)} | made["options"]
        changed = [f"--{k.replace('_', '-')} {before.get(k)}" for k in options if before.get(k) != options[k]]
        if changed:
            raise UserError(f"{folder} holds predictions made with {', '.join(changed)}: choose another --out")
        self.made["models"] = made["models"]
        self.rows = {key: row for key, row in self.rows.items() if row.model in made["models"]}

    def start(self, model: str, identity: dict[str, Any]) -> None:
        """Begin with ``model``; if its checkpoint has changed, its predictions are dropped."""
        if self.made["models"].get(model, {}).get("identity") != identity:
            self.rows = {key: row for key, row in self.rows.items() if row.model != model}
            self.made["models"][model] = {"identity": identity, "seconds": {}}
        self._rewrite()  # without rows that are no longer current, and without a last row that was cut short

    def close(self) -> None:
        """Release the folder: another evaluation may write there."""
        self._lock.close()

    def precision_of(self, model: str) -> str | None:
        """Return the precision of the predictions of ``model`` that are there."""
        return self.made["models"].get(model, {}).get("identity", {}).get("precision")

    def is_current(self, key: Key, expected: Mapping[str, Any]) -> bool:
        """Return whether there is a prediction ``key`` with the values ``expected`` of its audio and its text."""
        row = self.rows.get(key)
        return row is not None and all(getattr(row, name) == value for name, value in expected.items())

    def append(self, row: Prediction) -> None:
        self.rows[row.key] = row
        with writing(self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row.cells())

    def add_time(self, model: str, reciter: str, seconds: float, audio: float) -> None:
        """Add the wall time ``seconds`` that ``model`` took to decode ``audio`` seconds of ``reciter``."""
        times = self.made["models"][model]["seconds"]
        before = times.get(reciter, [0.0, 0.0])
        times[reciter] = [before[0] + seconds, before[1] + audio]

    def finish(self) -> None:
        """Put the rows in the order of models, reciters and ayat."""
        models = list(self.made["models"])

        def place(key: Key) -> tuple[Any, ...]:
            model, reciter, sorah, ayah = key
            return models.index(model), reciter, sorah.zfill(3), ayah.partition("-")[0].zfill(3), ayah

        self.rows = {key: self.rows[key] for key in sorted(self.rows, key=place)}
        self._rewrite()

    def _rewrite(self) -> None:
        with atomic_write(self.path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(row.cells() for row in self.rows.values())


def _made_with(path: Path) -> dict[str, Any] | None:
    """Read from results.json how the predictions beside it were made; None if it does not say."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))["made_with"]
        json.dumps(made, allow_nan=False)  # it will be written again
        records = list(made["models"].values())
        times = [time for record in records for time in record["seconds"].values()]
        valid = isinstance(made["options"], dict) and all(isinstance(r["identity"], dict) for r in records)
        return made if valid and all(type(x) is float and 0 <= x < 1e9 for time in times for x in time) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
