"""``python -m whisper_quran.download``."""

from ..errors import run_command
from .command import main

run_command(main)
