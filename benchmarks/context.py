"""What the encoder reads, each clip's own length or Whisper's 30 s: error rates and loops, by the length of the ayat.

  python benchmarks/context.py --data DIR --model base.pt --train-reciters R... --valid-reciters R... --out runs/context

The model as it is, and trained in each of ``--contexts`` with each of ``--seeds``, is evaluated greedily, without
fallback, in both contexts, on ayat of up to 30 s. A text loops if it ends in one pattern, six times or more. Everything
is kept in ``--out``: the same line goes on where it was cut off, and makes only what another seed more needs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from recipes import make_config, make_parser, parse  # benchmarks/recipes.py

from whisper_quran import EvaluationConfig, evaluate, train
from whisper_quran.data import batches
from whisper_quran.data.features import FULL_CONTEXT, context_of
from whisper_quran.decoding.batch_decoder import is_looping
from whisper_quran.evaluation.predictions import Prediction, read_predictions
from whisper_quran.evaluation.word_errors import ErrorCounts
from whisper_quran.runtime.console import markdown_table, percent

LENGTHS = ((0, 3), (3, 6), (6, 15), (15, 31))  # seconds
RULES = {"natural": context_of, "full": lambda samples: FULL_CONTEXT}


def train_in(args: argparse.Namespace, context: str, seed: int) -> Path:
    """Train in a context, unless that is done; return the last epoch's checkpoint."""
    out = args.out / f"{context}-{seed}"
    last = out / f"epoch-{args.epochs - 1:03}.pt"
    if not last.exists():
        batches.context_of = RULES[context]
        train(make_config(args, seed, out, keep="last"))
        batches.context_of = context_of
    return last


def predict(args: argparse.Namespace, model: str, context: str, out: Path) -> list[Prediction]:
    """Evaluate ``model`` in a context, unless that is done."""
    evaluate(
        EvaluationConfig(
            models=(model,), data=args.data, reciters=args.valid_reciters, surahs=args.surahs, max_duration=30,
            context=context, no_fallback=True, precision=args.precision, cache=args.cache, out=out,
        )
    )  # fmt: skip
    return list(read_predictions(out / "predictions.csv"))


def wer(rows: Sequence[Prediction]) -> str:
    return percent(sum((row.errors for row in rows), ErrorCounts()).wer) if rows else "–"


def cells(rows: Sequence[Prediction], reciters: Sequence[str]) -> list[str]:
    """WER by reciter, then WER and loops by length."""
    found = [wer([row for row in rows if row.reciter == reciter]) for reciter in reciters]
    for low, high in LENGTHS:
        some = [row for row in rows if low <= row.duration < high]
        loops = sum(is_looping(list(row.hypothesis)) for row in some)
        found.append(f"{wer(some)}, {loops} of {len(some)}")
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--contexts", nargs="*", choices=RULES, default=list(RULES), help="to train in")
    parser.set_defaults(epochs=4, valid_limit=16)
    args = parse(parser)
    models = {"untouched": args.model}
    for seed in args.seeds:
        for context in args.contexts:
            models[f"trained {context}, seed {seed}"] = str(train_in(args, context, seed))
    names = ["model", "decoded", *args.valid_reciters]
    names += [f"{low} to {high} s: WER, loops" for low, high in LENGTHS]
    lines = []
    for name, model in models.items():
        for context in RULES:
            out = args.out / f"evaluated-{name.replace(', ', '-').replace(' ', '-')}-{context}"
            lines.append([name, context, *cells(predict(args, model, context, out), args.valid_reciters)])
    print(f"\n{markdown_table(names, lines)}")


if __name__ == "__main__":
    main()
