"""Decoding of many clips at once, greedy or at a temperature: ``whisper.decode``, several times faster.

``whisper.decode`` grows its key/value cache with ``torch.cat`` at every token, casts the weights at every token, and
keeps a whole batch until its longest text ends. Here, in the spirit of gpt-fast:

- A :class:`BatchDecoder` has a fixed number of *slots*, each with its place in preallocated caches: self-attention is
  written in place, cross-attention keys and values are computed once, when a clip enters.
- One step samples one token in every slot. Its shapes depend only on (slots, attended text, attended audio), so that a
  GPU replays it as a CUDA graph; a CPU runs the same function directly.
- The slot of a clip that has ended is reused for the next clip. When no clips are waiting, the last ones are compacted
  into half as many slots. So a finished clip costs almost nothing, even beside one that is decoded to the limit.

The prompt, and the tokens that are never sampled, are those of whisper's own ``DecodingTask``. A clip's text does not
depend on its neighbours, up to the rounding of differently shaped matrix products.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.decoding import DecodingOptions, DecodingResult, DecodingTask
from whisper.model import ModelDimensions, ResidualAttentionBlock, Whisper
from whisper.utils import compression_ratio

from ..data.batches import split
from ..data.features import FULL_CONTEXT, AudioFeatures, FrozenEncoder
from .sampling import Hypotheses

_STRIDE = 8  # steps between two checks for clips that have ended, on a GPU: a check waits for it
_FEWEST_SLOTS = 8  # on a GPU: with fewer, a step is no faster
_LOOP_REPEATS, _LOOP_TOKENS = 6, 24
_SCORED_TOKENS = 512  # whose logits over the vocabulary are computed at a time: 100 MB; on a CPU a quarter, as fast
# Attended texts and, on a GPU, audio are multiples of these: few shapes, and short ones do not attend to all positions.
_TEXT_UNIT, _AUDIO_UNIT = 64, 500

Weights = tuple[Tensor, Tensor | None]  # weight and bias of a linear layer or a layer norm


class _Block:
    """A decoder block's weights in the type it computes in: query, key and value, or key and value, are one matrix.

    The bias of cross-attention's value is added to the output's instead: attention weights sum to 1, so it passes
    through them unchanged. This saves an addition to a clip's largest product.
    """

    def __init__(self, block: ResidualAttentionBlock, dtype: torch.dtype) -> None:
        attn, cross = block.attn, block.cross_attn
        qkv = torch.cat([attn.query.weight, attn.key.weight, attn.value.weight])
        qkv_bias = torch.cat([attn.query.bias, torch.zeros_like(attn.query.bias), attn.value.bias])  # keys have none
        self.qkv: Weights = (qkv.to(dtype), qkv_bias.to(dtype))
        self.attn_ln, self.out = _weights(block.attn_ln, dtype), _weights(attn.out, dtype)
        self.cross_attn_ln, self.cross_query = _weights(block.cross_attn_ln, dtype), _weights(cross.query, dtype)
        self.cross_key_value: Weights = (torch.cat([cross.key.weight, cross.value.weight]).to(dtype), None)
        weight, bias, value_bias = (x.to(dtype).float() for x in (cross.out.weight, cross.out.bias, cross.value.bias))
        cross_bias = bias + weight @ value_bias
        self.cross_out: Weights = (cross.out.weight.to(dtype), cross_bias.to(dtype))
        self.mlp_ln = _weights(block.mlp_ln, dtype)
        self.mlp_in, self.mlp_out = _weights(block.mlp[0], dtype), _weights(block.mlp[2], dtype)


def _weights(module: nn.Linear | nn.LayerNorm, dtype: torch.dtype) -> Weights:
    return module.weight.to(dtype), None if module.bias is None else module.bias.to(dtype)


@dataclass(frozen=True)
class _Clip:
    """A clip in a slot, which ``entered`` when so many steps had run."""

    index: int
    features: Tensor  # (context, n_audio_state)
    entered: int


@dataclass(frozen=True)
class DecodedClip:
    """The ``index`` and the ``result`` of a clip that has ended, whose audio is still in its slot.

    The methods use it there, so that they can be called until the next clip is requested from the decoder.
    """

    index: int
    result: DecodingResult
    decoder: "BatchDecoder"
    slot: int

    @property
    def context(self) -> int:
        """The context in which it was encoded, in positions."""
        return len(self.result.audio_features)

    def log_probabilities(self, texts: Sequence[str]) -> list[float]:
        """Return the log-probability of each of ``texts``, with the eot after it.

        It is the model's own, without Whisper's logit filters. A text longer than the context, such as one without an
        end, is cut to fit.
        """
        return [sum(words) for words in self.word_log_probabilities(texts)]

    @torch.no_grad()
    def word_log_probabilities(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the log-probabilities of the words of each of ``texts``, and then of the eot, as above."""
        decoder, begin = self.decoder, self.decoder.begin
        encoding = decoder.task.tokenizer.encoding
        encoded = [decoder.task.tokenizer.encode(f" {text}", disallowed_special=()) for text in texts]
        max_length = len(decoder.positional_embedding) + 1
        rows = [[*decoder.prompt.tolist(), *tokens, decoder.eot][:max_length] for tokens in encoded]
        found = []
        at_once = _SCORED_TOKENS // 4 if decoder.device.type == "cpu" else _SCORED_TOKENS
        for some in split(rows, max(1, at_once // max(map(len, rows)))):
            longest = max(map(len, some))
            tokens = torch.tensor([row + [decoder.eot] * (longest - len(row)) for row in some], device=decoder.device)
            is_text = torch.tensor([[begin <= i < len(row) for i in range(longest)] for row in some])
            x, _ = decoder._read(tokens[:, :-1], self.slot, self.context)
            scored = is_text.to(decoder.device)
            losses = F.cross_entropy(decoder._logits(x[scored[:, 1:]]), tokens[scored], reduction="none").cpu()
            for row, each in zip(some, losses.split(is_text.sum(dim=1).tolist()), strict=True):
                words: list[float] = []
                for token, loss in zip(row[begin:], each.tolist(), strict=True):
                    if not words or token == decoder.eot or encoding.decode_single_token_bytes(token).startswith(b" "):
                        words.append(0.0)
                    words[-1] -= loss
                found.append(words)
        return found

    @torch.no_grad()
    def attention(self, tokens: Sequence[int], heads: Sequence[tuple[int, int]], frames: int) -> Tensor:
        """Return the attention of ``heads`` (layer, head) to the first ``frames`` of the clip.

        Its shape is (n_heads, n, frames); the n inputs are the prompt, then the ``tokens`` of a text.
        """
        decoder = self.decoder
        inputs = torch.tensor([[*decoder.prompt.tolist(), *tokens]], device=decoder.device)
        _, all_queries = decoder._read(inputs, self.slot, self.context)
        queries = torch.stack([all_queries[layer][0, head] for layer, head in heads])
        keys = torch.stack([decoder.cross_keys[layer][self.slot, head, :frames] for layer, head in heads])
        scores = (queries @ keys.transpose(1, 2)).float() / queries.shape[-1] ** 0.5
        return scores.softmax(dim=-1)


class BatchDecoder:
    """A decoder of any number of clips, up to ``slots`` of them at a time.

    It computes in ``dtype`` (by default that of the model's weights), with the weights as they are now: make a new one
    after they change. With ``stop_loops`` a text ends once :func:`is_looping`. ``options`` are fields of
    :class:`whisper.DecodingOptions`; by default ``language`` is Arabic, and ``sample_len`` the length of the context.

    Raises:
        ValueError: the options contain a temperature, beams or several samples, or no language.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Whisper,
        slots: int,
        *,
        dtype: torch.dtype | None = None,
        stop_loops: bool = False,
        **options: Any,
    ) -> None:
        options = {"language": "ar", "sample_len": model.dims.n_text_ctx, **options}
        self.task = DecodingTask(model, DecodingOptions(without_timestamps=True, **options))
        own = self.task.options
        decodes_otherwise = own.temperature != 0 or own.beam_size is not None or own.best_of is not None
        if decodes_otherwise or own.language is None or own.task == "lang_id":
            raise ValueError("give a language, give decode the temperature, and neither beam_size nor best_of")
        self.dtype = dtype or model.decoder.token_embedding.weight.dtype
        self.device, self.slots = model.decoder.token_embedding.weight.device, slots
        self.embedding = model.decoder.token_embedding.weight.to(self.dtype)
        self.positional_embedding = model.decoder.positional_embedding.to(self.dtype)
        self.blocks = [_Block(block, self.dtype) for block in model.decoder.blocks]
        self.ln = _weights(model.decoder.ln, self.dtype)

        self.eot, self.begin = self.task.tokenizer.eot, self.task.sample_begin
        # The input position whose output is the last token sampled. Like whisper: at most sample_len tokens, and none
        # after prompt and tokens exceed the context by one.
        self.last = min(self.begin + self.task.sample_len, model.dims.n_text_ctx + 1) - 2
        self.prompt = torch.tensor(self.task.initial_tokens, device=self.device)
        self.suppressed_first = self._suppressed([*self.task.initial_tokens], model.dims.n_vocab)
        self.suppressed = self._suppressed([*self.task.initial_tokens, self.eot], model.dims.n_vocab)
        self.stop_loops = stop_loops
        self._allocate(model.dims)
        self.audio_unit = 1 if self.device.type == "cpu" else _AUDIO_UNIT
        self.stride = 1 if self.device.type == "cpu" else _STRIDE
        self.fewest = 1 if self.device.type == "cpu" else _FEWEST_SLOTS
        self.steps = 0
        self.graphs: dict[tuple[int, int, int, bool], torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def _allocate(self, dims: ModelDimensions) -> None:
        """Allocate the key/value caches and the state of each slot."""

        def caches(length: int) -> list[Tensor]:
            shape = (self.slots, dims.n_text_head, length, dims.n_text_state // dims.n_text_head)
            return [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self.blocks]

        context = _round_up(self.last + 1, _TEXT_UNIT)
        self.keys, self.values = caches(context), caches(context)
        self.cross_keys, self.cross_values = caches(dims.n_audio_ctx), caches(dims.n_audio_ctx)
        # Added to the scores of attention to the audio: -inf beyond the context of the clip in a slot.
        shape = (self.slots, _round_up(dims.n_audio_ctx, 8))  # or a GPU would copy it to an even stride in every layer
        self.audio_bias = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.hypotheses = Hypotheses(self.slots, self.begin, self.last, self.eot, self.device)
        self.no_speech_probs = torch.full((self.slots,), torch.nan, device=self.device)
        self.temperature = 0.0
        self.divisor = torch.ones((), device=self.device)  # the temperature, as CUDA graphs read it at replay
        self.arange = torch.arange(max(self.slots, context), device=self.device)

    def _suppressed(self, tokens: list[int], n_vocab: int) -> Tensor:
        """Return the tokens that whisper's filters suppress after ``tokens``. They depend only on the number of tokens,
        so that one row of zeros gives the answer for all rows and steps."""
        logits = torch.zeros((1, n_vocab))
        for logit_filter in self.task.logit_filters:
            logit_filter.apply(logits, torch.tensor([tokens]))
        return logits[0].isinf().nonzero().squeeze(1).to(self.device)

    @torch.no_grad()
    def decode(self, batches: Iterable[AudioFeatures], temperature: float = 0.0) -> Iterator[DecodedClip]:
        """Decode encoded audio and yield clips as they end; their index counts the clips of all batches.

        Each result holds its clip's ``audio_features``, as whisper's do: for many clips, keep only the texts.

        Args:
            batches: up to ``slots`` clips each; their seeds are their indices by default. A batch is requested when the
                one before has entered, and enters when enough slots are free for all of it: batches of a quarter of the
                slots keep both the encoder and the slots busy.
            temperature: if not 0, tokens are sampled at it. The samples depend on the clip's own seed, and not on its
                slot, its neighbours or the device.

        Raises:
            ValueError: a batch has more clips than there are slots.
        """
        self.temperature = temperature
        self.divisor.fill_(temperature or 1.0)
        active: dict[int, _Clip] = {}
        in_use, count = self.slots, 0
        waiting = iter(batches)
        batch = next(waiting, None)
        while batch is not None or active:
            if batch is not None and len(batch) <= self.slots - len(active):
                indices = range(count, count + len(batch))
                slots = [slot for slot in range(self.slots) if slot not in active][: len(batch)]
                self._enter(batch, self._index(slots), self._index([*(batch.seeds or indices)]))
                for slot, index, features, context in zip(slots, indices, batch.values, batch.contexts, strict=True):
                    active[slot] = _Clip(index, features[:context], self.steps)
                count += len(batch)
                batch = next(waiting, None)
                continue
            if batch is not None and len(batch) > self.slots:
                raise ValueError(f"a batch of {len(batch)} clips for {self.slots} slots")
            while batch is None and in_use // 2 >= max(len(active), self.fewest):
                in_use //= 2
                active = self._gather(active, in_use)
            oldest = min(clip.entered for clip in active.values())
            audio_length = max(len(clip.features) for clip in active.values())
            for _ in range(self.stride):
                # A clip may have reached its limit since the last check: its slot is then back at position 0.
                position = min(self.begin + self.steps - oldest, self.last)
                self._run(in_use, _round_up(position + 1, _TEXT_UNIT), _round_up(audio_length, self.audio_unit))
                self.steps += 1
            for slot, tokens, sum_logprob, no_speech in self._ended(active):
                clip = active.pop(slot)
                result = self._result(clip.features, tokens, sum_logprob, no_speech)
                yield DecodedClip(clip.index, result, self, slot)

    @torch.no_grad()
    def _read(self, tokens: Tensor, slot: int, context: int) -> tuple[Tensor, list[Tensor]]:
        """Run the blocks on ``tokens`` (n, length) and the clip of ``context`` in ``slot``, and leave the caches alone.

        Return their output (n, length, state), and the queries (n, heads, length, width) of each cross-attention.
        """
        queries: list[Tensor] = []

        def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

        def attend_audio(layer: int, query: Tensor) -> Tensor:
            queries.append(query)
            key, value = (cache[layer][slot : slot + 1, :, :context] for cache in (self.cross_keys, self.cross_values))
            flat = query.transpose(0, 1).flatten(1, 2)[None]  # all rows attend to the same audio
            return F.scaled_dot_product_attention(flat, key, value)[0].unflatten(1, (len(query), -1)).transpose(0, 1)

        x = self.embedding[tokens] + self.positional_embedding[: tokens.shape[1]]
        return self._run_blocks(x, attend, attend_audio), queries

    def _ended(self, active: Iterable[int]) -> list[tuple[int, list[int], float, float]]:
        """Return (slot, tokens, sum of their log-probabilities, probability of no speech) of the clips that ended."""
        at_eot = (self.hypotheses.tokens == self.eot).tolist()
        ended = [slot for slot in active if at_eot[slot]]
        if self.stop_loops and self.steps % _STRIDE == 0:
            running = [slot for slot in active if not at_eot[slot]]
            texts = self.hypotheses.texts(self._index(running))
            looping = [slot for slot, text in zip(running, texts, strict=True) if is_looping(text)]
            self.hypotheses.end(self._index(looping))
            ended += looping
        if not ended:
            return []
        index = self._index(ended)
        sums, no_speech_probs = self.hypotheses.sum_logprobs[index].tolist(), self.no_speech_probs[index].tolist()
        return [*zip(ended, self.hypotheses.texts(index), sums, no_speech_probs, strict=True)]

    def _gather(self, active: dict[int, _Clip], in_use: int) -> dict[int, _Clip]:
        """Move the clips that are beyond the first ``in_use`` slots into free ones among these."""
        outside = [slot for slot in active if slot >= in_use]
        free = [slot for slot in range(in_use) if slot not in active][: len(outside)]
        source, target = self._index(outside), self._index(free)
        caches = (*self.keys, *self.values, *self.cross_keys, *self.cross_values)
        for tensor in (*caches, *self.hypotheses.state, self.no_speech_probs, self.audio_bias):
            tensor[target] = tensor[source]
        moved = dict(zip(outside, free, strict=True))
        return {moved.get(slot, slot): clip for slot, clip in active.items()}

    def _index(self, slots: list[int]) -> Tensor:
        """Copy ``slots`` to the device without waiting for it."""
        index = torch.tensor(slots, dtype=torch.long, pin_memory=self.device.type == "cuda")
        return index.to(self.device, non_blocking=True)

    def _result(self, features: Tensor, tokens: list[int], sum_logprob: float, no_speech: float) -> DecodingResult:
        """Make the result that whisper's ``DecodingTask.run`` makes, but with the text of its transcript, which has no
        special tokens, such as another language's."""
        text = self.task.tokenizer.decode([token for token in tokens if token < self.eot]).strip()
        return DecodingResult(
            audio_features=features,
            language=self.task.options.language,
            tokens=tokens,
            text=text,
            avg_logprob=sum_logprob / (len(tokens) + 1),
            no_speech_prob=no_speech,
            temperature=self.temperature,
            compression_ratio=compression_ratio(text),
        )

    def _run(self, in_use: int, length: int, audio_length: int) -> None:
        """Run :meth:`_step`; on a GPU from the second time on as a CUDA graph."""
        key = (in_use, length, audio_length, self.temperature > 0)
        if self.device.type != "cuda":
            self._step(in_use, length, audio_length)
        elif key in self.graphs:
            self.graphs[key].replay()
        else:
            # The first call runs a normal step, which is also the warm-up on a side stream that capturing requires.
            current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                self._step(in_use, length, audio_length)
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread may be pinning memory meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, stream=side, capture_error_mode="thread_local"):
                self._step(in_use, length, audio_length)
            self.graphs[key] = graph

    def _enter(self, batch: AudioFeatures, slots: Tensor, seeds: Tensor) -> None:
        """Fill ``slots`` (n,) with the clips of ``batch``: run the prompt, sample once."""
        features, longest = batch.values.to(self.dtype), batch.values.shape[1]
        bias = torch.zeros((len(batch), self.audio_bias.shape[1]), dtype=self.dtype, device=self.device)
        columns = torch.arange(bias.shape[1], device=self.device)
        bias.masked_fill_(columns >= self._index([*batch.contexts])[:, None], -torch.inf)
        self.audio_bias[slots] = bias

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.keys[layer][slots, :, : self.begin] = key
            self.values[layer][slots, :, : self.begin] = value
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

        def attend_audio(layer: int, query: Tensor) -> Tensor:
            key, value = self._heads(F.linear(features, *self.blocks[layer].cross_key_value), 2)
            self.cross_keys[layer][slots, :, :longest] = key
            self.cross_values[layer][slots, :, :longest] = value
            return F.scaled_dot_product_attention(query, key, value, bias[:, None, None, :longest])

        prompt = self.embedding[self.prompt] + self.positional_embedding[: self.begin]
        x = self._run_blocks(prompt.expand(len(batch), -1, -1), attend, attend_audio)
        if self.task.tokenizer.no_speech is not None:
            probs = self._logits(x[:, self.task.sot_index]).softmax(dim=-1)
            self.no_speech_probs[slots] = probs[:, self.task.tokenizer.no_speech]
        self.hypotheses.enter(slots, self.prompt[-1], seeds)
        self._sample(x, slots, self.suppressed_first)

    def _step(self, n: int, length: int, audio_length: int) -> None:
        """Sample a token in each of the first ``n`` slots, which attend to the first ``length`` positions of the text,
        and ``audio_length`` of the audio.

        Everything is read from and written to the same memory each time: this is what a CUDA graph captures.
        """
        slots, tokens, positions = self.arange[:n], self.hypotheses.tokens[:n], self.hypotheses.positions[:n]
        ahead = self.arange[:length] > positions[:, None]
        mask = torch.zeros_like(ahead, dtype=self.dtype).masked_fill_(ahead, -torch.inf)[:, None, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys[slots, :, positions] = key[:, :, 0]
            values[slots, :, positions] = value[:, :, 0]
            return F.scaled_dot_product_attention(query, keys[:n, :, :length], values[:n, :, :length], mask)

        audio_bias = self.audio_bias[:n, None, None, :audio_length]

        def attend_audio(layer: int, query: Tensor) -> Tensor:
            key, value = (cache[layer][:n, :, :audio_length] for cache in (self.cross_keys, self.cross_values))
            return F.scaled_dot_product_attention(query, key, value, audio_bias)

        x = (self.embedding[tokens] + self.positional_embedding[positions])[:, None]
        self._sample(self._run_blocks(x, attend, attend_audio), slots, self.suppressed)

    def _sample(self, x: Tensor, slots: Tensor, suppressed: Tensor) -> None:
        """Sample the next token of ``slots`` (n,) from the blocks' output ``x``."""
        logits = self._logits(x[:, -1]).index_fill_(1, suppressed, -torch.inf)
        self.hypotheses.sample(logits, slots, self.divisor if self.temperature else None)

    def _run_blocks(self, x: Tensor, attend: Callable[..., Tensor], attend_audio: Callable[..., Tensor]) -> Tensor:
        """Run the blocks on ``x`` (n, length, state), outside any autocast.

        Self-attention is ``attend(layer, query, key, value)`` and cross-attention ``attend_audio(layer, query)``, each
        of (n, heads, length, width).
        """
        with torch.autocast(self.device.type, enabled=False):
            for layer, block in enumerate(self.blocks):
                query, key, value = self._heads(F.linear(_norm(x, block.attn_ln), *block.qkv), 3)
                x = x + _join(attend(layer, query, key, value), block.out)
                (query,) = self._heads(F.linear(_norm(x, block.cross_attn_ln), *block.cross_query))
                x = x + _join(attend_audio(layer, query), block.cross_out)
                x = x + F.linear(F.gelu(F.linear(_norm(x, block.mlp_ln), *block.mlp_in)), *block.mlp_out)
        return x

    def _heads(self, x: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """Split (n, length, parts * state) into ``parts`` tensors (n, heads, length, width)."""
        heads = self.keys[0].shape[1]
        return x.view(*x.shape[:2], parts, heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return F.linear(_norm(x, self.ln), self.embedding).float()


def is_looping(tokens: Sequence[int]) -> bool:
    """Return whether ``tokens`` end in one pattern, repeated at least 6 times over at least 24 tokens: no ayah does."""
    for period in range(1, len(tokens) // _LOOP_REPEATS + 1):
        length = max(_LOOP_REPEATS * period, _LOOP_TOKENS)
        differs = length > len(tokens) or tokens[-1] != tokens[-1 - period]  # the usual case, cheap to check
        if not differs and tokens[-length:-period] == tokens[period - length :]:
            return True
    return False


def _norm(x: Tensor, weights: Weights) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *weights)


def _join(attended: Tensor, out: Weights) -> Tensor:
    """Join the heads of (n, heads, length, width) and project them: (n, length, state)."""
    return F.linear(attended.transpose(1, 2).flatten(2), *out)


def _round_up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def decode_batch(
    model: Whisper,
    mel: Tensor,
    contexts: Sequence[int] | None = None,
    *,
    language: str = "ar",
    dtype: torch.dtype | None = None,
    **options: Any,
) -> list[DecodingResult]:
    """Decode clips, each as ``whisper.decode`` with ``without_timestamps=True`` would alone.

    For more clips than fit into memory at once, see :func:`.long_audio.decode_clips`.

    Args:
        mel: log-mel spectrograms (batch, n_mels, 3000), or those that :func:`..data.features.log_mel` makes for
            ``contexts``; or encoded audio (batch, n_audio_ctx, n_audio_state).
        contexts: of each clip (:func:`..data.features.context_of`); by default all of ``mel``.
        dtype: the type to compute in; by default that of the model's weights.
        options: further fields of :class:`whisper.DecodingOptions`, such as ``prompt`` or ``sample_len`` (by
            default whisper's, half the context).
    """
    options = {"sample_len": model.dims.n_text_ctx // 2, **options}
    decoder = BatchDecoder(model, len(mel), language=language, dtype=dtype, **options)
    if mel.shape[-2:] == (model.dims.n_audio_ctx, model.dims.n_audio_state):
        features = AudioFeatures(mel, contexts or [FULL_CONTEXT] * len(mel))
    else:
        features = FrozenEncoder(model, decoder.dtype).encode(mel, contexts or [mel.shape[2] // 2] * len(mel))
    results = {clip.index: clip.result for clip in decoder.decode([features])}
    return [results[index] for index in range(len(mel))]
