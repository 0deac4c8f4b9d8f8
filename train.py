"""Fine-tune OpenAI Whisper on Qur'an recitation.

  python train.py --demo                         see it work: no data, no network, a few minutes on a CPU
  python train.py --data data                    Experiment 2A: Whisper small on six reciters, validated on two others
  python train.py --data data --train-reciters A B --valid-reciters C --out runs/mine
  python train.py --manifest clips.csv --model base --out runs/other

Every checkpoint it writes is opened by whisper.load_model(path) as it is.
"""

import os

from whisper_quran.config import DEMO, TrainingConfig
from whisper_quran.runtime.command_line import parse
from whisper_quran.runtime.errors import UserError, run_command


def main() -> None:
    config = parse(TrainingConfig, __doc__, presets={"demo": DEMO})
    # Imported here so that --help and a wrong option answer at once: torch takes seconds.
    from whisper_quran import demo
    from whisper_quran.training.train import train

    if config.demo:
        if "RANK" in os.environ:
            raise UserError("--demo runs in one process: start it without torchrun")
        config = demo.make(config)
    train(config)
    if config.demo:
        print(demo.next_steps(config))


if __name__ == "__main__":
    run_command(main)
