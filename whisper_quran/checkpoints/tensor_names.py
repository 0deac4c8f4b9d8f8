"""The names of a Whisper's tensors: openai-whisper's, Hugging Face's, and the additions of wrappers."""

from collections.abc import Iterable

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


def plain_name(name: str) -> str:
    """Return openai-whisper's name of a tensor, without wrappers and with its prefix."""
    return openai_name(".".join(part for part in name.split(".") if part not in WRAPPERS))


def whisper_prefixes(plain_names: Iterable[str]) -> list[str]:
    """Return the prefixes under which there is a Whisper or, if there is none, a decoder."""
    names = set(plain_names)
    starts = sorted(name.removesuffix(DECODER) for name in names if name.endswith(DECODER))
    prefixes = [prefix for prefix in starts if not prefix or prefix.endswith(".")]
    return [prefix for prefix in prefixes if prefix + ENCODER in names] or prefixes
