"""Pieces of ayat, cut between words, as a table that ``train.py`` and ``evaluate.py`` read with ``--manifest``.

  python benchmarks/pieces.py --data DIR --model best.pt --reciters A B C --out train.csv
  python benchmarks/pieces.py --data DIR --model best.pt --reciters D E --share 1 --only-pieces --out pieces.csv

Of a ``--share`` of the ayat of four words and more only a run of words is kept, 30 to 85 % of them, from anywhere; the
other ayat are whole. When words are said is told by the attention of ``--model`` while it reads the text of an ayah; a
cut is where it is quietest within a tenth of a second. What such a table is worth in training: docs/training.md.
"""

import argparse
import csv
import os
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from whisper.audio import SAMPLE_RATE, TOKENS_PER_SECOND

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from whisper_quran import load_checkpoint
from whisper_quran.data.audio_cache import AudioCache, default_cache, prepare_audio
from whisper_quran.data.ayat import Ayah
from whisper_quran.data.batches import split
from whisper_quran.data.corpus import open_corpus
from whisper_quran.data.features import FRAME, AudioFeatures, FrozenEncoder, collate, context_of
from whisper_quran.decoding.batch_decoder import BatchDecoder
from whisper_quran.decoding.long_audio import smoothed_energy
from whisper_quran.decoding.word_times import alignment_heads, token_starts
from whisper_quran.runtime.device import choose_device, choose_precision
from whisper_quran.runtime.errors import run_command

FEWEST_WORDS = 4  # of an ayah that is cut
SHORTEST_WORD = 0.25  # seconds, on average in a piece: with less, the times cannot be right
CUT_WITHIN = 0.1  # seconds from the time of a word
QUIET_FRAMES = 4  # over which the energy is averaged
SLOTS = 8


def word_starts(model_path: str, ayat: Sequence[Ayah], cache: AudioCache) -> Iterator[tuple[Ayah, list[float]]]:
    """Yield each of ``ayat``, in any order, with the start of each of its words in seconds."""
    device, _ = choose_device("auto")
    model = load_checkpoint(model_path, device)
    dtype = choose_precision("auto", device, model).dtype
    encoder, heads = FrozenEncoder(model, dtype), alignment_heads(model)
    decoder = BatchDecoder(model, SLOTS, dtype=dtype, sample_len=1)  # the text is given
    encode = decoder.task.tokenizer.encode

    def encoded() -> Iterator[AudioFeatures]:
        for batch in split(ayat, SLOTS // 2):
            clips = [cache.read(ayah.audio) for ayah in batch]
            yield encoder(collate(clips, False).to(device), [context_of(len(clip)) for clip in clips])

    for clip in decoder.decode(encoded()):
        ayah = ayat[clip.index]
        words = [encode(f" {word}") for word in ayah.text.split()]
        frames = int(cache.length(ayah.audio) / SAMPLE_RATE * TOKENS_PER_SECOND)
        tokens = [token for word in words for token in word]
        starts = token_starts(clip.attention(tokens, heads, frames), decoder.begin - 1)
        yield ayah, [starts[first] for first in accumulate(map(len, words[:-1]), initial=0)]


def draw_words(ayah: Ayah) -> tuple[int, int]:
    """Draw a run of words of ``ayah``, always the same: its first word, and the one after its last."""
    draw, count = random.Random(f"{ayah.reciter} {ayah.surah} {ayah.number}"), len(ayah.text.split())
    length = min(max(2, round(count * draw.uniform(0.3, 0.85))), count - 1)
    first = draw.choice([0, count - length, draw.randint(0, count - length)])
    return first, first + length


def time_of(word: int, starts: Sequence[float], energy: np.ndarray, seconds: float) -> float:
    """Return where to cut before ``word``, or after the last: in seconds, at the quietest place near its start."""
    if word in (0, len(starts)):
        return seconds if word else 0.0
    low, high = (round((starts[word] + near) * SAMPLE_RATE / FRAME) for near in (-CUT_WITHIN, CUT_WITHIN))
    low = max(0, low)
    return (low + int(energy[low : high + 1].argmin())) * FRAME / SAMPLE_RATE


def row_of(ayah: Ayah, text: str, start: float, end: float) -> list[str]:
    """Make a row of the table."""
    return [os.path.abspath(ayah.audio), text, ayah.reciter, f"{start:.2f}", f"{end:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reciters", nargs="+", required=True)
    parser.add_argument("--surahs")
    parser.add_argument("--share", type=float, default=0.5, help="of the ayat that are cut")
    parser.add_argument("--only-pieces", action="store_true", help="leave whole ayat out")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    ayat = open_corpus(args.data, None, None, args.surahs).select(args.reciters)[0]
    files = {name: [ayah.audio for ayah in ayat if ayah.reciter == name] for name in args.reciters}
    cache = prepare_audio(files, args.cache or default_cache(), 4)
    found = len(ayat)
    ayat = [ayah for ayah in ayat if ayah.audio in cache and cache.length(ayah.audio) <= 30 * SAMPLE_RATE]
    draw = random.Random(0)
    drawn = {ayah: draw.random() < args.share for ayah in ayat}
    cut = [ayah for ayah in ayat if drawn[ayah] and len(ayah.text.split()) >= FEWEST_WORDS]
    cut.sort(key=lambda ayah: cache.length(ayah.audio))  # little padding
    pieces: dict[Ayah, list[str]] = {}
    for ayah, starts in word_starts(args.model, cut, cache):
        energy = smoothed_energy(cache.read(ayah.audio), QUIET_FRAMES)
        seconds, (first, after) = cache.length(ayah.audio) / SAMPLE_RATE, draw_words(ayah)
        start, end = (time_of(word, starts, energy, seconds) for word in (first, after))
        if end - start >= SHORTEST_WORD * (after - first):
            pieces[ayah] = row_of(ayah, " ".join(ayah.text.split()[first:after]), start, end)
    rows = []
    for ayah in ayat:
        if ayah in pieces:
            rows.append(pieces[ayah])
        elif not args.only_pieces:
            rows.append(row_of(ayah, ayah.text, 0, cache.length(ayah.audio) / SAMPLE_RATE))
    with open(args.out, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["audio", "text", "reciter", "start", "end"])
        table.writerows(rows)
    print(
        f"{args.out}: {len(pieces)} pieces and {len(rows) - len(pieces)} whole ayat; "
        f"{found - len(ayat)} over 30 s or undecodable, {len(cut) - len(pieces)} not cut since their times are unlikely"
    )


if __name__ == "__main__":
    run_command(main)
