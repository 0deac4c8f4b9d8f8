"""The device, precision and processes of a run."""

import math
from dataclasses import dataclass, field

import torch

from ..runtime.console import Log, no_log
from ..runtime.device import Precision
from ..runtime.distributed import World
from ..runtime.interrupts import Interrupts


@dataclass(frozen=True)
class Setup:
    """The device, precision, processes and deadline of a run: chosen before the first step, then fixed."""

    device: torch.device
    precision: Precision = Precision("fp32", "the default")
    world: World = World()
    interrupts: Interrupts = field(default_factory=Interrupts)
    log: Log = no_log
    deadline: float = math.inf  # of --max-time, as a time.monotonic() value
