"""Recordings, as pages play them: links to their files, or MP3 embedded in the page.

Links are relative, so that page and data can be moved together. The embedded audio is what the models heard, 16 kHz
mono at 32 kbit/s, 19 MB an hour; MP3 because every browser plays it.
"""

import base64
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile

from ..data.audio import SAMPLE_RATE
from ..data.audio_cache import AudioCache
from ..data.windows import Passage
from ..runtime.errors import UserError

BYTES_PER_SECOND = 32_000 // 8 * 4 // 3  # of base64


@dataclass(frozen=True)
class Recording:
    """A recording in a page: the addresses that the browser plays one after the other.

    ``damaged`` if a file was cut short or has broken parts: what is heard is not all that was recited.
    """

    addresses: list[str]
    damaged: bool


def link(passage: Passage, cache: AudioCache, folder: Path) -> Recording:
    """Link the files of ``passage`` from a page in ``folder``."""
    return Recording([relative_address(ayah.audio, folder) for ayah in passage.parts], _is_damaged(passage, cache))


def embed(passage: Passage, cache: AudioCache) -> Recording:
    """Encode the audio of ``passage`` into an address that holds it; raises what :func:`data_address` does."""
    return Recording([data_address(passage.audio(cache))], _is_damaged(passage, cache))


def embedded_size(seconds: Iterable[float]) -> float:
    """Return the bytes that recordings of these ``seconds`` take as :func:`data_address`."""
    return BYTES_PER_SECOND * sum(seconds)


def relative_address(audio: Path, folder: Path) -> str:
    """Return the address of the file ``audio`` for a page in ``folder``."""
    return quote(os.fsencode(os.path.relpath(os.path.abspath(audio), os.path.abspath(folder))))


def data_address(samples: np.ndarray) -> str:
    """Encode ``samples``, int16 (n,) at 16 kHz, into an address that holds them.

    Raises:
        UserError: the audio library that is installed cannot write MP3.
    """
    mp3 = io.BytesIO()
    try:
        soundfile.write(mp3, samples, SAMPLE_RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=0.85)
    except (ValueError, soundfile.LibsndfileError) as error:
        raise UserError(f"--embed-audio needs libsndfile 1.1 or newer, with MP3 ({error}): leave it out") from error
    return "data:audio/mpeg;base64," + base64.b64encode(mp3.getvalue()).decode()


def _is_damaged(passage: Passage, cache: AudioCache) -> bool:
    return any(ayah.audio in cache.damaged for ayah in passage.parts)
