"""What letters are heard for others: estimate ``whisper_quran/decoding/letter_costs.csv`` from recitations.

  python benchmarks/letters.py --data DIR --model base.pt --reciters A B C [--limit 200] --out letter_costs.csv
  python benchmarks/letters.py --plot docs/letters.png          a picture of the costs in the package

The texts of whole ayat of up to 30 s are aligned with what the model heard, the most likely way by the costs so far,
and the costs are then those of what was counted; four times. Ayat of which most letters are wrong are left out.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from whisper_quran.checkpoints.checkpoint import load_checkpoint
from whisper_quran.data.audio import SAMPLE_RATE
from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.data.corpus import open_corpus
from whisper_quran.data.text import letters
from whisper_quran.decoding import letter_costs
from whisper_quran.decoding.letter_costs import LETTER
from whisper_quran.decoding.long_audio import decode_clips
from whisper_quran.runtime.device import choose_device, choose_precision

ALPHABET = "ابتثجحخدذرزسشصضطظعغفقكلمنهويءؤئ"
NATS = 5.5  # that a letter costs
CHEAPEST, DEAREST = 1, 6  # quarters of a letter
PRIOR = 1.5  # letters heard for each by chance, beside those counted


def align(text: np.ndarray, heard: np.ndarray, costs: np.ndarray) -> tuple[list[tuple[int, int]], float]:
    """Return the cheapest pairs of letters, the last number for none, and their cost."""
    none = len(costs) - 1
    total = np.zeros((len(text) + 1, len(heard) + 1))
    total[1:, 0], total[0, 1:] = costs[text, none].cumsum(), costs[none, heard].cumsum()
    for i, said in enumerate(text, 1):
        for j, other in enumerate(heard, 1):
            ways = total[i - 1, j - 1] + costs[said, other], total[i - 1, j] + costs[said, none]
            total[i, j] = min(*ways, total[i, j - 1] + costs[none, other])
    pairs, i, j = [], len(text), len(heard)
    while i or j:
        if i and j and total[i, j] == total[i - 1, j - 1] + costs[text[i - 1], heard[j - 1]]:
            i, j = i - 1, j - 1
            pairs.append((text[i], heard[j]))
        elif i and total[i, j] == total[i - 1, j] + costs[text[i - 1], none]:
            i -= 1
            pairs.append((text[i], none))
        else:
            j -= 1
            pairs.append((none, heard[j]))
    return pairs, total[-1, -1]


def estimate(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the costs, in letters."""
    size = len(ALPHABET) + 1
    costs = 1 - np.eye(size)
    for _ in range(4):
        counts = np.zeros((size, size))
        for text, heard in pairs:
            found, cost = align(text, heard, costs)
            if cost < 0.7 * len(text):
                np.add.at(counts, tuple(np.array(found).T), 1)
        often = counts[:, :-1].sum(axis=0) + 1
        often /= often.sum()
        said = counts[:-1].sum(axis=1, keepdims=True)
        chance = np.append(PRIOR * often, 1)
        likely = np.vstack([(counts[:-1] + chance) / (said + PRIOR + 1), (counts[-1] + chance / 3) / said.sum()])
        costs = -np.log(likely) / NATS
        np.fill_diagonal(costs, 0)
    return costs


def plot(path: Path) -> None:
    """Draw the table of the package: the darker, the easier a letter of a row is heard as that of a column."""
    import matplotlib.pyplot as plt

    table = Path(letter_costs.__file__).with_suffix(".csv").read_text(encoding="utf-8")
    (_, *heard), *rows = (line.split(",") for line in table.splitlines())
    costs = np.array([row[1:] for row in rows], dtype=float) / LETTER
    np.fill_diagonal(costs, np.nan)
    figure, axes = plt.subplots(figsize=(9, 8.4))
    image = axes.imshow(costs, cmap="magma", vmin=0, vmax=costs[~np.isnan(costs)].max())
    axes.set_xticks(range(len(heard)), heard)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.xaxis.tick_top()
    axes.set(xlabel="heard (–: nothing)", ylabel="said (–: nothing)")
    figure.colorbar(image, label="cost, in letters", shrink=0.7)
    figure.savefig(path, dpi=80, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--reciters", nargs="+")
    parser.add_argument("--limit", type=int, default=200, help="ayat of each reciter")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.plot:
        return plot(args.plot)
    if not (args.data and args.model and args.reciters and args.out):
        parser.error("give --data, --model, --reciters and --out, or --plot")
    device, _ = choose_device("auto")
    model = load_checkpoint(args.model, device)
    dtype = choose_precision(args.precision, device, model).dtype
    numbers = {letter: number for number, letter in enumerate(ALPHABET)}
    pairs = []
    for reciter in args.reciters:
        ayat = open_corpus(args.data).select([reciter])[0]
        ayat = random.Random(0).sample(ayat, min(args.limit, len(ayat)))
        with tempfile.TemporaryDirectory() as folder:
            cache = prepare_audio({reciter: [ayah.audio for ayah in ayat]}, Path(folder), 2)
            ayat = [ayah for ayah in ayat if ayah.audio in cache and cache.length(ayah.audio) <= 30 * SAMPLE_RATE]
            clips = [cache.read(ayah.audio) for ayah in ayat]
            for index, heard in decode_clips(model, clips, batch_size=16, dtype=dtype, stop_loops=True):
                pair = (letters(text) for text in (ayat[index].text, heard))
                pairs.append(tuple(np.array([numbers[c] for c in each if c in numbers], dtype=int) for each in pair))
    quarters = (LETTER * estimate(pairs)).round().clip(CHEAPEST, DEAREST).astype(int)
    np.fill_diagonal(quarters, 0)
    lines = [",".join(["", *ALPHABET, "-"])]
    lines += [",".join([letter, *map(str, row)]) for letter, row in zip([*ALPHABET, "-"], quarters, strict=True)]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(pairs)} ayat: {args.out}")


if __name__ == "__main__":
    main()
