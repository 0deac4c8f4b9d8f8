"""What is trained: the loss of Whisper's decoder under teacher forcing, summed over target tokens; and adapters.

It is summed, not averaged: if token counts differ, a mean of micro-batch means is not the mean over the step. The
training step divides the sum by the target tokens of the whole step.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from whisper.model import MultiHeadAttention, ResidualAttentionBlock, Whisper

from ..data.features import attend, encode, encode_block, encode_some_at_once
from ..runtime.errors import UserError


class Objective(nn.Module):
    """The training objective: summed cross-entropy from audio and tokens.

    The audio is mel spectrograms if the encoder is trained. Otherwise it is the outputs of the frozen encoder
    (:class:`..data.features.FrozenEncoder`), whose parameters need no gradient. With ``grad_checkpoint`` every
    block recomputes its activations in the backward pass instead of keeping them.
    """

    def __init__(self, whisper: Whisper, train_encoder: bool, grad_checkpoint: bool = False):
        super().__init__()
        self.whisper = whisper
        self.train_encoder = train_encoder
        self.grad_checkpoint = grad_checkpoint
        whisper.encoder.requires_grad_(train_encoder)

    def loss(
        self, audio_features: Tensor, tokens: Tensor, positions: Tensor, targets: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Compute the cross-entropy in nats, summed over ``targets``; arguments as in :class:`..data.batches.Batch`.

        ``mask`` is False at the padding of ``audio_features`` (:func:`..data.features.audio_mask`).

        The forward pass of ``whisper.model.TextDecoder``, with the output layer at ``positions`` only.
        """
        decoder = self.whisper.decoder
        x = decoder.token_embedding(tokens) + decoder.positional_embedding[: tokens.shape[1]]
        x = x.to(audio_features.dtype)
        for block in decoder.blocks:
            x = self._run(decode_block, block, x, audio_features, mask)
        x = decoder.ln(x).flatten(0, 1)[positions]
        logits = F.linear(x, decoder.token_embedding.weight.to(x.dtype))
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def forward(
        self, audio: Tensor, tokens: Tensor, positions: Tensor, targets: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Compute :meth:`loss` of mel spectrograms (batch, n_mels, 2 n), or of a frozen encoder's audio features."""
        return self.loss(self._encode(audio, mask) if self.train_encoder else audio, tokens, positions, targets, mask)

    def _encode(self, mel: Tensor, mask: Tensor | None) -> Tensor:
        """Encode mel spectrograms (batch, n_mels, 2 n) into (batch, n, n_audio_state); padding is not zero on a GPU."""
        run = partial(encode, self.whisper.encoder, run_block=partial(self._run, encode_block))
        if mel.device.type != "cpu":
            return run(mel, mask)
        # A CPU is faster clip by clip, without padding and mask.
        contexts = [mel.shape[2] // 2] * len(mel) if mask is None else mask.sum(dim=-1).flatten().tolist()
        return encode_some_at_once(run, mel, contexts, 1)

    def _run(self, run_block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        return checkpoint(run_block, *inputs, use_reentrant=False) if self.grad_checkpoint else run_block(*inputs)


def decode_block(block: ResidualAttentionBlock, x: Tensor, audio_features: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a block of the decoder to x (batch, length, n_text_state), as its own ``forward`` does."""
    normed = block.attn_ln(x)
    x = x + attend(block.attn, normed, normed, causal=True)
    x = x + attend_to_audio(block.cross_attn, block.cross_attn_ln(x), audio_features, mask)
    return x + block.mlp(block.mlp_ln(x))


def attend_to_audio(
    attention: MultiHeadAttention, x: Tensor, audio_features: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Compute cross-attention of x (batch, length, n_text_state) to audio features (batch, n, n_audio_state).

    Whisper projects hundreds of frames of audio to keys and values, for an ayah of about 20 tokens. The order of the
    products can be changed: q · (W k) = (Wᵀ q) · k, and the mean of projected values is the projection of their mean.
    So the few queries are projected instead, once per head. This is less work as long as there are fewer tokens than a
    head has dimensions, and gives the same result up to rounding.
    """
    batch, length, state = x.shape
    heads, size = attention.n_head, state // attention.n_head
    if length > size:
        return attend(attention, x, audio_features, mask)
    queries = (attention.query(x) * size**-0.5).view(batch * length, heads, size).transpose(0, 1)
    queries = (queries @ attention.key.weight.view(heads, size, state)).view(heads, batch, length, state)
    scores = queries.transpose(0, 1).flatten(1, 2) @ audio_features.mT  # (batch, heads * length, n)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, 0], -torch.inf)
    weights = torch.softmax(scores.float(), dim=-1).to(audio_features.dtype)
    means = (weights @ audio_features).view(batch, heads, length, state).transpose(0, 1)
    values = means.flatten(1, 2) @ attention.value.weight.view(heads, size, state).mT
    return attention.out(values.transpose(0, 1).reshape(batch, length, state) + attention.value.bias)


class LowRank(nn.Module):
    """The low-rank update B A of a weight (out, in), as a parametrization; zero at first, because B is zero.

    Only A (rank, in) and B (out, rank) are trained (Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language
    Models"). Reading the layer's weight returns the sum: validation, decoding and saving see an ordinary Whisper.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        rows, columns = weight.shape
        a = torch.empty(rank, columns, dtype=weight.dtype)  # drawn on the CPU, for the same numbers on every device
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def add_adapters(model: Whisper, rank: int, encoder: bool, seed: int) -> None:
    """Freeze ``model`` and add an adapter to every linear layer of the decoder's (and ``encoder``'s) blocks.

    Raises:
        UserError: ``rank`` is more than the model's width, where adapters would take more memory than the weights.
    """
    width = model.dims.n_text_state
    if rank > width:
        raise UserError(f"--lora {rank}: the rank is at most {width}, the width of this model")
    model.requires_grad_(False)
    parts = [model.encoder, model.decoder] if encoder else [model.decoder]
    linears = [m for part in parts for block in part.blocks for m in block.modules() if isinstance(m, nn.Linear)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for linear in linears:
            parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, rank))
