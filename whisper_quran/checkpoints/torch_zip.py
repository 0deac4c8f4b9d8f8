"""The files that hold tensors, read without trusting them and without reading the weights before they are asked for.

Two kinds exist: the zip that `torch.save` writes (``data.pkl`` says what there is, each storage is an entry of its
own, stored and not compressed), and safetensors (a JSON header, then the elements). Both say where each tensor's
elements lie, so a file is a dict of :class:`StoredTensor`: a place, a type and a shape, all checked against the file's
length. :meth:`StoredTensor.read` memory-maps that one place, and the mapping goes when the tensor does: a whole
checkpoint can be walked, cast and written with the memory of what is kept.

safetensors is a format of one page, https://github.com/huggingface/safetensors#format; reading and writing it here,
a tensor at a time, needs no library and less memory than the library's own writer.
"""

import json
import math
import mmap
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import IO

import torch
from torch import Tensor

from ..runtime.errors import UserError
from ..runtime.files import atomic_write
from .unpickling import MAX_NAME, MEND, PickledTensor, unpickle

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
# What describes a large Whisper with its optimiser takes half a megabyte: bytes of JSON or of a zip's directory, of a
# pickle (where a notebook's hyper-parameters may be lists of thousands of files).
MAX_HEADER, MAX_PICKLE = 16 * 2**20, 64 * 2**20
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save's format before version 1.6 begins


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file."""

    path: Path
    start: int  # the byte of the file where its first element lies
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor itself, memory-mapped; writing to it never reaches the file."""
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        span = _span(self.shape, self.stride) * self.dtype.itemsize
        before = self.start % mmap.ALLOCATIONGRANULARITY
        with open(self.path, "rb") as file:
            place = mmap.mmap(file.fileno(), before + span, access=mmap.ACCESS_COPY, offset=self.start - before)
        elements = torch.frombuffer(place, dtype=torch.uint8, count=span, offset=before)
        if before % self.dtype.itemsize:
            elements = elements.clone()  # the file did not align them
        return elements.view(self.dtype).as_strided(self.shape, self.stride)


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first of a tensor to its last, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


@dataclass(frozen=True)
class TorchFile:
    """What `torch.save` wrote: plain containers with :class:`PickledTensor` leaves, and where the storages lie."""

    path: Path
    contents: object
    storages: Mapping[str, tuple[int, int]] = field(repr=False)  # key: first byte in the file, bytes

    def tensors(self, state: Mapping[str, PickledTensor]) -> dict[str, StoredTensor]:
        """Find the tensors of ``state`` in the file.

        Raises:
            UserError: the file does not hold what it says.
        """
        return {name: self._find(name, tensor) for name, tensor in state.items()}

    def _find(self, name: str, tensor: PickledTensor) -> StoredTensor:
        check_name(self.path, name)
        dtype = STORAGE_DTYPES.get(tensor.storage_type)
        if dtype is None:
            raise UserError(f"{self.path}: {name} is a tensor of an unknown type ({tensor.storage_type})")
        if tensor.key not in self.storages:
            raise damaged(self.path, f"the elements of {name} are missing")
        start, nbytes = self.storages[tensor.key]
        room = nbytes // dtype.itemsize - tensor.offset
        elements = math.prod(tensor.size)
        if elements and (elements > room or _span(tensor.size, tensor.stride) > room):
            raise damaged(self.path, f"{name} is larger than what is stored of it")
        return StoredTensor(self.path, start + tensor.offset * dtype.itemsize, dtype, tensor.size, tensor.stride)


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is truncated or damaged ({what}): copy or download it again")


def read_torch_file(path: Path) -> TorchFile:
    """Open a zip that `torch.save` wrote; nothing in it is run (see :mod:`unpickling`).

    Raises:
        UserError: it is damaged, compressed, or its pickle is refused.
    """
    with open(path, "rb") as file:
        places = _zip_places(path, file)
        pickles = [name for name in places if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip, but not one that torch.save wrote: give a checkpoint file")
        root = pickles[0].removesuffix("data.pkl")
        start, nbytes = places[pickles[0]]
        if nbytes > MAX_PICKLE:
            raise UserError(f"{path} holds a pickle of {nbytes:,} bytes, more than any checkpoint needs: {MEND}")
        program = _read_at(file, start, nbytes)
        if f"{root}byteorder" in places and _read_at(file, *places[f"{root}byteorder"]) != b"little":
            raise UserError(f"{path} was written on a big-endian machine: save it again on a usual one")
    try:
        contents = unpickle(program)
    except UnpicklingError as error:
        raise UserError(f"{path} {error}") from error
    folder = f"{root}data/"
    storages = {name.removeprefix(folder): place for name, place in places.items() if name.startswith(folder)}
    return TorchFile(path, contents, storages)


def _zip_places(path: Path, file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Each entry of a zip: its first byte in the file and its length."""
    length = file.seek(0, 2)
    # torch writes no comment: the end record is the last 22 bytes. A large file has zip64's before it, and a locator.
    end = _read_at(file, max(0, length - 98), 98)
    zip64, end = end[:56], end[-22:]
    if end[:4] != b"PK\5\6":
        raise damaged(path, "its end is missing")
    directory = struct.unpack("<I", end[12:16])[0]
    if zip64[:4] == b"PK\6\6":
        directory = max(directory % 0xFFFFFFFF, struct.unpack("<Q", zip64[40:48])[0])
    if directory > MAX_HEADER:
        raise UserError(
            f"{path} is a zip with a directory of {directory:,} bytes, more than any checkpoint needs: {MEND}"
        )
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise damaged(path, "its directory cannot be read") from error
    places = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UserError(f"{path} holds compressed entries, which torch.save never writes: give the file itself")
        # The directory does not say where an entry's bytes begin: its own header, of 30 bytes and two names, does.
        inside = 0 <= entry.header_offset < length
        header = _read_at(file, entry.header_offset, 30) if inside else b""
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise damaged(path, f"no entry where {entry.filename!r} should be")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if start + entry.file_size > length:
            raise damaged(path, f"{entry.filename!r} goes past its end")
        places[entry.filename] = (start, entry.file_size)
    return places


def _read_at(file: IO[bytes], start: int, nbytes: int) -> bytes:
    file.seek(start)
    return file.read(nbytes)


def write_torch_file(contents: object, file: IO[bytes]) -> None:
    """``torch.save``, with the disk's own error where the disk is what fails."""
    try:
        torch.save(contents, file)
    except RuntimeError as error:
        # torch's zip writer, closing what it could not write, puts an error of its own over the disk's.
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is damaged, or not what its header says.
    """
    length = path.stat().st_size
    with open(path, "rb") as file:
        header_bytes = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if header_bytes > min(MAX_HEADER, length - 8):
            raise damaged(path, "its header goes past its end")
        header = parse_json(path, file.read(header_bytes))
    data = 8 + header_bytes
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        check_name(path, name)
        match entry:
            case {"dtype": str(dtype_name), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
                pass
            case _:
                raise damaged(path, "its header is not a safetensors header")
        if dtype_name not in SAFETENSORS_DTYPES:
            raise UserError(f"{path}: {name} is a tensor of an unknown type ({dtype_name!r})")
        dtype = SAFETENSORS_DTYPES[dtype_name]
        if len(shape) > 8 or any(type(size) is not int or not 0 <= size < 2**48 for size in shape):
            raise damaged(path, f"{name} has no shape")
        tensor = StoredTensor(path, data + begin, dtype, tuple(shape), _contiguous_stride(shape))
        if not 0 <= begin <= end <= length - data or tensor.nbytes != end - begin:
            raise damaged(path, f"{name} is larger than what is stored of it")
        tensors[name] = tensor
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
    """Write ``tensors`` as ``dtype``, holding one of them in memory at a time.

    Raises:
        UserError: a weight is beyond ``dtype``'s range, the disk is full, or the folder cannot be written.
    """
    dtype_name = next(name for name, known in SAFETENSORS_DTYPES.items() if known == dtype)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers opens no other
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + math.prod(tensor.shape) * dtype.itemsize
        header[name] = {"dtype": dtype_name, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the elements begin aligned
    with atomic_write(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            file.write(at_precision(name, tensor.read(), dtype).numpy())


def at_precision(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` as ``dtype`` on the CPU, contiguous, and with no more storage than its own.

    Raises:
        UserError: a finite weight would become infinite. Clamping it would be a change that nobody sees.
    """
    cast = tensor.detach().to(dtype)
    infinite = int(cast.isinf().sum()) if cast.dtype != tensor.dtype else 0
    if infinite and infinite > int(tensor.isinf().sum()):
        largest = tensor[tensor.isfinite()].abs().max()
        raise UserError(f"{name} holds {largest:.3g}, beyond the range of {dtype}: its training diverged, or keep fp32")
    cast = cast.cpu().contiguous()
    return cast if cast.untyped_storage().nbytes() == cast.nbytes else cast.clone()


def check_name(path: Path, name: str) -> None:
    """Refuse names that would not fit the one line of an error (they come from strangers)."""
    if len(name) > MAX_NAME or not name.isprintable():
        raise damaged(path, f"a tensor is called {name[:40]!r}")


def _contiguous_stride(shape: list[int] | tuple[int, ...]) -> tuple[int, ...]:
    """Steps in elements of a tensor whose elements lie in order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def read_json(path: Path) -> dict:
    """Read a file that holds a JSON object.

    Raises:
        UserError: it does not, or is too large for one that describes a model.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_HEADER + 1)
    if len(text) > MAX_HEADER:
        raise UserError(f"{path} is larger than the description of any model: give another checkpoint")
    return parse_json(path, text)


def parse_json(path: Path, text: bytes) -> dict:
    """Parse a JSON object.

    Raises:
        UserError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its JSON cannot be read") from error
    if not isinstance(value, dict):
        raise damaged(path, "its JSON is no object")
    return value
