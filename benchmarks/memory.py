"""What a training step takes of a GPU's memory, counted without a GPU: which model, trained how, fits on 16 GB.

  python benchmarks/memory.py                                  the table: base to large-v3, two minutes of one core
  python benchmarks/memory.py --models medium --tokens 200     long texts (diacritics)
  python benchmarks/memory.py --check base --clips 4           the count beside what a real step takes on this CPU

The step is the trainer's: its model, adapters, optimiser, loss and frozen encoder, under autocast in 16 bits (bf16 and
fp16 take the same), at the model's real dimensions, on tensors that have a shape and no content (PyTorch's
``FakeTensorMode``). Every tensor that is made is counted until it is freed: weights, gradients, AdamW's moments, what
the backward pass keeps, and what comes and goes between. The peak is that of a micro-batch whose step has gradients
from the one before it, as with ``--accumulate``.

A tensor's shape is the same on a GPU, where attention is the fused one, too. Not counted, and allowed for: what CUDA
and its libraries take (0.5 GiB), and what the allocator cannot use (10 %).
"""

import argparse
import ctypes
import sys
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from whisper.model import Whisper

from train import SIZES, make_model  # benchmarks/train.py
from whisper_quran.data.features import encode
from whisper_quran.runtime.console import markdown_table
from whisper_quran.training.loss import Objective, add_adapters
from whisper_quran.training.optimizer import build_optimizer

GIB = 2**30
CONTEXT = 0.5 * GIB  # CUDA and its libraries
FRAGMENTATION = 1.1
CARD = 14.6 * GIB  # what a "16 GB" T4 gives
MOST = 16  # clips: a step of Experiment 2A
DTYPE = torch.bfloat16
MMAP_THRESHOLD = -3  # of mallopt(3)


@dataclass(frozen=True)
class Way:
    """What is trained, and how; ``lora`` is the rank of the adapters."""

    train_encoder: bool = False
    lora: int | None = None
    grad_checkpoint: bool = False

    @property
    def trained(self) -> str:
        part = "encoder and decoder" if self.train_encoder else "decoder"
        return f"{part}, --lora {self.lora}" if self.lora else part


WAYS = [
    Way(train_encoder, lora, low) for lora in (None, 16) for train_encoder in (False, True) for low in (False, True)
]


@dataclass(frozen=True)
class Memory:
    """Bytes: what stays from step to step (weights, gradients, moments), and the most at any time of each phase of a
    step: encoding (if the encoder is frozen), forward, and the two halves of backward."""

    resident: int
    phases: tuple[int, ...]

    @property
    def peak(self) -> int:
        return max(self.phases)

    @property
    def on_card(self) -> float:
        return CONTEXT + FRAGMENTATION * self.peak


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it as long as they live; ``history`` has an entry for every
    operator."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.history: list[int] = []
        self._counted: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_iter(result):
            if isinstance(each, Tensor) and each.layout == torch.strided:
                self._count(each.untyped_storage())
        self.history.append(self.live)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # The storage's address in memory would not do: tensors without content have none.
        identity, size = storage._cdata, storage.nbytes()
        if identity not in self._counted:
            self._counted.add(identity)
            self.live += size
            weakref.finalize(storage, self._free, identity, size).atexit = False

    def _free(self, identity: int, size: int) -> None:
        self._counted.discard(identity)
        self.live -= size


class MicroBatch:
    """Clips with texts of one length, and the trainer's forward and backward pass on them."""

    def __init__(self, model: Whisper, way: Way, clips: int, tokens: int) -> None:
        self.encoder, self.train_encoder = model.encoder, way.train_encoder
        self.objective = Objective(model, way.train_encoder, way.grad_checkpoint)
        if way.lora:
            add_adapters(model, way.lora, way.train_encoder, seed=0)
        if not way.train_encoder:  # the trainer has a copy on the GPU, and the weights it is made from on the CPU
            cast_weights(model.encoder)
        optimizer = build_optimizer(self.objective, 1e-5, 0.0)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # from here on the moments are there, too
        self.optimizer = optimizer
        self.mel = torch.randn(clips, model.dims.n_mels, 3000)  # 30 s: the longest
        self.tokens = torch.full((clips, tokens), 50257)
        self.positions = torch.arange(clips * tokens)

    def encode(self) -> Tensor:
        if self.train_encoder:
            return self.mel
        with torch.no_grad():
            return encode(self.encoder, self.mel.to(DTYPE))  # all at once, as on a GPU

    def forward(self, audio: Tensor) -> Tensor:
        targets = self.tokens.flatten()
        with torch.autocast("cpu", dtype=DTYPE):
            return self.objective(audio, self.tokens, self.positions, targets) / len(targets)


def cast_weights(encoder: nn.Module) -> None:
    """Put the weights into 16 bits, as :class:`FrozenEncoder` does; whisper computes LayerNorm in fp32."""
    for module in encoder.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.detach().to(DTYPE), requires_grad=False))


def count(size: str, way: Way, clips: int, tokens: int, layers: int | None = None, real: bool = False) -> Memory:
    """Count what a micro-batch of ``clips`` takes, their texts ``tokens`` long; ``real`` computes it, too."""
    with nullcontext() if real else FakeTensorMode(), Allocations() as memory:
        batch = MicroBatch(make_model(size, layers=layers), way, clips, tokens)
        resident, history = memory.live, memory.history
        ends = [len(history)]
        audio = batch.encode()
        ends.append(len(history))
        loss = batch.forward(audio)
        ends.append(len(history))
        loss.backward()
        ends += [(ends[-1] + len(history)) // 2, len(history)]
        return Memory(resident, tuple(max(history[start:end], default=0) for start, end in pairwise(ends)))


def line(first: Memory, second: Memory, more: int) -> Memory:
    """Return ``second``, and ``more`` times what it is above ``first``."""
    phases = (b + more * (b - a) for a, b in zip(first.phases, second.phases, strict=True))
    return Memory(second.resident + more * (second.resident - first.resident), tuple(phases))


def extrapolate(size: str, way: Way, clips: int, tokens: int) -> Memory:
    """Return what :func:`count` does, by two and three of the layers, in a tenth of the time: each layer adds the same
    to what a phase takes. (To the most of them all it does not: which phase that is depends on the layers.)"""
    two, three = (count(size, way, clips, tokens, layers) for layers in (2, 3))
    return line(two, three, SIZES[size][2] - 3)


def print_table(models: Sequence[str], tokens: int) -> None:
    """A row for every model, trained part and option."""
    names = ["model", "trained", "--grad-checkpoint", "stays, GiB", "1 clip, GiB", "each more, GiB", "clips at a time"]
    rows = []
    for size in models:
        for way in WAYS:
            one, two = (extrapolate(size, way, clips, tokens) for clips in (1, 2))
            on_card = [line(one, two, clips - 2).on_card for clips in range(1, MOST + 1)]
            more = (on_card[-1] - on_card[0]) / (MOST - 1)
            cells = [f"{each / GIB:.2f}" for each in (one.resident, on_card[0], more)]
            fitting = sum(each <= CARD for each in on_card)
            rows.append([size, way.trained, "yes" if way.grad_checkpoint else "", *cells, str(fitting or "none")])
    print(f"texts of {tokens} tokens, 16 bits; on a card with {CARD / GIB:.1f} GiB, of {MOST} clips at most\n")
    print(markdown_table(names, rows), end="")


def peak_of_process() -> int:
    """The most memory that this process has taken, in bytes, since :func:`forget_peak`; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def check(size: str, way: Way, clips: int, tokens: int) -> tuple[int, int, int]:
    """Return what a micro-batch adds to what is there: counted without content, counted in a real one, and the growth
    of this process in a real one that nothing counts."""
    fake, real = (count(size, way, clips, tokens, real=each) for each in (False, True))
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**16)  # what is freed goes back to the system
    batch = MicroBatch(make_model(size), way, clips, tokens)
    batch.forward(batch.encode()).backward()  # the first has what the kernels keep
    forget_peak()
    before = peak_of_process()
    batch.forward(batch.encode()).backward()
    return fake.peak - fake.resident, real.peak - real.resident, peak_of_process() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["base", "small", "medium", "large-v3"])
    parser.add_argument("--tokens", type=int, default=64, help="of each text (default: 64)")
    parser.add_argument("--check", choices=SIZES, help="compare with a real step of this model on the CPU")
    parser.add_argument("--clips", type=int, default=4, help="with --check")
    args = parser.parse_args()
    if args.check is None:
        return print_table(args.models, args.tokens)
    print(f"{args.check}, {args.clips} clips, texts of {args.tokens} tokens, bf16; MiB that a micro-batch adds\n")
    rows = []
    for way in WAYS:
        cells = [f"{each / 2**20:.1f}" for each in check(args.check, way, args.clips, args.tokens)]
        rows.append([way.trained, "yes" if way.grad_checkpoint else "", *cells])
    names = ["trained", "--grad-checkpoint", "counted", "counted in a real one", "the process grew by"]
    print(markdown_table(names, rows), end="")


if __name__ == "__main__":
    main()
