"""The loss of Whisper's decoder under teacher forcing, summed over target tokens.

Summed, not averaged: a mean of micro-batch means is not the mean over the step when token counts differ, so the
training step divides by the target tokens of the whole step, whatever it was cut into.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import Whisper


class Objective(nn.Module):
    """Mel spectrograms and tokens in, summed cross-entropy out.

    With a frozen encoder no graph is built through it, and its parameters ask for no gradient.
    """

    def __init__(self, whisper: Whisper, train_encoder: bool):
        super().__init__()
        self.whisper = whisper
        self.train_encoder = train_encoder
        whisper.encoder.requires_grad_(train_encoder)

    def encode(self, mel: Tensor) -> Tensor:
        """(batch, n_mels, 3000) → audio features (batch, 1500, state)."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            return self.whisper.encoder(mel)

    def loss(self, audio_features: Tensor, tokens: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, summed over ``targets``; the arguments are those of :class:`..data.batches.Batch`.

        The forward pass of ``whisper.model.TextDecoder``, with the output layer at the taught positions only.
        """
        decoder = self.whisper.decoder
        x = decoder.token_embedding(tokens) + decoder.positional_embedding[: tokens.shape[1]]
        x = x.to(audio_features.dtype)
        for block in decoder.blocks:
            x = block(x, audio_features, mask=decoder.mask)
        x = decoder.ln(x).flatten(0, 1)[positions]
        logits = F.linear(x, decoder.token_embedding.weight.to(x.dtype))
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def forward(self, mel: Tensor, tokens: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.encode(mel), tokens, positions, targets)
