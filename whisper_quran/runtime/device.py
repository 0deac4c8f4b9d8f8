"""What a run computes on: its device and precision, with the reasons that it prints, and its processes.

``torchrun`` sets rank and world size in the environment; with one process every function is a no-op. Each process
computes the gradient of its own clips, and gradients are summed once, before the optimiser's step. There is no
collective call in the forward and backward passes, so processes may have different numbers of micro-batches, or none,
and one that splits its micro-batches after running out of memory does not affect the others.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from whisper.model import Whisper

from .errors import UserError

T = TypeVar("T")
_BUCKET = 2**25  # elements per all-reduce of gradients: few calls, and little extra memory
_GRACE_SECONDS = 3.0
_TIMEOUT = timedelta(days=1)  # others wait while one machine decodes recordings or loads a model for the first time

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The dtype of a model's arithmetic under autocast; weights stay fp32. ``reason`` says why it was chosen."""

    name: str  # fp32, bf16 or fp16
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.name != "fp32")


def choose_device(name: str, local_rank: int = 0) -> tuple[torch.device, str]:
    """Return the device for ``name`` (auto, cpu, cuda, cuda:N), and a line that describes it.

    With several processes on a machine, each uses the GPU of its ``local_rank``, unless ``name`` specifies one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name), f"{torch.get_num_threads()} threads of {os.cpu_count()}"
    if not re.fullmatch("cuda(:[0-9]{1,3})?", name):
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: this PyTorch sees no CUDA GPU; choose --device cpu or auto")
    index = int(name.partition(":")[2] or local_rank)
    if index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there is no cuda:{index}, as {torch.cuda.device_count()} GPUs are there")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)  # CUDA graphs are captured on the current device
    properties = torch.cuda.get_device_properties(device)
    return device, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def choose_precision(name: str, device: torch.device, model: Whisper, before: str | None = None) -> Precision:
    """Resolve ``auto``: bf16 on a GPU that supports it, otherwise fp16; on a CPU the faster of fp32 and bf16, measured.

    ``before``, the precision of a run that goes on, takes precedence over that, if this device supports it.

    Raises:
        UserError: fp16 on a CPU, or bf16 on a GPU without it.
    """
    if name == "auto" and before is not None:
        with suppress(UserError):
            return Precision(choose_precision(before, device, model).name, "as before")
    if device.type == "cuda":
        capability = "SM {}.{}".format(*torch.cuda.get_device_capability(device))
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "bf16" and not has_bf16:
            raise UserError(f"--precision bf16: this GPU ({capability}) has no bf16; choose fp16 or auto")
        if name == "auto":
            name = "bf16" if has_bf16 else "fp16"
            return Precision(name, f"{capability} {'has' if has_bf16 else 'has no'} bf16")
    elif name == "fp16":
        raise UserError("--precision fp16 needs a GPU: on a CPU choose fp32, bf16 or auto")
    elif name == "auto":
        gain = _bf16_gain(model)
        # bf16 drops 16 bits of every activation: not worth a few percent.
        name = "bf16" if gain > 1.1 else "fp32"
        return Precision(name, f"bf16 takes {1 / gain:.2f} of the time of fp32 on this CPU")
    return Precision(name, "as asked")


@torch.no_grad()
def _bf16_gain(model: Whisper) -> float:
    """Measure the speed-up of an encoder block of ``model`` in bf16 over fp32 on this CPU, from the best of 6."""
    x = torch.randn(1, model.dims.n_audio_ctx, model.dims.n_audio_state)
    block = model.encoder.blocks[0]

    def seconds(dtype: torch.dtype) -> float:
        start = time.perf_counter()
        block(x.to(dtype))
        return time.perf_counter() - start

    # Alternate, so that other work on the machine affects both equally.
    trials: list[tuple[float, float]] = []
    for _ in range(6):
        trials.append((seconds(torch.float32), seconds(torch.bfloat16)))
        if trials[0][1] >= 3 * trials[0][0]:
            break  # bf16 is emulated and takes seconds; the one-off costs of the first call fall on fp32
    fp32, bf16 = map(min, zip(*trials, strict=True))
    return fp32 / bf16


class ProcessLost(UserError):
    """The error of this process after another process of the run has ended."""


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

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; a process that has none counts as zero."""
        if self.size == 1:
            return
        bucket: list[torch.Tensor] = []
        for index, parameter in enumerate(parameters):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
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

    Return True if it is to be destroyed at the end: not if the caller had initialised it.
    """
    if world.size == 1 or dist.is_initialized():
        return False
    store, rank, size = next(dist.rendezvous("env://"))
    # After a restart torchrun's store still holds the addresses of the old processes, so use a new prefix.
    store = dist.PrefixStore(f"attempt_{world.restarts}", store)
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, None, _TIMEOUT, size, rank, store, device_id=device_id)
    return True
