"""Where and how a run computes."""

import math
from dataclasses import dataclass, field

import torch

from ..runtime.console import Log, no_log
from ..runtime.device import Precision
from ..runtime.distributed import World
from ..runtime.interrupts import Interrupts


@dataclass(frozen=True)
class Setup:
    """What a run uses of this machine: chosen before the first step, and the same to its end."""

    device: torch.device
    precision: Precision = Precision("fp32", "the default")
    world: World = World()
    interrupts: Interrupts = field(default_factory=Interrupts)
    log: Log = no_log
    deadline: float = math.inf  # on time.monotonic()'s clock: --max-time
