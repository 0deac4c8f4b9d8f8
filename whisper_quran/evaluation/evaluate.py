"""Evaluation of checkpoints: decode every ayah, count its errors, and write a table and a report of them."""

import hashlib
import json
import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
import whisper
from whisper.model import Whisper

from ..checkpoints.checkpoint import load_checkpoint, read_checkpoint
from ..checkpoints.dims import named_dims, tokenizer_for
from ..checkpoints.names import WHISPER_NAMES, find_checkpoint
from ..config import EvaluationConfig
from ..data.audio import SAMPLE_RATE, as_part
from ..data.audio_cache import AudioCache
from ..data.ayat import Ayah
from ..data.corpus import Corpus
from ..data.features import FrozenEncoder
from ..data.prepare import decode_ayat
from ..data.tables import Skipped, summary
from ..data.text import count_diacritics, letters, normalize
from ..decoding.long_audio import Transcript, transcribe_clips
from ..decoding.quran_search import Candidate, Quran, Recognizer, joined
from ..runtime.console import Log, format_duration, format_size, markdown_table, no_log, printable, progress_bar
from ..runtime.device import choose_device, choose_precision
from ..runtime.errors import Interrupts, UserError
from ..runtime.files import atomic_write
from . import check_inputs, heard_by, text_of
from .chance import differences, differences_table, overall, plus_minus, rates_of, share
from .error_kinds import count_kinds
from .pages import data_address, embedded_size, relative_address, write_report
from .predictions import Key, Prediction, Predictions, key_of
from .word_errors import ErrorCounts, count_diacritic_errors

CONSTRAINED = " (constrained)"  # after the name of a model whose texts are words of the Qur'an

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
    _check_models(sources, config.language)
    if config.embed_audio:
        data_address(np.zeros(SAMPLE_RATE, np.int16))  # raises at once if it cannot be done
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.metadata.get("fixed")}
    with Interrupts(), closing(Predictions(config.out, options, log)) as predictions:
        evaluation = Evaluation(config, corpus, reciters, device, predictions, log)
        evaluation.results["environment"]["device"] = f"{device}: {reason}"
        for source in sources:
            evaluation.evaluate_model(source)
        return evaluation.finish()


class _Clips(Sequence[np.ndarray]):
    """The recordings of ``ayat`` by number, each read on access."""

    def __init__(self, ayat: Sequence[Ayah], cache: AudioCache):
        self.ayat, self.cache = ayat, cache

    def __len__(self) -> int:
        return len(self.ayat)

    def __getitem__(self, index: Any) -> Any:
        return self.cache.read(self.ayat[index].audio)


class Evaluation:
    """An evaluation in progress: the ``ayat`` of each reciter, and the ``results`` so far."""

    def __init__(
        self,
        config: EvaluationConfig,
        corpus: Corpus,
        reciters: Sequence[str],
        device: torch.device,
        predictions: Predictions,
        log: Log,
    ):
        """Decode the recordings of ``reciters``, and leave out those that are too long.

        Raises:
            UserError: nothing is left of a reciter, or the cache cannot be written.
        """
        self.config, self.device, self.predictions, self.log = config, device, predictions, log
        self.started = time.perf_counter()
        self.heard = heard_by(config.trained) if config.trained else None
        self.normalize = partial(normalize, normalization=config.normalize)  # type: ignore[arg-type]
        texts = text_of(config) if config.constrain else {}
        self.text_digest = hashlib.sha256(repr(texts).encode()).hexdigest()
        self.recognizer = Recognizer(Quran(texts), device) if config.constrain else None
        selected, left_out = corpus.select(reciters)
        self.cache, undecoded = decode_ayat(selected, config, log)
        self.undecodable = Counter(ayah.reciter for ayah in selected if ayah.audio not in self.cache)
        skipped = [*corpus.skipped, *left_out, *undecoded]
        longest = (config.max_duration or float("inf")) * SAMPLE_RATE
        self.ayat: dict[str, list[Ayah]] = {reciter: [] for reciter in reciters}
        for ayah in sorted(selected, key=lambda ayah: ayah.place):
            if ayah.audio in self.cache and self.cache.length(ayah.audio) > longest:
                skipped.append(Skipped(str(ayah.audio), f"longer than {config.max_duration:g} s"))
            elif ayah.audio in self.cache:
                self.ayat[ayah.reciter].append(ayah)
        for reciter, ayat in self.ayat.items():
            if not ayat:
                raise UserError(f"no ayah left of {reciter} in {corpus.source}: {summary(skipped)}")
            log(f"{reciter}: {len(ayat)} ayat, {format_duration(sum(map(self.seconds, ayat)))} of audio")
        self.all_ayat = [ayah for ayat in self.ayat.values() for ayah in ayat]
        if self.cache.damaged:
            log(f"damaged: {len(self.cache.damaged)} files have damaged frames; they are used")
        if self.cache.mended:
            log(f"mended: {len(self.cache.mended)} files had channels that cancelled out, or samples of another scale")
        log(f"left out: {summary(skipped)}")
        versions = {"python": platform.python_version(), "torch": torch.__version__, "whisper": whisper.__version__}
        self.results: dict[str, Any] = {
            "rows": [],
            "environment": versions,
            "normalization": config.normalize,
            # A reciter of a few surahs lacks audio for most texts: these are counted above, but not listed.
            "skipped": [asdict(item) for item in skipped if item.reason != "text without audio"],
        }

    def seconds(self, ayah: Ayah) -> float:
        """Return the length of its recording."""
        return self.cache.length(ayah.audio) / SAMPLE_RATE

    def evaluate_model(self, source: str) -> None:
        """Make the predictions that are missing, and add the model's rows to the results.

        Raises:
            UserError: the checkpoint, or the precision on this device, must be changed.
        """
        config, device, name = self.config, self.device, printable(source)
        files = _identity(source)  # before the weights are read: a training run may replace them meanwhile
        model = load_checkpoint(source, device)
        before = self.predictions.made["models"].get(name, {"identity": {}})["identity"].get("precision")
        precision = choose_precision(config.precision, device, model, before)
        self.results["environment"]["precision"] = precision.name
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.log(f"{name}: {parameters / 1e6:.0f} M parameters, {precision.name} on {device} ({precision.reason})")
        facts = {"parameters": parameters, "precision": precision.name}
        identity = {"files": files, "precision": precision.name}
        identities = {name: identity}
        if config.constrain:
            identities[name + CONSTRAINED] = identity | {"text": self.text_digest}
        encoder, batch_size = FrozenEncoder(model, precision.dtype), config.batch_size or _default_batch(model)
        transcribe = partial(
            transcribe_clips, encoder, batch_size=batch_size, log=self.log, recognizer=self.recognizer,
            language=config.language, dtype=precision.dtype, context=config.context,
            fallback=not config.no_fallback, stop_loops=not config.no_fallback,
        )  # fmt: skip
        for each in identities.items():
            self._start(*each)
        # From here on results.json records how the predictions are made, even if they are interrupted.
        self._write_results()
        for reciter in self.ayat:
            try:
                self._predict([*identities], transcribe, reciter)
            finally:
                self._write_results()
            self.results["rows"] += [self._row(each, reciter) | facts for each in identities]

    def _start(self, name: str, identity: Row) -> None:
        """Begin with the predictions under ``name``, and log how many of them are there already."""
        self.predictions.start(name, identity)
        present = sum(key_of(name, ayah) in self.predictions.rows for ayah in self.all_ayat)
        current = sum(self._is_current([name], ayah) for ayah in self.all_ayat)
        if current:
            self.log(f"{name}: {current} predictions are there already")
        if stale := present - current:
            self.log(f"{name}: {stale} predictions are of other audio or another text: they are made again")

    def _is_current(self, names: Iterable[str], ayah: Ayah) -> bool:
        rows, about = [self.predictions.rows.get(key_of(name, ayah)) for name in names], self._about(ayah)
        return all(row and all(getattr(row, name) == value for name, value in about.items()) for row in rows)

    def _about(self, ayah: Ayah) -> dict[str, Any]:
        """Return what a prediction of ``ayah`` holds that does not depend on the model."""
        return {
            "duration": round(self.seconds(ayah), 3),
            "reference": self.normalize(ayah.text),
            "diacritics": count_diacritics(ayah.text),
            "audio": self.cache.digest(ayah.audio),
        }

    def _predict(self, names: Sequence[str], transcribe: partial, reciter: str) -> None:
        """Predict the ayat of ``reciter`` that have no current prediction."""
        waiting = [ayah for ayah in self.ayat[reciter] if not self._is_current(names, ayah)]
        if not waiting:
            return
        decoded = transcribe(_Clips(waiting, self.cache))
        start, audio, errors = time.perf_counter(), 0.0, ErrorCounts()
        total = len(self.ayat[reciter])
        with progress_bar(total, "ayah", reciter, initial=total - len(waiting), disable=self.config.quiet) as bar:
            try:
                for transcript in decoded:
                    ayah = waiting[transcript.clip]
                    for name in names:
                        self.predictions.append(self._prediction(name, ayah, transcript))
                    row = self.predictions.rows[key_of(names[0], ayah)]
                    audio += row.duration
                    errors += row.alignment.errors
                    bar.update()
                    bar.set_postfix(wer=f"{100 * errors.wer:.2f}%", refresh=False)
            finally:
                for name in names:
                    self.predictions.add_time(name, reciter, time.perf_counter() - start, audio)

    def _prediction(self, name: str, ayah: Ayah, transcript: Transcript) -> Prediction:
        """Make a row of a transcript, or, under a constrained name, of the words of the Qur'an found in it."""
        place, located = "", 0
        if self.recognizer and name.endswith(CONSTRAINED):
            found, quran = transcript.found, self.recognizer.quran
            transcript = replace(transcript, text=self.recognizer.join_words(found), temperature=0.0)
            place = "; ".join(quran.describe(span) for span in joined(each.span for each in found))
            located = int(_is_located(ayah, found, quran))
        about, marks = self._about(ayah), ErrorCounts()
        if about["diacritics"]:
            marks = count_diacritic_errors(ayah.text, transcript.text)
        return Prediction(
            *key_of(name, ayah),
            hypothesis=self.normalize(transcript.text),
            fallback=transcript.temperature,
            letters=marks.letters,
            diacritic_errors=marks.diacritic_errors,
            place=place,
            located=located,
            **about,
        )

    def _row(self, name: str, reciter: str) -> Row:
        """Make a row of the table: sums over the ayat, and rates of those sums."""
        ayat = self.ayat[reciter]
        rows = [self.predictions.rows[key_of(name, ayah)] for ayah in ayat]
        errors = sum((row.errors for row in rows), ErrorCounts())
        wall, audio = self.predictions.made["models"][name]["seconds"].get(reciter, (0.0, 0.0))
        is_locatable = name.endswith(CONSTRAINED) and ayat[0].surah is not None
        counts = ("words", "hits", "substitutions", "deletions", "insertions", "letters", "diacritic_errors")
        return {
            "model": name,
            "reciter": reciter,
            "ayat": len(ayat),
            "skipped": self.undecodable[reciter],
            **{count: getattr(errors, count) for count in counts},
            **rates_of(rows),
            "fallback": sum(row.fallback > 0 for row in rows),
            "located": sum(row.located for row in rows) if is_locatable else None,
            "audio_s": sum(row.duration for row in rows),
            "wall_s": wall,
            "rtf": wall / audio if audio else None,
        }

    def finish(self) -> list[Row]:
        """Write the table and the report, and return the rows of the table."""
        self.predictions.write()
        rows, out = self.results["rows"], self.config.out
        requested = {key_of(row["model"], each) for row in rows for each in self.ayat[row["reciter"]]}
        reported = [row for key, row in self.predictions.rows.items() if key in requested]
        found = differences(reported)
        novelty = self._novelty(*self.heard) if self.heard else []
        self.results |= {"overall": overall(reported), "differences": found, "novelty": novelty}
        self.results |= count_kinds(reported)
        self._write_results()
        table = results_table(rows)
        for texts in (novelty, differences_table(found) if found else []):
            if texts:
                header, *lines = ([_cell(text) for text in line] for line in texts)
                table += "\n" + markdown_table(header, lines)
        with atomic_write(out / "results.md") as file:
            file.write(table)
        write_report(out / "report.html", reported, self.results, self._recordings())
        took = format_duration(time.perf_counter() - self.started)
        self.log(f"\n{table}\ndone in {took}; every error, word by word: {out / 'report.html'}")
        return rows

    def _novelty(self, voices: set[str], texts: set[str]) -> list[list[str]]:
        """Arrange the WER by whether the voice and the text were trained on, as a table, its header first."""
        groups = defaultdict(list)
        for row in self.results["rows"]:
            voice = "known" if row["reciter"] in voices else "new"
            for ayah in self.ayat[row["reciter"]]:
                text = "known" if letters(ayah.text) in texts else "new"
                prediction = self.predictions.rows[key_of(row["model"], ayah)]
                groups[row["model"], voice, text].append(prediction)
        kinds = list(product(("known", "new"), repeat=2))
        table = [["WER (recordings)", *(f"{voice} voice, {text} text" for voice, text in kinds)]]
        for model in dict.fromkeys(model for model, *_ in groups):
            table.append([model])
            for voice, text in kinds:
                found = groups[model, voice, text]
                rates = rates_of(found)
                table[-1].append(f"{plus_minus(rates['wer'], rates['wer_interval'])} ({len(found)})")
        return table

    def _recordings(self) -> dict[Key, tuple[str, bool]]:
        """Link the recordings for the report, or embed them; by their key without the model."""
        config, damaged, found = self.config, set(self.cache.damaged), {}
        if config.embed_audio:
            size = format_size(embedded_size(sum(map(self.seconds, self.all_ayat))))
            self.log(f"putting the audio into {config.out / 'report.html'}: {size}")
        for ayah in self.all_ayat:
            if config.embed_audio:
                address = data_address(self.cache.read(ayah.audio))
            elif as_part(ayah.audio).column:
                continue  # a page cannot play what is inside a table
            else:
                address = relative_address(ayah.audio, config.out)
            found[key_of("", ayah)] = address, ayah.audio in damaged
        return found

    def _write_results(self) -> None:
        results = self.results | {"made_with": self.predictions.made}
        with atomic_write(self.config.out / "results.json") as file:
            json.dump(results, file, indent=2, ensure_ascii=False, allow_nan=False)


def _check_models(sources: Iterable[str], language: str) -> None:
    """Check all models before hours are spent on the first of them."""
    named = named_dims()  # without some names of the large ones, which are multilingual
    for source in sources:
        try:
            known = named.get(source, named["large-v3"]) if source in WHISPER_NAMES else None
            tokenizer_for(known or read_checkpoint(source).dims, language)
        except UserError as error:
            raise UserError(str(error) if source in str(error) else f"{source}: {error}") from None


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
    rates = {row["reciter"]: ["wer", "cer"] for row in rows}
    rates |= {row["reciter"]: ["wer", "cer", "der"] for row in rows if row["der"] is not None}
    columns = [_cell(f"{name} WER ({', '.join(others).upper()})") for name, (_, *others) in rates.items()]
    lines, notes = [], ""
    for model in dict.fromkeys(row["model"] for row in rows):
        its_rows = [row for row in rows if row["model"] == model]
        texts = [[plus_minus(row[rate], row[f"{rate}_interval"]) for rate in rates[row["reciter"]]] for row in its_rows]
        # wall_s / rtf is the audio that was timed: after an interruption it may be less than all.
        timed = [row for row in its_rows if row["rtf"]]
        audio = sum(row["wall_s"] / row["rtf"] for row in timed)
        speed = f"{_total(timed, 'wall_s') / audio:.4f}" if audio else "–"
        cells = [f"{wer} ({', '.join(others)})" for wer, *others in texts]
        lines.append([_cell(model), f"{its_rows[0]['parameters'] / 1e6:.0f} M", *cells, speed])
        if its_rows[0]["located"] is not None:
            ayat = _total(its_rows, "ayat")
            which = f"{share(_total(its_rows, 'located'), ayat)} of {ayat} recordings"
            notes += f"\nlocated: {model} names the ayat that were recited in {which}\n"
    table = markdown_table(["model", "parameters", *columns, "real-time factor"], lines)
    if fallbacks := _total(rows, "fallback"):
        recordings = _total([row for row in rows if not row["model"].endswith(CONSTRAINED)], "ayat")
        table += f"\nfallback: {fallbacks} of {recordings} recordings were decoded again at higher temperatures\n"
    return table + notes


def _total(rows: Iterable[Row], name: str) -> Any:
    return sum(row[name] for row in rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _is_located(ayah: Ayah, found: Sequence[Candidate], quran: Quran) -> bool:
    """Return whether the spans ``found`` are of this ``ayah``; a single one, anywhere its words occur."""
    recited = {(ayah.surah, ayah.number)}
    if len(found) == 1:
        return any(set(quran.ayat(span)) == recited for span in quran.locate(quran.words(found[0].span)))
    return {ayah for each in found for ayah in quran.ayat(each.span)} == recited


def _identity(source: str) -> list[list[Any]]:
    """Identify a checkpoint by the sizes and modification times of its files."""
    if source in WHISPER_NAMES:
        return []
    path = find_checkpoint(source)
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
