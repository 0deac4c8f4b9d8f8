"""Which ayah is this? Where in the Qur'an recordings are, when each word is said, and what was heard differently.

  python -m whisper_quran.recognize recording.mp3                    OpenAI's base, Tanzil's text (https://tanzil.net)
  python -m whisper_quran.recognize folder --model runs/mine/best.pt --text ayah_text_clear.csv
  python -m whisper_quran.recognize lecture.m4a --json --srt
  python -m whisper_quran.recognize folder --html page.html          a page that plays them, word by word
  arecord -f S16_LE -r 16000 -t raw | python -m whisper_quran.recognize - --follow       as it is said

A recording may begin and end anywhere, and be of any length: it is cut at pauses, and the search follows the text from
piece to piece. What is printed as heard differently is what the model heard: a mistake of the reciter's, or its own.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from .config import RecognitionConfig
from .recognition import check_inputs, check_results
from .runtime.command_line import parse
from .runtime.console import Log, printable
from .runtime.errors import UserError, run_command

if TYPE_CHECKING:
    from .recognition.recitations import Recognition


class _CallableModule(ModuleType):
    """This module, which once imported takes the place of the function ``recognize`` in the package."""

    def __call__(self, config: RecognitionConfig, log: Log = print) -> "Iterator[Recognition]":
        from .recognition.recitations import recognize

        return recognize(config, log)


sys.modules[__name__].__class__ = _CallableModule


def main() -> None:
    config = parse(RecognitionConfig, __doc__, sys.argv[1:], "python -m whisper_quran.recognize")
    files = check_inputs(config)
    config = replace(config, files=tuple(map(str, files)) or config.files)  # what is added to a folder now is not read
    subtitles = check_results(config, files)
    # Imported here so that --help, and errors in the options, are printed at once: importing torch takes seconds.
    from .recognition.output import describe, write_page, write_segments, write_subtitles
    from .recognition.recitations import recognize

    log = partial(print, file=sys.stderr)
    if config.follow:
        from .recognition.follow import follow

        if not files and sys.stdin.isatty():
            raise UserError("standard input is a terminal: give 16-bit PCM, mono at 16 kHz, by arecord or ffmpeg")
        for told in follow(config, None if files else sys.stdin.buffer, log):
            line = json.dumps(asdict(told), ensure_ascii=False) if config.json else describe(told).partition("\n")[2]
            print(line, flush=True)
        return
    found, unwritten = [], 0
    try:
        for recognition in recognize(config, log):
            found.append(recognition)
            line = json.dumps(asdict(recognition), ensure_ascii=False) if config.json else describe(recognition)
            print(line, flush=True)
            if subtitles and recognition.recitations:
                try:
                    write_subtitles(recognition, subtitles[recognition.file], log)
                except UserError as error:
                    log(f"{printable(recognition.file)}: no subtitles: {error}")
                    unwritten += 1
    finally:  # whatever ends it, page and segments have what was done
        try:
            if config.segments and found:
                write_segments(config.segments, found, log)
        finally:
            if config.html and found:
                write_page(config, found, log)
    if unwritten:
        raise UserError(f"{unwritten} of {len(found)} recordings have no subtitles: see above")


if __name__ == "__main__":
    run_command(main)
