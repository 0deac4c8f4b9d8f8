"""Whisper's vocabulary as Hugging Face's tokenizer files, made offline from the files of openai-whisper.

openai-whisper keeps its vocabulary as tiktoken does: byte strings in the order in which byte-pair encoding learnt them.
Hugging Face needs the pairs that were merged (GPT-2's ``merges.txt``) and writes bytes as printable characters. The
pair of a byte string is found by encoding it with the strings learnt before it, which leaves two pieces.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import whisper.normalizers
from whisper.tokenizer import Tokenizer

from ..runtime.files import atomic_write

_JSON = "added_tokens normalizer special_tokens_map tokenizer tokenizer_config vocab".split()
FILES = {"merges.txt", *(f"{name}.json" for name in _JSON)}
EOT, SOT, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer files of transformers and of tokenizers: the same vocabulary in each one's format."""
    fast = fast_tokenizer(tokenizer)
    added = fast["added_tokens"]
    roles: dict[str, object] = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), EOT)
    roles["additional_special_tokens"] = [token["content"] for token in added if token["special"]]
    write_json(folder / "tokenizer.json", fast)
    write_json(folder / "vocab.json", fast["model"]["vocab"])
    with atomic_write(folder / "merges.txt") as file:
        file.writelines(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in fast["model"]["merges"])])
    write_json(folder / "added_tokens.json", {token["content"]: token["id"] for token in added})
    write_json(folder / "special_tokens_map.json", roles)
    config = {
        **roles,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"} for token in added
        },
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 1024,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
        "tokenizer_class": "WhisperTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)
    spelling = Path(whisper.normalizers.__file__).with_name("english.json")
    write_json(folder / "normalizer.json", json.loads(spelling.read_text(encoding="utf-8")))


def fast_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return ``tokenizer.json``, the only file that the library tokenizers (used by faster-whisper) needs."""
    tokens = [tokenizer.encoding.decode_single_token_bytes(token) for token in range(tokenizer.eot)]
    characters = byte_characters()
    written = ["".join(characters[byte] for byte in token) for token in tokens]
    # Ordered by id. Hugging Face treats timestamps as text, and finds the first of them after the last special token.
    added = dict(sorted(tokenizer.special_tokens.items(), key=lambda item: item[1]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, **flags, "special": index < tokenizer.timestamp_begin}
            for token, index in added.items()
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": _template(added),
        "decoder": byte_level,
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False},
            **{"continuing_subword_prefix": "", "end_of_word_suffix": ""},
            "vocab": {token: index for index, token in enumerate(written)},
            "merges": [[written[left], written[right]] for left, right in merged_pairs(tokens)],
        },
    }


def _template(ids: dict[str, int]) -> dict[str, object]:
    """Return the template of special tokens around a text: its start, no timestamps, and its end."""

    def piece(kind: str, id: str, type_id: int = 0) -> dict[str, object]:
        return {kind: {"id": id, "type_id": type_id}}

    start = [piece("SpecialToken", SOT), piece("SpecialToken", NO_TIMESTAMPS), piece("Sequence", "A")]
    return {
        "type": "TemplateProcessing",
        "single": [*start, piece("SpecialToken", EOT)],
        "pair": [*start, piece("Sequence", "B", 1), piece("SpecialToken", EOT, 1)],
        "special_tokens": {
            token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (SOT, NO_TIMESTAMPS, EOT)
        },
    }


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


def write_json(path: Path, value: object) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")
