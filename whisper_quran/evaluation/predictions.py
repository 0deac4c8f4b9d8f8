"""``predictions.csv``: what each model heard, ayah by ayah, saved as it is decoded.

A row is appended when its ayah is decoded, so that an interrupted evaluation continues where it stopped. A row is
current as long as its model, the precision it ran in, its text and the bytes of its audio are unchanged.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import EvaluationConfig
from ..data.ayat import Ayah
from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, lock_folder, writing
from .word_errors import Alignment, ErrorCounts, align

COLUMNS = (
    *("model", "reciter", "sorah", "ayah", "duration", "reference", "hypothesis"),
    *("hits", "substitutions", "deletions", "insertions", "wer", "fallback"),
    *("diacritics", "letters", "diacritic_errors", "place", "located", "audio"),
)
Key = tuple[str, str, str, str]  # model, reciter, and the two columns that name the ayah


@dataclass(frozen=True)
class Prediction:
    """One ayah as one model heard it: a row of the file. Both texts are normalised, as they are compared.

    If the surah of a recording is unknown, the path of its audio is its ``ayah``. A second take of 7 is ``7 (2)``.
    """

    model: str
    reciter: str
    sorah: str
    ayah: str
    duration: float  # seconds
    reference: str
    hypothesis: str
    fallback: float = 0.0  # the temperature it was decoded at: 0 unless the greedy text failed whisper's tests
    diacritics: int = 0  # of the reference before it was normalised: 0 if it is not vocalised
    letters: int = 0  # whose diacritics were compared
    diacritic_errors: int = 0
    place: str = ""  # of the runs of the Qur'an that were said, in order, separated by "; "
    located: int = 0  # 1 if these are the ayat that were recited
    audio: str = ""  # digest of the bytes of its file

    @property
    def key(self) -> Key:
        return self.model, self.reciter, self.sorah, self.ayah

    @cached_property
    def alignment(self) -> Alignment:
        return align(self.reference, self.hypothesis)

    @property
    def errors(self) -> ErrorCounts:
        """The counts of the alignment, and of the diacritics."""
        return self.alignment.errors + ErrorCounts(letters=self.letters, diacritic_errors=self.diacritic_errors)

    def cells(self) -> list[Any]:
        """Return the values of the row's columns."""
        values = [getattr(self if hasattr(self, name) else self.alignment.errors, name) for name in COLUMNS]
        return [_to_cell(value) if isinstance(value, str) else value for value in values]


def key_of(model: str, ayah: Ayah) -> Key:
    """Return the key of the prediction of ``ayah`` by ``model`` (a :func:`printable` name)."""
    if ayah.surah is None:
        return model, ayah.reciter, "", printable(str(ayah.audio))
    number = f"{ayah.number} ({ayah.take})" if ayah.take > 1 else str(ayah.number)
    return model, ayah.reciter, str(ayah.surah), number


def read_predictions(path: Path, log: Log = no_log) -> Iterator[Prediction]:
    """Yield the rows of a predictions.csv, also of one that a spreadsheet saved.

    Rows that were cut short or edited are left out, and their number is logged.

    Raises:
        UserError: it cannot be read, or is another kind of file.
    """
    try:
        header, *lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    names = header.decode(errors="replace").replace('"', "").strip()
    separator = next((mark for mark in ",;\t" if names == mark.join(COLUMNS)), None)
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


def _read_row(cells: list[str]) -> Prediction:
    """Read a row; raise ValueError unless its counts are those of its texts, and its other numbers are possible."""

    def number(cell: str) -> float:
        return float(cell.replace(",", "."))  # as spreadsheets write it in some languages

    cell = dict(zip(COLUMNS, cells, strict=True))
    readers: dict[Any, Callable[[str], Any]] = {str: _from_cell, int: int, float: number}
    row = Prediction(**{field.name: readers[field.type](cell[field.name]) for field in fields(Prediction)})
    if (
        any(int(cell[name]) != getattr(row.alignment.errors, name) for name in COLUMNS[7:11])
        or not (row.sorah or "0").isdecimal()
        or not 0 < row.duration < math.inf
        or not 0 <= row.fallback <= 1
        or not 0 <= row.diacritic_errors <= row.letters < 10**6
        or row.located not in (0, 1)
    ):
        raise ValueError
    return row


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
        try:
            made = json.loads((folder / "results.json").read_text(encoding="utf-8"))["made_with"]
            # An option that did not exist yet had the value that is now its default; but everything was read as 30 s.
            defaults = {field.name: field.default for field in fields(EvaluationConfig)} | {"context": "full"}
            before = defaults | made["options"]
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(
                f"{folder / 'results.json'} does not say how the predictions beside it were made: "
                "choose another --out, or delete predictions.csv"
            ) from None
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
        self.write()  # without rows that are no longer current, and without a last row that was cut short

    def close(self) -> None:
        """Release the folder: another evaluation may write there."""
        self._lock.close()

    def append(self, row: Prediction) -> None:
        self.rows[row.key] = row
        with writing(self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row.cells())

    def add_time(self, model: str, reciter: str, seconds: float, audio: float) -> None:
        """Add the wall time ``seconds`` that ``model`` took to decode ``audio`` seconds of ``reciter``."""
        times = self.made["models"][model]["seconds"]
        wall, decoded = times.get(reciter, (0.0, 0.0))
        times[reciter] = [wall + seconds, decoded + audio]

    def write(self) -> None:
        """Write all rows, in the order of models, reciters and ayat."""
        models = list(self.made["models"])

        def place(key: Key) -> tuple[Any, ...]:
            model, reciter, sorah, ayah = key
            return models.index(model), reciter, sorah.zfill(3), ayah.split(" ")[0].zfill(3), ayah

        self.rows = {key: self.rows[key] for key in sorted(self.rows, key=place)}
        with atomic_write(self.path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(row.cells() for row in self.rows.values())
