"""Read a pickle without running it.

A pickle is a program: it looks names up, calls what it finds, and fills the results. `torch.load` runs it, so a
checkpoint from a stranger can do anything, and one whose hyper-parameters are of a class that lived in a notebook
cannot be opened at all. Here the program is only taken apart, by the standard library's disassembler
(:mod:`pickletools`), and of its instructions only those that make numbers, strings and containers are acted on:

- a name (``os.system``, ``__main__.Config``) stays a name, a :class:`Global`; no module is ever imported;
- an object becomes :class:`Inert`: it remembers what it would have been, and swallows what it is filled with;
- a tensor becomes a :class:`PickledTensor`: where its elements lie in the file, not the elements;
- a program that calls anything but a data type is refused, with the name of what it tried.

Classes and functions cannot be told apart without importing them, so the rule goes by names: of Python's own
library only the types listed in ``DATA_TYPES`` may be called; elsewhere, what is written like a class
(``lightning.fabric.utilities.data.AttributeDict``). What the rule lets through is inert all the same: it decides
what is refused, never what is run.
"""

import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass
from pickle import UnpicklingError

# A checkpoint's pickle holds no weights, only where they are: 160,000 instructions for a large Whisper with its
# optimiser. The bound keeps what a program can make in memory below some hundreds of megabytes.
MAX_INSTRUCTIONS = 1_000_000
MAX_NAME = 1000  # characters
MEND = "distrust it, or, if it is your own, save its state_dict() alone"

_DATA_TYPES_BY_MODULE = {
    "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",  # Python 3.13
    "uuid": "UUID",
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "functools": "partial",
    # How bytes, objects and arrays are written by the older protocols.
    "_codecs": "encode",
    "copyreg": "_reconstructor",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "torch": "device",
    "torch.serialization": "_get_layout",
}
DATA_TYPES = {f"{module}.{name}" for module, names in _DATA_TYPES_BY_MODULE.items() for name in names.split()}


@dataclass(frozen=True)
class Global:
    """A name that the pickle looks up, left as it is."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """What stands for any object that is no number, string, list, tuple, dict or tensor."""

    __slots__ = ("type",)

    def __init__(self, type: Global | None = None):
        self.type = type


@dataclass(frozen=True)
class PickledTensor:
    """A tensor's place: ``size`` and ``stride`` in elements, from element ``offset`` of the storage ``key``."""

    storage_type: str  # torch's class, e.g. "HalfStorage"
    key: str  # the storage's name in the file
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Storage:
    type: str
    key: str


def unpickle(program: bytes) -> object:
    """Return what the pickle ``program`` describes, made of plain containers and this module's stand-ins.

    Dicts and `OrderedDict`s are dicts, in the file's order; a key that is no string becomes :class:`Inert`.

    Raises:
        pickle.UnpicklingError: the program is damaged, too long, or calls something that is no data type; the
            message continues a sentence that starts with the file's name.
    """
    try:
        return _Machine().run(program)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        # An instruction that is none, an empty stack, a memo never written, a number where a list should be.
        raise UnpicklingError("holds a damaged pickle: copy or download it again") from error


class _Machine:
    """The pickle machine: a stack, the stacks set aside at each mark, and a memo."""

    def __init__(self) -> None:
        self.stack: list = []
        self.marked: list[list] = []
        self.memo: dict[int, object] = {}

    def run(self, program: bytes) -> object:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(program)):
            if count == MAX_INSTRUCTIONS:
                raise UnpicklingError(f"holds a pickle of more than {MAX_INSTRUCTIONS:,} instructions: {MEND}")
            self.step(opcode.name, arg)
        return self.stack.pop()  # genops raises ValueError unless the last instruction is STOP

    def step(self, name: str, arg: object) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            # Numbers and strings carry their value; genops has read it.
            case "INT" | "LONG" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                stack.append(arg)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(arg)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BYTEARRAY8":
                stack.append(arg)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            # Containers.
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(Inert())
            case "LIST":
                self.push(self.pop_mark())
            case "TUPLE":
                self.push(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                if len(stack) < size:
                    raise IndexError
                stack[-size:] = [tuple(stack[-size:])]
            case "DICT":
                items = self.pop_mark()
                self.push({})
                self.fill_dict(items)
            case "FROZENSET":
                self.pop_mark()
                self.push(Inert())
            case "APPEND":
                self.fill_list([stack.pop()])
            case "APPENDS":
                self.fill_list(self.pop_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.fill_dict([key, value])
            case "SETITEMS":
                self.fill_dict(self.pop_mark())
            case "ADDITEMS":
                self.pop_mark()
            # The stack and the memo.
            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case "POP_MARK":
                self.pop_mark()
            case "POP":
                stack.pop() if stack else self.pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            # Names, calls and objects.
            case "GLOBAL":
                self.push(_name(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                self.push(_name(module, name))
            case "REDUCE":
                args, callee = stack.pop(), stack.pop()
                self.push(_call(callee, args))
            case "INST":
                self.push(_call(_name(*arg.split(" ", 1)), tuple(self.pop_mark())))
            case "OBJ":
                callee, *args = self.pop_mark()
                self.push(_call(callee, tuple(args)))
            case "NEWOBJ" | "NEWOBJ_EX":  # a new object, its constructor not called: data
                del stack[-1 if name == "NEWOBJ" else -2 :]
                made = stack.pop()
                self.push(Inert(made if isinstance(made, Global) else None))
            case "BUILD":  # an object's attributes
                stack.pop()
            case "BINPERSID":
                self.push(_storage(stack.pop()))
            case _:  # PERSID, EXT1, NEXT_BUFFER, ...: never in a checkpoint
                raise ValueError(name)

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list:
        """Everything above the last mark, which goes too."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def fill_list(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise TypeError

    def fill_dict(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # No other key is of use, and hashing a tuple of tuples, each twice the one before, would never end.
                target[key if isinstance(key, str) else Inert()] = value
        elif not isinstance(target, Inert):
            raise TypeError


def _name(module: str, name: str) -> Global:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise TypeError
    if len(module) + len(name) > MAX_NAME or not (module + name).isprintable():
        raise ValueError("name")
    # Pickle protocol 2, which is torch's, goes on writing Python 2's names.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return Global(module, name)


def _call(callee: object, args: object) -> object:
    """What calling ``callee`` stands for.

    Raises:
        pickle.UnpicklingError: it is no data type.
    """
    if not isinstance(args, tuple):
        raise TypeError
    if not isinstance(callee, Global):
        raise UnpicklingError(f"tries to call what another call returned; nothing was run: {MEND}")
    match str(callee), args:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_tensor_v2", (_Storage() as storage, offset, size, stride, _, _):
            return _tensor(storage, offset, size, stride)
        case "torch._utils._rebuild_parameter", (data, _, _):
            return data
        case "torch._utils._rebuild_parameter_with_state", (data, _, _, _):
            return data
        case "builtins.getattr", (Global() as outer, str() as name):
            return _name(outer.module, f"{outer.name}.{name}")  # how a class inside a class is named
    if not _is_data_type(callee):
        raise UnpicklingError(f"tries to call {callee}; nothing was run: {MEND}")
    return Inert(callee)


def _is_data_type(callee: Global) -> bool:
    names = callee.name.split(".")
    if str(callee) in DATA_TYPES:
        return True
    if callee.module == "torch._utils" and len(names) == 1:
        return callee.name.startswith("_rebuild_")  # sparse, quantised, ... tensors: no Whisper's weights
    package = callee.module.partition(".")[0]
    # The exceptions are the only classes of builtins with a capital. Of a dotted name each part must be a class:
    # pickle would find "os.system" in any module that imports os.
    return all(name[:1].isupper() for name in names) and (
        package == "builtins" or package not in sys.stdlib_module_names
    )


def _storage(persistent_id: object) -> _Storage:
    """torch's persistent ids: ``("storage", storage class, key, device, number of elements)``."""
    match persistent_id:
        case ("storage", Global(name=type), str() as key, str(), int()):
            return _Storage(type, key)
    raise ValueError("persistent id")


def _tensor(storage: _Storage, offset: object, size: object, stride: object) -> PickledTensor:
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)):
        raise TypeError
    if len(size) > 8 or any(type(number) is not int or not 0 <= number < 2**48 for number in (offset, *size, *stride)):
        raise ValueError("shape")
    return PickledTensor(storage.type, storage.key, offset, size, stride)
