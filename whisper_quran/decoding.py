"""Greedy decoding of many clips at once: the text of ``whisper.decode``, many times faster.

``whisper.decode`` grows its key/value cache with ``torch.cat`` at every token, casts the weights at every token, and keeps
a batch until its longest clip ends. Here, in the spirit of gpt-fast:

- A :class:`BatchDecoder` has a fixed number of *slots*, each with its place in preallocated caches: self-attention is
  written in place, cross-attention keys and values are computed once, when a clip enters.
- One step gives every slot its next token. All its shapes are fixed by (slots, attended length), so that on a GPU it is
  captured as a CUDA graph; a CPU runs the same function as it is.
- A slot whose clip has ended is given to the next clip, and when no more clips come the last ones move together into
  half as many slots: a finished clip costs nothing worth mentioning, even beside one that rambles on.

What may be said, and what the prompt is, comes from whisper's own ``DecodingTask``. Results do not depend on the
neighbours, up to the rounding of differently shaped matrix products.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.decoding import DecodingOptions, DecodingResult, DecodingTask
from whisper.model import ResidualAttentionBlock, Whisper
from whisper.utils import compression_ratio

from .errors import UserError
from .features import collate, log_mel
from .segmentation import segments

_STRIDE = 8  # steps between two looks at which clips have ended, on a GPU, where a look waits for all steps before it
_LENGTH_STEP = 64  # attended lengths are multiples of this: few shapes, and short texts do not pay for 448 positions
_FEWEST_SLOTS = 8  # on a GPU; with fewer a step takes just as long

Weights = tuple[Tensor, Tensor | None]  # of a linear layer or a layer norm: weight and bias


@dataclass(frozen=True)
class _Block:
    """The weights of one decoder block in the type it computes in; query, key and value are one matrix."""

    attn_ln: Weights
    qkv: Weights
    out: Weights
    cross_attn_ln: Weights
    cross_query: Weights
    cross_key: Weights
    cross_value: Weights
    cross_out: Weights
    mlp_ln: Weights
    mlp_in: Weights
    mlp_out: Weights

    @classmethod
    def of(cls, block: ResidualAttentionBlock, dtype: torch.dtype) -> "_Block":
        attn, cross = block.attn, block.cross_attn
        bias = torch.cat([attn.query.bias, torch.zeros_like(attn.query.bias), attn.value.bias])
        weight = torch.cat([attn.query.weight, attn.key.weight, attn.value.weight])
        return cls(
            _weights(block.attn_ln, dtype),
            (weight.to(dtype), bias.to(dtype)),
            _weights(attn.out, dtype),
            _weights(block.cross_attn_ln, dtype),
            _weights(cross.query, dtype),
            _weights(cross.key, dtype),
            _weights(cross.value, dtype),
            _weights(cross.out, dtype),
            _weights(block.mlp_ln, dtype),
            _weights(block.mlp[0], dtype),
            _weights(block.mlp[2], dtype),
        )


def _weights(module: nn.Module, dtype: torch.dtype) -> Weights:
    return module.weight.to(dtype), None if module.bias is None else module.bias.to(dtype)


@dataclass(frozen=True)
class _Clip:
    """What occupies a slot: the clip's index, its encoded audio, and the number of steps before it entered."""

    index: int
    features: Tensor
    entered: int


class BatchDecoder:
    """Greedy decoding without timestamps of any number of clips, up to ``slots`` of them at a time.

    It computes in ``dtype`` (default: that of the model's weights) with the model's weights as they are now: make a new one
    when they have changed. ``options`` are fields of :class:`whisper.DecodingOptions`, such as ``sample_len`` or
    ``prompt``.
    """

    @torch.no_grad()
    def __init__(
        self, model: Whisper, slots: int, *, language: str = "ar", dtype: torch.dtype | None = None, **options
    ):
        self.task = DecodingTask(model, DecodingOptions(language=language, without_timestamps=True, **options))
        if self.task.options.temperature != 0 or self.task.n_group != 1:
            raise ValueError("only greedy decoding is done here: temperature 0, no beams")
        self.dims, self.device = model.dims, model.device
        self.dtype = dtype or model.decoder.token_embedding.weight.dtype
        self.slots = slots
        decoder = model.decoder
        self.embedding = decoder.token_embedding.weight.to(self.dtype)
        self.positional_embedding = decoder.positional_embedding.to(self.dtype)
        self.blocks = [_Block.of(block, self.dtype) for block in decoder.blocks]
        self.ln = _weights(decoder.ln, self.dtype)

        self.eot = self.task.tokenizer.eot
        self.begin = self.task.sample_begin
        # whisper samples at most sample_len tokens, and stops once the context is overfull by one.
        self.sample_len = min(self.task.sample_len, self.dims.n_text_ctx + 1 - self.begin)
        self.last = self.begin + self.sample_len - 2  # the position whose output is the last token sampled
        self.suppressed = self._suppressed()

        def zeros(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        heads, layers = self.dims.n_text_head, range(self.dims.n_text_layer)
        self.width = self.dims.n_text_state // heads
        self.keys = [zeros(slots, heads, self.last + 1, self.width) for _ in layers]
        self.values = [zeros(slots, heads, self.last + 1, self.width) for _ in layers]
        self.cross_keys = [zeros(slots, heads, self.dims.n_audio_ctx, self.width) for _ in layers]
        self.cross_values = [zeros(slots, heads, self.dims.n_audio_ctx, self.width) for _ in layers]
        self.arange = torch.arange(max(slots, self.last + 1), device=self.device)
        # What each slot is at: the next input and its position, and what has come of its clip so far. An empty slot
        # goes on saying eot at position 0.
        self.tokens = torch.full((slots,), self.eot, device=self.device)
        self.positions = zeros(slots, dtype=torch.long)
        self.sampled = zeros(slots, self.last + 2, dtype=torch.long)
        self.sum_logprobs = zeros(slots, dtype=torch.float32)
        self.no_speech_probs = torch.full((slots,), torch.nan, device=self.device)
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def _suppressed(self) -> Tensor:
        """The tokens that whisper's filters forbid after the first one. Without timestamps the filters look at nothing
        but how many tokens there are, so that one look at a row of zeros tells for good."""
        logits = torch.zeros((1, self.dims.n_vocab))
        tokens = torch.tensor([[*self.task.initial_tokens, self.eot]])
        for logit_filter in self.task.logit_filters:
            logit_filter.apply(logits, tokens)
        return logits[0].isinf().nonzero().squeeze(1).to(self.device)

    @torch.no_grad()
    def decode(self, batches: Iterable[Tensor]) -> Iterator[tuple[int, DecodingResult]]:
        """Decode encoded audio and yield (index, result) as clips end.

        Args:
            batches: (n, n_audio_ctx, n_audio_state) each, n <= slots; taken one at a time, each when there are slots
                for all of it. The index counts clips through all batches. A batch of a quarter of the slots keeps both
                the encoder and the slots busy.

        Each result holds its clip's ``audio_features``, as whisper's do: keep the text of many clips, not the results.
        """
        self.tokens.fill_(self.eot)
        self.positions.zero_()
        self.steps = 0
        active: dict[int, _Clip] = {}
        rows, count = self.slots, 0
        for features in batches:
            features = features.to(self.dtype)
            if len(features) > self.slots:
                raise ValueError(f"a batch of {len(features)} clips for {self.slots} slots")
            while self.slots - len(active) < len(features):
                yield from self._advance(active, rows)
            free = [slot for slot in range(self.slots) if slot not in active][: len(features)]
            self._enter(features, torch.tensor(free, device=self.device))
            active.update({slot: _Clip(count + i, features[i], self.steps) for i, slot in enumerate(free)})
            count += len(features)
        fewest = 1 if self.device.type == "cpu" else _FEWEST_SLOTS
        while active:
            while rows // 2 >= max(len(active), fewest):
                rows //= 2
                active = self._gather(active, rows)
            yield from self._advance(active, rows)

    def _enter(self, features: Tensor, slots: Tensor) -> None:
        """Compute the cross-attention keys and values of ``features`` and the first token after the prompt."""
        n, prompt = len(features), torch.tensor(self.task.initial_tokens, device=self.device)
        x = (self.embedding[prompt] + self.positional_embedding[: self.begin]).expand(n, -1, -1)
        for layer, block in enumerate(self.blocks):
            q, k, v = self._heads(F.linear(F.layer_norm(x, x.shape[-1:], *block.attn_ln), *block.qkv), 3)
            self.keys[layer][slots, :, : self.begin] = k
            self.values[layer][slots, :, : self.begin] = v
            x = x + self._join(F.scaled_dot_product_attention(q, k, v, is_causal=True), block.out)
            (q,) = self._heads(F.linear(F.layer_norm(x, x.shape[-1:], *block.cross_attn_ln), *block.cross_query))
            (k,) = self._heads(F.linear(features, *block.cross_key))
            (v,) = self._heads(F.linear(features, *block.cross_value))
            self.cross_keys[layer][slots] = k
            self.cross_values[layer][slots] = v
            x = x + self._join(F.scaled_dot_product_attention(q, k, v), block.cross_out)
            x = x + self._mlp(x, block)
        if self.task.tokenizer.no_speech is not None:
            at_sot = self._logits(x[:, self.task.sot_index]).softmax(dim=-1)
            self.no_speech_probs[slots] = at_sot[:, self.task.tokenizer.no_speech]
        logits = self._logits(x[:, -1])
        for logit_filter in self.task.logit_filters:
            logit_filter.apply(logits, prompt.expand(n, -1))
        self.tokens[slots] = 0  # anything but eot: the slots are taken
        self.positions[slots] = self.begin - 1
        self.sum_logprobs[slots] = 0
        self._choose(logits, slots)

    def _step(self, rows: int, length: int) -> None:
        """Sample one more token in each of the first ``rows`` slots, which attend to the first ``length`` positions."""
        slots = self.arange[:rows]
        positions = self.positions[:rows]
        visible = self.arange[:length] <= positions[:, None]
        mask = torch.where(visible, 0.0, -torch.inf).to(self.dtype)[:, None, None]
        x = (self.embedding[self.tokens[:rows]] + self.positional_embedding[positions])[:, None]
        for layer, block in enumerate(self.blocks):
            q, k, v = self._heads(F.linear(F.layer_norm(x, x.shape[-1:], *block.attn_ln), *block.qkv), 3)
            keys, values = self.keys[layer], self.values[layer]
            keys[slots, :, positions] = k[:, :, 0]
            values[slots, :, positions] = v[:, :, 0]
            attended = F.scaled_dot_product_attention(q, keys[:rows, :, :length], values[:rows, :, :length], mask)
            x = x + self._join(attended, block.out)
            (q,) = self._heads(F.linear(F.layer_norm(x, x.shape[-1:], *block.cross_attn_ln), *block.cross_query))
            keys, values = self.cross_keys[layer], self.cross_values[layer]
            x = x + self._join(F.scaled_dot_product_attention(q, keys[:rows], values[:rows]), block.cross_out)
            x = x + self._mlp(x, block)
        self._choose(self._logits(x[:, 0]).index_fill_(1, self.suppressed, -torch.inf), slots)

    def _advance(self, active: dict[int, _Clip], rows: int) -> Iterator[tuple[int, DecodingResult]]:
        """Run the steps up to the next look at the slots; take the clips that have ended out of ``active``."""
        stride = 1 if self.device.type == "cpu" else _STRIDE
        first = min(clip.entered for clip in active.values())
        for _ in range(stride):
            length = self.begin + self.steps - first + 1
            self._run(rows, min(self.last + 1, -(-length // _LENGTH_STEP) * _LENGTH_STEP))
            self.steps += 1
        said_eot = (self.tokens[:rows] == self.eot).tolist()
        ended = [slot for slot in active if said_eot[slot]]
        if not ended:
            return
        where = torch.tensor(ended, device=self.device)
        states = (self.sampled[where, self.begin :], self.sum_logprobs[where], self.no_speech_probs[where])
        for slot, *state in zip(ended, *(state.tolist() for state in states), strict=True):
            clip = active.pop(slot)
            yield clip.index, self._result(clip.features, *state)

    def _run(self, rows: int, length: int) -> None:
        """:meth:`_step`, on a GPU as a CUDA graph, captured the second time a shape comes."""
        if self.device.type != "cuda":
            self._step(rows, length)
        elif graph := self.graphs.get((rows, length)):
            graph.replay()
        else:
            # The first time runs for real, on a side stream as capturing asks for, and warms up what is captured.
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                self._step(rows, length)
            torch.cuda.current_stream(self.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread may pin memory for the next batch meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self._step(rows, length)
            self.graphs[rows, length] = graph

    def _gather(self, active: dict[int, _Clip], rows: int) -> dict[int, _Clip]:
        """Move the clips beyond the first ``rows`` slots into free ones among them."""
        outside = [slot for slot in active if slot >= rows]
        free = [slot for slot in range(rows) if slot not in active][: len(outside)]
        source, target = (torch.tensor(slots, dtype=torch.long, device=self.device) for slots in (outside, free))
        caches = (*self.keys, *self.values, *self.cross_keys, *self.cross_values)
        states = (self.tokens, self.positions, self.sampled, self.sum_logprobs, self.no_speech_probs)
        for tensor in (*caches, *states):
            tensor[target] = tensor[source]
        moved = dict(zip(outside, free, strict=True))
        return {moved.get(slot, slot): clip for slot, clip in active.items()}

    def _result(self, features: Tensor, sampled: list[int], sum_logprob: float, no_speech: float) -> DecodingResult:
        """What whisper's DecodingTask.run makes of the tokens of one clip."""
        tokens = sampled[: self.sample_len]
        if self.eot in tokens:
            tokens = tokens[: tokens.index(self.eot)]
        text = self.task.tokenizer.decode(tokens).strip()
        return DecodingResult(
            audio_features=features,
            language=self.task.options.language,
            tokens=tokens,
            text=text,
            avg_logprob=sum_logprob / (len(tokens) + 1),
            no_speech_prob=no_speech,
            temperature=0.0,
            compression_ratio=compression_ratio(text),
        )

    def _heads(self, x: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """(n, t, parts * state) -> as many (n, heads, t, width)."""
        return x.view(*x.shape[:2], parts, -1, self.width).permute(2, 0, 3, 1, 4).unbind()

    def _join(self, attended: Tensor, out: Weights) -> Tensor:
        return F.linear(attended.transpose(1, 2).flatten(2), *out)

    def _mlp(self, x: Tensor, block: _Block) -> Tensor:
        return F.linear(F.gelu(F.linear(F.layer_norm(x, x.shape[-1:], *block.mlp_ln), *block.mlp_in)), *block.mlp_out)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(F.layer_norm(x, x.shape[-1:], *self.ln), self.embedding).float()

    def _choose(self, logits: Tensor, slots: Tensor) -> None:
        """Take the likeliest token in ``slots`` and write down all that follows from it (whisper's GreedyDecoder.update)."""
        positions = self.positions[slots]
        alive = self.tokens[slots] != self.eot
        tokens = logits.argmax(dim=-1)
        logprobs = F.log_softmax(logits, dim=-1).gather(1, tokens[:, None]).squeeze(1)
        self.sum_logprobs[slots] += torch.where(alive, logprobs, 0.0)
        tokens = torch.where(alive, tokens, self.eot)
        self.sampled[slots, positions + 1] = tokens
        going_on = (tokens != self.eot) & (positions < self.last)
        self.tokens[slots] = torch.where(going_on, tokens, self.eot)
        self.positions[slots] = torch.where(going_on, positions + 1, 0)


def encode(model: Whisper, mel: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Encode log-mel spectrograms (batch, n_mels, 3000) into audio features (batch, n_audio_ctx, n_audio_state)."""
    mel = mel.to(dtype or model.encoder.conv1.weight.dtype)
    # A CPU is faster clip by clip: what is between the layers stays in its cache.
    batches = mel.split(1) if mel.device.type == "cpu" else [mel]
    return torch.cat([model.encoder(batch) for batch in batches])


@torch.no_grad()
def decode_batch(
    model: Whisper, mel: Tensor, *, language: str = "ar", dtype: torch.dtype | None = None, **options
) -> list[DecodingResult]:
    """Decode clips as ``whisper.decode(model, mel, without_timestamps=True)`` would each of them alone.

    Args:
        mel: log-mel spectrograms (batch, n_mels, 3000), or encoded audio (batch, n_audio_ctx, n_audio_state).
        dtype: to compute in; by default the type of the model's weights.
        options: further fields of :class:`whisper.DecodingOptions`, such as ``sample_len`` or ``prompt``.

    For more clips than fit into one batch use :func:`decode_clips`, or :meth:`BatchDecoder.decode`.
    """
    encoded = mel.shape[-2:] == (model.dims.n_audio_ctx, model.dims.n_audio_state)
    decoder = BatchDecoder(model, len(mel), language=language, dtype=dtype, **options)
    results = dict(decoder.decode([mel if encoded else encode(model, mel, decoder.dtype)]))
    return [results[index] for index in range(len(mel))]


@dataclass(frozen=True)
class _Piece:
    """Samples ``start`` to ``end`` of clip ``clip``, its ``number``-th piece."""

    clip: int
    number: int
    start: int
    end: int


def decode_clips(
    model: Whisper,
    clips: Sequence[np.ndarray],
    *,
    batch_size: int,
    language: str = "ar",
    dtype: torch.dtype | None = None,
    say: Callable[[str], None] = print,
    **options,
) -> Iterator[tuple[int, str]]:
    """Decode any number of recordings of any length and yield (index, text) as they end, the longest first.

    Clips over 30 s are cut at their quietest points; the pieces of all clips share batches, and their texts are joined in
    order with a space.

    Args:
        clips: int16 (n,) at 16 kHz each. Every clip is asked for once to plan, and again when its batch comes: getting one
            should be cheap, as it is from a memory map. No more than a batch is held at a time.
        batch_size: clips decoded at a time. When a GPU's memory does not hold them, it is halved, ``say`` is told, and
            the work goes on from what is not done.

    Raises:
        UserError: not even one clip fits into the GPU's memory.
    """
    waiting: list[_Piece] = []
    texts: list[list[str | None]] = []
    for index in range(len(clips)):
        spans = segments(clips[index])
        waiting.extend(_Piece(index, number, *span) for number, span in enumerate(spans))
        texts.append([None] * len(spans))
    waiting.sort(key=lambda piece: piece.start - piece.end)

    while waiting:
        done: set[int] = set()
        try:
            slots = min(batch_size, len(waiting))
            decoder = BatchDecoder(model, slots, language=language, dtype=dtype, **options)
            for index, result in decoder.decode(_encoded(model, clips, waiting, decoder)):
                done.add(index)
                piece = waiting[index]
                texts[piece.clip][piece.number] = result.text
                if None not in texts[piece.clip]:
                    yield piece.clip, " ".join(filter(None, texts[piece.clip]))
        except torch.OutOfMemoryError as error:
            if batch_size == 1:
                raise UserError(
                    f"the memory of {model.device} does not hold one clip beside this model: "
                    "use a smaller model, a lower --precision, or --device cpu"
                ) from error
            batch_size //= 2
            say(f"out of memory on {model.device}: going on with --batch-size {batch_size}")
        decoder = None  # its caches go before the next ones come
        waiting = [piece for index, piece in enumerate(waiting) if index not in done]


def _encoded(
    model: Whisper, clips: Sequence[np.ndarray], pieces: Sequence[_Piece], decoder: BatchDecoder
) -> Iterator[Tensor]:
    """The pieces' encoded audio, in batches of a quarter of the decoder's slots."""
    size = max(1, decoder.slots // 4)
    on_gpu = model.device.type == "cuda"
    for first in range(0, len(pieces), size):
        audio = [clips[piece.clip][piece.start : piece.end] for piece in pieces[first : first + size]]
        audio = collate(audio, pin=on_gpu).to(model.device, non_blocking=True)
        yield encode(model, log_mel(audio, model.dims.n_mels), decoder.dtype)
