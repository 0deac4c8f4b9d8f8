"""The loss of Whisper's decoder under teacher forcing, summed over target tokens.

Summed, not averaged: a mean of micro-batch means is not the mean over the step when token counts differ, so the
training step divides by the target tokens of the whole step, whatever it was cut into.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import Whisper


class Objective(nn.Module):
    """Audio and tokens in, summed cross-entropy out.

    The audio is mel spectrograms if the encoder is trained. A frozen encoder has no part in it: its parameters ask for
    no gradient, and its outputs come in (:class:`..data.encoder_cache.FrozenEncoder`).
    """

    def __init__(self, whisper: Whisper, train_encoder: bool):
        super().__init__()
        self.whisper = whisper
        self.train_encoder = train_encoder
        whisper.encoder.requires_grad_(train_encoder)

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

    def forward(self, audio: Tensor, tokens: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """Compute :meth:`loss` of mel spectrograms (batch, n_mels, 3000), or of a frozen encoder's audio features."""
        features = self.whisper.encoder(audio) if self.train_encoder else audio
        return self.loss(features, tokens, positions, targets)
