"""Pieces of ayat, cut between words, as a table that ``train.py`` and ``evaluate.py`` read with ``--manifest``.

  python benchmarks/pieces.py --data DIR --model best.pt --reciters A B C --share 0.5 --out train.csv
  python benchmarks/pieces.py --data DIR --model best.pt --reciters D E --share 1 --out pieces.csv

Of a ``--share`` of the ayat of four words and more only a run of words is kept, 30 to 85 % of them: the first, the last
or some in the middle. The other ayat are whole; a table with ``--share 1`` has pieces alone. When the words are said is
told by the attention of ``--model`` to each ayah while it reads its text; the cut is where it is quietest within a
tenth of a second. What training on the first table does to the second is in docs/training.md.
"""

import argparse
import csv
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

FEWEST = 4  # words of an ayah that is cut
NEAR = SAMPLE_RATE // 10  # samples around the time of a word, among which the cut is
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
        for some in split(ayat, SLOTS // 2):
            clips = [cache.read(ayah.audio) for ayah in some]
            yield encoder(collate(clips, False).to(device), [context_of(len(clip)) for clip in clips])

    for clip in decoder.decode(encoded()):
        ayah = ayat[clip.index]
        words = [encode(f" {word}") for word in ayah.text.split()]
        frames = int(cache.length(ayah.audio) / SAMPLE_RATE * TOKENS_PER_SECOND)
        tokens = [token for word in words for token in word]
        starts = token_starts(clip.attention(tokens, heads, frames), decoder.begin - 1)
        yield ayah, [starts[first] for first in accumulate(map(len, words[:-1]), initial=0)]


def piece(draw: random.Random, starts: Sequence[float], samples: np.ndarray) -> tuple[int, int, float, float]:
    """Draw a run of words; return its first word, the one after its last, and where it begins and ends in seconds."""
    count = len(starts)
    length = min(max(2, round(count * draw.uniform(0.3, 0.85))), count - 1)
    first = draw.choice([0, count - length, draw.randint(0, count - length)])
    energy = smoothed_energy(samples, 4)

    def edge(word: int) -> float:
        if word in (0, count):
            return len(samples) / SAMPLE_RATE if word else 0.0
        at = starts[word] * SAMPLE_RATE
        low, high = (int(np.clip(place, 0, len(samples))) // FRAME for place in (at - NEAR, at + NEAR))
        return (low + int(energy[low : high + 1].argmin())) * FRAME / SAMPLE_RATE

    return first, first + length, edge(first), edge(first + length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reciters", nargs="+", required=True)
    parser.add_argument("--surahs")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    ayat = open_corpus(args.data, None, None, args.surahs).select(args.reciters)[0]
    files = {name: [ayah.audio for ayah in ayat if ayah.reciter == name] for name in args.reciters}
    cache = prepare_audio(files, args.cache or default_cache(), 4)
    ayat = [ayah for ayah in ayat if ayah.audio in cache and cache.length(ayah.audio) <= 30 * SAMPLE_RATE]
    draw = random.Random(0)
    cut = [ayah for ayah in ayat if len(ayah.text.split()) >= FEWEST and draw.random() < args.share]
    cut.sort(key=lambda ayah: cache.length(ayah.audio))  # little padding
    rows = []
    for ayah, starts in word_starts(args.model, cut, cache):
        first, after, start, end = piece(draw, starts, cache.read(ayah.audio))
        text = " ".join(ayah.text.split()[first:after])
        if end - start >= 0.25 * (after - first):  # or the times cannot be right
            rows.append([ayah.audio, text, ayah.reciter, f"{start:.2f}", f"{end:.2f}"])
    count, kept = len(rows), set(map(id, cut))
    for ayah in ayat if args.share < 1 else ():
        if id(ayah) not in kept:
            seconds = cache.length(ayah.audio) / SAMPLE_RATE
            rows.append([ayah.audio, ayah.text, ayah.reciter, "0", f"{seconds:.2f}"])
    with open(args.out, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["audio", "text", "reciter", "start", "end"])
        table.writerows([Path(audio).absolute(), *rest] for audio, *rest in rows)
    print(f"{args.out}: {count} pieces and {len(rows) - count} whole ayat")


if __name__ == "__main__":
    run_command(main)
