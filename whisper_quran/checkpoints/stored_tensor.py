"""Tensors that are still in their file, and helpers of every format's reader and writer."""

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..runtime.errors import UserError

MAX_NAME = 300  # characters
MAX_HEADER = 16 * 2**20  # bytes of JSON or of a zip's directory; a large Whisper with its optimiser takes half a MB


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its type and shape are known, its elements are read by :meth:`read`.

    Each format has a subclass that adds the position of the elements; tensors are equal if their position is.
    """

    path: Path
    name: str = field(compare=False)  # as in the file
    dtype: torch.dtype | str  # the file's own name if torch or Whisper has no such type
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (self.dtype.itemsize if isinstance(self.dtype, torch.dtype) else 0)

    def read(self) -> Tensor:
        """Return the tensor, memory-mapped; writing to it never reaches the file.

        Raises:
            UserError: it holds NaN or infinity.
        """
        tensor = self._load()
        if not all_finite(tensor):
            raise UserError(
                f"{self.path}: {self.name} holds values that are not finite numbers (NaN or infinity): its training "
                "diverged; give a checkpoint from before"
            )
        return tensor

    def _load(self) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class MappedTensor(StoredTensor):
    """A tensor whose elements have the same layout in the file as in memory, so that they can be mapped."""

    start: int  # the byte of the file where its first element is
    stride: tuple[int, ...]  # in elements

    def _load(self) -> Tensor:
        assert isinstance(self.dtype, torch.dtype)
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        length = span(self.shape, self.stride) * self.dtype.itemsize
        before = self.start % mmap.ALLOCATIONGRANULARITY
        with open(self.path, "rb") as file:
            place = mmap.mmap(file.fileno(), before + length, access=mmap.ACCESS_COPY, offset=self.start - before)
        elements = torch.frombuffer(place, dtype=torch.uint8, count=length, offset=before)
        if before % self.dtype.itemsize:
            elements = elements.clone()  # the file did not align them
        return elements.view(self.dtype).as_strided(self.shape, self.stride)


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return the number of elements from the first of a tensor to its last, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


@dataclass(frozen=True)
class Contents:
    """The contents of a checkpoint, under the names in the file."""

    kind: str  # "Whisper", "PyTorch Lightning", "Hugging Face", "PyTorch" or "safetensors"
    tensors: Mapping[str, StoredTensor]
    dims: Mapping[str, object]  # the dimensions it states
    nbytes: int
    left_out: tuple[str, ...] = ()


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is truncated or damaged ({what}): copy or download it again")


def check_name(path: Path, name: str) -> None:
    """Raise a :class:`UserError` for a name, in an untrusted file, that is too long or not printable."""
    if len(name) > MAX_NAME or not name.isprintable():
        raise damaged(path, f"a tensor is called {name[:40]!r}")


def read_json(path: Path) -> dict:
    """Read a file that holds a JSON object.

    Raises:
        UserError: it holds something else, or is too large to describe a model.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_HEADER + 1)
    if len(text) > MAX_HEADER:
        raise UserError(f"{path} is larger than the description of any model: give another checkpoint")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its JSON cannot be read") from error
    if not isinstance(value, dict):
        raise damaged(path, "its JSON is no object")
    return value


def all_finite(tensor: Tensor) -> bool:
    """Return True if no element is NaN or infinite: in one pass, twenty times faster than `isfinite().all()`."""
    # The smallest and the largest element; both are NaN if any element is.
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def at_precision(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast ``tensor`` to ``dtype`` on the CPU, contiguous, with no storage beyond its own elements.

    Raises:
        UserError: a finite weight would become infinite. Clamping it would be a silent change.
    """
    cast = tensor.detach().to(dtype)
    if cast.dtype != tensor.dtype and not all_finite(cast) and cast.isinf().sum() > tensor.isinf().sum():
        largest = tensor[tensor.isfinite()].abs().max()
        raise UserError(f"{name} holds {largest:.3g}, beyond the range of {dtype}: its training diverged, or keep fp32")
    cast = cast.cpu().contiguous()
    return cast if cast.untyped_storage().nbytes() == cast.nbytes else cast.clone()
