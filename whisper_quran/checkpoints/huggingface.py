"""Hugging Face's Whisper: a folder, `model.safetensors` or `pytorch_model.bin`.

The tensors have other names than openai-whisper's (:mod:`tensor_names`), and JSON files hold what it keeps in code.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE
from whisper.model import ModelDimensions
from whisper.tokenizer import Tokenizer

from ..runtime.errors import UserError
from ..runtime.files import sync
from . import huggingface_tokenizer, torch_zip
from .dims import ENGLISH_VOCAB, alignment_head_pairs, tokenizer_for
from .huggingface_tokenizer import write_json, write_tokenizer
from .stored_tensor import MAX_HEADER, Contents, StoredTensor, at_precision, check_name, damaged, read_json
from .tensor_names import huggingface_name

WEIGHTS, CONFIG = "model.safetensors", "config.json"
GENERATION, FEATURES, CARD = "generation_config.json", "preprocessor_config.json", "README.md"
# All files that a folder may hold.
FILES = frozenset({WEIGHTS, CONFIG, GENERATION, FEATURES, CARD, *huggingface_tokenizer.FILES})
# The possible names of a folder's weights, in order of preference.
READ_NAMES = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# openai-whisper's dimensions and the entries of Hugging Face's config.json that state them.
DIMS = {
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


@dataclass(frozen=True)
class _SafetensorsTensor(StoredTensor):
    key: str  # its name in the file
    file: Any = field(compare=False, repr=False)  # the open file

    def _load(self) -> Tensor:
        tensor = self.file.get_tensor(self.key)
        # A copy if the file does not align its elements.
        return tensor.clone() if tensor.data_ptr() % tensor.itemsize else tensor


def recognises(path: Path) -> bool:
    """Return True if ``path`` is a folder with weights under Hugging Face's names, or a safetensors file."""
    if path.is_dir():
        return any((path / name).exists() for name in READ_NAMES)
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read(path: Path) -> Contents:
    """Find the tensors of a folder or of a safetensors file.

    Raises:
        UserError: a file is damaged, or ``config.json`` describes another model.
    """
    if not path.is_dir():
        return _read_safetensors(path)
    config = path / CONFIG
    dims = _stated_dims(config, read_json(config)) if config.exists() else {}
    weights = next(path / name for name in READ_NAMES if (path / name).exists())
    files = _shards(weights, read_json(weights)) if weights.suffix == ".json" else [weights]
    parts = [torch_zip.read(file) if torch_zip.recognises(file) else _read_safetensors(file) for file in files]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return Contents("Hugging Face", tensors, dims, sum(part.nbytes for part in parts))


def _read_safetensors(path: Path) -> Contents:
    nbytes = path.stat().st_size  # raises the system's own error if it does not exist
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if MAX_HEADER < header < nbytes:
        raise UserError(f"{path} has a header of {header:,} bytes, more than any checkpoint needs: do not trust it")
    tensors: dict[str, StoredTensor] = {}
    try:
        opened = safe_open(path, framework="pt")
        for name in opened.keys():  # noqa: SIM118 (it is no dict)
            check_name(path, name)
            entry = opened.get_slice(name)
            dtype, shape = entry.get_dtype(), tuple(entry.get_shape())
            tensors[name] = _SafetensorsTensor(path, name, SAFETENSORS_DTYPES.get(dtype, dtype), shape, name, opened)
    except SafetensorError as error:
        raise damaged(path, "its header is not that of a safetensors file of this length") from error
    return Contents("safetensors", tensors, {}, nbytes)


def _stated_dims(path: Path, config: Mapping[str, object]) -> dict[str, object]:
    model_type = config.get("model_type", "whisper")
    if model_type != "whisper":
        raise UserError(f"{path} describes another model ({str(model_type)[:40]!r}): give a Whisper")
    return {field: config[name] for field, name in DIMS.items() if name in config}


def _shards(path: Path, index: Mapping[str, object]) -> list[Path]:
    """Return the files of the shards in ``index``, which must be in the folder of ``path``."""
    weight_map = index.get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
        raise UserError(f"{path} does not name files beside it: download the whole folder again")
    return [path.parent / name for name in sorted(set(names))]


def write(
    path: str | Path,
    dims: ModelDimensions,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    language: str | None = None,
) -> None:
    """Write openai-whisper's ``tensors`` into the folder ``path`` in the format of transformers.

    At most one copy of them is in memory: 3.1 GB for a large Whisper in half precision. ``language`` (Arabic if None)
    is the default language of a multilingual model.

    Raises:
        UserError: there is no such language, a weight is beyond ``dtype``'s range, or the disk is full.
    """
    folder = Path(path)
    multilingual = dims.n_vocab > ENGLISH_VOCAB
    tokenizer = tokenizer_for(dims, (language or "ar") if multilingual else "en")
    write_json(folder / CONFIG, _model_config(dims, dtype, tokenizer))
    write_json(folder / FEATURES, _feature_config(dims))
    write_json(folder / GENERATION, _generation_config(dims, tokenizer))
    write_tokenizer(folder, tokenizer)
    state = {huggingface_name(name): at_precision(name, tensor, dtype) for name, tensor in tensors}
    try:
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})  # transformers requires this metadata
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read it
        sync(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"cannot write {folder / WEIGHTS} ({error}): free disk space or choose another DEST") from error


def _model_config(dims: ModelDimensions, dtype: torch.dtype, tokenizer: Tokenizer) -> dict[str, object]:
    """Return ``config.json``; fields that it lacks have WhisperConfig's defaults, which are Whisper's."""
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        **{name: getattr(dims, field) for field, name in DIMS.items()},
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "num_hidden_layers": dims.n_audio_layer,
        "is_encoder_decoder": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **_token_ids(tokenizer),
    }


def _token_ids(tokenizer: Tokenizer) -> dict[str, object]:
    """Return the tokens that begin, end and pad a sequence, and those suppressed at its beginning."""
    return {
        "bos_token_id": tokenizer.eot,
        "eos_token_id": tokenizer.eot,
        "pad_token_id": tokenizer.eot,
        "decoder_start_token_id": tokenizer.sot,
        "begin_suppress_tokens": [*tokenizer.encode(" "), tokenizer.eot],
    }


def _generation_config(dims: ModelDimensions, tokenizer: Tokenizer) -> dict[str, object]:
    """Return ``generation_config.json``: the rules of openai-whisper's `decode`, for transformers."""
    multilingual: dict[str, object] = {}
    if tokenizer.language:
        multilingual = {
            "language": tokenizer.language,
            "task": "transcribe",
            "lang_to_id": {f"<|{code}|>": tokenizer.to_language_token(code) for code in tokenizer.all_language_codes},
            "task_to_id": {"transcribe": tokenizer.transcribe, "translate": tokenizer.translate},
        }
    no_speech = (tokenizer.sot, tokenizer.sot_lm, tokenizer.sot_prev, tokenizer.no_speech)
    suppressed = {*tokenizer.non_speech_tokens, tokenizer.transcribe, tokenizer.translate, *no_speech}
    return {
        **_token_ids(tokenizer),
        "is_multilingual": bool(multilingual),
        **multilingual,
        "no_timestamps_token_id": tokenizer.no_timestamps,
        "prev_sot_token_id": tokenizer.sot_prev,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,  # one second
        "max_length": dims.n_text_ctx,
        "suppress_tokens": sorted(suppressed),
        "alignment_heads": alignment_head_pairs(dims),
    }


def _feature_config(dims: ModelDimensions) -> dict[str, object]:
    """Return ``preprocessor_config.json``: the constants of whisper/audio.py."""
    n_samples = dims.n_audio_ctx * 2 * HOP_LENGTH  # the second convolution halves the frames
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": dims.n_mels,
        "sampling_rate": SAMPLE_RATE,
        "hop_length": HOP_LENGTH,
        "n_fft": N_FFT,
        "chunk_length": n_samples // SAMPLE_RATE,
        "n_samples": n_samples,
        "nb_max_frames": n_samples // HOP_LENGTH,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
