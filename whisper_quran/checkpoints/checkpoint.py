"""Whisper checkpoints: opened whatever wrote them, and saved the way Whisper opens them.

A checkpoint is recognised by what is in it. Whisper's own `.pt` says its dimensions; a PyTorch Lightning `.ckpt` keeps
the tensors under `state_dict`, each name behind a prefix (`model.`) and beside those of losses and metrics;
`torch.compile` and `DistributedDataParallel` put `_orig_mod.` and `module.` somewhere into the names; Hugging Face has
names of its own. All of them come down to one dict of tensors under Whisper's names, and its dimensions follow from
the tensors' shapes: only the number of heads is in no shape, and every Whisper's heads are 64 wide.

Nothing that a file says is run, and no weight is read before it is asked for (:mod:`unpickling`, :mod:`tensorfiles`).
"""

import http.client
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import whisper
from torch import Tensor
from whisper.model import ModelDimensions, Whisper

from ..runtime.errors import UserError
from ..runtime.files import atomic_write
from .dims import SAVE_ALL, alignment_heads, infer_dims, whisper_shapes
from .huggingface import openai_name, shards, stated_dims
from .torch_zip import (
    LEGACY_MAGIC,
    StoredTensor,
    at_precision,
    check_name,
    damaged,
    read_json,
    read_safetensors,
    read_torch_file,
    write_torch_file,
)
from .unpickling import Inert, PickledTensor

PRECISIONS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
WRAPPERS = {"_orig_mod", "module"}  # what torch.compile and DistributedDataParallel add to a name
READABLE = "a Whisper .pt, a PyTorch Lightning .ckpt, a Hugging Face folder, model.safetensors or pytorch_model.bin"
# The tensors that tell a Whisper, and the prefix it sits under.
ENCODER, DECODER = "encoder.conv1.weight", "decoder.token_embedding.weight"


@dataclass(frozen=True)
class Checkpoint:
    """A Whisper in a file: its dimensions, and where each tensor of `Whisper(dims).state_dict()` lies."""

    source: Path
    kind: str  # "Whisper", "PyTorch Lightning", "Hugging Face", "PyTorch" or "safetensors"
    dims: ModelDimensions
    tensors: Mapping[str, StoredTensor]
    left_out: tuple[str, ...]  # the names, as in the file, of tensors that are not this Whisper's


def load_checkpoint(source: str | Path, device: str | torch.device = "cpu") -> Whisper:
    """The Whisper of a name (`small`, downloaded once by `whisper.load_model`) or of any checkpoint file or folder.

    Its parameters are fp32 whatever the file holds, and it is in evaluation mode. A model of a named size gets that
    size's alignment heads, which Whisper itself gives only to names; the large of 80 mel bins keeps Whisper's default
    (all heads of the upper half), because large-v1 and large-v2 differ in heads but in no shape.

    Raises:
        UserError: there is no such name or file, it cannot be downloaded, or it is no whole Whisper.
    """
    if source in whisper.available_models():
        try:
            model = whisper.load_model(source, device="cpu")
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
    """Write ``model`` to ``path``, whole or not at all, so that `whisper.load_model` opens it.

    Raises:
        UserError: see :func:`write_checkpoint`.
    """
    write_checkpoint(path, model.dims, model.state_dict().items(), dtype)


def write_checkpoint(
    path: str | Path, dims: ModelDimensions, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> None:
    """Write the named ``tensors`` as ``dtype``, with at most one copy of them in memory.

    Raises:
        UserError: a weight is beyond ``dtype``'s range, the disk is full, or the folder cannot be written.
    """
    state = {name: at_precision(name, tensor, dtype) for name, tensor in tensors}
    with atomic_write(path, "wb") as file:
        write_torch_file({"dims": asdict(dims), "model_state_dict": state}, file)


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Find the Whisper in a file or folder (one of ``READABLE``); its weights are not read yet.

    Raises:
        UserError: nothing is there, it is damaged or unsafe, or what it holds is no whole Whisper.
    """
    path = Path(source)
    try:
        found = _read_folder(path) if path.is_dir() else _read_file(path)
    except FileNotFoundError as error:
        names = ", ".join(whisper.available_models())
        raise UserError(
            f"no file or folder {error.filename}: give one, or where a Whisper's name will do, one of {names}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    return _whisper_of(path, found)


@dataclass(frozen=True)
class _Found:
    """What a file or folder holds, in its own words."""

    kind: str
    tensors: Mapping[str, StoredTensor]
    dims: Mapping[str, object]  # those it states
    nbytes: int
    left_out: tuple[str, ...] = ()


def _read_folder(folder: Path) -> _Found:
    config = folder / "config.json"
    dims = stated_dims(config, read_json(config)) if config.exists() else {}
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            files = [name]
        elif index.exists():
            files = shards(index, read_json(index))
        else:
            continue
        found = [_read_file(folder / file) for file in files]
        tensors = {name: tensor for part in found for name, tensor in part.tensors.items()}
        return _Found("Hugging Face", tensors, dims, sum(part.nbytes for part in found))
    raise UserError(f"{folder} holds neither model.safetensors nor pytorch_model.bin: give {READABLE}")


def _read_file(path: Path) -> _Found:
    nbytes = path.stat().st_size
    if not path.is_file():
        raise UserError(f"{path} is no file or folder: give {READABLE}")
    with open(path, "rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    if head[:4] == b"PK\3\4":
        return _read_torch(path, nbytes)
    if head[8:9] == b"{":
        return _Found("safetensors", read_safetensors(path), {}, nbytes)
    if head == LEGACY_MAGIC:
        raise UserError(f"{path} is in torch's format of before 2020: torch.load it and torch.save it again")
    raise UserError(f"{path} is {'empty' if not nbytes else 'no checkpoint'}: give {READABLE}")


def _read_torch(path: Path, nbytes: int) -> _Found:
    file = read_torch_file(path)
    contents = file.contents
    if not isinstance(contents, dict):
        what = f"a whole {contents.type}" if isinstance(contents, Inert) and contents.type else "no dict"
        raise UserError(f"{path} holds {what}: save its state_dict() instead, or give {READABLE}")
    # Whatever the file calls it (state_dict, model_state_dict, model): the first dict with a Whisper in it, the
    # outermost first.
    inner = {name: value for name, value in contents.items() if isinstance(name, str) and isinstance(value, dict)}
    states = {
        name: {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, PickledTensor)}
        for name, state in {"": contents, **inner}.items()
    }
    whispers = [name for name, state in states.items() if _prefixes(map(_plain, state))]
    # Without one, the largest, for the error to say what it lacks.
    chosen = whispers[0] if whispers else max(states, key=lambda name: len(states[name]))
    left_out = [name for name, value in inner.get(chosen, {}).items() if isinstance(value, Inert)]
    left_out += [f"{name}.* (another Whisper)" for name in whispers[1:]]
    for name in left_out:
        check_name(path, name)
    lightning = "pytorch-lightning_version" in contents
    dims = contents.get("dims", {})
    return _Found(
        "PyTorch Lightning" if lightning else "Whisper" if dims else "PyTorch",
        file.tensors(states[chosen]),
        dims if isinstance(dims, dict) else {},
        nbytes,
        tuple(left_out),
    )


def _plain(name: str) -> str:
    """A tensor's name without wrappers and in Whisper's words, its prefix as it was."""
    return openai_name(".".join(part for part in name.split(".") if part not in WRAPPERS))


def _prefixes(names: Iterable[str]) -> list[str]:
    """The prefixes under which a Whisper sits, or, where none is whole, a decoder."""
    names = set(names)
    ends = sorted(name.removesuffix(DECODER) for name in names if name.endswith(DECODER))
    prefixes = [prefix for prefix in ends if not prefix or prefix.endswith(".")]
    return [prefix for prefix in prefixes if prefix + ENCODER in names] or prefixes


def _whisper_of(path: Path, found: _Found) -> Checkpoint:
    """Rename, check and complete what was found."""
    plain: dict[str, str] = {}  # Whisper's name, prefixed: the file's
    for name in found.tensors:
        other = plain.setdefault(_plain(name), name)
        if found.tensors[other] != found.tensors[name]:
            raise UserError(f"{path} holds {other} and {name}, the same tensor with two values: keep one of them")
    # A module that the trainer also calls by another name is in the file once, under two names: the same place.
    prefixes = {found.tensors[plain[prefix + DECODER]]: prefix for prefix in reversed(_prefixes(plain))}
    if not prefixes:
        raise UserError(
            f"{path} holds no Whisper ({DECODER} is missing, {len(plain)} other tensors are there): give {READABLE}"
        )
    if len(prefixes) > 1:
        raise UserError(f"{path} holds several Whispers ({', '.join(sorted(prefixes.values()))}): keep one of them")
    ((embedding, prefix),) = prefixes.items()
    own = re.compile(re.escape(prefix) + r"((?:encoder|decoder)\..*)")
    tensors = {match[1]: found.tensors[plain[name]] for name in plain if (match := own.fullmatch(name))}
    places, left_out = set(tensors.values()), list(found.left_out)
    for name, original in plain.items():
        if found.tensors[original] in places:
            continue
        if name.endswith("proj_out.weight"):
            _check_tied(path, original, found.tensors[original], embedding)
        else:
            left_out.append(original)
    foreign = found.kind in ("PyTorch", "safetensors") and any(openai_name(name) != name for name in found.tensors)
    kind = "Hugging Face" if foreign else found.kind
    return Checkpoint(path, kind, *_checked(path, found, tensors), tuple(left_out))


def _checked(
    path: Path, found: _Found, tensors: Mapping[str, StoredTensor]
) -> tuple[ModelDimensions, dict[str, StoredTensor]]:
    """The dimensions, and ``tensors`` in Whisper's order: all that a Whisper has, and nothing else."""
    dims = infer_dims({name: tensor.shape for name, tensor in tensors.items()}, found.dims, str(path))
    shapes = whisper_shapes(dims)
    if missing := [name for name in shapes if name not in tensors]:
        raise UserError(
            f"{path} is no whole Whisper: of its {len(shapes)} tensors it lacks {_listed(missing)}; {SAVE_ALL}"
        )
    if unknown := [name for name in tensors if name not in shapes]:
        raise UserError(
            f"{path} is more than a Whisper, which has no place for {_listed(unknown)}: merge adapters first, and save "
            "a plain Whisper"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(f"{path}: {name} has the shape {tensors[name].shape}, where this Whisper has {shape}")
        if tensors[name].dtype not in PRECISIONS:
            raise UserError(f"{path} is quantised ({name} is {tensors[name].dtype}): give the weights it was made from")
    if sum(tensor.nbytes for tensor in tensors.values()) > found.nbytes:
        raise damaged(path, "its tensors are larger than the file")
    return dims, {name: tensors[name] for name in shapes}


def _check_tied(path: Path, name: str, output: StoredTensor, embedding: StoredTensor) -> None:
    """Hugging Face may store the output layer beside the embedding that it is tied to; Whisper has the one only."""
    same_kind = (output.shape, output.dtype) == (embedding.shape, embedding.dtype)
    if not (same_kind and torch.equal(output.read(), embedding.read())):
        raise UserError(f"{path}: {name} is no copy of the token embedding; openai-whisper has no place for it")


def _listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
