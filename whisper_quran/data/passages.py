"""Passages: consecutive ayat of a reciter as one recording."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from .audio import SAMPLE_RATE
from .audio_cache import AudioCache
from .corpus import Ayah


@dataclass(frozen=True)
class Passage:
    """Consecutive ayat (often only one) of a reciter as one recording of ``samples`` samples at 16 kHz."""

    parts: tuple[Ayah, ...]
    samples: int

    @property
    def reciter(self) -> str:
        return self.parts[0].reciter

    @property
    def text(self) -> str:
        return " ".join(ayah.text for ayah in self.parts)

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    def audio(self, cache: AudioCache) -> np.ndarray:
        """Read the samples from ``cache``: int16 (samples,) at 16 kHz."""
        clips = [cache.read(ayah.audio) for ayah in self.parts]
        return clips[0] if len(clips) == 1 else np.concatenate(clips)

    def joints(self, cache: AudioCache) -> list[float]:
        """Return the times, in seconds, at which one ayah ends and the next begins: one fewer than there are ayat."""
        return [end / SAMPLE_RATE for end in accumulate(cache.length(ayah.audio) for ayah in self.parts[:-1])]


def place(ayah: Ayah) -> tuple[int, int]:
    """Return the position of an ayah: its surah and number, or 0 and its row in a manifest."""
    return ayah.surah or 0, ayah.number


def follows(before: Ayah, after: Ayah) -> bool:
    """Return True if ``after`` directly follows ``before``, in a surah or in a reciter's rows of a manifest."""
    return (before.surah, before.number + 1) == (after.surah, after.number)


def join(ayat: Iterable[Ayah], cache: AudioCache, count: int = 1) -> list[Passage]:
    """Make passages of up to ``count`` consecutive ayat of one reciter; every ayah is in one of them."""
    runs: list[list[Ayah]] = []
    for ayah in sorted(ayat, key=place):
        if runs and len(runs[-1]) < count and follows(runs[-1][-1], ayah):
            runs[-1].append(ayah)
        else:
            runs.append([ayah])
    return [Passage(tuple(run), sum(cache.length(ayah.audio) for ayah in run)) for run in runs]
