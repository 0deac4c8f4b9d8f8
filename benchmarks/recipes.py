"""What the options of training do to error rates: runs that differ in one of them, evaluated alike.

  python benchmarks/recipes.py --data DIR --model base.pt --train-reciters R... --valid-reciters R... --out runs/recipes

Every run sees the same ayat as often, as many of them a step. What its last epoch left is evaluated on the validation
reciters' ayat: those of up to 30 s, longer ones, five at a time as one recording, and up to 30 s again, band-limited to
5 kHz and in white noise at 15 dB. With several ``--seeds`` a rate is their mean, and the largest distance from it.
Everything is kept in ``--out``: the same line goes on where it was cut off, and makes only what a recipe or a seed more
needs.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from whisper_quran import EvaluationConfig, TrainingConfig, evaluate, train
from whisper_quran.data.audio import SAMPLE_RATE
from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.data.corpus import open_corpus
from whisper_quran.evaluation.predictions import Prediction, read_predictions
from whisper_quran.evaluation.word_errors import ErrorCounts
from whisper_quran.runtime.console import markdown_table, percent

UNTOUCHED = "untouched"
RECIPES: dict[str, dict[str, Any]] = {
    UNTOUCHED: {},
    "plain": {},
    "augmented": {"augment": True},
    "rank 16": {"lora": 16},
    "encoder trained": {"train_encoder": True},
}


@dataclass(frozen=True)
class Result:
    """One run: seconds of training, clips a second in its last epoch, and predictions by condition."""

    seconds: float
    clips_per_second: float
    predictions: dict[str, list[Prediction]]

    def wer(self, condition: str, chosen: Callable[[Prediction], bool] = lambda row: True) -> float:
        """WER of the ``chosen`` rows of a condition; NaN if there are none."""
        rows = self.predictions[condition]
        return sum((row.alignment.errors for row in rows if chosen(row)), ErrorCounts()).wer


def degrade(args: argparse.Namespace, kind: str) -> Path:
    """Write the validation reciters' ayat of up to 30 s, ``band``-limited to 5 kHz or in ``noise``, to a folder."""
    folder = args.out / kind
    if (folder / "metadata").exists():
        return folder
    corpus = open_corpus(args.data, None, None, args.surahs)
    for reciter in args.valid_reciters:
        ayat = corpus.select([reciter])[0]
        cache = prepare_audio({reciter: [ayah.audio for ayah in ayat]}, args.cache, 2)
        (folder / "audio" / reciter).mkdir(parents=True, exist_ok=True)
        for ayah in ayat:
            if ayah.audio not in cache or cache.length(ayah.audio) > 30 * SAMPLE_RATE:
                continue
            clip = cache.read(ayah.audio) / 32768
            if kind == "band":
                spectrum = np.fft.rfft(clip)
                spectrum[np.fft.rfftfreq(len(clip), 1 / SAMPLE_RATE) > 5000] = 0
                clip = np.fft.irfft(spectrum, len(clip))
            else:
                noise = np.random.default_rng([ayah.surah, ayah.number]).standard_normal(len(clip))
                clip = clip + noise * np.sqrt((clip**2).mean() / 10 ** (15 / 10))
            name = f"{ayah.surah:03}{ayah.number:03}.wav"
            soundfile.write(folder / "audio" / reciter / name, clip.clip(-1, 1).astype(np.float32), SAMPLE_RATE)
    shutil.copytree(args.data / "metadata", folder / "metadata")  # last: the folder is whole
    return folder


def make_config(args: argparse.Namespace, seed: int, out: Path, **options: Any) -> TrainingConfig:
    """The run that the command line asks for, with further ``options``."""
    return TrainingConfig(
        data=args.data, train_reciters=args.train_reciters, valid_reciters=args.valid_reciters, surahs=args.surahs,
        valid_limit=args.valid_limit, model=args.model, epochs=args.epochs, lr=args.lr, warmup_steps=args.warmup_steps,
        batch_size=args.batch_size, seed=seed, precision=args.precision, no_vanilla=True, cache=args.cache, out=out,
        resume=True, **options,
    )  # fmt: skip


def train_by(args: argparse.Namespace, name: str, seed: int, out: Path) -> tuple[float, float]:
    """Train by the recipe ``name``, unless that is done; return the seconds it took and its last clips a second."""
    options = RECIPES[name]
    rate = args.lr * (5 if "lora" in options else 1)
    config = replace(make_config(args, seed, out, **options), lr=rate)
    start = time.monotonic()
    took = out / "seconds"
    if not took.exists():
        history = train(config)
        rows = [row for row in history.rows if row["event"] == "train" and row["epoch"] == args.epochs - 1]
        clips = sum(row["clips_per_s"] for row in rows) / len(rows)
        took.write_text(f"{time.monotonic() - start} {clips}")
    seconds, clips = map(float, took.read_text().split())
    return seconds, clips


def run(args: argparse.Namespace, name: str, seed: int) -> Result:
    """Train by the recipe ``name`` and evaluate what its last epoch left, or take what is there already."""
    out = args.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    if name == UNTOUCHED:
        model, seconds, clips = args.model, 0.0, 0.0
    else:
        seconds, clips = train_by(args, name, seed, out)
        model = str(out / f"epoch-{args.epochs - 1:03}.pt")
    asked = EvaluationConfig(
        models=(model,), data=args.data, reciters=args.valid_reciters,
        surahs=args.surahs, precision=args.precision, cache=args.cache, out=out / "alone",
    )  # fmt: skip
    conditions = {
        "alone": asked,
        "band": replace(asked, data=degrade(args, "band"), out=out / "band"),
        "noise": replace(asked, data=degrade(args, "noise"), out=out / "noise"),
    }
    predictions = {}
    for condition, config in conditions.items():
        evaluate(config)
        predictions[condition] = list(read_predictions(config.out / "predictions.csv"))
    return Result(seconds, clips, predictions)


def mean(values: Sequence[float]) -> str:
    """The mean in percent, with the largest distance from it if there are several values."""
    middle = sum(values) / len(values)
    spread = max(abs(value - middle) for value in values)
    return percent(middle) + (f" ± {100 * spread:.2f}" if len(values) > 1 else "")


def row(name: str, results: Sequence[Result], reciters: Sequence[str]) -> list[str]:
    """The line of the table for a recipe, over its seeds."""
    rates: list[Callable[[Result], float]] = [
        lambda result, reciter=reciter: result.wer(
            "alone", lambda each: each.reciter == reciter and each.duration <= 30
        )
        for reciter in reciters
    ]
    rates += [
        lambda result: result.wer("alone", lambda each: each.duration > 30),
        lambda result: result.wer("band"),
        lambda result: result.wer("noise"),
    ]
    minutes = sum(result.seconds for result in results) / len(results) / 60
    clips = sum(result.clips_per_second for result in results) / len(results)
    return [name, f"{minutes:.0f}", f"{clips:.2f}", *(mean([rate(result) for result in results]) for rate in rates)]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of runs that are trained and evaluated."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train-reciters", nargs="+", required=True)
    parser.add_argument("--valid-reciters", nargs="+", required=True)
    parser.add_argument("--surahs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16, help="ayat a step")
    parser.add_argument("--lr", type=float, default=1e-4, help="five times that for adapters")
    parser.add_argument("--warmup-steps", type=int, default=10)
    parser.add_argument("--valid-limit", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line; recordings are decoded into the output folder, unless it says where."""
    args = parser.parse_args()
    args.cache = args.cache or args.out / "cache"
    return args


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME")
    args = parse(parser)
    header = ["recipe", "minutes", "clips/s", *args.valid_reciters, "over 30 s", "to 5 kHz", "noise 15 dB"]
    lines = []
    for name in args.recipes:
        lines.append(row(name, [run(args, name, seed) for seed in args.seeds], args.valid_reciters))
        print(f"\n{markdown_table(header, lines)}", flush=True)


if __name__ == "__main__":
    main()
