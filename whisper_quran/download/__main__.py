"""``python -m whisper_quran.download``."""

from ..runtime.errors import run_command
from .command import main

if __name__ == "__main__":
    run_command(main)
