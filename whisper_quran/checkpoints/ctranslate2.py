"""CTranslate2's Whisper, which faster-whisper opens: a folder with `model.bin`.

`model.bin` is a list of variables, each with its name, shape, type and elements. Layers have other names than
openai-whisper's, and those of an attention with the same input are stacked along the rows: query, key and value or, in
cross-attention, key and value. All numbers are little-endian.
"""

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import torch
from torch import Tensor
from whisper.model import ModelDimensions
from whisper.tokenizer import Tokenizer

from ..runtime.errors import UserError
from ..runtime.files import atomic_write
from .dims import alignment_head_pairs, tokenizer_for, whisper_shapes
from .huggingface import FEATURES, feature_config, generation_config
from .huggingface_tokenizer import fast_tokenizer, write_json
from .names import READABLE
from .stored_tensor import Contents, MappedTensor, StoredTensor, at_precision, check_name, damaged

WEIGHTS, CONFIG, VOCABULARY, TOKENIZER = "model.bin", "config.json", "vocabulary.json", "tokenizer.json"
FILES = frozenset({WEIGHTS, CONFIG, VOCABULARY, TOKENIZER, FEATURES})  # all files that a folder may hold
VERSION, SPEC, REVISION = 6, "WhisperSpec", 3  # the format that CTranslate2 has written since its version 3
TYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)  # by type number
MAX_VARIABLES = 2**14  # a large Whisper has 1,046
MAX_AXES = 8

EMBEDDING, OUTPUT = "decoder/embeddings/weight", "decoder/projection/weight"
# The layers of a block, each with openai-whisper's layers that are stacked in it.
BLOCK: dict[str, tuple[str, ...]] = {
    "self_attention/layer_norm": ("attn_ln",),
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
# The same for layers outside blocks, and for variables that belong to no layer.
LAYERS: dict[str, tuple[str, ...]] = {
    "encoder/conv1": ("encoder.conv1",),
    "encoder/conv2": ("encoder.conv2",),
    "encoder/layer_norm": ("encoder.ln_post",),
    "decoder/layer_norm": ("decoder.ln",),
}
TABLES: dict[str, tuple[str, ...]] = {
    "encoder/position_encodings/encodings": ("encoder.positional_embedding",),
    "decoder/position_encodings/encodings": ("decoder.positional_embedding",),
    EMBEDDING: ("decoder.token_embedding.weight",),
}
# Settings of CTranslate2's computation, stored as variables; the same for every Whisper.
SETTINGS = {
    "decoder/activation": (torch.int8, 3),  # GELU, not its approximation
    "decoder/alibi": (torch.int8, 0),
    "decoder/alibi_use_positive_positions": (torch.int8, 0),
    "decoder/alignment_heads": (torch.int16, 1),
    "decoder/alignment_layer": (torch.int16, -1),
    "decoder/pre_norm": (torch.int8, 1),
    "decoder/scale_alibi": (torch.int8, 0),
    "decoder/scale_embeddings": (torch.int8, 0),
    "decoder/start_from_zero_embedding": (torch.int8, 0),
}
HEADS = {"encoder/num_heads": "n_audio_head", "decoder/num_heads": "n_text_head"}


def stacked_names(n_audio_layer: int, n_text_layer: int) -> dict[str, tuple[str, ...]]:
    """Return the variables that hold weights, each with openai-whisper's names of the tensors stacked in it.

    These include biases of keys, which Whisper does not have: in the stack they are zeros.
    """
    layers = dict(LAYERS)
    for part, count in (("encoder", n_audio_layer), ("decoder", n_text_layer)):
        for layer, stacked in BLOCK.items():
            if part == "encoder" and layer.startswith("attention/"):
                continue  # the encoder has no cross-attention
            for index in range(count):
                layers[f"{part}/layer_{index}/{layer}"] = tuple(f"{part}.blocks.{index}.{name}" for name in stacked)
    variables = dict(TABLES)
    for layer, stacked in layers.items():
        weight, bias = ("gamma", "beta") if layer.endswith("layer_norm") else ("weight", "bias")
        variables[f"{layer}/{weight}"] = tuple(f"{name}.weight" for name in stacked)
        variables[f"{layer}/{bias}"] = tuple(f"{name}.bias" for name in stacked)
    return variables


def recognises(path: Path) -> bool:
    """Return True if ``path`` is a folder with a ``model.bin``, or such a file of any model and version."""
    if path.is_dir():
        return (path / WEIGHTS).exists()
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(64)
    length = int.from_bytes(head[4:6], "little")
    return head[1:4] == bytes(3) and head[6 : 6 + length].endswith(b"Spec\0")


def read(path: Path) -> Contents:
    """Find the tensors of a folder or of its ``model.bin``.

    Raises:
        UserError: the file is damaged, quantised, of another version of the format, or of another model.
    """
    path = path / WEIGHTS if path.is_dir() else path
    with open(path, "rb") as file:
        nbytes = file.seek(0, 2)
        file.seek(0)
        try:
            _check_format(path, file)
            variables = _read_variables(path, file, nbytes)
            aliases = _read_aliases(path, file, variables)
        except (struct.error, UnicodeDecodeError) as error:
            raise damaged(path, "its list of variables cannot be read") from error
    _check_weights(path, variables)
    shared = {alias: variables[name] for alias, name in aliases.items()}
    variables |= shared
    dims = _read_numbers(path, variables)
    tensors: dict[str, StoredTensor] = {}
    for name, stacked in stacked_names(_count(variables, "encoder"), _count(variables, "decoder")).items():
        if name in variables:
            tensors |= _unstack(path, variables.pop(name), stacked)
    for bias in {tensors.pop(name) for name in list(tensors) if name.endswith(".key.bias")}:
        if bias.read().any():
            raise UserError(f"{path} is no Whisper: {bias.name} has a bias for keys: give a plain Whisper")
    if OUTPUT in variables:
        tensors["proj_out.weight"] = variables.pop(OUTPUT)  # checked against the embedding later, as for Hugging Face
    if unknown := [name for name, tensor in variables.items() if tensor.shape]:
        raise UserError(f"{path} is more than a Whisper, which has no place for {unknown[0]}: convert a plain Whisper")
    nbytes += sum(tensor.nbytes for tensor in shared.values())
    return Contents("CTranslate2", tensors, dims, nbytes, tuple(variables))


def _check_format(path: Path, file: IO[bytes]) -> None:
    """Read and check the header of ``file``, up to the number of variables."""
    (version,) = _unpack(file, "I")
    if not 1 <= version <= 99:
        raise UserError(f"{path} is not CTranslate2's: give {READABLE}")
    if version != VERSION:
        raise UserError(
            f"{path} has version {version} of CTranslate2's format, and {VERSION} is read: convert the weights that it "
            "was made from again, with CTranslate2 3 or 4"
        )
    spec, (revision,) = _read_string(path, file), _unpack(file, "I")
    if (spec, revision) != (SPEC, REVISION):
        raise UserError(
            f"{path} holds {spec[:40]}, revision {revision}, and {SPEC}, revision {REVISION}, is read: give a Whisper, "
            "or convert it again with CTranslate2 3 or 4"
        )


def _read_variables(path: Path, file: IO[bytes], nbytes: int) -> dict[str, MappedTensor]:
    """Read the list of variables; their elements are not read, but must lie within the ``nbytes`` of ``file``."""
    variables: dict[str, MappedTensor] = {}
    for _ in range(_read_count(path, file)):
        name = _read_string(path, file)
        (axes,) = _unpack(file, "B")
        if name in variables:
            raise damaged(path, f"{name} is there twice")
        if axes > MAX_AXES:
            raise damaged(path, f"{name} has {axes} axes")
        *shape, type_number, size = _unpack(file, f"{axes}IBI")
        dtype = TYPES[type_number] if type_number < len(TYPES) else f"type {type_number}"
        tensor = MappedTensor(path, name, dtype, tuple(shape), file.tell(), _strides(shape))
        if isinstance(dtype, torch.dtype) and tensor.nbytes != size:
            raise damaged(path, f"{name} is not as large as its shape says")
        if file.seek(size, 1) > nbytes:
            raise damaged(path, f"{name} goes past its end")
        variables[name] = tensor
    return variables


def _read_aliases(path: Path, file: IO[bytes], variables: Mapping[str, MappedTensor]) -> dict[str, str]:
    """Return the aliases in ``file``, each with the name of its variable.

    CTranslate2 stores equal arrays once. In a Whisper these are the output layer, which equals the embedding, and
    vectors such as biases that are still zeros. Other aliased matrices are rejected: with them a small file could
    become a huge model.
    """
    aliases: dict[str, str] = {}
    for _ in range(_read_count(path, file)):
        alias, name = _read_string(path, file), _read_string(path, file)
        if alias in variables or alias in aliases or name not in variables:
            raise damaged(path, f"{alias} is said to be {name}")
        if len(variables[name].shape) > 1 and alias != OUTPUT:
            raise damaged(path, f"{alias} and {name} are one matrix")
        aliases[alias] = name
    return aliases


def _read_count(path: Path, file: IO[bytes]) -> int:
    (count,) = _unpack(file, "I")
    if count > MAX_VARIABLES:
        raise damaged(path, f"it says that it holds {count:,} variables")
    return count


def _read_string(path: Path, file: IO[bytes]) -> str:
    (length,) = _unpack(file, "H")
    (text,) = _unpack(file, f"{length}s")
    name = text.decode().removesuffix("\0")
    check_name(path, name)
    return name


def _unpack(file: IO[bytes], layout: str) -> tuple:
    """Unpack numbers from ``file``, in the format ``layout`` of :mod:`struct`; raise struct.error if the file ends."""
    layout = f"<{layout}"
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _check_weights(path: Path, variables: Mapping[str, MappedTensor]) -> None:
    for name, tensor in variables.items():
        if tensor.shape and tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise UserError(
                f"{path} is quantised ({name} is {str(tensor.dtype).removeprefix('torch.')}), and what was rounded "
                "away is lost: convert the weights that it was made from, with --quantization float16"
            )


def _read_numbers(path: Path, variables: dict[str, MappedTensor]) -> dict[str, object]:
    """Remove the scalars from ``variables``, check those that are settings, and return those that are dimensions."""
    dims: dict[str, object] = {}
    for name in (*SETTINGS, *HEADS):
        if name not in variables:
            continue
        number = variables.pop(name)
        if number.shape or not isinstance(number.dtype, torch.dtype):
            raise damaged(path, f"{name} is no number")
        value = number.read().item()
        if name in HEADS:
            dims[HEADS[name]] = value
        elif value != SETTINGS[name][1]:
            raise UserError(f"{path} is no Whisper: {name} is {value}, and every Whisper's is {SETTINGS[name][1]}")
    return dims


def _count(names: Iterable[str], part: str) -> int:
    """Return the number of layers of the encoder or decoder."""
    return len({match[1] for name in names if (match := re.match(rf"{part}/layer_(\d+)/", name))})


def _unstack(path: Path, stack: MappedTensor, names: tuple[str, ...]) -> dict[str, MappedTensor]:
    """Split ``stack`` along its rows into tensors, by ``names``."""
    if not stack.shape or stack.shape[0] % len(names):
        raise damaged(path, f"{stack.name} has the shape {stack.shape}, no stack of {len(names)}")
    shape, nbytes = (stack.shape[0] // len(names), *stack.shape[1:]), stack.nbytes // len(names)
    starts = [stack.start + index * nbytes for index in range(len(names))]
    return {name: replace(stack, shape=shape, start=start) for name, start in zip(names, starts, strict=True)}


def write(
    path: str | Path,
    dims: ModelDimensions,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    language: str | None = None,
) -> None:
    """Write openai-whisper's ``tensors`` into the folder ``path`` in the format of faster-whisper, one at a time.

    ``language`` is not stored: faster-whisper takes it when it transcribes.

    Raises:
        UserError: a weight is beyond ``dtype``'s range, or the disk is full.
    """
    folder = Path(path)
    tokenizer = tokenizer_for(dims, "en")
    fast = fast_tokenizer(tokenizer)
    added = [token["content"] for token in fast["added_tokens"]]
    write_json(folder / CONFIG, _model_config(dims, tokenizer))
    write_json(folder / FEATURES, feature_config(dims))
    write_json(folder / TOKENIZER, fast)
    write_json(folder / VOCABULARY, [*fast["model"]["vocab"], *added])
    with atomic_write(folder / WEIGHTS, "wb") as file:
        offsets = _write_layout(file, dims, dtype)
        for name, tensor in tensors:
            file.seek(offsets[name])
            file.write(at_precision(name, tensor, dtype).flatten().view(torch.uint8).numpy())


def _write_layout(file: IO[bytes], dims: ModelDimensions, dtype: torch.dtype) -> dict[str, int]:
    """Write everything except the weights; return the byte offset of each of openai-whisper's tensors.

    Between them, at the biases of keys, ``file`` stays zero.
    """
    numbers = {**SETTINGS, **{name: (torch.int16, getattr(dims, dim)) for name, dim in HEADS.items()}}
    stacks = stacked_names(dims.n_audio_layer, dims.n_text_layer)
    shapes = whisper_shapes(dims)
    offsets: dict[str, int] = {}
    file.write(struct.pack("<I", VERSION) + _packed(SPEC) + struct.pack("<II", REVISION, len(numbers) + len(stacks)))
    for variable in sorted({*numbers, *stacks}):
        if variable in numbers:
            kind, value = numbers[variable]
            file.write(_packed(variable) + struct.pack("<BBI", 0, TYPES.index(kind), kind.itemsize))
            file.write(value.to_bytes(kind.itemsize, "little", signed=True))
            continue
        names = stacks[variable]
        rows, *others = shapes[names[-1]]  # never a key's bias
        nbytes = rows * math.prod(others) * dtype.itemsize
        axes = (len(names) * rows, *others)
        header = struct.pack(f"<B{len(axes)}IBI", len(axes), *axes, TYPES.index(dtype), len(names) * nbytes)
        file.write(_packed(variable) + header)
        offsets |= {name: file.tell() + index * nbytes for index, name in enumerate(names)}
        file.seek(len(names) * nbytes, 1)
    file.write(struct.pack("<I", 1) + _packed(OUTPUT) + _packed(EMBEDDING))
    return offsets


def _packed(text: str) -> bytes:
    """Pack a string: its length, and its bytes with a terminating zero."""
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _model_config(dims: ModelDimensions, tokenizer: Tokenizer) -> dict[str, object]:
    """Return ``config.json``: suppressed tokens, language tokens and alignment heads."""
    generation = generation_config(dims, tokenizer)
    heads = alignment_head_pairs(dims)
    if heads is None:  # Whisper's default: all of the upper half
        upper_half = range(dims.n_text_layer // 2, dims.n_text_layer)
        heads = [[layer, head] for layer in upper_half for head in range(dims.n_text_head)]
    return {
        "alignment_heads": heads,
        "lang_ids": sorted(tokenizer.all_language_tokens),
        "suppress_ids": generation["suppress_tokens"],
        "suppress_ids_begin": generation["begin_suppress_tokens"],
    }
