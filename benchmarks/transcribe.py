"""What whisper's own ``transcribe`` makes of recordings of several ayat, with and without the text before as a prompt.

  python benchmarks/transcribe.py MODEL... --data DIR --reciters R... --join 5

It decodes from timestamp to timestamp, one window after another, at rising temperatures where a text fails its tests.
The text of the windows before is the next one's prompt (``condition_on_previous_text``), or it is not. Of ayat joined
as in ``evaluate.py --join`` it prints the WER of both, the share of boundaries between ayat within half a second of a
segment's, and how many segments there are for each ayah.
"""

import argparse
import tempfile
from pathlib import Path

import whisper
from whisper.model import Whisper

from whisper_quran.data.audio_cache import AudioCache, prepare_audio
from whisper_quran.data.corpus import open_corpus
from whisper_quran.data.prepare import Passage, join
from whisper_quran.data.text import normalize
from whisper_quran.evaluation.evaluate import count_found
from whisper_quran.evaluation.word_errors import ErrorCounts, count_errors
from whisper_quran.runtime.console import markdown_table, percent


def measure(model: Whisper, passages: list[tuple[Passage, AudioCache]], prompt: bool) -> list[str]:
    """Transcribe ``passages``; return WER, boundaries found, and segments an ayah."""
    errors, boundaries, found, segments, ayat = ErrorCounts(), 0, 0, 0, 0
    for passage, cache in passages:
        result = whisper.transcribe(
            model, passage.audio(cache).astype("float32") / 32768, language="ar", fp16=False,
            condition_on_previous_text=prompt,
        )  # fmt: skip
        errors += count_errors(normalize(passage.text, "diacritics"), normalize(result["text"], "diacritics"))
        times = [time for each in result["segments"] for time in (each["start"], each["end"])]
        joints = passage.joints(cache)
        boundaries += len(joints)
        found += count_found(joints, times)
        segments += len(result["segments"])
        ayat += len(passage.parts)
    return [percent(errors.wer), percent(found / boundaries) if boundaries else "–", f"{segments / ayat:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--reciters", nargs="+", required=True)
    parser.add_argument("--surahs")
    parser.add_argument("--join", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        passages = []
        for reciter in args.reciters:
            ayat = open_corpus(args.data, None, None, args.surahs).select([reciter])[0]
            cache = prepare_audio({reciter: [ayah.audio for ayah in ayat]}, args.cache or Path(folder), 2)
            passages += [(each, cache) for each in join([a for a in ayat if a.audio in cache], cache, args.join)]
        header = ["model", "after the text before: WER", "boundaries", "segments an ayah"]
        header += ["each window alone: WER", "boundaries", "segments an ayah"]
        lines = []
        for name in args.models:
            model = whisper.load_model(name, device="cpu")
            lines.append([name, *measure(model, passages, True), *measure(model, passages, False)])
            print(f"\n{markdown_table(header, lines)}", flush=True)


if __name__ == "__main__":
    main()
