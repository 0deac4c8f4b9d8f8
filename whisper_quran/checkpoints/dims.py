"""The sizes of Whisper: dimensions, tensors, alignment heads and tokenizers."""

import base64
import gzip
import re
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import torch
import whisper
from whisper.model import ModelDimensions, ResidualAttentionBlock
from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE, Tokenizer, get_tokenizer

from ..runtime.errors import UserError

HEAD_WIDTH = 64  # at every size
# state, encoder layers, decoder layers
LAYERS = {
    "tiny": (384, 4, 4),
    "base": (512, 6, 6),
    "small": (768, 12, 12),
    "medium": (1024, 24, 24),
    "large": (1280, 32, 32),
    "turbo": (1280, 32, 4),
}
# vocabulary: English only, 99 languages, and 100 (Cantonese came with large-v3)
ENGLISH_VOCAB, MULTILINGUAL_VOCAB, V3_VOCAB = 51864, 51865, 51866
# Sizes that Whisper's audio features, tokenizers and decoding support. The largest are far above any Whisper's 32
# layers and 448 tokens, and limit the memory that a malicious file can take.
SUPPORTED = {
    "n_mels": (80, 128),
    "n_audio_ctx": (1500,),
    "n_audio_layer": range(1, 257),
    "n_text_layer": range(1, 257),
    "n_text_ctx": range(8, 4097),
}
SAVE_ALL = "if only the trained part was saved, load it into the Whisper it was trained from and save all of that"


def named_dims() -> dict[str, ModelDimensions]:
    """Return the dimensions of every size, by its name in `whisper.load_model`.

    large-v1 and large-v2 have the same dimensions, and one entry here, whose name Whisper does not know.
    """

    def dims(size: str, n_mels: int, n_vocab: int) -> ModelDimensions:
        state, audio_layers, text_layers = LAYERS[size]
        heads = state // HEAD_WIDTH
        return ModelDimensions(n_mels, 1500, state, heads, audio_layers, n_vocab, 448, state, heads, text_layers)

    smaller = ("tiny", "base", "small", "medium")
    return {
        **{size: dims(size, 80, MULTILINGUAL_VOCAB) for size in smaller},
        **{f"{size}.en": dims(size, 80, ENGLISH_VOCAB) for size in smaller},
        "large-v1 or large-v2": dims("large", 80, MULTILINGUAL_VOCAB),
        "large-v3": dims("large", 128, V3_VOCAB),
        "large-v3-turbo": dims("turbo", 128, V3_VOCAB),
    }


def size_name(dims: ModelDimensions) -> str | None:
    """Return the size that has these dimensions, or None."""
    return next((name for name, named in named_dims().items() if named == dims), None)


def alignment_heads(dims: ModelDimensions) -> bytes | None:
    """Return the alignment heads of the size with these dimensions, for `Whisper.set_alignment_heads`.

    None if there is no such size, or if it is ambiguous: large-v1 and large-v2 differ only in these heads.
    """
    return whisper._ALIGNMENT_HEADS.get(size_name(dims))


def alignment_head_pairs(dims: ModelDimensions) -> list[list[int]]:
    """Return the alignment heads in Hugging Face's form: pairs of layer and head.

    If there is no such size, these are Whisper's default: all heads of the upper half of the decoder's layers.
    """
    heads = alignment_heads(dims)
    if heads is None:
        upper_half = range(dims.n_text_layer // 2, dims.n_text_layer)
        return [[layer, head] for layer in upper_half for head in range(dims.n_text_head)]
    mask = np.frombuffer(gzip.decompress(base64.b85decode(heads)), dtype=bool)
    return np.argwhere(mask.reshape(dims.n_text_layer, dims.n_text_head)).tolist()


def whisper_shapes(dims: ModelDimensions) -> dict[str, tuple[int, ...]]:
    """Return the shapes of `Whisper(dims).state_dict()`, in its order, without allocating its memory."""
    audio, text = dims.n_audio_state, dims.n_text_state
    with torch.device("meta"):  # not the whole Whisper, for which torch would import its compiler (2 s)
        encoder_block = ResidualAttentionBlock(audio, dims.n_audio_head)
        decoder_block = ResidualAttentionBlock(text, dims.n_text_head, cross_attention=True)

    def blocks(prefix: str, block: ResidualAttentionBlock, count: int) -> dict[str, tuple[int, ...]]:
        shapes = {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}
        return {f"{prefix}.{index}.{name}": shape for index in range(count) for name, shape in shapes.items()}

    return {
        "encoder.positional_embedding": (dims.n_audio_ctx, audio),
        "encoder.conv1.weight": (audio, dims.n_mels, 3),
        "encoder.conv1.bias": (audio,),
        "encoder.conv2.weight": (audio, audio, 3),
        "encoder.conv2.bias": (audio,),
        **blocks("encoder.blocks", encoder_block, dims.n_audio_layer),
        "encoder.ln_post.weight": (audio,),
        "encoder.ln_post.bias": (audio,),
        "decoder.positional_embedding": (dims.n_text_ctx, text),
        "decoder.token_embedding.weight": (dims.n_vocab, text),
        **blocks("decoder.blocks", decoder_block, dims.n_text_layer),
        "decoder.ln.weight": (text,),
        "decoder.ln.bias": (text,),
    }


def infer_dims(shapes: Mapping[str, tuple[int, ...]], stated: Mapping[str, object], where: str) -> ModelDimensions:
    """Infer the dimensions of a Whisper from the ``shapes`` of its tensors.

    The number of heads is in no shape: it is taken from ``stated`` (the dimensions that the file states) or from heads
    64 wide. All other stated dimensions must agree with the shapes.

    Raises:
        UserError: they do not agree, a tensor is missing, or Whisper does not support them; ``where`` names the file.
    """

    def layers(part: str) -> int:
        return len({match[1] for name in shapes if (match := re.match(rf"{part}\.blocks\.(\d+)\.", name))})

    def heads(field: str, state: int) -> int:
        count = stated.get(field, state // HEAD_WIDTH)
        if type(count) is not int or count < 1 or state % count or state % 2 or state < 4:
            raise UserError(f"{where} does not tell its number of heads: a width of {state} is no multiple of it")
        return count

    try:
        audio_state, n_mels, _ = shapes["encoder.conv1.weight"]
        n_audio_ctx, _ = shapes["encoder.positional_embedding"]
        n_text_ctx, _ = shapes["decoder.positional_embedding"]
        n_vocab, text_state = shapes["decoder.token_embedding.weight"]
    except KeyError as missing:
        raise UserError(f"{where} is no whole Whisper: {missing.args[0]} is missing; {SAVE_ALL}") from None
    except ValueError:
        raise UserError(f"{where} is no Whisper: its embeddings or convolutions have another number of axes") from None
    if audio_state != text_state:
        raise UserError(f"{where} is no Whisper: its encoder is {audio_state} wide and its decoder {text_state}")
    encoder = (n_mels, n_audio_ctx, audio_state, heads("n_audio_head", audio_state), layers("encoder"))
    decoder = (n_vocab, n_text_ctx, text_state, heads("n_text_head", text_state), layers("decoder"))
    dims = ModelDimensions(*encoder, *decoder)
    for field, found in asdict(dims).items():
        if field in stated and (type(stated[field]) is not int or stated[field] != found):
            raise UserError(f"{where} contradicts itself: its tensors have {field} {found}, and it states another")
        if found not in SUPPORTED.get(field, (found,)):
            raise UserError(f"{where} is no Whisper: {field} is {found}, which none has")
    # The ids of the special tokens follow from the number of languages, and that only from the vocabulary's size.
    if n_vocab not in (ENGLISH_VOCAB, MULTILINGUAL_VOCAB) and (n_vocab, n_mels) != (V3_VOCAB, 128):
        raise UserError(
            f"{where} has {n_vocab} tokens and {n_mels} mel bins, as no Whisper has: give a checkpoint from before "
            "tokens were added or removed"
        )
    return dims


def tokenizer_for(dims: ModelDimensions, language: str) -> Tokenizer:
    """Make the tokenizer of a model of ``dims`` for ``language`` (a code or an English name).

    Raises:
        UserError: the model does not know the language.
    """
    code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if code not in LANGUAGES:
        raise UserError(f"--language {language}: not one of Whisper's languages; ar is Arabic")
    multilingual = dims.n_vocab > ENGLISH_VOCAB
    if not multilingual and code != "en":
        raise UserError(f"--language {language} needs a multilingual model, this one is English-only (.en)")
    languages = 99 + dims.n_vocab - MULTILINGUAL_VOCAB if multilingual else 99
    if code not in list(LANGUAGES)[:languages]:
        raise UserError(f"--language {language} came with large-v3: this model has no such language")
    return get_tokenizer(multilingual, num_languages=languages, language=code, task="transcribe")
