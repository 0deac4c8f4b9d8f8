"""Two processes against one on the same two cores, and what that says of several GPUs.

  python benchmarks/processes.py --data DIR

Runs train.py as users do: once in one process with two threads, once under torchrun with two processes of one thread
each, on the same clips a step. Then, on paper: the gradient of a trained decoder is one message a step, and a ring
all-reduce moves 2 (n - 1) / n of it over each link; nothing of it is hidden behind the backward pass here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from train import SIZES, make_model  # benchmarks/train.py
from whisper_quran.checkpoints.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
LINKS = {"2 × T4, PCIe 3 ×16": (2, 10e9), "8 × H100, NVLink 4": (8, 400e9)}  # GPUs, usable bytes a second a link
# Seconds of a step of 16 clips of `small`, decoder trained: its 7.5 TFLOP at 25 and at 400 TFLOP/s.
STEP = {"2 × T4, PCIe 3 ×16": 0.30, "8 × H100, NVLink 4": 0.019}


def clips_per_s(out: Path, command: list[str], threads: int) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([row["clips_per_s"] for row in rows if row["event"] == "train"][2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    print("| processes × threads | clips/s |\n| --- | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.pt"
        save_checkpoint(model, make_model(args.size))
        rates = {}
        for processes in (1, 2):
            out = Path(folder) / str(processes)
            launcher = [sys.executable]
            if processes > 1:
                launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            options = f"--precision fp32 --no-vanilla --epochs 1 --max-steps {args.steps} --batch-size {8 // processes}"
            command = [*launcher, str(ROOT / "train.py"), "--data", str(args.data), "--model", str(model)]
            command += ["--train-reciters", "Yasser_Salama_hadr", "--valid-reciters", "--out", str(out)]
            command += ["--cache", f"{folder}/cache", "--device", "cpu", *options.split()]
            rates[processes] = clips_per_s(out, command, threads=2 // processes)
            print(f"| {processes} × {2 // processes} | {rates[processes]:.2f} |")
    print(f"\n2 processes are {rates[2] / rates[1]:.2f} times as fast as 1 with as many threads\n")
    trained = sum(parameter.numel() for parameter in make_model("small").decoder.parameters())
    print(f"On paper, `small` with its decoder trained: {4 * trained / 1e6:.0f} MB of gradients a step\n")
    print("| GPUs | all-reduce | step of 16 clips a GPU | efficiency | with --accumulate 4 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, (gpus, bandwidth) in LINKS.items():
        reduce = 2 * (gpus - 1) / gpus * 4 * trained / bandwidth
        step = STEP[name]
        cells = (f"{1000 * reduce:.0f} ms", f"{1000 * step:.0f} ms", f"{step / (step + reduce):.0%}")
        print(f"| {name} | {' | '.join(cells)} | {4 * step / (4 * step + reduce):.0%} |")


if __name__ == "__main__":
    main()
