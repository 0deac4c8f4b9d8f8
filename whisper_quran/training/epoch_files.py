"""The checkpoint files of a run: one per epoch, the best, and the average; and which of them stay on disk."""

from collections.abc import Iterable
from pathlib import Path

from whisper.model import Whisper

from ..checkpoints.checkpoint import save_checkpoint
from ..checkpoints.results import best_epochs
from ..config import TrainingConfig
from .metrics_log import History


class EpochFiles:
    """``epoch-000.pt``, … , ``best.pt`` and ``average.pt`` in the folder of a run."""

    def __init__(self, config: TrainingConfig, history: History):
        self.out, self.keep, self.average, self.history = config.out, config.keep, config.average or 0, history

    def path(self, epoch: int) -> Path:
        """Return the path of the checkpoint of ``epoch``."""
        return self.out / f"epoch-{epoch:03}.pt"

    def averaged(self, last: int) -> list[int]:
        """Return the epochs up to ``last`` that --average uses: the lowest in WER or, without validation, the last."""
        ranked = best_epochs(self.history) or list(range(last, -1, -1))
        return sorted(ranked[: self.average])

    def save(self, epoch: int, model: Whisper, is_best: bool) -> None:
        """Save ``model`` after ``epoch`` and remove the checkpoints that --keep and --average do not need.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        kept = {*self._kept(epoch), *self.averaged(epoch)}
        if epoch in kept:
            save_checkpoint(self.path(epoch), model)
        if is_best:
            save_checkpoint(self.out / "best.pt", model)
        self._remove(set(range(epoch)) - kept)

    def save_average(self, last: int, model: Whisper) -> None:
        """Save ``model`` as average.pt and remove checkpoints kept only for averaging; ``last`` is the last epoch."""
        save_checkpoint(self.out / "average.pt", model)
        self._remove(set(self.averaged(last)) - self._kept(last))

    def _kept(self, last: int) -> set[int]:
        return {"all": set(range(last + 1)), "last": {last}, "best": set[int]()}[self.keep]

    def _remove(self, epochs: Iterable[int]) -> None:
        for epoch in epochs:
            self.path(epoch).unlink(missing_ok=True)
