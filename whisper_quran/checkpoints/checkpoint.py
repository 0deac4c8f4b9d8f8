"""Whisper checkpoints: loaded from any format, and saved as `whisper.load_model` opens them.

The format is recognised by the contents. Whisper's own `.pt` states its dimensions; a PyTorch Lightning `.ckpt` keeps
the tensors under `state_dict`, with a prefix (`model.`) and together with those of losses and metrics; `torch.compile`
and `DistributedDataParallel` add `_orig_mod.` and `module.` to the names; Hugging Face has its own names. All of
them are converted to one dict of tensors under Whisper's names. The dimensions are inferred from the tensors' shapes,
except the number of heads: every Whisper's heads are 64 wide.

Nothing in a file is executed, and no weight is read before it is needed.
"""

import http.client
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
import whisper
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized
from whisper.model import ModelDimensions, Whisper

from ..runtime.errors import UserError
from .dims import SAVE_ALL, alignment_heads, infer_dims, whisper_shapes
from .names import FORMATS, MERGE, READABLE, WHISPER_NAMES, find_checkpoint
from .stored_tensor import Contents, StoredTensor, damaged
from .tensor_names import DECODER, openai_name, plain_name, whisper_prefixes
from .torch_zip import write as write_checkpoint

ADAPTER = re.compile(r"\b(lora|ia3)_")
PRECISIONS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A Whisper in a file: its dimensions and the tensors of `Whisper(dims).state_dict()`, not read yet."""

    source: Path
    kind: str  # "Whisper", "PyTorch Lightning", "Hugging Face", "PyTorch" or "safetensors"
    dims: ModelDimensions
    tensors: Mapping[str, StoredTensor]
    left_out: tuple[str, ...]  # names, as in the file, of tensors that are not part of this Whisper


def load_checkpoint(source: str | Path, device: str | torch.device = "cpu") -> Whisper:
    """Load the Whisper of a name (`small`, downloaded once by `whisper.load_model`) or of any checkpoint.

    Its parameters are fp32 whatever the file holds, and it is in evaluation mode. A model of a known size gets that
    size's alignment heads, which Whisper itself sets only for names. A large one with 80 mel bins keeps Whisper's
    default (all heads of the upper half), because large-v1 and large-v2 differ only in these heads.

    Raises:
        UserError: there is no such name or file, it cannot be downloaded, or it is not a complete Whisper.
    """
    if source in WHISPER_NAMES:
        try:
            model = whisper.load_model(str(source), device="cpu")
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            raise UserError(
                f"cannot download the Whisper {source!r} ({error}): connect to the network, or give a checkpoint file"
            ) from error
    else:
        checkpoint = read_checkpoint(source)
        model = Whisper(checkpoint.dims)
        state = model.state_dict()
        for name, tensor in checkpoint.tensors.items():
            state[name].copy_(tensor.read())
        heads = alignment_heads(checkpoint.dims)
        if heads is not None:
            model.set_alignment_heads(heads)
    return model.float().eval().to(device)


def save_checkpoint(path: str | Path, model: Whisper, dtype: torch.dtype = torch.float16) -> None:
    """Write ``model`` to ``path`` atomically, in the format of `whisper.load_model`.

    Raises:
        UserError: a weight is beyond ``dtype``'s range, the disk is full, or the folder cannot be written.
    """
    write_checkpoint(path, model.dims, plain_weights(model).items(), dtype)


def plain_weights(model: Whisper) -> dict[str, Tensor]:
    """Return ``model.state_dict()`` with the effective weights of parametrized layers."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if ".parametrizations." not in name}
    for name, module in model.named_modules():
        if is_parametrized(module):
            weights |= {f"{name}.{tensor}": getattr(module, tensor).detach() for tensor in module.parametrizations}
    return weights


def read_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of ``checkpoint`` by name, one at a time."""
    return ((name, tensor.read()) for name, tensor in checkpoint.tensors.items())


def format_module(name: str) -> ModuleType:
    """Return the module of the format ``name`` (see :data:`names.FORMATS`)."""
    return import_module(f".{FORMATS[name]}", __package__)


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Find the Whisper in a file or folder of any format; its weights are not read yet.

    Raises:
        UserError: it does not exist, is damaged or unsafe, or does not hold a complete Whisper.
    """
    path = find_checkpoint(source)
    try:
        return _whisper_of(path, _read(path))
    except FileNotFoundError as error:
        raise UserError(f"no file or folder {error.filename}, which {path} needs: copy or download it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error


def _read(path: Path) -> Contents:
    for name in FORMATS:
        if format_module(name).recognises(path):
            return format_module(name).read(path)
    if path.is_dir():
        raise UserError(f"{path} holds neither model.safetensors nor pytorch_model.bin: give {READABLE}")
    if not path.is_file():
        raise UserError(f"{path} is no file or folder: give {READABLE}")
    raise UserError(f"{path} is {'no checkpoint' if path.stat().st_size else 'empty'}: give {READABLE}")


def _whisper_of(path: Path, found: Contents) -> Checkpoint:
    """Rename the tensors to Whisper's names, check them, and infer the dimensions."""
    if adapters := [name for name in found.tensors if ADAPTER.search(name)]:
        raise UserError(f"{path} is or holds an adapter (LoRA: {_listed(adapters)}), not a plain Whisper: {MERGE}")
    plain: dict[str, str] = {}  # Whisper's name, prefixed: the file's
    for name in found.tensors:
        other = plain.setdefault(plain_name(name), name)
        if found.tensors[other] != found.tensors[name]:
            raise UserError(f"{path} holds {other} and {name}, the same tensor with two values: keep one of them")
    # A module that the trainer also has under another name is stored once, under two names in the same place.
    prefixes = {found.tensors[plain[prefix + DECODER]]: prefix for prefix in reversed(whisper_prefixes(plain))}
    if not prefixes:
        raise UserError(
            f"{path} holds no Whisper ({DECODER} is missing, {len(plain)} other tensors are there): give {READABLE}"
        )
    if len(prefixes) > 1:
        raise UserError(f"{path} holds several Whispers ({_listed(sorted(prefixes.values()))}): keep one of them")
    ((embedding, prefix),) = prefixes.items()
    own = re.compile(re.escape(prefix) + r"((?:encoder|decoder)\..*)")
    tensors = {match[1]: found.tensors[plain[name]] for name in plain if (match := own.fullmatch(name))}
    dims, tensors = _checked(path, found, tensors)
    places, left_out = set(tensors.values()), list(found.left_out)
    for name, original in plain.items():
        if name.endswith("proj_out.weight"):
            _check_tied(path, original, found.tensors[original], embedding)
        elif found.tensors[original] not in places:
            left_out.append(original)
    foreign = found.kind in ("PyTorch", "safetensors") and any(openai_name(name) != name for name in found.tensors)
    kind = "Hugging Face" if foreign else found.kind
    return Checkpoint(path, kind, dims, tensors, tuple(left_out))


def _checked(
    path: Path, found: Contents, tensors: Mapping[str, StoredTensor]
) -> tuple[ModelDimensions, dict[str, StoredTensor]]:
    """Return the dimensions, and ``tensors`` in Whisper's order: all of a Whisper's tensors, and no others."""
    dims = infer_dims({name: tensor.shape for name, tensor in tensors.items()}, found.dims, str(path))
    shapes = whisper_shapes(dims)
    if missing := [name for name in shapes if name not in tensors]:
        raise UserError(
            f"{path} is no whole Whisper: of its {len(shapes)} tensors it lacks {_listed(missing)}; {SAVE_ALL}"
        )
    if unknown := [name for name in tensors if name not in shapes]:
        raise UserError(
            f"{path} is more than a Whisper, which has no place for {_listed(unknown)}: save a plain Whisper"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(f"{path}: {name} has the shape {tensors[name].shape}, and this Whisper needs {shape}")
        if tensors[name].dtype not in PRECISIONS:
            raise UserError(f"{path} is quantised ({name} is {tensors[name].dtype}): give the weights it was made from")
    if sum(tensor.nbytes for tensor in tensors.values()) > found.nbytes:
        raise damaged(path, "its tensors are larger than the file")
    return dims, {name: tensors[name] for name in shapes}


def _check_tied(path: Path, name: str, output: StoredTensor, embedding: StoredTensor) -> None:
    """Check that a stored output layer (of Hugging Face) equals the token embedding; Whisper stores only the latter."""
    if output == embedding:
        return
    same_kind = (output.shape, output.dtype) == (embedding.shape, embedding.dtype)
    if not (same_kind and torch.equal(output.read(), embedding.read())):
        raise UserError(f"{path}: {name} is no copy of the token embedding; openai-whisper has no place for it")


def _listed(names: Iterable[str]) -> str:
    """List the first three names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
