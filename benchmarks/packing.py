"""Ayat a second with packed windows (--pack 1) and with single ayat, in one run, turn by turn; encoder frozen.

  python benchmarks/packing.py --data DIR --model base.pt --reciter Yasser_Salama_hadr [--ayat 64 --rounds 2]

Every row is the same ayat, each once. CPU seconds count where the machine has other work.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from whisper.tokenizer import get_tokenizer

from train import Clips, Setup, epoch_losses, make_trainer, open_clips  # benchmarks/train.py
from whisper_quran.checkpoints.checkpoint import load_checkpoint
from whisper_quran.config import TrainingConfig
from whisper_quran.data.prepare import WindowMaker
from whisper_quran.runtime.console import markdown_table
from whisper_quran.runtime.device import choose_device, choose_precision
from whisper_quran.training.trainer import Trainer


def pack(clips: Clips) -> Clips:
    """The same ayat in windows of up to 30 s."""
    tokenizer = get_tokenizer(True, num_languages=99, language="ar", task="transcribe")
    maker = WindowMaker(TrainingConfig(pack=1.0), tokenizer, clips.recordings, 448)
    return replace(clips, examples=maker.windows(clips.examples))


def epoch_seconds(trainer: Trainer) -> tuple[float, float]:
    """Train an epoch; return its seconds, on the clock and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in epoch_losses(trainer):
        pass
    return time.perf_counter() - clock, time.process_time() - cpu


def print_rates(trainers: dict[str, Trainer], ayat: int, rounds: int) -> None:
    """The table: a row for every trainer. The first is compared with."""
    spent = {way: [0.0, 0.0] for way in trainers}
    for _ in range(rounds):
        for way, trainer in trainers.items():
            trainer.objective.train()
            spent[way] = [sum(pair) for pair in zip(spent[way], epoch_seconds(trainer), strict=True)]
    rows, first = [], next(iter(spent.values()))
    for way, trainer in trainers.items():
        windows, speech = len(trainer.data.train), sum(each.seconds for each in trainer.data.train)
        rates = [rounds * each / spent[way][0] for each in (windows, speech, ayat)]
        rates.append(rounds * ayat / spent[way][1])
        times = [whole / each for whole, each in zip(first, spent[way], strict=True)]
        rows.append([way, str(windows), *(f"{each:.2f}" for each in (*rates, *times))])
    names = ["", "windows", "windows/s", "seconds of speech a second", "ayat/s", "ayat a CPU second"]
    print(markdown_table([*names, "times as many", "by CPU seconds"], rows), end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reciter", required=True)
    parser.add_argument("--ayat", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="epochs of each row")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    device, _ = choose_device(args.device)
    precision = choose_precision(args.precision, device, load_checkpoint(args.model))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        single = open_clips(args.data, folder, args.ayat, [args.reciter])
        options = {"batch_size": args.batch_size, "epochs": args.rounds}
        trainers = {
            way: make_trainer(load_checkpoint(args.model, device), clips, Setup(device, precision), **options)
            for way, clips in {"single ayat": single, "packed": pack(single)}.items()
        }
        ayat = len(single.examples)
        load = os.getloadavg()[0]
        print(f"{ayat} ayat of {args.reciter}, {args.rounds} epochs a row, {precision.name}, load {load:.1f}\n")
        print_rates(trainers, ayat, args.rounds)


if __name__ == "__main__":
    main()
