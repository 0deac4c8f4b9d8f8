"""The model card: README.md of a Hugging Face folder, with front matter for the Hub.

It describes the weights and, if the checkpoint is in a run's folder, the run, from ``config.json`` and
``metrics.jsonl``. These files are as untrusted as a checkpoint: damaged parts are left out, and names are escaped. Only
the last part of a path is shown.
"""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any

from ..config import TrainingConfig
from ..runtime import __version__
from ..runtime.console import markdown_table, percent, printable
from ..runtime.errors import UserError
from .checkpoint import Checkpoint, read_json
from .dims import ENGLISH_VOCAB, size_name, tokenizer_for
from .names import WHISPER_NAMES
from .results import Row, best_epoch, read_rows, results_table, valid_rows

_OF_A_RUN = re.compile(r"(best|epoch-(\d{3,}))\.pt")
_MOST_BYTES = 1 << 30  # of a metrics.jsonl
_MOST_RECITERS = 20  # named one by one
_NOT_IN_THE_RECIPE = {"train_reciters", "valid_reciters", "model", "language", "no_vanilla"}
# Names that differ from openai/whisper-NAME on the Hub.
_HUB_NAMES = {"large-v1": "large", "large": "large-v3", "turbo": "large-v3-turbo"}


@dataclass(frozen=True)
class Run:
    """The run of a checkpoint, as far as the files in its folder exist and can be read."""

    config: TrainingConfig | None = None
    described: Mapping[str, Any] = field(default_factory=dict)  # config.json
    rows: list[Row] = field(default_factory=list)  # of metrics.jsonl
    row_name: str = ""  # this checkpoint's row in the table of results, if it is known
    row: Mapping[str, Row] = field(default_factory=dict)  # its metrics, by reciter

    @property
    def is_quran(self) -> bool:
        """Return True if it is known to be trained on the Qur'an, and not on a manifest or the demo."""
        return self.config is not None and self.config.manifest is None and not self.config.demo

    def amounts(self, split: str) -> dict[str, tuple[int, float]]:
        """Return ayat and hours of each reciter of "train" or "valid"; empty if ``config.json`` lacks them."""
        with suppress(LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            reciters = self.described["data"][split].items()
            return {str(name): (int(amount["ayat"]), float(amount["hours"])) for name, amount in reciters}
        return {}

    def word(self, *keys: str) -> str:
        """Return the string at ``keys`` in ``config.json``; a dash if there is none."""
        value: Any = self.described
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return _text(value) if isinstance(value, str | int) else "–"


def read_run(checkpoint: Path) -> Run:
    """Read the run from the folder of ``checkpoint``; an empty :class:`Run` if it is no run's checkpoint."""
    name = _OF_A_RUN.fullmatch(checkpoint.name)
    if name is None:
        return Run()
    config, described = None, {}
    rows: list[Row] = []
    options, metrics = checkpoint.with_name("config.json"), checkpoint.with_name("metrics.jsonl")
    with suppress(OSError, UserError, LookupError, TypeError, AttributeError):
        if options.is_file():
            known = {field.name for field in fields(TrainingConfig)}
            described = read_json(options)
            config = TrainingConfig(**{name: value for name, value in described["config"].items() if name in known})
    with suppress(OSError):
        if metrics.is_file() and metrics.stat().st_size < _MOST_BYTES:
            rows, _ = read_rows(metrics)
    epoch = best_epoch(rows) if name[1] == "best" else int(name[2])
    measured = valid_rows(rows).get(epoch, {}) if epoch is not None else {}
    return Run(config, described if config else {}, rows, str(epoch) if measured else "", measured)


def model_card(checkpoint: Checkpoint, language: str) -> str:
    """Return the card of ``checkpoint``, which transcribes ``language`` unless it is English-only."""
    dims = checkpoint.dims
    language = tokenizer_for(dims, language if dims.n_vocab > ENGLISH_VOCAB else "en").language or "en"
    run = read_run(checkpoint.source)
    size = size_name(dims)
    title = f"Whisper {size}" if size else "Whisper"
    if run.is_quran:
        title += ", fine-tuned on Qur'an recitation"
    parts = [
        _front_matter(run, title, language),
        f"# {title}",
        _weights(checkpoint),
        *(_described(run) if run.config or run.rows else [_UNKNOWN]),
        *(_measured(run) if valid_rows(run.rows) else []),
        _use(language),
        *([_LIMITS] if run.is_quran else []),
        _LICENCE,
        f"Written by whisper_quran {__version__}.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _front_matter(run: Run, title: str, language: str) -> str:
    """Return the YAML that the Hub reads; its strings are JSON strings, which are valid YAML."""
    lines = ["---", f"language: [{_quoted(language)}]", "# license: to be filled in, see below"]
    lines += ["library_name: transformers", "pipeline_tag: automatic-speech-recognition"]
    if base := _base_model(run):
        lines.append(f"base_model: {_quoted(base)}")
    lines += [f"tags: [whisper{', quran, recitation' if run.is_quran else ''}]", "metrics: [wer, cer]"]
    measured = {name: row for name, row in run.row.items() if row["wer"] is not None}
    if measured:
        lines += ["model-index:", f"- name: {_quoted(title)}", "  results:"]
    for reciter, row in measured.items():
        rates = {name: row[name] for name in ("wer", "cer") if row[name] is not None}
        lines += [
            "  - task: {type: automatic-speech-recognition, name: Speech recognition}",
            f"    dataset: {{type: recordings, name: {_quoted(reciter)}}}",
            "    metrics:",
            *(
                f"    - {{type: {name}, name: {_quoted(f'{name.upper()} in percent, without diacritics')}, "
                f"value: {100 * rate:.2f}}}"
                for name, rate in rates.items()
            ),
        ]
    return "\n".join([*lines, "---"])


def _base_model(run: Run) -> str | None:
    """Return the name on the Hub of the model that the run started from, if it was one of OpenAI's."""
    name = Path(run.config.model).name.removesuffix(".pt") if run.config else ""
    return f"openai/whisper-{_HUB_NAMES.get(name, name)}" if name in WHISPER_NAMES else None


def _weights(checkpoint: Checkpoint) -> str:
    dims = checkpoint.dims
    parameters = sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())
    return (
        f"{parameters / 1e6:.1f} M parameters: {dims.n_audio_layer} encoder and {dims.n_text_layer} decoder layers, "
        f"{dims.n_text_state} wide, {dims.n_mels} mel bins, {dims.n_vocab:,} tokens."
    )


def _described(run: Run) -> Iterable[str]:
    """Yield the paragraphs on base model, data and recipe."""
    yield "## How it was made"
    config = run.config
    if config is None:
        yield "The run's `config.json` is missing or damaged: on what and how it was trained is not known here."
        return
    part = "The whole model" if config.train_encoder else "The decoder"
    adapted = f" by adapters of rank {config.lora}, which are in the weights" if config.lora else ""
    made_up = ", on made-up voices (`--demo`)" if config.demo else ""
    yield f"{part} of `{_code(Path(config.model).name)}` was trained{adapted}{made_up}, with whisper_quran."
    rows = []
    for split, purpose in (("train", "training"), ("valid", "validation")):
        named = getattr(config, f"{split}_reciters") or ()
        amounts = run.amounts(split)
        if len(amounts) > _MOST_RECITERS:
            ayat, hours = map(sum, zip(*amounts.values(), strict=True))
            amounts = {f"{len(amounts)} reciters": (ayat, hours)}
        rows += [[_text(name), purpose, f"{ayat}", f"{hours:.2f}"] for name, (ayat, hours) in amounts.items()]
        rows += [[_text(name), purpose, "–", "–"] for name in named if not amounts]
    if rows:
        yield markdown_table(["reciter", "used for", "ayat", "hours"], rows)
    source = config.manifest or config.text
    if source:
        yield f"Texts: `{_code(source.name)}`."
    yield _recipe(run, config)


def _recipe(run: Run, config: TrainingConfig) -> str:
    """Return the options that determine a run's results, except those that are off."""
    lines = [f"Clips a step: {run.word('global_batch')}; precision: {run.word('chosen', 'precision')}; options:\n"]
    for each in fields(config):
        value = getattr(config, each.name)
        off = value is None or value is False or value == each.default == 0
        if each.metadata.get("fixed") and each.name not in _NOT_IN_THE_RECIPE and not off:
            shown = "" if value is True else f" {_code(str(value))}"
            lines.append(f"- `--{each.name.replace('_', '-')}{shown}`: {_text(each.metadata['help'])}")
    versions = f"whisper_quran {run.word('versions', 'whisper_quran')}, PyTorch {run.word('versions', 'torch')}"
    return "\n".join([*lines, f"\nVersions in training: {versions}."])


def _measured(run: Run) -> Iterable[str]:
    """Yield the paragraphs on the run's metrics and this checkpoint's row in the table."""
    yield "## What was measured"
    table = results_table(row | {"reciter": _text(row["reciter"])} for row in run.rows if row["event"] == "valid")
    if run.row_name:
        table = table.replace(f"\n| {run.row_name} |", f"\n| **{run.row_name}** |")
        rates = (
            f"{_text(name)}: WER {percent(row['wer'])}, CER {percent(row['cer'])}" for name, row in run.row.items()
        )
        yield f"This checkpoint is the row **{run.row_name}** ({'; '.join(rates)})."
    else:
        yield "Which row this checkpoint is, is not known."
    yield table
    heard = sorted(run.amounts("train").keys() & run.row.keys())
    yield (
        "Word and character error rates (WER, CER) are by decoding each ayah from its audio alone, without diacritics. "
        + ("`vanilla` is the model before training. " if -1 in valid_rows(run.rows) else "")
        + (f"In the training data too: {', '.join(map(_text, heard))}." if heard else "")
    )


def _use(language: str) -> str:
    return f"""\
## How to use it

```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="PATH")  # this folder, or its name on the Hub
print(recognise("001001.mp3")["text"])  # chunk_length_s=30 for recordings of more than 30 s
```

With openai-whisper, after `python convert.py PATH model.pt` of whisper_quran:

```python
import whisper

print(whisper.load_model("model.pt").transcribe("001001.mp3", language={json.dumps(language)})["text"])
```"""


_UNKNOWN = """\
## How it was made

This is not known here: the checkpoint that was converted did not lie in the folder of a run of whisper_quran, so this
card lists only what is in the weights."""

_LIMITS = """\
## What it is for, and its limits

It writes down recitation of the Qur'an: to find, align or label recordings, or as a start for further training.

- It makes mistakes: words that are left out, doubled, or of another ayah. Its text is no mushaf; check it against one.
- It does not judge a recitation. It has learnt the text, and may write what is usually recited and not what was said;
  it knows nothing of tajwid.
- Rates measured on some voices do not hold for all: children, phones, echo, noise and other styles may do worse.
- The ayat it was measured on may be among those it was trained on, in other voices: that says little of other texts.
- Other Arabic, and other languages, it may do worse than the Whisper that it was made from."""

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
