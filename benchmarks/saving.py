"""What saving costs: how long a save holds up training, and how much it writes.

python benchmarks/saving.py                       Whisper small's dimensions, decoder trained
python benchmarks/saving.py --size tiny --train-encoder
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from train import SIZES, make_model  # benchmarks/train.py
from whisper_quran.checkpoints.checkpoint import save_checkpoint
from whisper_quran.runtime.device import choose_device
from whisper_quran.training.loss import Objective
from whisper_quran.training.optimizer import build_optimizer
from whisper_quran.training.resume import save_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--train-encoder", action="store_true")
    args = parser.parse_args()
    device, reason = choose_device(args.device)
    model = make_model(args.size).to(device)
    objective = Objective(model, args.train_encoder)
    optimizer = build_optimizer(objective, 1e-5, 0.01)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    print(f"{args.size}, {device}: {reason}\n")
    print("| save | training held up | state.pt | checkpoint |")
    print("| ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(3):
            start = time.perf_counter()
            save_state(Path(folder), {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            seconds = time.perf_counter() - start
            save_checkpoint(Path(folder) / "best.pt", model)
            state, best = ((Path(folder) / name).stat().st_size / 1e6 for name in ("state.pt", "best.pt"))
            print(f"| {number + 1} | {seconds:.1f} s | {state:.0f} MB | {best:.0f} MB |")


if __name__ == "__main__":
    main()
