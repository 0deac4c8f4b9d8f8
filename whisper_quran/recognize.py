"""Which ayah is this? Where in the Qur'an recordings are, when each word is said, and what was heard differently.

  python -m whisper_quran.recognize recording.mp3                    OpenAI's base, the text of data/metadata
  python -m whisper_quran.recognize folder --model runs/mine/best.pt --text ayah_text_clear.csv
  python -m whisper_quran.recognize lecture.m4a --json --srt
  python -m whisper_quran.recognize folder --html page.html          a page that plays them, word by word

A recording may begin and end anywhere, and be of any length: it is cut at pauses, and the search follows the text from
piece to piece. What is printed as heard differently is what the model heard: a mistake of the reciter's, or its own.
"""

import json
import sys
from dataclasses import asdict

from .config import RecognitionConfig
from .runtime.command_line import parse
from .runtime.errors import UserError, run_command
from .runtime.files import check_folder


def log(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> None:
    config = parse(RecognitionConfig, __doc__, sys.argv[1:], "python -m whisper_quran.recognize")
    if config.html:
        check_folder(config.html.parent)
        if config.html.is_dir():
            raise UserError(f"--html {config.html} is a folder: give a file, such as {config.html / 'page.html'}")
    # Imported here so that --help, and errors in the options, are printed at once: importing torch takes seconds.
    from .recognition.page import write_recitations
    from .recognition.recitations import recognize
    from .recognition.written import describe, write_subtitles

    found = []
    for recognition in recognize(config, log):
        print(json.dumps(asdict(recognition), ensure_ascii=False) if config.json else describe(recognition), flush=True)
        if config.srt and recognition.recitations:
            write_subtitles(recognition, log)
        found.append(recognition)
    if config.html:
        write_recitations(config, found, log)


if __name__ == "__main__":
    run_command(main)
