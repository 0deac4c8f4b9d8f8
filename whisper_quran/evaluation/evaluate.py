"""Evaluation of checkpoints: decode every ayah, count its errors, and write a table and a report of them."""

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from whisper.model import ModelDimensions, Whisper

from ..checkpoints.checkpoint import load_checkpoint, read_checkpoint
from ..checkpoints.dims import named_dims, tokenizer_for
from ..checkpoints.names import WHISPER_NAMES, find_checkpoint
from ..config import EvaluationConfig
from ..data.audio import SAMPLE_RATE
from ..data.audio_cache import AudioCache
from ..data.corpus import Corpus, Skipped, default_text, read_text, summary
from ..data.encoder_cache import FrozenEncoder, open_encoder_cache
from ..data.prepare import decode_ayat
from ..data.text import count_diacritics, normalize
from ..data.windows import Passage, join
from ..decoding.long_audio import Transcript, transcribe_clips
from ..decoding.quran_search import Candidate, Quran, Recognizer, joined
from ..runtime.console import (
    Log,
    format_duration,
    format_size,
    markdown_table,
    no_log,
    percent,
    printable,
    progress_bar,
)
from ..runtime.device import DTYPES, Precision, choose_device, resume_precision
from ..runtime.errors import UserError
from ..runtime.files import atomic_write
from ..runtime.interrupts import Interrupts
from .chance import differences, differences_table, overall, plus_minus, rates_of
from .error_kinds import count_kinds
from .inputs import QURAN, check_inputs
from .listening import Recording, embed, embedded_size, link
from .predictions import Key, Prediction, Predictions, key_of
from .report import write_report
from .word_errors import ErrorCounts, count_diacritic_errors

TIMESTAMPS = " (timestamps)"  # after the name of a model that decodes with them
CONSTRAINED = " (constrained)"  # after the name of a model whose texts are runs of --constrain
BOUNDARY_SECONDS = 0.5  # at most, from a boundary between ayat to the timestamp that finds it

Row = dict[str, Any]


def evaluate(config: EvaluationConfig, log: Log = print) -> list[Row]:
    """Evaluate the models on the reciters, write everything under ``config.out``, and return the rows of the table.

    The rows are those of ``results.json``: one for each model and reciter, rates as fractions.

    Raises:
        UserError: a model, a reciter, the data or an option must be changed first.
        Interrupted: by Ctrl-C or SIGTERM; what was predicted is kept.
    """
    if config.quiet:
        log = no_log
    device, reason = choose_device(config.device)
    corpus, reciters = check_inputs(config, log)
    sources = list(dict.fromkeys(x if x in WHISPER_NAMES else os.path.normpath(x) for x in config.models))
    dims = _check_models(sources, config.language)
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.metadata.get("fixed")}
    with Interrupts(), closing(Predictions(config.out, options)) as predictions:
        evaluation = Evaluation(config, _prepare(config, corpus, reciters, log), predictions, log)
        evaluation.results["environment"]["device"] = f"{device}: {reason}"
        for source in sources:
            same_size = list(dims.values()).count(dims[source]) > 1
            evaluation.evaluate_model(source, device, same_size)
        return evaluation.finish()


@dataclass(frozen=True)
class EvaluationData:
    """The data of every model's evaluation: passages by reciter, their recordings, and what was left out."""

    passages: dict[str, list[Passage]]
    cache: AudioCache
    undecodable: dict[str, int]
    skipped: list[Skipped]


@dataclass(frozen=True)
class LoadedModel:
    """A model under evaluation, and whether it decodes with timestamps; ``name`` is its name in the files.

    With a ``recognizer`` it has a second name there, for the runs of the closed text found in what it hears.
    """

    name: str
    whisper: Whisper
    precision: Precision
    encoder: FrozenEncoder
    timestamps: bool = False
    recognizer: Recognizer | None = None

    @property
    def names(self) -> list[str]:
        """The names of its rows in the table."""
        return [self.name, self.name + CONSTRAINED] if self.recognizer else [self.name]


class _Clips(Sequence[np.ndarray]):
    """The recordings of ``passages`` by number, each read on access."""

    def __init__(self, passages: Sequence[Passage], cache: AudioCache):
        self.passages, self.cache = passages, cache

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, index: Any) -> Any:
        return self.passages[index].audio(self.cache)


class Evaluation:
    """An evaluation in progress: the settings and data common to its models, and the ``results`` so far."""

    def __init__(self, config: EvaluationConfig, data: EvaluationData, predictions: Predictions, log: Log):
        self.config, self.data, self.predictions, self.log = config, data, predictions, log
        self.started = time.perf_counter()
        self.recognizer: Recognizer | None = None  # made for the first model
        self.results: dict[str, Any] = {
            "rows": [],
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "whisper": whisper.__version__,
            },
            "normalization": config.normalize,
            "skipped": [asdict(item) for item in data.skipped],
        }

    def evaluate_model(self, source: str, device: torch.device, same_size: bool = False) -> None:
        """Make the predictions that are missing, and add the model's rows to the results; with timestamps, more rows.

        If there is another model of the ``same_size``, their encoders may be the same: their output is kept on disk.

        Raises:
            UserError: the checkpoint, or the precision on this device, must be changed.
        """
        name = printable(source)
        files = _identity(source)  # before the weights are read: a training run may replace them meanwhile
        whisper_model = load_checkpoint(source, device)
        recorded = self.predictions.precision_of(name)
        before = recorded if recorded in tuple(DTYPES) else None
        precision = resume_precision(self.config.precision, before, device, whisper_model)
        self.results["environment"]["precision"] = precision.name
        parameters = sum(parameter.numel() for parameter in whisper_model.parameters())
        self.log(f"{name}: {parameters / 1e6:.0f} M parameters, {precision.name} on {device} ({precision.reason})")
        encoder = self._encoder(whisper_model, precision, device, same_size)
        models = [LoadedModel(name, whisper_model, precision, encoder, recognizer=self._recognizer(whisper_model))]
        if self.config.timestamps:
            models.append(LoadedModel(name + TIMESTAMPS, whisper_model, precision, encoder, timestamps=True))
        with closing(encoder):
            for model in models:
                self._evaluate(model, parameters, {"files": files, "precision": precision.name})

    def _evaluate(self, model: LoadedModel, parameters: int, identity: dict[str, Any]) -> None:
        for name in model.names:
            text = {"text": _identity_of_text(self.config)} if name != model.name else {}
            if kept := self.predictions.start(name, identity | text):
                self.log(f"{name}: {kept} predictions are there already")
        # From here on results.json records how the predictions are made, even if they are interrupted.
        self._write_results()
        for reciter in self.data.passages:
            try:
                self._predict(model, reciter)
            finally:
                self._write_results()
            self.results["rows"] += [self._row(name, model, parameters, reciter) for name in model.names]

    def _recognizer(self, model: Whisper) -> Recognizer | None:
        """Index the text of ``--constrain``, once for all models."""
        if self.config.constrain and not self.recognizer:
            self.recognizer = Recognizer(Quran(read_text(_closed_text(self.config))[0]), model.device)
        return self.recognizer

    def _encoder(self, model: Whisper, precision: Precision, device: torch.device, same_size: bool) -> FrozenEncoder:
        """Make the model's encoder, with a cache if that is requested, or useful.

        It is useful to another model of the ``same_size``, and to this one if it is decoded again with timestamps.
        """
        encoder = FrozenEncoder(model, precision.dtype)
        cache = open_encoder_cache(self.config, model, precision, device, self.log)
        useful = same_size or self.config.timestamps
        if cache and (self.config.encoder_cache != "auto" or useful or cache.keys):
            encoder.cache = cache
        return encoder

    def finish(self) -> list[Row]:
        """Write the table and the report, and return the rows of the table."""
        self.predictions.finish()
        rows, out = self.results["rows"], self.config.out
        requested = {key_of(row["model"], each) for row in rows for each in self.data.passages[row["reciter"]]}
        reported = [row for key, row in self.predictions.rows.items() if key in requested]
        self.results |= {"overall": overall(reported), "differences": differences(reported), **count_kinds(reported)}
        self._write_results()
        table = results_table(rows)
        if found := self.results["differences"]:
            header, *lines = ([cell.replace("|", "\\|") for cell in line] for line in differences_table(found))
            table += "\n" + markdown_table(header, lines)
        with atomic_write(out / "results.md") as file:
            file.write(table)
        write_report(out / "report.html", reported, self.results, self._recordings())
        took = format_duration(time.perf_counter() - self.started)
        self.log(f"\n{table}\ndone in {took}; every error, word by word: {out / 'report.html'}")
        return rows

    def _recordings(self) -> dict[Key, Recording]:
        """Link the recordings for the report, or embed them; by their key without the model."""
        passages = [passage for each in self.data.passages.values() for passage in each]
        cache, out = self.data.cache, self.config.out
        if self.config.embed_audio:
            size = format_size(embedded_size(each.seconds for each in passages))
            self.log(f"putting the audio into {out / 'report.html'}: {size}")
            return {key_of("", passage): embed(passage, cache) for passage in passages}
        return {key_of("", passage): link(passage, cache, out) for passage in passages}

    def _predict(self, model: LoadedModel, reciter: str) -> None:
        """Predict the passages of ``reciter`` that have no current prediction."""
        passages, errors = [], ErrorCounts()
        for passage in self.data.passages[reciter]:
            expected = passage.seconds, self._normalized(passage.text), count_diacritics(passage.text)
            keys = [key_of(name, passage) for name in model.names]
            if all(self.predictions.is_current(key, *expected) for key in keys):
                errors += self.predictions.rows[keys[0]].alignment.errors
            else:
                passages.append(passage)
        if not passages:
            return
        decoded = transcribe_clips(
            model.encoder,
            _Clips(passages, self.data.cache),
            batch_size=self.config.batch_size or _default_batch(model.whisper),
            language=self.config.language,
            dtype=model.precision.dtype,
            log=self.log,
            fallback=not self.config.no_fallback,
            timestamps=model.timestamps,
            recognizer=model.recognizer,
            stop_loops=not self.config.no_fallback,
        )
        start, audio = time.perf_counter(), 0.0
        total, unit = len(self.data.passages[reciter]), "passage" if self.config.join else "ayah"
        with progress_bar(total, unit, reciter, initial=total - len(passages), disable=self.config.quiet) as bar:
            try:
                for transcript in decoded:
                    rows = self._predictions(model, passages[transcript.clip], transcript)
                    for row in rows:
                        self.predictions.append(row)
                    audio += rows[0].duration
                    errors += rows[0].alignment.errors
                    bar.update()
                    bar.set_postfix(wer=f"{100 * errors.wer:.2f}%", refresh=False)
            finally:
                for name in model.names:
                    self.predictions.add_time(name, reciter, time.perf_counter() - start, audio)

    def _predictions(self, model: LoadedModel, passage: Passage, transcript: Transcript) -> list[Prediction]:
        """Make a row of what ``model`` heard, and if it has a recognizer, one of the runs found in that."""
        rows = [self._prediction(model.name, passage, transcript)]
        if model.recognizer:
            found = transcript.found
            text = model.recognizer.join_words(found)
            row = self._prediction(model.name + CONSTRAINED, passage, replace(transcript, text=text))
            place = "; ".join(model.recognizer.quran.describe(span) for span in joined(each.span for each in found))
            located = int(_is_located(passage, found, model.recognizer.quran))
            rows.append(replace(row, fallback=0.0, place=place, located=located))
        return rows

    def _prediction(self, model: str, passage: Passage, transcript: Transcript) -> Prediction:
        """Make a row of a transcript: its texts, the boundaries between ayat that it found, its diacritics."""
        texts = self._normalized(passage.text), self._normalized(transcript.text)
        joints = passage.joints(self.data.cache)
        times = [time for each in transcript.segments for time in (each.start, each.end)][1:-1]
        found = count_found(joints, times)
        diacritics, marks = count_diacritics(passage.text), ErrorCounts()
        if diacritics:
            marks = count_diacritic_errors(passage.text, transcript.text)
        counts = (len(joints), found, len(transcript.segments), diacritics, marks.letters, marks.diacritic_errors)
        seconds = round(passage.seconds, 3)
        return Prediction(*key_of(model, passage), seconds, *texts, transcript.temperature, *counts)

    def _normalized(self, text: str) -> str:
        return normalize(text, self.config.normalize)  # type: ignore[arg-type]

    def _row(self, name: str, model: LoadedModel, parameters: int, reciter: str) -> Row:
        """Make a row of the table: sums over the ayat, and rates of those sums."""
        passages = self.data.passages[reciter]
        rows = [self.predictions.rows[key_of(name, passage)] for passage in passages]
        errors = sum((row.errors for row in rows), ErrorCounts())
        wall, audio = self.predictions.made["models"][name]["seconds"].get(reciter, (0.0, 0.0))
        counts = ("words", "hits", "substitutions", "deletions", "insertions")
        is_locatable = name != model.name and self.config.constrain == QURAN and passages[0].parts[0].surah is not None
        return {
            "model": name,
            "parameters": parameters,
            "reciter": reciter,
            "ayat": sum(len(passage.parts) for passage in passages),
            "passages": len(passages),
            "skipped": self.data.undecodable[reciter],
            **{count: getattr(errors, count) for count in counts},
            **rates_of(rows),
            "der": errors.der if errors.letters else None,
            "fallback": sum(row.fallback > 0 for row in rows),
            "boundaries": sum(row.boundaries for row in rows),
            "boundaries_found": sum(row.boundaries_found for row in rows),
            "segments": sum(row.segments for row in rows),
            "located": sum(row.located for row in rows) if is_locatable else None,
            "letters": errors.letters,
            "diacritic_errors": errors.diacritic_errors,
            "audio_s": sum(row.duration for row in rows),
            "wall_s": wall,
            "rtf": wall / audio if audio else None,
            "precision": model.precision.name,
        }

    def _write_results(self) -> None:
        results = self.results | {"made_with": self.predictions.made}
        with atomic_write(self.config.out / "results.json") as file:
            json.dump(results, file, indent=2, ensure_ascii=False, allow_nan=False)


def _prepare(config: EvaluationConfig, corpus: Corpus, reciters: Sequence[str], log: Log) -> EvaluationData:
    """Decode the recordings of ``reciters``, and leave out those that are too long."""
    selected, skipped = corpus.select(reciters)
    cache, undecoded = decode_ayat(selected, config, log)
    skipped = [*corpus.skipped, *skipped, *undecoded]
    undecodable = {r: sum(a.reciter == r and a.audio not in cache for a in selected) for r in reciters}
    longest = (config.max_duration or float("inf")) * SAMPLE_RATE
    decoded = [ayah for ayah in selected if ayah.audio in cache]
    ayat = {r: [a for a in decoded if a.reciter == r and cache.length(a.audio) <= longest] for r in reciters}
    too_long = [ayah for ayah in decoded if cache.length(ayah.audio) > longest]
    skipped += [Skipped(str(ayah.audio), f"longer than {config.max_duration:g} s") for ayah in too_long]
    for reciter, its_ayat in ayat.items():
        if not its_ayat:
            raise UserError(f"no ayah left of {reciter} in {corpus.source}: {summary(skipped)}")
        hours = sum(cache.length(ayah.audio) for ayah in its_ayat) / SAMPLE_RATE / 3600
        log(f"{reciter}: {len(its_ayat)} ayat, {hours:.2f} h")
    if cache.damaged:
        log(f"damaged: {len(cache.damaged)} files have damaged frames; they are used")
    if cache.mended:
        log(f"mended: {len(cache.mended)} files had channels that cancelled out, or samples of another scale")
    log(f"left out: {summary(skipped)}")
    # A reciter of a few surahs lacks audio for most texts: these are counted above, but not listed.
    listed = [item for item in skipped if item.reason != "text without audio"]
    passages = {reciter: join(its_ayat, cache, config.join or 1) for reciter, its_ayat in ayat.items()}
    return EvaluationData(passages, cache, undecodable, listed)


def _check_models(names: Iterable[str], language: str) -> dict[str, ModelDimensions]:
    """Check all models before hours are spent on the first of them; no weights are read yet.

    Return the dimensions of each.
    """
    found = {}
    named = named_dims()  # without some names of the large ones, which are multilingual
    for name in names:
        try:
            found[name] = named.get(name, named["large-v3"]) if name in WHISPER_NAMES else read_checkpoint(name).dims
            tokenizer_for(found[name], language)
        except UserError as error:
            raise UserError(str(error) if name in str(error) else f"{name}: {error}") from None
    return found


def _default_batch(model: Whisper) -> int:
    """Return 64 clips on a GPU; on a CPU 32, or fewer if 2 GB of key/value caches hold no more."""
    if model.device.type == "cuda":
        return 64
    dims = model.dims
    clip = 4 * 2 * dims.n_text_layer * (dims.n_audio_ctx + dims.n_text_ctx) * dims.n_text_state
    return max(1, min(32, 2 * 10**9 // clip))


def results_table(rows: Sequence[Row]) -> str:
    """Make a Markdown table of the rows: models down, reciters across, rates in percent with 95 % intervals.

    Reciters whose text is vocalised have the diacritic error rate (DER) too.
    """
    reciters = list(dict.fromkeys(row["reciter"] for row in rows))
    vocalised = {row["reciter"] for row in rows if row["der"] is not None}
    columns = [f"{r} WER (CER{', DER' if r in vocalised else ''})".replace("|", "\\|") for r in reciters]
    header = ["model", "parameters", *columns, "real-time factor"]
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        by_reciter = {row["reciter"]: row for row in rows if row["model"] == model}
        parameters = by_reciter[reciters[0]]["parameters"]
        rates = []
        for reciter in reciters:
            row = by_reciter[reciter]
            wer, cer = (plus_minus(row[name], row[f"{name}_interval"]) for name in ("wer", "cer"))
            der = f", {percent(row['der'])}" if reciter in vocalised else ""
            rates.append(f"{wer} ({cer}{der})")
        # wall_s / rtf is the audio that was timed: after an interruption it may be less than all.
        timed = [row for row in by_reciter.values() if row["rtf"]]
        audio = sum(row["wall_s"] / row["rtf"] for row in timed)
        speed = f"{sum(row['wall_s'] for row in timed) / audio:.4f}" if audio else "–"
        lines.append([model.replace("|", "\\|"), f"{parameters / 1e6:.0f} M", *rates, speed])
    table = markdown_table(header, lines)
    if fallbacks := sum(row["fallback"] for row in rows):
        recordings = sum(row["passages"] for row in rows if not row["model"].endswith(CONSTRAINED))
        table += f"\nfallback: {fallbacks} of {recordings} recordings were decoded again at higher temperatures\n"
    for model in dict.fromkeys(row["model"] for row in rows):
        names = ("boundaries_found", "boundaries", "segments", "ayat")
        counts = [tuple(row[name] for name in names) for row in rows if row["model"] == model]
        found, boundaries, segments, ayat = map(sum, zip(*counts, strict=True))
        if model.endswith(TIMESTAMPS) and boundaries:
            share = f"{percent(found / boundaries)} of {boundaries} within {BOUNDARY_SECONDS} s"
            table += f"\nboundaries: {model} found {share}, with {segments / ayat:.2f} segments an ayah\n"
        located = [row for row in rows if row["model"] == model and row["located"] is not None]
        if located:
            passages = sum(row["passages"] for row in located)
            share = percent(sum(row["located"] for row in located) / passages)
            table += f"\nlocated: {model} names the ayat that were recited in {share} of {passages} recordings\n"
    return table


def count_found(joints: Sequence[float], times: Sequence[float]) -> int:
    """Count the ``joints`` between ayat that have one of ``times`` (all in seconds) within BOUNDARY_SECONDS."""
    return sum(any(abs(time - joint) <= BOUNDARY_SECONDS for time in times) for joint in joints)


def _is_located(passage: Passage, found: Sequence[Candidate], quran: Quran) -> bool:
    """Return whether the spans ``found`` are of the ayat of ``passage``; a single one, anywhere its words occur."""
    recited = {(ayah.surah, ayah.number) for ayah in passage.parts}
    if len(found) == 1:
        return any(set(quran.ayat(span)) == recited for span in quran.locate(quran.words(found[0].span)))
    return {ayah for each in found for ayah in quran.ayat(each.span)} == recited


def _closed_text(config: EvaluationConfig) -> Path:
    """Return the file of ``--constrain``."""
    return config.text or default_text(config.data)


def _identity_of_text(config: EvaluationConfig) -> list[Any]:
    """Identify the text of ``--constrain`` by its name, size and modification time."""
    path = _closed_text(config)
    return [str(config.constrain), path.stat().st_size, path.stat().st_mtime_ns]


def _identity(source: str) -> list[list[Any]]:
    """Identify a checkpoint by the sizes and modification times of its files."""
    if source in WHISPER_NAMES:
        return []
    path = find_checkpoint(source)
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
