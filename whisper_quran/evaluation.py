"""Evaluating checkpoints: every ayah decoded for real, its errors counted, and a table and a report made of them."""

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
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

from .audio import SAMPLE_RATE
from .checkpoint import load_checkpoint
from .config import EXPERIMENT_2A_VALID, EvaluationConfig, to_json
from .corpus import Ayah, Skipped, open_corpus
from .decoding import decode_clips
from .device import Precision, choose_device, choose_precision
from .errors import UserError
from .files import atomic_write
from .metrics import ErrorCounts
from .predictions import Predictions, key_of, predict
from .preparation import make_tokenizer, summary
from .recordings import Recordings, default_cache, prepare
from .report import write_report
from .text import normalize

Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class _Task:
    """What is evaluated, the same for every model: ayat by reciter, their recordings, and what was left out."""

    ayat: dict[str, list[Ayah]]
    recordings: Recordings
    skipped: dict[str, list[Skipped]]

    def seconds(self, ayah: Ayah) -> float:
        return self.recordings.length(ayah.audio) / SAMPLE_RATE


@dataclass(frozen=True)
class _Clips(Sequence[np.ndarray]):
    """Recordings by number, read when they are asked for."""

    ayat: Sequence[Ayah]
    recordings: Recordings

    def __len__(self) -> int:
        return len(self.ayat)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.recordings.read(self.ayat[index].audio)


def evaluate(config: EvaluationConfig, say: Say = print) -> list[Row]:
    """Evaluate the models on the reciters, write everything under ``config.out``, and return the rows of the table.

    The rows are those of ``results.json``: one for each model and reciter, rates as fractions.

    Raises:
        UserError: a model, a reciter, the data or an option must be changed first.
    """
    if config.quiet:
        say = _nothing
    device, device_reason = choose_device(config.device)
    options = {f.name: to_json(config)[f.name] for f in fields(config) if f.metadata["fixed"]}
    predictions = Predictions(config.out, options)
    task = _find(config, say)
    results: dict[str, Any] = {"rows": [], "environment": _environment(), "normalization": config.normalize}
    results["skipped"] = [asdict(item) for items in task.skipped.values() for item in items]
    for name in dict.fromkeys(config.models):
        model = load_checkpoint(name, device)
        make_tokenizer(model, config.language)
        precision = choose_precision(config.precision, device, model)
        kept = predictions.start(name, _identity(name))
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
            results["rows"].append(_row(name, reciter, parameters, task, predictions, config))
    predictions.finish()
    _write_json(config.out, results, predictions)
    table = results_table(results["rows"])
    with atomic_write(config.out / "results.md") as file:
        file.write(table)
    asked = {key_of(name, ayah) for name in config.models for ayat in task.ayat.values() for ayah in ayat}
    rows = [asdict(row) for row in predictions.rows.values() if row.key in asked]
    write_report(config.out / "report.html", rows, results)
    say(f"\n{table}\nlook at {config.out / 'report.html'}")
    return results["rows"]


def _find(config: EvaluationConfig, say: Say) -> _Task:
    """The ayat to evaluate on, decoded."""
    corpus = open_corpus(config.data, config.text, config.manifest, config.surahs)
    all_of_manifest = config.manifest is not None and config.reciters == EXPERIMENT_2A_VALID
    reciters = tuple(corpus.reciters) if all_of_manifest else config.reciters
    found, left_out = corpus.select(reciters)
    sources: dict[str, list[Path]] = {}
    for ayah in found:
        sources.setdefault(ayah.reciter, []).append(ayah.audio)
    recordings = prepare(sources, config.cache or default_cache(), config.workers, quiet=config.quiet)
    reasons = {str(path): reason for path, reason in recordings.skipped}
    ayat: dict[str, list[Ayah]] = {reciter: [] for reciter in sources}
    skipped: dict[str, list[Skipped]] = {reciter: [] for reciter in sources}
    too_long = 0
    for ayah in found:
        if ayah.audio not in recordings:
            reason = f"cannot be decoded: {reasons.get(str(ayah.audio))}"
            skipped[ayah.reciter].append(Skipped(str(ayah.audio), reason))
        elif config.max_duration and recordings.length(ayah.audio) > config.max_duration * SAMPLE_RATE:
            too_long += 1
        else:
            ayat[ayah.reciter].append(ayah)
    ayat = {reciter: its_ayat for reciter, its_ayat in ayat.items() if its_ayat}
    undecodable = [item for items in skipped.values() for item in items]
    account = [*corpus.skipped, *left_out, *undecodable]
    account += [Skipped("", f"longer than {config.max_duration} s")] * too_long
    if not ayat:
        raise UserError(f"no ayah left to evaluate on in {corpus.source}: {summary(account)}")
    for reciter, its_ayat in ayat.items():
        hours = sum(recordings.length(ayah.audio) for ayah in its_ayat) / SAMPLE_RATE / 3600
        say(f"{reciter}: {len(its_ayat)} ayat, {hours:.2f} h")
    say(f"left out: {summary(account)}")
    return _Task(ayat, recordings, skipped)


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
    errors = ErrorCounts()
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
    recordings: Recordings,
    precision: Precision,
    config: EvaluationConfig,
    say: Say,
) -> Iterator[tuple[Ayah, str]]:
    """Decode ``ayat``, in whatever order is fastest."""
    long = [ayah for ayah in ayat if recordings.length(ayah.audio) > N_SAMPLES and config.long_form == "transcribe"]
    short = [ayah for ayah in ayat if ayah not in long] if long else ayat
    batch_size = config.batch_size or (64 if model.device.type == "cuda" else 32)
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


def _row(
    name: str, reciter: str, parameters: int, task: _Task, predictions: Predictions, config: EvaluationConfig
) -> Row:
    """One row of the table: sums over the ayat, and rates of those sums."""
    rows = [predictions.rows[key_of(name, ayah)] for ayah in task.ayat[reciter]]
    errors = reduce(add, (row.errors for row in rows), ErrorCounts())
    wall, audio = predictions.made["models"][name]["seconds"].get(reciter, (0.0, 0.0))
    return {
        "model": name,
        "parameters": parameters,
        "reciter": reciter,
        "ayat": len(rows),
        "skipped": len(task.skipped[reciter]),
        "words": errors.words,
        "hits": errors.hits,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "wer": errors.wer,
        "cer": errors.cer,
        "audio_s": sum(row.duration for row in rows),
        "wall_s": wall,
        "rtf": wall / audio if audio else None,
    }


def results_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: models down, reciters across, word error rates in percent."""
    reciters = list(dict.fromkeys(row["reciter"] for row in rows))
    header = ["model", "parameters", *(f"{reciter} WER (CER)" for reciter in reciters), "real-time factor"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for model in dict.fromkeys(row["model"] for row in rows):
        its = {row["reciter"]: row for row in rows if row["model"] == model}
        cells = [model, f"{next(iter(its.values()))['parameters'] / 1e6:.0f} M"]
        cells += [f"{100 * its[r]['wer']:.2f} % ({100 * its[r]['cer']:.2f} %)" if r in its else "–" for r in reciters]
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
        json.dump(results | {"made_with": predictions.made}, file, indent=2, ensure_ascii=False)


def _nothing(message: str) -> None:
    """What a quiet evaluation says."""
