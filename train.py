"""Fine-tune OpenAI Whisper on Qur'an recitation.

  python train.py --demo                         see it work: no data, no network, a few minutes on a CPU
  python train.py --data data                    Experiment 2A: Whisper small on six reciters, validated on two others
  python train.py --data data --train-reciters A B --valid-reciters C --out runs/mine
  python train.py --manifest clips.csv --model base --out runs/other
  python train.py --resume --out runs/mine       go on after an interruption

Every checkpoint it writes is opened by whisper.load_model(path) as it is.
"""

import os

from whisper_quran.runtime.errors import UserError, run_command
from whisper_quran.training import check_inputs, parse_command_line


def main() -> None:
    config = parse_command_line(__doc__)
    if config.demo and "RANK" in os.environ:
        raise UserError("--demo runs in one process: start it without torchrun")
    if not config.demo and os.environ.get("RANK", "0") == "0":  # of several processes one checks
        check_inputs(config)
    # Imported here so that --help and a wrong option or path answer at once: torch takes seconds.
    from whisper_quran import demo
    from whisper_quran.runtime.files import lock_folder
    from whisper_quran.training.train import train

    if config.demo:
        with lock_folder(config.out, "training"):
            config = demo.make(config)
    train(config)
    if config.demo:
        print(demo.next_steps(config))


if __name__ == "__main__":
    run_command(main)
