"""The optimiser: AdamW without decay on biases and LayerNorm, linear warmup, then linear decay to zero."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..config import TrainingConfig
from ..runtime.console import Log

# Hours of audio, and what suits them, for a pretrained Whisper and batches of 16: measured at 0.5, 1 and 5 hours (see
# the README), and Experiment 2A's at its 100.
LR = ((3.0, 1e-4), (100.0, 5e-4))
WARMUP_STEPS = ((1.0, 10.0), (5.0, 25.0), (100.0, 2.0))
ENCODER_LR, ENCODER_WARMUP = 1e-4, 10  # with the encoder trained too: measured at 8.6 hours, and no higher rate


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


def build_optimizer(model: nn.Module, lr: float, weight_decay: float, eps: float = 1e-8) -> torch.optim.AdamW:
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


def suited(points: Sequence[tuple[float, float]], hours: float) -> float:
    """Interpolate (hours, value) on logarithmic scales, constant outside ``points``, to two significant digits."""
    xs, ys = np.log(points).T
    value = np.exp(np.interp(np.log(max(hours, 1e-9)), xs, ys))
    return float(f"{value:.2g}")


def count_steps(config: TrainingConfig, clips: int, world_size: int) -> tuple[int, int]:
    """Return the optimiser steps of an epoch of ``clips``, and those of the whole run."""
    per_epoch = math.ceil(clips / (config.batch_size * config.accumulate * world_size))
    return per_epoch, min(config.epochs * per_epoch, config.max_steps or 10**12)


def choose_rate(config: TrainingConfig, hours: float, total_steps: int, pretrained: bool, log: Log) -> TrainingConfig:
    """Return ``config`` with a peak learning rate and warmup that suit ``hours`` of audio, where they are not given.

    Adapters need a higher rate than weights do, and so does a model that is not pretrained. With the
    encoder trained too, no higher rate and no shorter warmup is chosen than those that were measured.
    """
    if config.lr is not None and config.warmup_steps is not None:
        return config
    lr, warmup = suited(LR, hours), int(suited(WARMUP_STEPS, hours))
    reason = f"for {hours:.1f} h of audio (Experiment 2A's 5e-4 and 2 for its 100 h)"
    if not pretrained:
        lr, warmup, reason = 5e-4, 2, "Experiment 2A's, as the model is of no known size"
    elif config.lora:
        lr, reason = (
            5e-4,
            f"the rate is Experiment 2A's, as for all adapters, and the warmup for {hours:.1f} h of audio",
        )
    elif config.train_encoder:
        lr, warmup = min(lr, ENCODER_LR), max(warmup, ENCODER_WARMUP)
        reason = f"for {hours:.1f} h of audio, with the encoder"
    config = replace(
        config,
        lr=lr if config.lr is None else config.lr,
        warmup_steps=min(warmup, max(2, total_steps // 10)) if config.warmup_steps is None else config.warmup_steps,
    )
    log(f"rate       --lr {config.lr:g} --warmup-steps {config.warmup_steps}: {reason}")
    return config
