"""Choice of device and precision, with the reasons that a run prints before it starts."""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass

import torch
from whisper.model import Whisper

from .errors import UserError

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
    """Measure the speed-up of an encoder block of ``model`` in bf16 over fp32 on this CPU, from the best of six each.

    One trial is enough if bf16 is emulated and takes seconds: the one-off costs of the first call fall on fp32.
    """
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
            break
    fp32, bf16 = map(min, zip(*trials, strict=True))
    return fp32 / bf16
