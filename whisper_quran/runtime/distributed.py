"""Several processes: the rank of this one, and the few operations that they do together.

``torchrun`` gives their number in the environment; with one process every function is a no-op. Each process computes
the gradient of its own clips, and the gradients are summed once, before the optimiser's step. There is no collective
call in the forward and backward passes, so processes may have different numbers of micro-batches, or none, and one
that makes its micro-batches smaller when memory runs out does not disturb the others.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from .errors import UserError

T = TypeVar("T")
_BUCKET = 2**25  # gradients travel in messages of up to this many elements: few calls, and little memory beside them


@dataclass(frozen=True)
class World:
    """The processes of this run; ``local_rank`` counts within one machine and chooses the GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0  # how often torchrun has started these processes again

    @property
    def is_main(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return each of ``values`` summed over all processes, in double precision."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; a process that has none counts as zero."""
        if self.size == 1:
            return
        for parameter in (parameters := list(parameters)):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        bucket: list[torch.Tensor] = []
        for index, parameter in enumerate(parameters):
            bucket.append(parameter.grad)
            if sum(grad.numel() for grad in bucket) >= _BUCKET or index == len(parameters) - 1:
                flat = torch.cat([grad.flatten() for grad in bucket])
                dist.all_reduce(flat)
                for grad, summed in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                    grad.copy_(summed.view_as(grad))
                bucket = []

    def on_main(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the main process only; every process gets its result, or the :class:`UserError` it raised."""
        if self.size == 1:
            return work()
        outcome: list = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = str(error)
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            error = UserError(outcome[1])
            error.already_reported = not self.is_main
            raise error
        return outcome[0]


def join_world() -> World:
    """Return the :class:`World` that torchrun's environment describes."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in os.environ for name in names):
        return World()
    rank, size, local_rank = (int(os.environ[name]) for name in names)
    return World(rank, size, local_rank, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))


def connect(world: World, device: torch.device) -> None:
    """Meet the other processes: over NCCL between GPUs, over gloo between CPUs. Every process must come here."""
    if world.size == 1 or dist.is_initialized():
        return
    store, rank, size = next(dist.rendezvous("env://"))
    # After a restart torchrun's store still holds the addresses of the processes before it: look under new names.
    store = dist.PrefixStore(f"attempt_{world.restarts}", store)
    if device.type == "cuda":
        dist.init_process_group("nccl", store=store, rank=rank, world_size=size, device_id=device)
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)


def disconnect() -> None:
    """Leave the other processes, at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()
