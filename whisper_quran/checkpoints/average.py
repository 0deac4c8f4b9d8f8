"""The mean of several checkpoints' weights: one model that is often more accurate than each (Izmailov et al., 2018,
"Averaging Weights Leads to Wider Optima and Better Generalization")."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import read_checkpoint


@torch.no_grad()
def average_weights(paths: Iterable[Path], parameters: Mapping[str, Tensor]) -> None:
    """Set ``parameters``, by their names in Whisper's state_dict, to their means over the checkpoints, in place.

    Sums are in the dtype of the parameters, and one tensor of one checkpoint is read at a time.

    Raises:
        UserError: a checkpoint is missing or damaged.
    """
    checkpoints = [read_checkpoint(path) for path in paths]
    for name, parameter in parameters.items():
        parameter.zero_()
        for checkpoint in checkpoints:
            parameter += checkpoint.tensors[name].read().to(parameter) / len(checkpoints)
