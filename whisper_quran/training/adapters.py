"""Low-rank adapters (Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models") as parametrizations.

Each weight W of an attention or an MLP becomes W + B A. Only A (rank, in) and B (out, rank) are trained, so the state
of the optimiser is small. Reading a layer's weight returns the sum: validation, decoding and saving see an ordinary
Whisper, and the checkpoint is one.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from whisper.model import Whisper

from ..runtime.errors import UserError


class LowRank(nn.Module):
    """The low-rank update B A added to a weight (out, in); zero at first, because B is zero."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        rows, columns = weight.shape
        a = torch.empty(rank, columns, dtype=weight.dtype)  # drawn on the CPU, for the same numbers on every device
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def add_adapters(model: Whisper, rank: int, encoder: bool, seed: int) -> None:
    """Freeze ``model`` and add an adapter to every linear layer of the decoder's (and ``encoder``'s) blocks.

    Raises:
        UserError: ``rank`` is more than the model's width, where adapters would take more memory than the weights.
    """
    width = model.dims.n_text_state
    if rank > width:
        raise UserError(f"--lora {rank}: the rank is at most {width}, the width of this model")
    model.requires_grad_(False)
    parts = [model.encoder, model.decoder] if encoder else [model.decoder]
    linears = [m for part in parts for block in part.blocks for m in block.modules() if isinstance(m, nn.Linear)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for linear in linears:
            parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, rank))
