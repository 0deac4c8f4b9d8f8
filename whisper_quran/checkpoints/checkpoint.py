"""Whisper checkpoints: loaded from any format, and saved as `whisper.load_model` opens them.

The format is recognised by the contents. Whisper's own `.pt` states its dimensions; a PyTorch Lightning `.ckpt` keeps
the tensors under `state_dict`, with a prefix (`model.`) and together with those of losses and metrics; `torch.compile`
and `DistributedDataParallel` add `_orig_mod.` and `module.` to the names; Hugging Face has its own names. All of them
become one dict of tensors under Whisper's names. The dimensions are inferred from the tensors' shapes, except the
number of heads: every Whisper's heads are 64 wide.
"""

import http.client
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import whisper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized
from whisper.model import ModelDimensions, Whisper

from ..runtime.errors import UserError
from ..runtime.files import atomic_write
from .dims import SAVE_ALL, alignment_heads, infer_dims, whisper_shapes
from .names import MERGE, READABLE, WHISPER_NAMES, find_checkpoint
from .torch_file import StandIn, damaged, read_torch_file, write_torch_file

MAX_JSON = 16 * 2**20  # bytes
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save's format before version 1.6 begins
ADAPTER = re.compile(r"\b(lora|ia3)_")
PRECISIONS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
WRAPPERS = {"_orig_mod", "module"}  # parts that torch.compile and DistributedDataParallel add to a name
# The tensors by which a Whisper, and its prefix, are found.
ENCODER, DECODER = "encoder.conv1.weight", "decoder.token_embedding.weight"

# openai-whisper's names and Hugging Face's, a piece of a tensor's name at a time. The dots keep `attn` from matching
# inside `cross_attn`; no piece is part of another, so the order does not matter and both directions are exact.
NAMES = (
    (".blocks.", ".layers."),
    (".attn.", ".self_attn."),
    (".attn_ln.", ".self_attn_layer_norm."),
    (".cross_attn.", ".encoder_attn."),
    (".cross_attn_ln.", ".encoder_attn_layer_norm."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".out.", ".out_proj."),
    (".mlp.0.", ".fc1."),
    (".mlp.2.", ".fc2."),
    (".mlp_ln.", ".final_layer_norm."),
    (".token_embedding.weight", ".embed_tokens.weight"),
    (".positional_embedding", ".embed_positions.weight"),
    ("encoder.ln_post.", "encoder.layer_norm."),
    ("decoder.ln.", "decoder.layer_norm."),
)
# openai-whisper's dimensions, and the entries of Hugging Face's config.json that state them.
CONFIG_NAMES = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
# The possible names of the weights in a Hugging Face folder, in order of preference.
WEIGHTS = [f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")]


@dataclass(frozen=True)
class Checkpoint:
    """A Whisper in a file."""

    source: Path
    dims: ModelDimensions
    tensors: dict[str, Tensor]  # those of `Whisper(dims).state_dict()`, memory-mapped; writing to them is private
    left_out: tuple[str, ...]  # names, as in the file, of what is not part of this Whisper


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
        model.load_state_dict(checkpoint.tensors)
        if heads := alignment_heads(checkpoint.dims):
            model.set_alignment_heads(heads)
    return model.float().eval().to(device)


def save_checkpoint(path: str | Path, model: Whisper, dtype: torch.dtype = torch.float16) -> None:
    """Write ``model`` to ``path`` atomically, in the format of `whisper.load_model`.

    Parametrized layers are written with their effective weights.

    Raises:
        UserError: a weight is beyond ``dtype``'s range, the disk is full, or the folder cannot be written.
    """
    weights = {name: tensor for name, tensor in model.state_dict().items() if ".parametrizations." not in name}
    for name, module in model.named_modules():
        if is_parametrized(module):
            weights |= {f"{name}.{tensor}": getattr(module, tensor).detach() for tensor in module.parametrizations}
    write_checkpoint(path, model.dims, weights, dtype)


def write_checkpoint(path: str | Path, dims: ModelDimensions, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write the named ``tensors`` of a Whisper as :func:`save_checkpoint` does."""
    state = {name: at_precision(name, tensor, dtype) for name, tensor in tensors.items()}
    with atomic_write(path, "wb") as file:
        write_torch_file({"dims": asdict(dims), "model_state_dict": state}, file)


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


def all_finite(tensor: Tensor) -> bool:
    """Return True if no element is NaN or infinite: in one pass, twenty times faster than `isfinite().all()`."""
    # The smallest and the largest element; both are NaN if any element is.
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Read the Whisper in a file or folder of any format. Nothing in it is executed.

    Raises:
        UserError: it does not exist, is damaged, or does not hold a complete Whisper with finite weights.
    """
    path = find_checkpoint(source)
    stated: dict[str, Any] = {}  # dimensions
    found: dict[str, Tensor] = {}
    left_out: list[str] = []
    try:
        files = [path]
        if path.is_dir():
            files, stated = _open_folder(path)
        for file in files:
            tensors, file_dims, others = _read_file(file)
            found |= tensors
            stated = stated or file_dims
            left_out += others
        size = sum(file.stat().st_size for file in files)
    except FileNotFoundError as error:
        raise UserError(f"no file or folder {error.filename}, which {path} needs: copy or download it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    tensors, others = _whisper_tensors(path, found)
    dims = infer_dims({name: tuple(tensor.shape) for name, tensor in tensors.items()}, stated, str(path))
    return Checkpoint(path, dims, _checked(path, dims, tensors, size), (*left_out, *others))


def _open_folder(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """Return the weight files of a Hugging Face folder, and the dimensions that its ``config.json`` states."""
    weights = next((path / name for name in WEIGHTS if (path / name).exists()), None)
    if weights is None:
        raise UserError(f"{path} holds neither model.safetensors nor pytorch_model.bin: give {READABLE}")
    config = read_json(path / "config.json") if (path / "config.json").exists() else {}
    if config.get("model_type", "whisper") != "whisper":
        raise UserError(f"{path} holds another model ({str(config['model_type'])[:40]!r}): give a Whisper")
    files = [weights]
    if weights.suffix == ".json":
        shards = read_json(weights).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else []
        if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
            raise UserError(f"{weights} does not name files beside it: download the whole folder again")
        files = [path / name for name in sorted(set(names))]
    return files, {field: config[name] for field, name in CONFIG_NAMES.items() if name in config}


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        UserError: it holds something else, or is too large to describe a model.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_JSON + 1)
    try:
        value = json.loads(text) if len(text) <= MAX_JSON else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise damaged(path, "it is no JSON object that describes a model")
    return value


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Return the tensors of a file, the dimensions that it states, and the names of what is left out."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file or folder: give {READABLE}")
    with open(path, "rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    if head[:4] == b"PK\3\4":
        return _read_torch(path)
    if head == LEGACY_MAGIC:
        raise UserError(f"{path} is in torch's format of before 2020: torch.load it and torch.save it again")
    if head[8:9] != b"{":
        raise UserError(f"{path} is {'no checkpoint' if head else 'empty'}: give {READABLE}")
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(path, "its header is not that of a safetensors file of this length") from error
    if not all(name.isprintable() for name in tensors):
        raise damaged(path, "the name of a tensor is not printable")
    return tensors, {}, []


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Find the first dict of a file that holds a Whisper, starting with the outermost.

    Its name does not matter: state_dict, model_state_dict, model. If there is none, return the largest dict, so that an
    error can list what it lacks.
    """
    contents = read_torch_file(path)
    if not isinstance(contents, dict):
        what = f"a whole {contents.attribute}" if isinstance(contents, StandIn) else "no dict"
        raise UserError(f"{path} holds {what}: save its state_dict() instead, or give the checkpoint of a Whisper")
    dicts: dict[int, tuple[str, dict]] = {id(contents): ("", contents)}
    for name, value in contents.items():
        if isinstance(value, dict):
            dicts.setdefault(id(value), (name, value))  # a file may hold one dict under thousands of names
    states = {
        name: {key: value for key, value in state.items() if isinstance(value, Tensor)}
        for name, state in dicts.values()
    }
    whispers = [name for name in states if _whisper_prefixes(map(_plain_name, states[name]))]
    chosen = whispers[0] if whispers else max(states, key=lambda name: len(states[name]))
    left_out = [f"{name}.* (another Whisper)" for name in whispers[1:]]
    if chosen:
        left_out += [key for key, value in contents[chosen].items() if isinstance(value, StandIn)]
    dims = contents.get("dims")
    return states[chosen], dims if isinstance(dims, dict) else {}, left_out


def openai_name(name: str) -> str:
    """Return openai-whisper's name of a tensor, with the prefix of ``name``; other names are unchanged."""
    for openai, huggingface in NAMES:
        name = name.replace(huggingface, openai)
    return name


def huggingface_name(name: str) -> str:
    """Return the name that `WhisperForConditionalGeneration` gives to openai-whisper's tensor ``name``."""
    for openai, huggingface in NAMES:
        name = name.replace(openai, huggingface)
    return f"model.{name}"


def _plain_name(name: str) -> str:
    """Return openai-whisper's name of a tensor, without wrappers and with its prefix."""
    return openai_name(".".join(part for part in name.split(".") if part not in WRAPPERS))


def _whisper_prefixes(plain_names: Iterable[str]) -> list[str]:
    """Return the prefixes under which there is a Whisper or, if there is none, a decoder."""
    names = set(plain_names)
    starts = sorted(name.removesuffix(DECODER) for name in names if name.endswith(DECODER))
    prefixes = [prefix for prefix in starts if not prefix or prefix.endswith(".")]
    return [prefix for prefix in prefixes if prefix + ENCODER in names] or prefixes


def _whisper_tensors(path: Path, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of the one Whisper in ``found`` by openai-whisper's names, and the names of the others."""
    if adapters := [name for name in found if ADAPTER.search(name)]:
        raise UserError(f"{path} is or holds an adapter (LoRA: {_listed(adapters)}), not a plain Whisper: {MERGE}")
    plain: dict[str, str] = {}  # Whisper's name, prefixed: the file's
    for name in found:
        other = plain.setdefault(_plain_name(name), name)
        if not _equal(found[other], found[name]):
            raise UserError(f"{path} holds {other} and {name}, the same tensor with two values: keep one of them")
    # A module that the trainer also has under another name is stored once, under two names in the same place.
    prefixes = {found[plain[prefix + DECODER]].data_ptr(): prefix for prefix in reversed(_whisper_prefixes(plain))}
    if not prefixes:
        raise UserError(
            f"{path} holds no Whisper ({DECODER} is missing, {len(plain)} other tensors are there): give {READABLE}"
        )
    if len(prefixes) > 1:
        raise UserError(f"{path} holds several Whispers ({_listed(sorted(prefixes.values()))}): keep one of them")
    (prefix,) = prefixes.values()
    own = re.compile(re.escape(prefix) + r"((?:encoder|decoder)\..*)")
    tensors = {match[1]: found[original] for name, original in plain.items() if (match := own.fullmatch(name))}
    places = {tensor.data_ptr() for tensor in tensors.values()}
    left_out = []
    for name, original in plain.items():
        # Hugging Face stores the output layer too, and Whisper only the token embedding, which is the same.
        if name.endswith("proj_out.weight"):
            if not _equal(found[original], tensors[DECODER]):
                raise UserError(
                    f"{path}: {original} is no copy of the token embedding, and a Whisper has no place for it"
                )
        elif found[original].data_ptr() not in places:
            left_out.append(original)
    return tensors, left_out


def _equal(left: Tensor, right: Tensor) -> bool:
    same_kind = (left.shape, left.dtype) == (right.shape, right.dtype)
    return left is right or (same_kind and torch.equal(left, right))


def _checked(path: Path, dims: ModelDimensions, tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Return ``tensors`` in Whisper's order if they are all of a Whisper's and no others; ``size`` is their file's."""
    shapes = whisper_shapes(dims)
    if missing := [name for name in shapes if name not in tensors]:
        raise UserError(
            f"{path} is no whole Whisper: of its {len(shapes)} tensors it lacks {_listed(missing)}; {SAVE_ALL}"
        )
    if others := [f"{name} {tuple(found.shape)}" for name, found in tensors.items() if found.shape != shapes.get(name)]:
        raise UserError(f"{path} holds {_listed(others)}, for which a Whisper has no place: save a plain Whisper")
    for name, tensor in tensors.items():
        if tensor.dtype not in PRECISIONS:
            raise UserError(f"{path} is quantised ({name} is {tensor.dtype}): give the weights it was made from")
    if sum(tensor.nbytes for tensor in tensors.values()) > size:
        raise damaged(path, "its tensors are larger than the file")
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise UserError(
                f"{path}: {name} holds values that are not finite numbers (NaN or infinity): its training diverged; "
                "give a checkpoint from before"
            )
    return {name: tensors[name] for name in shapes}


def _listed(names: Iterable[str]) -> str:
    """List the first three names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
