"""What the tests share: the real recitations beside the repository, and small Whispers made on the spot."""

from pathlib import Path

import pytest
import torch
from whisper.model import ModelDimensions, Whisper

QURAN = Path(__file__).resolve().parents[2] / "shared" / "quran"


@pytest.fixture(scope="session")
def quran() -> Path:
    """The folder of real recitations (``audio/<Reciter>/SSSAAA.mp3``, ``metadata``, ``odd``)."""
    if not QURAN.is_dir():
        pytest.skip("the real recitations are not beside the repository (../shared/quran)")
    return QURAN


def make_whisper(*, n_mels: int = 80, state: int = 64, layers: int = 1, n_vocab: int = 51865, seed: int = 0) -> Whisper:
    """A Whisper with random weights, multilingual by default, 64 wide a head as every real size is."""
    torch.manual_seed(seed)
    heads = state // 64
    model = Whisper(ModelDimensions(n_mels, 1500, state, heads, layers, n_vocab, 448, state, heads, layers))
    # Whisper leaves this parameter uninitialised.
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    return model.eval()


def talkative(model: Whisper, eot_gain: float = 3.5) -> Whisper:
    """Give random weights something to say: texts that hang on the audio, differ, and end (or not) by themselves.

    Random Whispers repeat one token to the limit whatever they hear. Here all embeddings are large, eot's largest, so
    that it comes up every few tokens, and the encoder listens to the audio more than to the position.
    """
    encoder, decoder = model.encoder, model.decoder
    with torch.no_grad():
        encoder.conv1.weight *= 8
        encoder.conv2.weight *= 8
        decoder.token_embedding.weight.normal_(std=0.5)
        decoder.positional_embedding.normal_(std=0.5)
        decoder.token_embedding.weight[50257 if model.is_multilingual else 50256] *= eot_gain
        for block in decoder.blocks:
            for attention in (block.attn, block.cross_attn):
                for linear in (attention.query, attention.key, attention.value):
                    linear.weight *= 6
    return model
