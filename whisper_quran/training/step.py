"""One optimiser step: all of the arithmetic of training.

``accumulate`` computes the gradient, micro-batch by micro-batch; ``update`` sums it over the processes, clips it and
moves the weights. Each micro-batch's summed loss is divided by the target tokens of the whole step, so the gradient is
that of one large batch, however the step was cut into micro-batches and processes. Only ``accumulate`` may run out of
memory and be tried again, with smaller micro-batches: it involves no other process and changes no weight.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from whisper.model import Whisper

from ..data.batches import Batch
from ..data.features import log_mel
from ..runtime.device import Precision
from ..runtime.distributed import World


def accumulate(
    objective: nn.Module,
    batches: Sequence[Batch],
    target_tokens: int,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    n_mels: int,
    device: torch.device,
) -> Tensor:
    """Add the gradient of this process's micro-batches to the parameters; return their share of the mean loss, ().

    ``target_tokens`` are those of the whole step, over all processes. A process may have no micro-batch.
    """
    loss = torch.zeros((), device=device)
    scaler.scale(loss)  # a scaler has no scale before its first use, and this process may have no clip
    for batch in batches:
        batch = batch.to(device)
        mel = log_mel(batch.audio, n_mels)
        with precision.autocast(device):
            mean = objective(mel, batch.tokens, batch.positions, batch.targets) / target_tokens
        scaler.scale(mean).backward()
        loss += mean.detach()
    return loss


def update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, clip_grad: float, world: World
) -> tuple[float, float]:
    """Move the weights; return the mean loss in nats and the norm of the gradient, both over all processes.

    Where either is not finite, no weight and no average of the optimiser is changed.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    world.sum_gradients(parameters)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, clip_grad or math.inf).item()
    (mean,) = world.sum([loss.item()], loss.device)
    if is_finite(mean, norm):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return mean, norm


def is_finite(loss: float, norm: float) -> bool:
    """Whether a step with this loss and this norm of the gradient was taken."""
    return math.isfinite(loss) and math.isfinite(norm)


def checkpoint_activations(model: Whisper) -> None:
    """Make every block recompute its activations in the backward pass in place of keeping them."""
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
