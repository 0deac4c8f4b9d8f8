"""The sizes of Whisper: what tells them apart, what tensors each has, and what only a name knows."""

import base64
import gzip
import re
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import whisper
from whisper.model import ModelDimensions
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
# Far beyond any Whisper's 32 and 448: what asks for more is after the memory.
MAX_LAYERS, MAX_TEXT_CTX = 256, 4096
SAVE_ALL = "where only the trained part was saved, load it into the Whisper it was trained from and save all of that"


def named_dims() -> dict[str, ModelDimensions]:
    """The dimensions of every size, under the name by which `whisper.load_model` knows it.

    large-v1 and large-v2 have the same ones; they stand here as one, under a name that Whisper does not know.
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
    """The size that has these dimensions, or None."""
    return next((name for name, named in named_dims().items() if named == dims), None)


def alignment_heads(dims: ModelDimensions) -> bytes | None:
    """The heads that follow the audio in the size with these dimensions, as `Whisper.set_alignment_heads` takes them.

    None where there is no such size, or no telling which: large-v1 and large-v2 differ in nothing but these heads.
    """
    return whisper._ALIGNMENT_HEADS.get(size_name(dims))


def alignment_head_pairs(dims: ModelDimensions) -> list[list[int]] | None:
    """The same heads as pairs of layer and head, Hugging Face's way."""
    heads = alignment_heads(dims)
    if heads is None:
        return None
    mask = np.frombuffer(gzip.decompress(base64.b85decode(heads)), dtype=bool)
    return np.argwhere(mask.reshape(dims.n_text_layer, dims.n_text_head)).tolist()


def whisper_shapes(dims: ModelDimensions) -> dict[str, tuple[int, ...]]:
    """The tensors of `Whisper(dims).state_dict()`, in its order, without making one."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def attention(name: str, state: int) -> None:
        layer(f"{name}.query", state, state)
        layer(f"{name}.key", state, state, bias=False)
        layer(f"{name}.value", state, state)
        layer(f"{name}.out", state, state)
        layer(f"{name}_ln", state)

    def blocks(part: str, n_layer: int, state: int, attentions: tuple[str, ...]) -> None:
        for index in range(n_layer):
            block = f"{part}.blocks.{index}"
            for name in attentions:
                attention(f"{block}.{name}", state)
            layer(f"{block}.mlp.0", 4 * state, state)
            layer(f"{block}.mlp.2", state, 4 * state)
            layer(f"{block}.mlp_ln", state)

    audio, text = dims.n_audio_state, dims.n_text_state
    shapes["encoder.positional_embedding"] = (dims.n_audio_ctx, audio)
    layer("encoder.conv1", audio, dims.n_mels, 3)
    layer("encoder.conv2", audio, audio, 3)
    blocks("encoder", dims.n_audio_layer, audio, ("attn",))
    layer("encoder.ln_post", audio)
    shapes["decoder.positional_embedding"] = (dims.n_text_ctx, text)
    shapes["decoder.token_embedding.weight"] = (dims.n_vocab, text)
    blocks("decoder", dims.n_text_layer, text, ("attn", "cross_attn"))
    layer("decoder.ln", text)
    return shapes


def infer_dims(shapes: Mapping[str, tuple[int, ...]], stated: Mapping[str, object], where: str) -> ModelDimensions:
    """The dimensions of the Whisper whose tensors have these ``shapes``.

    Heads are in no shape: they are ``stated`` (whatever the file says of its dimensions) or 64 wide. All else that is
    stated must agree with the shapes.

    Raises:
        UserError: they do not agree, or tensors that tell are missing; ``where`` names the file.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(f"{where} is no whole Whisper: {name} is missing; {SAVE_ALL}")
        if len(shapes[name]) != axes:
            raise UserError(f"{where} is no Whisper: {name} has the shape {shapes[name]}")
        return shapes[name]

    def layers(part: str) -> int:
        return len({match[1] for name in shapes if (match := re.match(rf"{part}\.blocks\.(\d+)\.", name))})

    def heads(field: str, state: int) -> int:
        count = stated.get(field, state // HEAD_WIDTH)
        if type(count) is not int or count < 1 or state % count:
            raise UserError(f"{where} does not tell its number of heads: a width of {state} is no multiple of it")
        return count

    audio_state, n_mels, _ = shape("encoder.conv1.weight", 3)
    n_audio_ctx, _ = shape("encoder.positional_embedding", 2)
    n_text_ctx, _ = shape("decoder.positional_embedding", 2)
    n_vocab, text_state = shape("decoder.token_embedding.weight", 2)
    if audio_state != text_state:
        raise UserError(f"{where} is no Whisper: its encoder is {audio_state} wide and its decoder {text_state}")
    dims = ModelDimensions(
        n_mels=n_mels,
        n_audio_ctx=n_audio_ctx,
        n_audio_state=audio_state,
        n_audio_head=heads("n_audio_head", audio_state),
        n_audio_layer=layers("encoder"),
        n_vocab=n_vocab,
        n_text_ctx=n_text_ctx,
        n_text_state=text_state,
        n_text_head=heads("n_text_head", text_state),
        n_text_layer=layers("decoder"),
    )
    for field, found in asdict(dims).items():
        if stated.get(field, found) != found:
            raise UserError(
                f"{where} contradicts itself: {field} is {found} in its tensors and not in what it says of them"
            )
    if max(dims.n_audio_layer, dims.n_text_layer) > MAX_LAYERS or dims.n_text_ctx > MAX_TEXT_CTX:
        raise UserError(f"{where} is no Whisper: {dims.n_text_layer} layers or {dims.n_text_ctx} tokens are too many")
    return dims


def tokenizer_for(dims: ModelDimensions, language: str) -> Tokenizer:
    """The tokenizer of a model of ``dims`` for ``language`` (a code or an English name).

    Raises:
        UserError: there is no such language, or the model is English-only and the language is not.
    """
    code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if code not in LANGUAGES:
        raise UserError(f"--language {language}: not one of Whisper's languages; ar is Arabic")
    multilingual = dims.n_vocab >= 51865  # as whisper.model.Whisper tells it
    if not multilingual and code != "en":
        raise UserError(f"--language {language} needs a multilingual model, this one is English-only (.en)")
    languages = dims.n_vocab - 51765 - int(multilingual)
    return get_tokenizer(multilingual, num_languages=languages, language=code, task="transcribe")
