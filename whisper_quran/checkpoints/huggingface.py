"""Hugging Face's Whisper, written as a folder for transformers; its tokenizer is made from openai-whisper's files.

openai-whisper keeps its vocabulary as tiktoken does: byte strings in the order in which byte-pair encoding learnt them.
Hugging Face needs the pairs that were merged, and writes bytes as printable characters. The pair of a byte string is
found by encoding it with the strings learnt before it, which leaves two pieces.
"""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE
from whisper.model import ModelDimensions
from whisper.tokenizer import Tokenizer

from ..runtime.errors import UserError
from ..runtime.files import atomic_write, sync
from .checkpoint import CONFIG_NAMES, at_precision, huggingface_name
from .dims import ENGLISH_VOCAB, alignment_head_pairs, tokenizer_for

WEIGHTS = "model.safetensors"
# All files that a folder may hold; the model card is README.md.
FILES = {WEIGHTS, "README.md", "config.json", "generation_config.json", "preprocessor_config.json"}
FILES |= {"tokenizer.json", "tokenizer_config.json"}
EOT, SOT, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"


def write(folder: Path, dims: ModelDimensions, tensors: dict[str, Tensor], dtype: torch.dtype, language: str) -> None:
    """Write a Whisper's ``tensors`` into ``folder`` in the format of transformers.

    At most one copy of them is in memory: 3.1 GB for a large Whisper in half precision. ``language`` is the default
    language of a multilingual model.

    Raises:
        UserError: there is no such language, a weight is beyond ``dtype``'s range, or the disk is full.
    """
    tokenizer = tokenizer_for(dims, language if dims.n_vocab > ENGLISH_VOCAB else "en")
    config = {  # what it lacks has WhisperConfig's defaults, which are Whisper's
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        **{name: getattr(dims, field) for field, name in CONFIG_NAMES.items()},
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "num_hidden_layers": dims.n_audio_layer,
        "is_encoder_decoder": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **_token_ids(tokenizer),
    }
    n_samples = dims.n_audio_ctx * 2 * HOP_LENGTH  # the second convolution halves the frames
    features = {
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
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", features)
    _write_json(folder / "generation_config.json", _generation_config(dims, tokenizer))
    write_tokenizer(folder, tokenizer)
    state = {huggingface_name(name): at_precision(name, tensor, dtype) for name, tensor in tensors.items()}
    try:
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})  # transformers requires this metadata
    except SafetensorError as error:
        raise UserError(f"cannot write {folder / WEIGHTS} ({error}): free disk space or choose another DEST") from error
    shutil.copymode(folder / "config.json", folder / WEIGHTS)  # safetensors lets nobody else read it
    sync(folder / WEIGHTS)


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
            "lang_to_id": {
                f"<|{code}|>": tokenizer.to_language_token(code) for code in sorted(tokenizer.all_language_codes)
            },
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


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write ``tokenizer.json``, which tokenizers and faster-whisper read too, and transformers' settings for it."""
    tokens = [tokenizer.encoding.decode_single_token_bytes(token) for token in range(tokenizer.eot)]
    characters = byte_characters()
    written = ["".join(characters[byte] for byte in token) for token in tokens]
    # Ordered by id. Hugging Face treats timestamps as text, and finds the first of them after the last special token.
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added_tokens = [
        {"id": index, "content": token, **flags, "special": index < tokenizer.timestamp_begin}
        for token, index in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    ]
    special = {token: {"SpecialToken": {"id": token, "type_id": 0}} for token in (SOT, NO_TIMESTAMPS, EOT)}
    start = [special[SOT], special[NO_TIMESTAMPS], {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": EOT, "type_id": 1}}]
    template = {
        "type": "TemplateProcessing",
        "single": [*start, special[EOT]],
        "pair": [*start, *second],
        "special_tokens": {
            token: {"id": token, "ids": [tokenizer.special_tokens[token]], "tokens": [token]} for token in special
        },
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    fast = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": template,
        "decoder": byte_level,
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False},
            **{"continuing_subword_prefix": "", "end_of_word_suffix": ""},
            "vocab": {token: index for index, token in enumerate(written)},
            "merges": [[written[left], written[right]] for left, right in merged_pairs(tokens)],
        },
    }
    _write_json(folder / "tokenizer.json", fast)
    settings: dict[str, object] = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), EOT)
    settings |= {
        "additional_special_tokens": [token["content"] for token in added_tokens if token["special"]],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 1024,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
        "tokenizer_class": "WhisperTokenizer",
    }
    _write_json(folder / "tokenizer_config.json", settings)


def byte_characters() -> list[str]:
    """Return GPT-2's printable character for each byte: itself if it is printable, else the next from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]


def merged_pairs(tokens: list[bytes]) -> list[tuple[int, int]]:
    """Return the ids of the two tokens that each of ``tokens`` was merged from, in the order of learning.

    Single bytes, and tokens that no text is encoded to (multilingual Whisper's last is empty), come from no pair.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    pairs = []
    for rank, token in enumerate(tokens):
        pieces = [token[i : i + 1] for i in range(len(token))]
        while len(pieces) > 2:
            learnt = [ranks.get(left + right, rank) for left, right in pairwise(pieces)]
            first = learnt.index(min(learnt))
            pieces[first : first + 2] = [pieces[first] + pieces[first + 1]]
        if len(pieces) == 2:
            pairs.append((ranks[pieces[0]], ranks[pieces[1]]))
    return pairs


def _write_json(path: Path, value: object) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")
