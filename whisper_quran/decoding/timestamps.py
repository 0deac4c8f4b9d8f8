"""Decoding with timestamps: the rules for the next token, and the segments that timestamps enclose.

The rules are those of ``whisper.decoding.ApplyTimestampRules`` and the segments those of ``whisper.transcribe``, for
all slots of a :class:`.batch_decoder.BatchDecoder` at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from whisper.audio import TOKENS_PER_SECOND
from whisper.tokenizer import Tokenizer


class TimestampRules:
    """Rules for the next token: timestamps begin a text, come in pairs inside it, and never go back.

    If all timestamps together are likelier than the likeliest other token, the next token is a timestamp. The first is
    at most ``latest_start`` (None: any; whisper's ``max_initial_timestamp``, in timestamps of 20 ms).

    ``state`` has an entry for each slot: it moves with the clips.
    """

    def __init__(self, tokenizer: Tokenizer, latest_start: int | None, slots: int, device: torch.device) -> None:
        self.begin, self.eot, self.none = tokenizer.timestamp_begin, tokenizer.eot, tokenizer.no_timestamps
        self.latest_start = self.begin + latest_start if latest_start is not None else None
        self.after_one = torch.ones(slots, dtype=torch.bool, device=device)  # whether the last token was a timestamp
        self.latest = torch.zeros(slots, dtype=torch.long, device=device)  # the last timestamp
        self.state: Sequence[Tensor] = (self.after_one, self.latest)

    def __call__(self, logits: Tensor, slots: Tensor, last: Tensor | None) -> None:
        """Mask forbidden tokens in ``logits`` (n, n_vocab), in place, after the tokens ``last`` (n,) of ``slots`` (n,).

        ``last`` is None if the clips have just entered. After that this runs inside a CUDA graph: only tensor
        operations, on the same memory.
        """
        columns = torch.arange(logits.shape[1], device=logits.device)
        logits[:, self.none] = -torch.inf
        if last is None:
            logits.masked_fill_(columns < self.begin, -torch.inf)
            if self.latest_start is not None:
                logits.masked_fill_(columns > self.latest_start, -torch.inf)
            self.after_one[slots] = True  # so that the first timestamp counts as the second of a pair
            return
        before, now = self.after_one[slots], last >= self.begin
        latest = torch.where(now, last, self.latest[slots])
        self.after_one[slots], self.latest[slots] = now, latest
        closes = now & ~before  # the last token has ended a text: eot follows, or the timestamp that begins the next
        lowest = latest + (~closes).long()
        is_timestamp = columns >= self.begin
        logits.masked_fill_(closes[:, None] & (columns < self.eot), -torch.inf)
        logits.masked_fill_((now & before)[:, None] & is_timestamp, -torch.inf)
        logits.masked_fill_(is_timestamp & (columns < lowest[:, None]), -torch.inf)
        likelier = logits[:, self.begin :].logsumexp(dim=-1) > logits[:, : self.begin].amax(dim=-1)
        logits.masked_fill_(likelier[:, None] & ~is_timestamp, -torch.inf)


@dataclass(frozen=True)
class Segment:
    """A text with its start and end, in seconds."""

    start: float
    end: float
    text: str


def read_segments(tokens: Sequence[int], tokenizer: Tokenizer, seconds: float) -> tuple[list[Segment], float]:
    """Return the segments of a window of ``seconds``, and the time up to which it is decoded: the next window's start.

    A text without an end timestamp is left to the next window, unless it is the only one.
    """
    begin = tokenizer.timestamp_begin
    cuts = [i + 1 for i, pair in enumerate(pairwise(tokens)) if min(pair) >= begin]
    complete = len(tokens) > 1 and tokens[-1] >= begin > tokens[-2]
    if not cuts:
        times = [(token - begin) / TOKENS_PER_SECOND for token in tokens if token >= begin]
        start, end = (times[0], times[-1]) if len(times) > 1 else (0.0, seconds)
        text = _text(tokens, tokenizer)
        return [Segment(min(start, seconds), min(end, seconds), text)] if text else [], seconds
    segments = []
    for first, after in pairwise([0, *cuts, *([len(tokens)] if complete else [])]):
        part = tokens[first:after]
        start, end = ((token - begin) / TOKENS_PER_SECOND for token in (part[0], part[-1]))
        text = _text(part, tokenizer)
        if text:
            segments.append(Segment(min(start, seconds), min(end, seconds), text))
    reached = (tokens[cuts[-1] - 1] - begin) / TOKENS_PER_SECOND
    return segments, seconds if complete or reached == 0 else min(reached, seconds)


def _text(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    return tokenizer.decode([token for token in tokens if token < tokenizer.eot]).strip()
