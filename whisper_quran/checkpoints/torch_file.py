"""Files of `torch.save`: Whisper's own `.pt`, PyTorch Lightning's `.ckpt`, `pytorch_model.bin`.

A pickle is a program that may call anything, so a checkpoint is untrusted, and one whose hyper-parameters are of a
class from a notebook cannot be unpickled at all. Here `torch.load` gets an unpickler that calls nothing: it makes plain
data and tensors, and :class:`StandIn` takes the place of everything else.
"""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor
from torch.storage import TypedStorage

from ..runtime.errors import UserError

MAX_PICKLE = 64 * 2**20  # bytes: it holds no weights, and takes some megabytes for a large Whisper with its optimiser
MAX_NAME = 300  # characters of a tensor's name


class StandIn:
    """Takes the place of a class, a function, or an object of one; what is added to it is dropped."""

    __slots__ = ("attribute",)

    def __init__(self, attribute: str):
        self.attribute = attribute  # its name in its module

    def _ignore(self, *args: object) -> None:
        pass

    __setitem__ = append = extend = _ignore


class _Dict(dict):
    """A dict of names; other keys are dropped, since no tensor is found by them and some take for ever to hash."""

    __slots__ = ()

    def __setitem__(self, key: object, value: object) -> None:
        if isinstance(key, str) and len(key) <= MAX_NAME and key.isprintable():
            super().__setitem__(key, value)


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Unpickles plain data and tensors, and imports and calls nothing that the pickle names.

    The instructions that would call something are REDUCE, INST, OBJ, NEWOBJ, NEWOBJ_EX and BUILD; all are replaced. So
    are those that hash. It extends the Unpickler written in Python, whose instructions can be replaced one by one.
    """

    stack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> StandIn:
        return StandIn(name)

    def get_extension(self, code: int) -> None:
        raise ValueError("an extension")

    def _instantiate(self, function: object, args: Any) -> None:  # INST and OBJ
        match function, tuple(args):
            case StandIn(attribute="OrderedDict"), ():
                self.append(_Dict())
            case StandIn(attribute="_rebuild_tensor_v2"), (TypedStorage() as storage, offset, size, stride, *_):
                tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
                if tensor.nbytes > tensor.untyped_storage().nbytes():
                    raise ValueError("a tensor that repeats what is stored of it")
                self.append(tensor)
            case StandIn(attribute="_rebuild_parameter" | "_rebuild_parameter_with_state"), (Tensor() as data, *_):
                self.append(data)
            case StandIn(attribute=attribute), _:
                self.append(StandIn(attribute))
            case _:
                raise ValueError("a call of what is no name")

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self._instantiate(function, args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        self.stack.pop()

    def load_binpersid(self) -> None:
        match self.stack.pop():
            case ("storage", kind, str() as key, str(), int() as size):
                kind = torch.UntypedStorage if isinstance(kind, StandIn) else kind
                self.append(self.persistent_load(("storage", kind, key, "cpu", size)))
            case _:
                raise ValueError("no storage")

    def load_empty_dict(self) -> None:
        self.append(_Dict())

    def load_dict(self) -> None:
        items, made = self.pop_mark(), _Dict()
        for key, value in zip(items[::2], items[1::2], strict=True):
            made[key] = value
        self.append(made)

    def load_empty_set(self) -> None:
        self.append(StandIn("set"))

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.load_empty_set()

    def load_additems(self) -> None:
        self.pop_mark()

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,  # type: ignore[attr-defined]
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.BINPERSID[0]: load_binpersid,
        pickle.EMPTY_DICT[0]: load_empty_dict,
        pickle.DICT[0]: load_dict,
        pickle.EMPTY_SET[0]: load_empty_set,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.ADDITEMS[0]: load_additems,
    }


class _PickleModule:
    Unpickler = _Unpickler


def read_torch_file(path: Path) -> Any:
    """Read what `torch.save` wrote to ``path``: its dicts, lists and memory-mapped tensors; the rest is a StandIn.

    Raises:
        UserError: the file is damaged, compressed, or of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        # Asked of the reader that torch.load uses, as that would run a TorchScript file.
        if pickles and torch._C.PyTorchFileReader(str(path)).has_record("constants.pkl"):  # type: ignore[attr-defined]
            raise UserError(f"{path} is a TorchScript program: save the state_dict() of its model instead")
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if not pickles or compressed or max(entry.file_size for entry in pickles) > MAX_PICKLE:
            raise UserError(f"{path} is a zip, but not as torch.save writes a checkpoint: give the checkpoint itself")
        return torch.load(str(path), map_location="cpu", pickle_module=_PickleModule, weights_only=False, mmap=True)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise damaged(path) from error


def damaged(path: Path, what: str = "it cannot be read") -> UserError:
    return UserError(f"{path} is truncated or damaged ({what}): copy or download it again")


def write_torch_file(contents: object, file: IO[bytes]) -> None:
    """Call ``torch.save``; if the disk fails, raise the OSError of the disk."""
    try:
        torch.save(contents, file)
    except RuntimeError as error:
        # torch's zip writer, closing an incomplete file, raises an error of its own over that of the disk.
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
