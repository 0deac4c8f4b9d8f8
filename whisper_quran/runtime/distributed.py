"""Distributed training: the rank of this process, and the collective operations.

``torchrun`` sets rank and world size in the environment; with one process every function is a no-op. Each process
computes the gradient of its own clips, and gradients are summed once, before the optimiser's step. There is no
collective call in the forward and backward passes, so processes may have different numbers of micro-batches, or none,
and one that splits its micro-batches after running out of memory does not affect the others.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from .errors import UserError

T = TypeVar("T")
_BUCKET = 2**25  # elements per all-reduce of gradients: few calls, and little extra memory
_GRACE_SECONDS = 3.0
_TIMEOUT = timedelta(days=1)  # others wait while one machine decodes recordings or loads a model for the first time


@dataclass(frozen=True)
class World:
    """The processes of this run; ``local_rank`` counts within one machine and chooses the GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0  # how often torchrun has started these processes again

    @property
    def is_main(self) -> bool:
        """True in the process that prints and writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return each of ``values`` summed over all processes, in double precision."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        with self._contact():
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
            bucket.append(parameter.grad)  # type: ignore[arg-type]
            if sum(grad.numel() for grad in bucket) >= _BUCKET or index == len(parameters) - 1:
                flat = torch.cat([grad.flatten() for grad in bucket])
                with self._contact():
                    dist.all_reduce(flat)
                for grad, summed in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                    grad.copy_(summed.view_as(grad))
                bucket = []

    def on_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the main process only; every process returns its result or raises its :class:`UserError`."""
        if self.size == 1:
            return work()
        outcome = [self.on_all(lambda: work() if self.is_main else None)]
        with self._contact():
            dist.broadcast_object_list(outcome)
        return outcome[0]  # type: ignore[return-value]

    def on_all(self, work: Callable[[], T]) -> T:
        """Run ``work`` in every process; if it raises a :class:`UserError` in one, all raise.

        Each different error is printed once, by the first process that has it.
        """
        if self.size == 1:
            return work()
        result, message = None, None
        try:
            result = work()
        except UserError as error:
            message = str(error)
        messages: list[str | None] = [None] * self.size
        with self._contact():
            dist.all_gather_object(messages, message)
        first = next((text for text in messages if text is not None), None)
        if first is not None:
            failure = UserError(first if message is None else message)
            failure.already_reported = message is None or message in messages[: self.rank]
            raise failure
        return result  # type: ignore[return-value]

    @contextmanager
    def _contact(self) -> Iterator[None]:
        """Turn the failure of a collective call into a :class:`ProcessLost`: another process has ended."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # torchrun soon stops the other processes by SIGTERM, which then ends this one.
            time.sleep(_GRACE_SECONDS)
            lost = ProcessLost(
                "another process of this run has ended, or did not come for a day: see what it, or torchrun, says"
            )
            lost.already_reported = not self.is_main
            raise lost from error


class ProcessLost(UserError):
    """The error of this process after another process of the run has ended."""


def join_world() -> World:
    """Return the :class:`World` of torchrun's environment, or of the process group that the caller initialised."""
    local_rank, restarts = (int(os.environ.get(name, 0)) for name in ("LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"))
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), local_rank, restarts)
    if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return World()
    return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local_rank, restarts)


def connect(world: World, device: torch.device) -> bool:
    """Initialise the process group, with NCCL for GPUs and gloo for CPUs. Every process must call this.

    A collective call waits for the other processes for a day: the first decoding of recordings takes hours.
    Return True if :func:`disconnect` is to be called at the end: not if the caller had initialised the process group.
    """
    if world.size == 1 or dist.is_initialized():
        return False
    store, rank, size = next(dist.rendezvous("env://"))
    # After a restart torchrun's store still holds the addresses of the old processes, so use a new prefix.
    store = dist.PrefixStore(f"attempt_{world.restarts}", store)
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, None, _TIMEOUT, size, rank, store, device_id=device_id)
    return True


def disconnect() -> None:
    """Destroy the process group."""
    dist.destroy_process_group()
