"""Decoding with real weights: WER and speed beside each other, everybody as it decodes on its own, in one run.

  python benchmarks/evaluate.py --data DIR --model base.pt [--reciter NAME --clips 64 --long]

- ``whisper.transcribe``, one by one, with its fallback to higher temperatures;
- faster-whisper's batched pipeline, greedy, in float32 and int8;
- transformers' pipeline, greedy;
- this project as ``evaluate.py`` decodes, and as with ``--no-fallback``.

On a GPU everybody decodes in fp16. Texts are compared without diacritics. Every row is a process of its own; loading is
not counted, the log-mel is. ``--long`` takes ayat over 30 s, where only ``whisper.transcribe`` and this project are
compared: the one moves its window by the timestamps that it decodes, the other cuts at pauses.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from isolated import Report, run_isolated  # benchmarks/isolated.py

from evaluate import RATE, as_float  # benchmarks/evaluate.py
from whisper_quran.checkpoints.checkpoint import load_checkpoint
from whisper_quran.convert import convert
from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.data.corpus import open_corpus
from whisper_quran.data.text import normalize
from whisper_quran.decoding.long_audio import transcribe_clips
from whisper_quran.evaluation.word_errors import ErrorCounts, count_errors
from whisper_quran.runtime.console import percent

LIMIT = 7200.0  # seconds a row
Transcribe = Callable[[Sequence[np.ndarray]], list[str]]


@dataclass(frozen=True)
class Task:
    """What everybody transcribes: int16 ``clips`` and their ``references``. ``folder`` holds the model in all forms."""

    folder: Path
    clips: list[np.ndarray]
    references: list[str]
    device: str
    batch_size: int

    @property
    def precision(self) -> str:
        return "fp16" if self.device == "cuda" else "fp32"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.device == "cuda" else torch.float32


def whisper_transcribe(task: Task) -> Transcribe:
    model = load_checkpoint(task.folder / "model.pt", torch.device(task.device))
    options = {"language": "ar", "fp16": task.device == "cuda"}
    return lambda clips: [model.transcribe(as_float(clip), **options)["text"] for clip in clips]


def faster_whisper(task: Task, precision: str) -> Transcribe:
    """Its batched pipeline takes one recording: all clips after one another, and where each begins and ends."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    threads = torch.get_num_threads()
    model = WhisperModel(str(task.folder / "ct2"), task.device, compute_type=precision, cpu_threads=threads)
    pipeline = BatchedInferencePipeline(model)

    def transcribe(clips: Sequence[np.ndarray]) -> list[str]:
        ends = np.cumsum([len(clip) for clip in clips]) / RATE
        spans = [{"start": start, "end": end} for start, end in zip([0, *ends], ends, strict=False)]
        options = {"batch_size": task.batch_size, "language": "ar", "beam_size": 1, "without_timestamps": True}
        segments, _ = pipeline.transcribe(
            np.concatenate([as_float(clip) for clip in clips]), clip_timestamps=spans, **options
        )
        texts = [""] * len(clips)
        for segment in segments:
            texts[int(np.searchsorted(ends, (segment.start + segment.end) / 2))] += segment.text
        return texts

    return transcribe


def transformers_pipeline(task: Task) -> Transcribe:
    from transformers import pipeline

    folder, kind = str(task.folder / "hf"), "automatic-speech-recognition"
    pipe = pipeline(kind, folder, dtype=task.dtype, device=task.device, batch_size=task.batch_size)
    options = {"language": "ar", "task": "transcribe", "num_beams": 1, "do_sample": False}
    return lambda clips: [
        result["text"] for result in pipe((as_float(clip) for clip in clips), generate_kwargs=options)
    ]


def ours(task: Task, fallback: bool = True, dtype: torch.dtype | None = None) -> Transcribe:
    model = load_checkpoint(task.folder / "model.pt", torch.device(task.device))

    def transcribe(clips: Sequence[np.ndarray]) -> list[str]:
        options = {"batch_size": task.batch_size, "dtype": dtype or task.dtype, "stop_loops": fallback}
        transcripts = transcribe_clips(model, clips, fallback=fallback, **options)
        return [each.text for each in sorted(transcripts, key=lambda each: each.clip)]

    return transcribe


def ways(task: Task, long: bool) -> dict[tuple[str, str], Callable[[Task], Transcribe]]:
    """Who decodes in which precision, the slowest first."""
    ctranslate2 = ["float16"] if task.device == "cuda" else ["float32", "int8"]
    peers: dict[tuple[str, str], Callable[[Task], Transcribe]] = {
        ("whisper.transcribe", task.precision): whisper_transcribe
    }
    if not long:
        peers |= {("faster-whisper", name): partial(faster_whisper, precision=name) for name in ctranslate2}
        peers[("transformers", task.precision)] = transformers_pipeline
    return peers | {
        ("ours, --no-fallback", task.precision): partial(ours, fallback=False),
        ("ours", task.precision): ours,
        ("ours", "bf16"): partial(ours, dtype=torch.bfloat16),  # what auto takes, where it is faster
    }


def measure(way: Callable[[Task], Transcribe], task: Task, report: Report) -> None:
    """Report the seconds, and the errors, of ``way``; the first clip is transcribed once beforehand, to warm up."""
    transcribe = way(task)
    transcribe(task.clips[:1])
    start, errors = time.perf_counter(), ErrorCounts()
    texts = transcribe(task.clips)
    seconds = time.perf_counter() - start
    for reference, text in zip(task.references, texts, strict=True):
        errors += count_errors(normalize(reference, "diacritics"), normalize(text, "diacritics"))
    report((seconds, errors))


def prepare(args: argparse.Namespace, folder: Path) -> Task:
    """Decode the first ``--clips`` ayat of the length that is asked for, and write the model in its three forms."""
    corpus = open_corpus(args.data)
    reciters = [args.reciter] if args.reciter else corpus.reciters
    sources = {name: [ayah.audio for ayah in corpus.select([name])[0]] for name in reciters}
    cache = prepare_audio(sources, folder / "cache", os.cpu_count() or 1)
    ayat = [ayah for ayah in corpus.select(reciters)[0] if ayah.audio in cache]
    ayat = [ayah for ayah in ayat if (cache.length(ayah.audio) > 30 * RATE) == args.long][: args.clips]
    if not ayat:
        raise SystemExit(f"{args.data} has no such ayat")
    convert(args.model, folder / "model.pt")
    if not args.long:
        convert(args.model, folder / "hf", to="hf", dtype="fp32")
        if importlib.util.find_spec("faster_whisper"):
            convert(args.model, folder / "ct2", to="ct2", dtype="fp32")
    clips = [np.array(cache.read(ayah.audio)) for ayah in ayat]
    return Task(folder, clips, [ayah.text for ayah in ayat], args.device, args.batch_sizes[-1])


def compare(args: argparse.Namespace) -> None:
    """Print the table of ``benchmarks/evaluate.py --model``."""
    with tempfile.TemporaryDirectory() as name:
        prepared = run_isolated(lambda report: report(prepare(args, Path(name))), LIMIT)
        if prepared.error:
            raise SystemExit(prepared.error)
        (task,) = prepared.rows
        audio = sum(map(len, task.clips)) / RATE
        print(f"{len(task.clips)} ayat, {audio / 60:.1f} min, batches of {task.batch_size}, ", end="")
        print(f"{args.model}, {task.device}, load {os.getloadavg()[0]:.1f}\n")
        print("| | precision | clips/s | × transcribe | × real time | WER | CER |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        slowest: float | None = None
        for (way, precision), made in ways(task, args.long).items():
            outcome = run_isolated(partial(measure, made, task), LIMIT)
            if outcome.error:
                print(f"| {way} | {precision} | {outcome.error} | | | | |", flush=True)
                continue
            seconds, errors = outcome.rows[0]
            slowest = slowest or seconds
            print(f"| {way} | {precision} | {len(task.clips) / seconds:.2f} | {slowest / seconds:.2f} ", end="")
            print(f"| {audio / seconds:.1f} | {percent(errors.wer)} | {percent(errors.cer)} |", flush=True)
