"""Bring a Whisper checkpoint in from PyTorch Lightning or Hugging Face, or out to Hugging Face or faster-whisper.

  python convert.py lightning.ckpt model.pt                 whisper.load_model opens model.pt
  python convert.py whisper-small-quran/ model.pt           a Hugging Face folder
  python convert.py runs/experiment-2a/best.pt hf --to hf   transformers opens the folder hf
  python convert.py runs/mine/best.pt ct2 --to ct2          faster-whisper opens the folder ct2

A Hugging Face folder has a model card, README.md: of a checkpoint in its run's folder it says the data and the rates.
--to ct2 needs CTranslate2 and transformers (pip install ctranslate2 transformers).

SOURCE is recognised by what is in it: a PyTorch Lightning .ckpt, a Whisper .pt, a Hugging Face folder,
model.safetensors or pytorch_model.bin. Nothing in it is executed, and no class of yours is needed to open it.
"""

from whisper_quran.checkpoints.names import find_checkpoint
from whisper_quran.runtime.command_line import Parser
from whisper_quran.runtime.errors import UserError, run_command


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="checkpoint file or folder to read")
    parser.add_argument("dest", metavar="DEST", help="file (--to openai) or folder (--to hf, ct2) to write")
    parser.add_argument(
        "--to", choices=("openai", "hf", "ct2"), default="openai", help="what to write (default: openai)"
    )
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="its precision (default: fp16)")
    parser.add_argument(
        "--language", help="what a Hugging Face Whisper transcribes unless told otherwise (default: ar)"
    )
    parser.add_argument("--force", action="store_true", help="replace DEST if it is there already")
    options = parser.parse_args()
    if options.language and options.to == "openai":
        raise UserError("--language: a Whisper .pt has none; leave it out, or choose --to hf")
    options.language = options.language or "ar"
    find_checkpoint(options.source)
    # Imported here so that --help, a wrong option and a wrong path answer at once: torch takes seconds.
    from whisper_quran.convert import convert

    print(convert(**vars(options)))


if __name__ == "__main__":
    run_command(main)
