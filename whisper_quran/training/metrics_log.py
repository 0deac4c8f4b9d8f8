"""The metrics of a run, logged to ``metrics.jsonl``, and the table and plot made from them.

:mod:`..checkpoints.results` describes the rows and makes the table.
"""

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.results import Row, best_epoch, read_rows, results_table, valid_rows
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, storage_error
from .plot import draw

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class History:
    """The rows of a run, in memory and, if ``writes``, appended to ``path``.

    With ``tensorboard`` their numbers are also written to the folder ``tensorboard`` beside ``path``.
    """

    def __init__(self, path: Path, writes: bool = True, tensorboard: bool = False):
        self.path = path
        self.rows: list[Row] = []
        self.writes = writes
        self.tensorboard = tensorboard
        self.board: SummaryWriter | None = None
        self.first_step = 0  # TensorBoard discards what an interrupted run logged from this step on

    def append(self, row: Row) -> None:
        """Add a row, in memory and in the file; numbers that are not finite become null, as JSON has no NaN."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.rows.append(row)
        if not self.writes:
            return
        try:
            # Surrogates in a name that is not UTF-8 are written as JSON escapes.
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if self.tensorboard:
                self._add_scalars(row)
        except OSError as error:
            raise storage_error(error, self.path) from error

    def _add_scalars(self, row: Row) -> None:
        """Log scalars by step: ``train/loss``, … and, for each reciter, ``valid_loss/<reciter>``, …"""
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.path.with_name("tensorboard")), purge_step=self.first_step)
        if row["event"] == "train":
            tags = {name: f"train/{name}" for name in ("loss", "lr", "grad_norm", "clips_per_s", "data_wait")}
        else:
            tags = {name: f"{row['event']}_{name}/{row['reciter']}" for name in ("loss", "wer", "cer")}
        for name, tag in tags.items():
            if row[name] is not None:
                self.board.add_scalar(tag.encode(errors="backslashreplace").decode(), row[name], row["step"])

    def valid(self) -> dict[int, dict[str, Row]]:
        """Return the validation rows by epoch, then by reciter."""
        return valid_rows(self.rows)

    def close(self) -> None:
        """Flush and close TensorBoard's writer."""
        if self.board is not None:
            self.board.close()

    def restore(self, step: int, epoch: int) -> int:
        """Restore the rows from the file as of ``step`` steps and ``epoch`` whole epochs.

        Return the number of lines that could not be read.
        """
        self.first_step = step + 1
        try:
            rows, lost = read_rows(self.path)
        except OSError as error:
            raise storage_error(error, self.path) from error
        is_current = {
            "train": lambda row: row["step"] <= step,
            "valid": lambda row: row["epoch"] < epoch,
        }
        self.rows = [row for row in rows if is_current[row["event"]](row)]
        if self.writes:
            with atomic_write(self.path) as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        return lost

    def clear(self) -> None:
        """Remove every row, on disk too."""
        self.rows = []
        self.path.unlink(missing_ok=True)


def require_tensorboard() -> None:
    """Raise a :class:`..runtime.errors.UserError` if ``tensorboard`` is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--tensorboard: {error}; install it (pip install tensorboard, or this package with its extra "
            "[tensorboard]) or leave the option out"
        ) from None


def write_results(history: History, folder: Path) -> None:
    """Write ``results.md``, and ``loss.png`` if matplotlib is installed."""
    with atomic_write(folder / "results.md") as file:
        file.write(results_table(history.rows))
    try:
        png = draw(history.rows, best_epoch(history.rows))
    except ImportError:
        return
    except Exception as error:  # a plot that fails must not end a run
        warnings.warn(f"{folder / 'loss.png'} could not be drawn: {error!r}", stacklevel=2)
        return
    with atomic_write(folder / "loss.png", "wb") as file:
        file.write(png)
