"""Which device and which precision, and why: the two choices that a run prints before it starts."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass

import torch
from whisper.model import Whisper

from .errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The dtype that the heavy arithmetic runs in, under autocast; weights stay fp32. ``reason`` says why."""

    name: str  # fp32, bf16 or fp16
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.name != "fp32")


def choose_device(name: str, local_rank: int = 0) -> tuple[torch.device, str]:
    """Return the device that ``name`` (auto, cpu, cuda, cuda:N) stands for, and a line on why.

    Of several processes on one machine each takes the GPU of its ``local_rank``, unless ``name`` says which.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return device, f"{torch.get_num_threads()} threads of {os.cpu_count()}"
    if device.type != "cuda":
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: this PyTorch sees no CUDA GPU; choose --device cpu or auto")
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from cuda:0")
    if device.index is None:
        device = torch.device("cuda", local_rank)
        if local_rank >= torch.cuda.device_count():
            raise UserError(f"process {local_rank} has no GPU, there are {torch.cuda.device_count()}: start fewer")
    torch.cuda.set_device(device)  # CUDA graphs are captured on the current device
    properties = torch.cuda.get_device_properties(device)
    return device, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def resume_precision(asked: str, before: str | None, device: torch.device, model: Whisper) -> Precision:
    """:func:`choose_precision`, but ``auto`` is what it was ``before``, where this device has that."""
    if asked == "auto" and before is not None:
        with suppress(UserError):
            return Precision(choose_precision(before, device, model).name, "as before")
    return choose_precision(asked, device, model)


def choose_precision(name: str, device: torch.device, model: Whisper) -> Precision:
    """Resolve ``auto``: bf16 where a GPU has it, else fp16 on a GPU; on a CPU the faster of fp32 and bf16, by trial.

    Raises:
        UserError: fp16 on a CPU, or bf16 on a GPU without it.
    """
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
        # bf16 gives up 16 bits of every activation: not worth it for a few percent.
        name = "bf16" if gain > 1.1 else "fp32"
        return Precision(name, f"bf16 takes {1 / gain:.2f} of the time of fp32 on this CPU")
    return Precision(name, "as asked")


@torch.no_grad()
def _bf16_gain(model: Whisper) -> float:
    """How many times faster an encoder block of ``model`` is in bf16 than in fp32 on this CPU: the best of six each.

    One of each is enough where bf16 is emulated and takes seconds: fp32, the first, has what only a first call costs.
    """
    x = torch.randn(1, model.dims.n_audio_ctx, model.dims.n_audio_state)
    block = model.encoder.blocks[0]

    def seconds(dtype: torch.dtype) -> float:
        start = time.perf_counter()
        block(x.to(dtype))
        return time.perf_counter() - start

    # Turn by turn, so that other work on the machine disturbs both alike.
    turns: list[tuple[float, float]] = []
    for _ in range(6):
        turns.append((seconds(torch.float32), seconds(torch.bfloat16)))
        if turns[0][1] >= 3 * turns[0][0]:
            break
    fp32, bf16 = map(min, zip(*turns, strict=True))
    return fp32 / bf16
