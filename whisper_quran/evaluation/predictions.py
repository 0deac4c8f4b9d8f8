"""``predictions.csv``: what each model heard, ayah by ayah, kept as it comes.

A row is appended when its ayah is decoded, so that an evaluation that is cut off goes on where it was. A row stands as
long as its model, the precision it ran in, its text and the length of its audio are what they were.
"""

import csv
import fcntl
import io
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from ..data.corpus import Ayah
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, make_folder, storage_error
from .word_errors import ErrorCounts, count_errors


@dataclass(frozen=True)
class Prediction:
    """One ayah as one model heard it: a row of the file. Both texts are normalised, as they were compared.

    A recording from a manifest has no surah; the path of its audio stands for the ayah.
    """

    model: str
    reciter: str
    sorah: str
    ayah: str
    duration: float  # seconds
    reference: str
    hypothesis: str
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    wer: float

    @property
    def key(self) -> tuple[str, ...]:
        return self.model, self.reciter, self.sorah, self.ayah

    @property
    def errors(self) -> ErrorCounts:
        """The counts of the row, with those of its characters."""
        return count_errors(self.reference, self.hypothesis)


COLUMNS = tuple(field.name for field in fields(Prediction))


def key_of(model: str, ayah: Ayah) -> tuple[str, str, str, str]:
    """What tells a row from all others: model, reciter, and the two columns that name the ayah."""
    place = (str(ayah.surah), str(ayah.number)) if ayah.surah is not None else ("", _printable(str(ayah.audio)))
    return _printable(model), _printable(ayah.reciter), *place


def _printable(name: str) -> str:
    """``name`` as any text file can hold it: names on disk may have line ends in them, or bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def predict(model: str, ayah: Ayah, seconds: float, reference: str, hypothesis: str) -> Prediction:
    """The row for ``ayah``, whose texts are normalised already."""
    errors = count_errors(reference, hypothesis)
    counts = (errors.hits, errors.substitutions, errors.deletions, errors.insertions)
    return Prediction(*key_of(model, ayah), round(seconds, 3), reference, hypothesis, *counts, errors.wer)


class Predictions:
    """The predictions in a folder, with what ``results.json`` there says of how they were made."""

    def __init__(self, folder: Path, options: dict[str, Any]):
        """Read what is there.

        Raises:
            UserError: it was made with other ``options``, or in a way that nothing tells any more; another
                evaluation is writing there; or the folder cannot be written.
        """
        self.path = make_folder(folder) / "predictions.csv"
        try:
            self._lock = open(folder / ".lock", "w")  # noqa: SIM115 (held until close)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another evaluation is writing {folder}: wait for it, or choose another --out") from None
        except OSError as error:
            raise storage_error(error, folder) from error
        self.rows: dict[tuple[str, ...], Prediction] = {}
        self.made = _made_with(folder / "results.json")
        if self.made is None:
            if self.path.exists():
                raise UserError(
                    f"{folder / 'results.json'} does not say how the predictions beside it were made: "
                    "choose another --out, or delete predictions.csv"
                )
            self.made = {"options": options, "models": {}}
        elif self.made["options"] != options:
            before = self.made["options"]
            changed = [f"--{k.replace('_', '-')} {before.get(k)}" for k in options if before.get(k) != options[k]]
            raise UserError(f"{folder} holds predictions made with {', '.join(changed)}: choose another --out")
        elif self.path.exists():
            self.rows = {row.key: row for row in _read(self.path) if row.model in self.made["models"]}

    def start(self, model: str, identity: dict[str, Any]) -> int:
        """Begin with ``model``; return how many predictions of it stand. A checkpoint that has changed begins anew."""
        if self.made["models"].get(model, {}).get("identity") != identity:
            self.rows = {key: row for key, row in self.rows.items() if row.model != model}
            self.made["models"][model] = {"identity": identity, "seconds": {}}
        self._rewrite()  # without what no longer stands, and without a last row that was cut short
        return sum(row.model == model for row in self.rows.values())

    def close(self) -> None:
        """Let another evaluation write here."""
        self._lock.close()

    def precision_of(self, model: str) -> str | None:
        """What the predictions of ``model`` that are there ran in."""
        return self.made["models"].get(model, {}).get("identity", {}).get("precision")

    def stands(self, model: str, ayah: Ayah, seconds: float, reference: str) -> bool:
        """Whether ``ayah`` was predicted by ``model`` from this audio, against this text."""
        row = self.rows.get(key_of(model, ayah))
        return row is not None and (row.duration, row.reference) == (round(seconds, 3), reference)

    def append(self, row: Prediction) -> None:
        self.rows[row.key] = row
        try:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(astuple(row))
        except OSError as error:
            raise storage_error(error, self.path) from error

    def took(self, model: str, reciter: str, seconds: float, audio: float) -> None:
        """Add to the time that decoding ``audio`` seconds of ``reciter`` took ``model``."""
        before = self.made["models"][model]["seconds"].get(reciter, [0.0, 0.0])
        self.made["models"][model]["seconds"][reciter] = [before[0] + seconds, before[1] + audio]

    def finish(self) -> None:
        """Put the rows in the order of models, reciters and ayat."""
        models = list(self.made["models"])
        ordered = sorted(
            self.rows.values(),
            key=lambda r: (models.index(r.model), r.reciter, _number(r.sorah), _number(r.ayah), r.ayah),
        )
        self.rows = {row.key: row for row in ordered}
        self._rewrite()

    def _rewrite(self) -> None:
        with atomic_write(self.path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(map(astuple, self.rows.values()))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _made_with(path: Path) -> dict[str, Any] | None:
    """What results.json says of how the predictions beside it were made; None where there are none to keep."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["made_with"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _read(path: Path) -> Iterable[Prediction]:
    """The rows of a predictions.csv, but for a last one that was cut short, in the middle of a letter perhaps."""
    types = {field.name: field.type for field in fields(Prediction)}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1].decode(errors="replace")
    for row in csv.DictReader(io.StringIO(whole, newline="")):
        try:
            yield Prediction(**{name: types[name](row[name]) for name in COLUMNS})
        except (ValueError, TypeError, KeyError):
            continue
