"""The optimiser: AdamW without decay on biases and LayerNorm, linear warmup, then linear decay to zero."""

import math

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return the trainable parameters as AdamW groups: with weight decay, and without (biases and LayerNorm)."""
    not_decayed = {
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.LayerNorm)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p not in not_decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if p in not_decayed], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, lr: float, weight_decay: float, eps: float) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters, fused: one pass over the weights per step."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, eps=eps, fused=True)


def schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the fraction of the peak learning rate at optimiser step ``step``, counted from 0.

    It rises linearly to 1 over ``warmup_steps``, then falls linearly and would reach 0 at ``total_steps``, the first
    step that is not taken: no step is wasted at a rate of zero.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0, total_steps - step) / max(1, total_steps - warmup_steps)


def suited_lr(hours: float) -> float:
    """Return the peak learning rate that suits ``hours`` of recitation, for a pretrained Whisper and batches of 16.

    1e-4 up to 3 hours, Experiment 2A's 5e-4 from 100 hours on, and in between interpolated on logarithmic scales.
    Measured at 0.5 and 1 hours, and at 5 hours with 1e-4, where this gives 1.3e-4 (see the README).
    """
    fraction = math.log(hours / 3) / math.log(100 / 3) if hours > 0 else 0.0
    return 1e-4 * 5 ** min(max(fraction, 0.0), 1.0)
