"""How well Whisper checkpoints recognise recitations: word error rates, ayah by ayah.

  python evaluate.py small runs/mine/best.pt --data data                      Experiment 2A's two reciters
  python evaluate.py runs/mine/best.pt --data data --reciters A B --surahs 78:114 --out results/juz-amma
  python evaluate.py small medium --manifest clips.csv

Writes predictions.csv, results.json, results.md and report.html, a page to look into. Started again after an
interruption, with the same --out, it goes on from the predictions that are there.
"""

import sys

from whisper_quran.evaluation import parse_command_line
from whisper_quran.runtime.errors import run_command


def main() -> None:
    config = parse_command_line(__doc__, sys.argv[1:])
    # Imported here so that --help and whatever is wrong so far answer at once: torch takes seconds.
    from whisper_quran.evaluation.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    run_command(main)
