"""The model card: README.md of a Hugging Face folder, with front matter for the Hub.

It describes the weights and, if the checkpoint is in a run's folder, the run, from ``config.json`` and
``metrics.jsonl``. These files are as untrusted as a checkpoint: damaged parts are left out, and names are escaped. Only
the last part of a path is shown.
"""

import json
import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..config import TrainingConfig
from ..runtime import __version__
from ..runtime.console import markdown_table, printable
from ..runtime.errors import UserError
from .checkpoint import Checkpoint, read_json
from .dims import ENGLISH_VOCAB, size_name, tokenizer_for
from .names import WHISPER_NAMES
from .results import Row, best_epoch, read_rows, results_table, valid_rows

_NOT_IN_THE_RECIPE = {"train_reciters", "valid_reciters", "model", "language", "no_vanilla"}
# Names that differ from openai/whisper-NAME on the Hub.
_HUB_NAMES = {"large-v1": "large", "large": "large-v3", "turbo": "large-v3-turbo"}


def model_card(checkpoint: Checkpoint, language: str) -> str:
    """Return the card of ``checkpoint``, which transcribes ``language`` unless it is English-only."""
    dims, size = checkpoint.dims, size_name(checkpoint.dims)
    language = tokenizer_for(dims, language if dims.n_vocab > ENGLISH_VOCAB else "en").language or "en"
    described, rows, epoch = _read_run(checkpoint.source)
    config = described.get("config")
    config = config if isinstance(config, dict) else {}
    is_quran = bool(config) and not config.get("manifest") and not config.get("demo")
    title = f"Whisper {size}" if size else "Whisper"
    if is_quran:
        title += ", fine-tuned on Qur'an recitation"
    measured = {} if epoch is None else valid_rows(rows).get(epoch, {})
    measured = {reciter: row for reciter, row in measured.items() if None not in (row["wer"], row["cer"])}
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    parts = [
        _front_matter(title, language, str(config.get("model", "")), is_quran, measured),
        f"# {title}",
        f"{parameters / 1e6:.1f} M parameters: {dims.n_audio_layer} encoder and {dims.n_text_layer} decoder layers, "
        f"{dims.n_text_state} wide, {dims.n_mels} mel bins, {dims.n_vocab:,} tokens.",
        "## How it was made",
        _how_it_was_made(described, config) if config else "Not known here: there is no run's `config.json` beside it.",
        *(["## What was measured", _results(rows, epoch if measured else None)] if valid_rows(rows) else []),
        _USE,
        *([_LIMITS] if is_quran else []),
        _LICENCE,
        f"Written by whisper_quran {__version__}.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _read_run(checkpoint: Path) -> tuple[dict[str, Any], list[Row], int | None]:
    """Return ``config.json`` and the metrics beside a run's checkpoint, and its epoch; empty if it is none."""
    described: dict[str, Any] = {}
    rows: list[Row] = []
    name = re.fullmatch(r"best|epoch-(\d{3,})", checkpoint.stem)
    if name is None:
        return {}, [], None
    with suppress(OSError, UserError):
        if checkpoint.with_name("config.json").is_file():
            described = read_json(checkpoint.with_name("config.json"))
    with suppress(OSError):
        if checkpoint.with_name("metrics.jsonl").is_file():
            rows, _ = read_rows(checkpoint.with_name("metrics.jsonl"))
    return described, rows, int(name[1]) if name[1] else best_epoch(rows)


def _front_matter(title: str, language: str, model: str, is_quran: bool, measured: dict[str, Row]) -> str:
    """Return the YAML that the Hub reads; its strings are JSON strings, which are valid YAML."""
    lines = ["---", f"language: [{_quoted(language)}]", "# license: to be filled in, see below"]
    lines += ["library_name: transformers", "pipeline_tag: automatic-speech-recognition"]
    base = Path(model).name.removesuffix(".pt")
    if base in WHISPER_NAMES:
        lines.append(f"base_model: {_quoted(f'openai/whisper-{_HUB_NAMES.get(base, base)}')}")
    lines += [f"tags: [whisper{', quran, recitation' if is_quran else ''}]", "metrics: [wer, cer]"]
    if measured:
        lines += ["model-index:", f"- name: {_quoted(title)}", "  results:"]
    for reciter, row in measured.items():
        lines += ["  - task: {type: automatic-speech-recognition, name: Speech recognition}"]
        lines += [f"    dataset: {{type: recordings, name: {_quoted(reciter)}}}", "    metrics:"]
        for name in ("wer", "cer"):
            label = _quoted(f"{name.upper()} in percent, without diacritics")
            lines.append(f"    - {{type: {name}, name: {label}, value: {100 * row[name]:.2f}}}")
    return "\n".join([*lines, "---"])


def _how_it_was_made(described: dict[str, Any], config: dict[str, Any]) -> str:
    """Return the base model, the data and the options that determine a run's results."""
    model = Path(str(config.get("model"))).name
    part = "The whole model" if config.get("train_encoder") else "The decoder"
    lines = [f"{part} of `{_code(model)}` was trained with whisper_quran, on these reciters:\n"]
    rows = []
    for split in ("train", "valid"):
        with suppress(LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            for name, amount in described["data"][split].items():
                rows.append([_text(name), split, f"{int(amount['ayat'])}", f"{float(amount['hours']):.2f}"])
    lines.append(markdown_table(["reciter", "split", "ayat", "hours"], rows))
    options = []
    for option in fields(TrainingConfig):
        value = config.get(option.name)
        if option.metadata.get("fixed") and option.name not in _NOT_IN_THE_RECIPE and value not in (None, False):
            name = f"--{option.name.replace('_', '-')}"
            options.append(name if value is True else f"{name} {_code(str(value))}")
    lines.append(f"Options: `{' '.join(options)}`; clips a step: {_text(described.get('global_batch', '–'))}.")
    return "\n".join(lines)


def _results(rows: list[Row], epoch: int | None) -> str:
    table = results_table([row | {"reciter": _text(row["reciter"])} for row in rows if row["event"] == "valid"])
    if epoch is not None:
        table = table.replace(f"\n| {epoch} |", f"\n| **{epoch}** |")
    which = "not known" if epoch is None else f"row **{epoch}**"
    return (
        f"{table}\nThis checkpoint: {which}. `vanilla` is the model before training. Word and character error rates "
        "(WER, CER) are by decoding each ayah from its audio alone, without diacritics."
    )


_USE = """\
## How to use it

```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="PATH")  # this folder, or its name on the Hub
print(recognise("001001.mp3")["text"])  # chunk_length_s=30 for recordings of more than 30 s
```

`python convert.py PATH model.pt` of whisper_quran makes a file that `whisper.load_model` opens."""

_LIMITS = """\
## What it is for, and its limits

It writes down recitation of the Qur'an: to find, align or label recordings, or as a start for further training. It
makes mistakes (words left out, doubled, or of another ayah): its text is no mushaf. It does not judge a recitation: it
may write what is usually recited and not what was said, and knows nothing of tajwid. Rates measured on some voices do
not hold for children, phones, echo or other styles, nor rates on ayat of the training data for other texts."""

_LICENCE = """\
## Licence

To be filled in by whoever publishes this, here and as `license` in the front matter. OpenAI published Whisper under the
MIT licence; recordings and text that a model is trained on have licences of their own."""


def _text(value: object) -> str:
    """Escape ``value`` for Markdown, on one line, cut to 100 characters."""
    return re.sub(r"([\\`*\[\]<>|#~&$])", r"\\\1", printable(str(value)[:100]))


def _code(name: str) -> str:
    """Escape ``name`` for a code span, cut to 100 characters."""
    return printable(name[:100]).replace("`", "'")


def _quoted(text: str) -> str:
    return json.dumps(printable(text[:200]), ensure_ascii=False)
