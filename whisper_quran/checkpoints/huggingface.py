"""Hugging Face's Whisper: the same tensors under other names, and files that say what openai-whisper keeps in code."""

from collections.abc import Mapping
from pathlib import Path

import torch
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE
from whisper.model import ModelDimensions
from whisper.tokenizer import Tokenizer

from ..runtime.errors import UserError
from . import huggingface_tokenizer
from .dims import ENGLISH_VOCAB, alignment_head_pairs
from .huggingface_tokenizer import tokenizer_of, write_json, write_tokenizer
from .torch_zip import StoredTensor, write_safetensors

WEIGHTS, CONFIG, GENERATION, FEATURES = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
)
FILES = {WEIGHTS, CONFIG, GENERATION, FEATURES, *huggingface_tokenizer.FILES}  # all that a folder may hold

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


def openai_name(name: str) -> str:
    """openai-whisper's name of a tensor, whatever prefix ``name`` has; a name that is not Hugging Face's stays."""
    for openai, huggingface in NAMES:
        name = name.replace(huggingface, openai)
    return name


def huggingface_name(name: str) -> str:
    """Hugging Face's name of openai-whisper's tensor ``name``, as `WhisperForConditionalGeneration` has it."""
    for openai, huggingface in NAMES:
        name = name.replace(openai, huggingface)
    return f"model.{name}"


def stated_dims(path: Path, config: Mapping[str, object]) -> dict[str, object]:
    """What ``config``, read from ``path``, says of the dimensions.

    Raises:
        UserError: it is another model's.
    """
    model_type = config.get("model_type", "whisper")
    if model_type != "whisper":
        raise UserError(f"{path} describes another model ({str(model_type)[:40]!r}): give a Whisper")
    return {field: config[name] for field, name in DIMS.items() if name in config}


def shards(path: Path, index: Mapping[str, object]) -> list[str]:
    """The files, beside ``path``, that an ``index`` of shards names.

    Raises:
        UserError: it names no files, or files elsewhere.
    """
    weight_map = index.get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{path} does not name files beside it: download the whole folder again")
    return sorted(set(names))


def write_folder(
    folder: Path, dims: ModelDimensions, tensors: Mapping[str, StoredTensor], dtype: torch.dtype, language: str
) -> None:
    """Write openai-whisper's ``tensors`` into ``folder`` as transformers loads them.

    A vocabulary that is none of Whisper's has no tokenizer to write, nor tokens for generation to suppress.

    Raises:
        UserError: there is no such language, or see :func:`write_safetensors`.
    """
    tokenizer = tokenizer_of(dims.n_vocab)
    write_json(folder / CONFIG, model_config(dims, dtype, tokenizer))
    write_json(folder / FEATURES, feature_config(dims))
    if tokenizer:
        write_json(folder / GENERATION, generation_config(dims, tokenizer, language))
        write_tokenizer(folder, tokenizer)
    write_safetensors(folder / WEIGHTS, {huggingface_name(name): tensor for name, tensor in tensors.items()}, dtype)


def model_config(dims: ModelDimensions, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, object]:
    """``config.json``: what is not here has WhisperConfig's default, which is Whisper's."""
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        **{name: getattr(dims, field) for field, name in DIMS.items()},
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "num_hidden_layers": dims.n_audio_layer,
        "is_encoder_decoder": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **token_ids(tokenizer),
    }


def token_ids(tokenizer: Tokenizer | None) -> dict[str, object]:
    """The tokens that begin, end and fill a sequence, and those that no text begins with."""
    sot, eot = (tokenizer.sot, tokenizer.eot) if tokenizer else (None, None)
    blank = [*tokenizer.encode(" "), eot] if tokenizer else None
    return {
        "bos_token_id": eot,
        "eos_token_id": eot,
        "pad_token_id": eot,
        "decoder_start_token_id": sot,
        "begin_suppress_tokens": blank,
    }


def generation_config(dims: ModelDimensions, tokenizer: Tokenizer, language: str) -> dict[str, object]:
    """``generation_config.json``: the rules of openai-whisper's `decode`, which transformers reads from a file."""
    multilingual = {}
    if languages := tokenizer.all_language_codes if dims.n_vocab > ENGLISH_VOCAB else ():
        if language not in languages:
            raise UserError(
                f"--language {language} is none of this Whisper's: give one of {', '.join(sorted(languages))}"
            )
        multilingual = {
            "language": language,
            "task": "transcribe",
            "lang_to_id": {f"<|{code}|>": tokenizer.to_language_token(code) for code in languages},
            "task_to_id": {"transcribe": tokenizer.transcribe, "translate": tokenizer.translate},
        }
    heads = alignment_head_pairs(dims)
    no_speech = (tokenizer.sot, tokenizer.sot_lm, tokenizer.sot_prev, tokenizer.no_speech)
    suppressed = {*tokenizer.non_speech_tokens, tokenizer.transcribe, tokenizer.translate, *no_speech}
    return {
        **token_ids(tokenizer),
        "is_multilingual": bool(multilingual),
        **multilingual,
        "no_timestamps_token_id": tokenizer.no_timestamps,
        "prev_sot_token_id": tokenizer.sot_prev,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,  # one second
        "max_length": dims.n_text_ctx,
        "suppress_tokens": sorted(suppressed),
        **({"alignment_heads": heads} if heads else {}),
    }


def feature_config(dims: ModelDimensions) -> dict[str, object]:
    """``preprocessor_config.json``: whisper/audio.py's constants."""
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
