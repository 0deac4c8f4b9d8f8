"""Evaluating checkpoints: every ayah decoded for real, its errors counted, and a table and a report made of them."""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from tqdm import tqdm
from whisper.audio import N_SAMPLES
from whisper.model import Whisper

from ..checkpoints.checkpoint import load_checkpoint, read_checkpoint
from ..checkpoints.dims import tokenizer_for
from ..config import EvaluationConfig
from ..data.audio import SAMPLE_RATE
from ..data.audio_cache import AudioCache, default_cache, prepare_audio
from ..data.corpus import EXPERIMENT_2A_VALID, Ayah, Skipped, open_corpus
from ..data.prepare import summary
from ..data.text import normalize
from ..decoding.batch_decoder import decode_clips
from ..runtime.command_line import to_json
from ..runtime.device import Precision, choose_device, resume_precision
from ..runtime.errors import UserError
from ..runtime.files import atomic_write
from ..runtime.interrupts import Interrupts
from ..training.metrics_log import percent
from .predictions import Predictions, key_of, predict
from .report import write_report
from .word_errors import ErrorCounts

Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class _Task:
    """What is evaluated, the same for every model: ayat by reciter, their recordings, and what was left out."""

    ayat: dict[str, list[Ayah]]
    recordings: AudioCache
    undecodable: dict[str, int]
    left_out: list[Skipped]

    def seconds(self, ayah: Ayah) -> float:
        return self.recordings.length(ayah.audio) / SAMPLE_RATE


@dataclass(frozen=True)
class _Clips(Sequence[np.ndarray]):
    """AudioCache by number, read when they are asked for."""

    ayat: Sequence[Ayah]
    recordings: AudioCache

    def __len__(self) -> int:
        return len(self.ayat)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.recordings.read(self.ayat[index].audio)


def evaluate(config: EvaluationConfig, say: Say = print) -> list[Row]:
    """Evaluate the models on the reciters, write everything under ``config.out``, and return the rows of the table.

    The rows are those of ``results.json``: one for each model and reciter, rates as fractions.

    Raises:
        UserError: a model, a reciter, the data or an option must be changed first.
        Interrupted: by Ctrl-C or SIGTERM; what was predicted is kept.
    """
    if config.quiet:
        say = _nothing
    device, device_reason = choose_device(config.device)
    models = {name if name in whisper.available_models() else os.path.normpath(name): None for name in config.models}
    _check_models(models, config.language)
    options = {f.name: to_json(config)[f.name] for f in fields(config) if f.metadata.get("fixed")}
    with Interrupts(), closing(Predictions(config.out, options)) as predictions:
        return _evaluate(config, models, device, device_reason, predictions, say)


def _evaluate(
    config: EvaluationConfig,
    models: Iterable[str],
    device: torch.device,
    device_reason: str,
    predictions: Predictions,
    say: Say,
) -> list[Row]:
    task = _find(config, say)
    results: dict[str, Any] = {"rows": [], "environment": _environment(), "normalization": config.normalize}
    results["skipped"] = [asdict(item) for item in task.left_out]
    for name in models:
        files = _identity(name)  # before its weights are read: a training may replace them meanwhile
        model = load_checkpoint(name, device)
        precision = resume_precision(config.precision, predictions.precision_of(name), device, model)
        kept = predictions.start(name, {"files": files, "precision": precision.name})
        parameters = sum(parameter.numel() for parameter in model.parameters())
        results["environment"] |= {"device": f"{device}: {device_reason}", "precision": precision.name}
        say(f"{name}: {parameters / 1e6:.0f} M parameters, {precision.name} on {device} ({precision.reason})")
        if kept:
            say(f"{name}: {kept} predictions are there already")
        # From here on results.json vouches for the predictions, whenever they are cut off.
        _write_json(config.out, results, predictions)
        for reciter in task.ayat:
            try:
                _decode(name, model, reciter, task, predictions, precision, config, say)
            finally:
                _write_json(config.out, results, predictions)
            results["rows"].append(_row(name, reciter, parameters, precision, task, predictions))
        model = None  # makes room for the next one
    predictions.finish()
    _write_json(config.out, results, predictions)
    table = results_table(results["rows"])
    with atomic_write(config.out / "results.md") as file:
        file.write(table)
    asked = {key_of(name, ayah) for name in models for ayat in task.ayat.values() for ayah in ayat}
    rows = [asdict(row) for row in predictions.rows.values() if row.key in asked]
    write_report(config.out / "report.html", rows, results)
    say(f"\n{table}\nlook at {config.out / 'report.html'}")
    return results["rows"]


def _find(config: EvaluationConfig, say: Say) -> _Task:
    """The ayat to evaluate on, decoded."""
    corpus = open_corpus(config.data, config.text, config.manifest, config.surahs)
    reciters = config.reciters
    if reciters is None:
        reciters = EXPERIMENT_2A_VALID if config.manifest is None else tuple(corpus.reciters)
    if not reciters:
        raise UserError(f"no reciter to evaluate on: name some of {', '.join(corpus.reciters)} with --reciters")
    found, left_out = corpus.select(reciters)
    sources: dict[str, list[Path]] = {}
    for ayah in found:
        sources.setdefault(ayah.reciter, []).append(ayah.audio)
    recordings = prepare_audio(sources, config.cache or default_cache(), config.workers, quiet=config.quiet)
    reasons = {str(path): reason for path, reason in recordings.skipped}
    ayat: dict[str, list[Ayah]] = {reciter: [] for reciter in reciters}
    undecodable = dict.fromkeys(reciters, 0)
    account = [*corpus.skipped, *left_out]
    for ayah in found:
        if ayah.audio not in recordings:
            undecodable[ayah.reciter] += 1
            account.append(Skipped(str(ayah.audio), f"cannot be decoded: {reasons.get(str(ayah.audio))}"))
        elif config.max_duration and recordings.length(ayah.audio) > config.max_duration * SAMPLE_RATE:
            account.append(Skipped(str(ayah.audio), f"longer than {config.max_duration:g} s"))
        else:
            ayat[ayah.reciter].append(ayah)
    for reciter, its_ayat in ayat.items():
        if not its_ayat:
            raise UserError(f"no ayah left of {reciter} in {corpus.source}: {summary(account)}")
        hours = sum(recordings.length(ayah.audio) for ayah in its_ayat) / SAMPLE_RATE / 3600
        say(f"{reciter}: {len(its_ayat)} ayat, {hours:.2f} h")
    if recordings.damaged:
        say(f"damaged: {len(recordings.damaged)} files have damaged frames; they are used")
    say(f"left out: {summary(account)}")
    # That there is no audio for a text is no news where a reciter has a few surahs: counted above, not listed.
    listed = [item for item in account if item.reason != "text without audio"]
    return _Task(ayat, recordings, undecodable, listed)


def _check_models(names: Iterable[str], language: str) -> None:
    """Find a wrong model before hours are spent on those named before it; no weights are read yet."""
    for name in names:
        if name in whisper.available_models():
            if name.endswith(".en") and language != "en":
                raise UserError(f"{name} is English-only: with --language {language} choose {name[:-3]}")
        else:
            try:
                tokenizer_for(read_checkpoint(name).dims, language)
            except UserError as error:
                raise UserError(str(error) if name in str(error) else f"{name}: {error}") from None


def _decode(
    name: str,
    model: Whisper,
    reciter: str,
    task: _Task,
    predictions: Predictions,
    precision: Precision,
    config: EvaluationConfig,
    say: Say,
) -> None:
    """Predict the ayat of ``reciter`` that no prediction stands for yet."""
    reference = {ayah: normalize(ayah.text, config.normalize) for ayah in task.ayat[reciter]}
    ayat = [a for a in reference if not predictions.stands(name, a, task.seconds(a), reference[a])]
    if not ayat:
        return
    standing = [predictions.rows[key_of(name, ayah)] for ayah in task.ayat[reciter] if ayah not in set(ayat)]
    errors = reduce(add, (row.errors for row in standing), ErrorCounts())
    start, audio = time.perf_counter(), 0.0
    total = len(task.ayat[reciter])
    with tqdm(total=total, initial=total - len(ayat), unit="ayah", desc=reciter, disable=config.quiet) as bar:
        try:
            for ayah, text in _texts(model, ayat, task.recordings, precision, config, say):
                hypothesis = normalize(text, config.normalize)
                row = predict(name, ayah, task.seconds(ayah), reference[ayah], hypothesis)
                predictions.append(row)
                audio += row.duration
                errors += row.errors
                bar.update()
                bar.set_postfix(wer=f"{100 * errors.wer:.2f}%", refresh=False)
        finally:
            predictions.took(name, reciter, time.perf_counter() - start, audio)


def _texts(
    model: Whisper,
    ayat: Sequence[Ayah],
    recordings: AudioCache,
    precision: Precision,
    config: EvaluationConfig,
    say: Say,
) -> Iterator[tuple[Ayah, str]]:
    """Decode ``ayat``, in whatever order is fastest."""
    limit = N_SAMPLES if config.long_form == "transcribe" else math.inf
    long = [ayah for ayah in ayat if recordings.length(ayah.audio) > limit]
    short = [ayah for ayah in ayat if recordings.length(ayah.audio) <= limit]
    batch_size = config.batch_size or _default_batch(model)
    texts = decode_clips(
        model,
        _Clips(short, recordings),
        batch_size=batch_size,
        language=config.language,
        dtype=precision.dtype,
        say=say,
    )
    for index, text in texts:
        yield short[index], text
    for ayah in long:
        samples = recordings.read(ayah.audio).astype(np.float32) / 32768
        fp16 = precision.name == "fp16"
        yield ayah, model.transcribe(samples, language=config.language, fp16=fp16)["text"]


def _row(name: str, reciter: str, parameters: int, precision: Precision, task: _Task, predictions: Predictions) -> Row:
    """One row of the table: sums over the ayat, and rates of those sums."""
    rows = [predictions.rows[key_of(name, ayah)] for ayah in task.ayat[reciter]]
    errors = reduce(add, (row.errors for row in rows), ErrorCounts())
    wall, audio = predictions.made["models"][name]["seconds"].get(reciter, (0.0, 0.0))
    return {
        "model": name,
        "parameters": parameters,
        "reciter": reciter,
        "ayat": len(rows),
        "skipped": task.undecodable[reciter],
        "words": errors.words,
        "hits": errors.hits,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "wer": errors.wer if errors.words else None,
        "cer": errors.cer if errors.characters else None,
        "audio_s": sum(row.duration for row in rows),
        "wall_s": wall,
        "rtf": wall / audio if audio else None,
        "precision": precision.name,
    }


def _default_batch(model: Whisper) -> int:
    """64 clips at a time on a GPU; on a CPU 32, or as many as 2 GB of key/value caches hold."""
    if model.device.type == "cuda":
        return 64
    dims = model.dims
    clip = 4 * 2 * dims.n_text_layer * (dims.n_audio_ctx + dims.n_text_ctx) * dims.n_text_state
    return max(1, min(32, 2 * 10**9 // clip))


def results_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: models down, reciters across, word error rates in percent."""
    reciters = list(dict.fromkeys(row["reciter"] for row in rows))
    header = ["model", "parameters", *(f"{reciter} WER (CER)" for reciter in reciters), "real-time factor"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for model in dict.fromkeys(row["model"] for row in rows):
        its = {row["reciter"]: row for row in rows if row["model"] == model}
        cells = [model, f"{next(iter(its.values()))['parameters'] / 1e6:.0f} M"]
        cells += [f"{percent(its[r]['wer'])} ({percent(its[r]['cer'])})" for r in reciters]
        # wall over rtf is the audio that was timed, which after an interruption may be less than all.
        timed = [row for row in its.values() if row["rtf"]]
        audio = sum(row["wall_s"] / row["rtf"] for row in timed)
        cells.append(f"{sum(row['wall_s'] for row in timed) / audio:.4f}" if audio else "–")
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _identity(name: str) -> list[Any]:
    """What tells a checkpoint from another of the same name: the size and time of its files."""
    path = Path(name)
    files = sorted(path.glob("*")) if path.is_dir() else [path] if path.is_file() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _environment() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "whisper": whisper.__version__}


def _write_json(out: Path, results: dict[str, Any], predictions: Predictions) -> None:
    with atomic_write(out / "results.json") as file:
        made = results | {"made_with": predictions.made}
        json.dump(made, file, indent=2, ensure_ascii=False, allow_nan=False)


def _nothing(message: str) -> None:
    """What a quiet evaluation says."""
