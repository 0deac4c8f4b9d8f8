"""The zip that `torch.save` writes: Whisper's own `.pt`, PyTorch Lightning's `.ckpt`, `pytorch_model.bin`.

``data.pkl`` describes the contents; each tensor's elements are an uncompressed entry of their own, memory-mapped one
tensor at a time. A pickle is a program that may call anything, so a checkpoint is untrusted, and one whose
hyper-parameters are of a class from a notebook cannot be unpickled at all. Here nothing that it names is ever imported
or called: a :class:`StandIn` replaces every object that is not plain data or a tensor.
"""

import math
import pickle
import pickletools
import struct
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from whisper.model import ModelDimensions

from ..runtime.errors import UserError
from ..runtime.files import atomic_write
from .stored_tensor import MAX_HEADER, MAX_NAME, Contents, MappedTensor, at_precision, check_name, damaged, span
from .tensor_names import plain_name, whisper_prefixes

FILES: frozenset[str] = frozenset()  # one file, no folder
# A pickle holds no weights, only their positions: 160,000 instructions for a large Whisper with its optimiser. The
# limits keep the memory that one can allocate below some hundreds of megabytes.
MAX_PICKLE, MAX_INSTRUCTIONS = 64 * 2**20, 1_000_000
MEND = "distrust it, or, if it is your own, save its state_dict() alone"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save's format before version 1.6 begins
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
}
# Modules of plain data. A pickle that calls anything else in the standard library (os.system, eval) is rejected: it
# would not be run, but is malicious.
DATA_MODULES = (
    "_codecs argparse collections copyreg dataclasses datetime decimal enum fractions functools ipaddress logging "
    "pathlib random re types typing uuid zoneinfo"
).split()
DATA_BUILTINS = "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple".split()


class _Refused(Exception):
    """The reason why a pickle is rejected; the message continues a sentence that begins with the file's name."""


class StandIn:
    """A placeholder for an object that is not plain data or a tensor; it ignores the state that is set on it."""

    __slots__ = ("name",)

    def __init__(self, name: str = ""):
        self.name = name  # of its class, or ""

    def __call__(self, *args: object) -> object:
        raise _Refused(f"tries to call what another call returned; nothing was run: {MEND}")

    def _ignore(self, *args: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Global(StandIn):
    """A name that the pickle looks up (``os.system``, ``__main__.Config``)."""

    __slots__ = ("attribute", "module")

    def __init__(self, module: str, attribute: str):
        if len(module) + len(attribute) > MAX_NAME or not (module + attribute).isprintable():
            raise ValueError("name")
        # Pickle protocol 2, which torch uses, writes Python 2's names.
        self.module, self.attribute = NAME_MAPPING.get(
            (module, attribute), (IMPORT_MAPPING.get(module, module), attribute)
        )
        super().__init__(f"{self.module}.{self.attribute}")

    def __call__(self, *args: object) -> object:
        match self.name, args:
            case "collections.OrderedDict", ():
                return _Dict()
            case "torch._utils._rebuild_tensor_v2", (_Storage() as storage, offset, size, stride, *_):
                return _PickledTensor(storage, offset, size, stride)
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (data, *_):
                return data
            case "builtins.getattr", (_Global() as outer, str() as inner):
                return _Global(outer.module, f"{outer.attribute}.{inner}")  # the name of a nested class
        if self._is_suspicious():
            raise _Refused(f"tries to call {self.name}; nothing was run: {MEND}")
        return StandIn(self.name)

    def _is_suspicious(self) -> bool:
        if self.module == "builtins":  # its only classes with a capital are the exceptions
            return self.attribute not in DATA_BUILTINS and not self.attribute[:1].isupper()
        package = self.module.partition(".")[0]
        return package in sys.stdlib_module_names and (package not in DATA_MODULES or "." in self.attribute)


class _Dict(dict):
    """A dict with names as keys; any other key is replaced by a StandIn, since no tensor is found by it.

    Hashing such a key could take for ever (a tuple of tuples, each twice the one before) or overflow the stack.
    """

    __slots__ = ()

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(key if isinstance(key, str) and len(key) <= MAX_NAME else StandIn(), value)

    def __setstate__(self, state: object) -> None:
        pass  # the attributes of an OrderedDict


# Named tuples, because no pickle instruction can change one.
class _Storage(NamedTuple):
    type: str  # torch's class, e.g. "HalfStorage"
    key: str  # its name in the zip


class _PickledTensor(NamedTuple):
    """A tensor's position, in elements of its storage; not checked yet."""

    storage: _Storage
    offset: Any
    size: Any
    stride: Any


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Unpickles plain data and stand-ins.

    It extends the Unpickler written in Python: in the faster one in C, dicts and sets always hash their keys.
    """

    stack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> _Global:
        return _Global(module, name)

    def get_extension(self, code: int) -> None:
        raise ValueError("an extension")

    def persistent_load(self, id: object) -> _Storage:
        match id:
            case ("storage", _Global(attribute=type), str() as key, str(), int()):
                return _Storage(type, key)
        raise ValueError("persistent id")

    def load_dict(self) -> None:
        items, made = self.pop_mark(), _Dict()
        for key, value in zip(items[::2], items[1::2], strict=True):
            made[key] = value
        self.append(made)

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(StandIn())

    def load_newobj(self) -> None:
        self.stack.pop()
        made = self.stack.pop()
        self.append(StandIn(made.name if isinstance(made, _Global) else ""))

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_newobj()

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,  # type: ignore[attr-defined]
        pickle.EMPTY_DICT[0]: lambda self: self.append(_Dict()),
        pickle.EMPTY_SET[0]: lambda self: self.append(StandIn()),
        pickle.DICT[0]: load_dict,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
    }


def _unpickle(path: Path, program: bytes) -> Any:
    try:
        # The disassembler builds no objects; it raises if the end or a string is not within the program.
        for count, _ in enumerate(pickletools.genops(program)):
            if count == MAX_INSTRUCTIONS:
                raise _Refused(f"holds a pickle of more than {MAX_INSTRUCTIONS:,} instructions: {MEND}")
        return _Unpickler(BytesIO(program), encoding="latin1").load()
    except _Refused as error:
        raise UserError(f"{path} {error}") from None
    except Exception as error:  # a damaged program can raise anything
        raise UserError(f"{path} holds a damaged pickle: copy or download it again") from error


def recognises(path: Path) -> bool:
    """Return True if ``path`` is a zip, or in the format that `torch.save` wrote before it wrote zips."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    return head[:4] == b"PK\3\4" or head == LEGACY_MAGIC


def read(path: Path) -> Contents:
    """Find the first dict of a file that holds a Whisper, starting with the outermost.

    Its name does not matter: state_dict, model_state_dict, model. If there is none, return the largest dict, so that an
    error can list what it lacks.

    Raises:
        UserError: the file is damaged, compressed, holds no dict, or its pickle is refused.
    """
    with open(path, "rb") as file:
        if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
            raise UserError(f"{path} is in torch's format of before 2020: torch.load it and torch.save it again")
        contents, storages = _read_zip(path, file)
        nbytes = file.seek(0, 2)
    if not isinstance(contents, dict):
        what = f"a whole {contents.name}" if isinstance(contents, StandIn) and contents.name else "no dict"
        raise UserError(f"{path} holds {what}: save its state_dict() instead, or give the checkpoint of a Whisper")
    dicts: dict[str, dict] = {"": contents}
    seen = {id(contents)}  # a file may hold one dict under thousands of names
    for name, value in contents.items():
        if isinstance(name, str) and isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            dicts[name] = value
    names = {
        name: [key for key, value in state.items() if isinstance(key, str) and isinstance(value, _PickledTensor)]
        for name, state in dicts.items()
    }
    whispers = [name for name in names if whisper_prefixes(map(plain_name, names[name]))]
    chosen = whispers[0] if whispers else max(names, key=lambda name: len(names[name]))
    left_out = []
    if chosen:
        left_out = [k for k, v in dicts[chosen].items() if isinstance(k, str) and isinstance(v, StandIn)]
    left_out += [f"{name}.* (another Whisper)" for name in whispers[1:]]
    for name in left_out:
        check_name(path, name)
    dims = contents.get("dims", {})
    kind = "Whisper" if dims else "PyTorch"
    return Contents(
        kind="PyTorch Lightning" if "pytorch-lightning_version" in contents else kind,
        tensors={name: _find(path, name, dicts[chosen][name], storages) for name in names[chosen]},
        dims=dims if isinstance(dims, dict) else {},
        nbytes=nbytes,
        left_out=tuple(left_out),
    )


def _find(path: Path, name: str, tensor: _PickledTensor, storages: dict[str, tuple[int, int]]) -> MappedTensor:
    """Check a tensor's position, as the pickle states it, against the file."""
    check_name(path, name)
    offset, size, stride = tensor.offset, tensor.size, tensor.stride
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 8):
        raise damaged(path, f"{name} has no shape")
    if any(type(number) is not int or not 0 <= number < 2**48 for number in (offset, *size, *stride)):
        raise damaged(path, f"{name} has no shape")
    dtype = STORAGE_DTYPES.get(tensor.storage.type)
    if dtype is None:  # not a weight of a Whisper, so it will not be read
        return MappedTensor(path, name, tensor.storage.type, size, 0, stride)
    if tensor.storage.key not in storages:
        raise damaged(path, f"the elements of {name} are missing")
    start, nbytes = storages[tensor.storage.key]
    room = nbytes // dtype.itemsize - offset
    elements = math.prod(size)
    if elements and (elements > room or span(size, stride) > room):
        raise damaged(path, f"{name} is larger than what is stored of it")
    return MappedTensor(path, name, dtype, size, start + offset * dtype.itemsize, stride)


def _read_zip(path: Path, file: IO[bytes]) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return the unpickled contents, and each storage's position: its first byte in the file and its length."""
    places = _zip_places(path, file)
    pickles = [name for name in places if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip, but not one that torch.save wrote: give a checkpoint file")
    root = pickles[0].removesuffix("data.pkl")
    start, nbytes = places[pickles[0]]
    if nbytes > MAX_PICKLE:
        raise UserError(f"{path} holds a pickle of {nbytes:,} bytes, more than any checkpoint needs: {MEND}")
    if f"{root}byteorder" in places and _read_at(file, places[f"{root}byteorder"][0], 6) != b"little":
        raise UserError(f"{path} was written on a big-endian machine: save it again on a usual one")
    folder = f"{root}data/"
    storages = {name.removeprefix(folder): place for name, place in places.items() if name.startswith(folder)}
    return _unpickle(path, _read_at(file, start, nbytes)), storages


def _zip_places(path: Path, file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Return the position of each entry of a zip: its first byte in the file and its length."""
    try:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end and end[zipfile._ECD_SIZE] > MAX_HEADER:  # type: ignore[attr-defined]
            raise UserError(f"{path} is a zip with a directory of {end[5]:,} bytes, too many for a checkpoint: {MEND}")
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise damaged(path, "its directory cannot be read") from error
    length = file.seek(0, 2)
    places = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UserError(f"{path} holds compressed entries, which torch.save never writes: give the file itself")
        # The directory lacks the start of an entry's bytes: it follows from its own header, 30 bytes and two names.
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


def write(
    path: str | Path,
    dims: ModelDimensions,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    language: str | None = None,
) -> None:
    """Write the named ``tensors`` for `whisper.load_model`, with at most one copy of them in memory.

    ``language`` is not stored: Whisper takes it when it decodes.

    Raises:
        UserError: a weight is beyond ``dtype``'s range, the disk is full, or the folder cannot be written.
    """
    state = {name: at_precision(name, tensor, dtype) for name, tensor in tensors}
    with atomic_write(path, "wb") as file:
        write_torch_file({"dims": asdict(dims), "model_state_dict": state}, file)


def write_torch_file(contents: object, file: IO[bytes]) -> None:
    """Call ``torch.save``; if the disk fails, raise the OSError of the disk."""
    try:
        torch.save(contents, file)
    except RuntimeError as error:
        # torch's zip writer, closing an incomplete file, raises an error of its own over that of the disk.
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
