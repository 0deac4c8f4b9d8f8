"""Convert a Whisper from any checkpoint into a Whisper `.pt`, a Hugging Face or a CTranslate2 folder.

A Hugging Face folder gets a model card, README.md with front matter for the Hub. It describes the weights and, if the
checkpoint is in a run's folder, the run, from ``config.json`` and ``metrics.jsonl``. These files are as untrusted as a
checkpoint: damaged parts are left out, and names are escaped. Only the last part of a path is shown.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from .checkpoints import huggingface
from .checkpoints.checkpoint import Checkpoint, read_checkpoint, read_json, write_checkpoint
from .checkpoints.dims import ENGLISH_VOCAB, size_name, tokenizer_for
from .checkpoints.names import WHISPER_NAMES
from .runtime import __version__
from .runtime.console import format_size, markdown_table, printable
from .runtime.device import DTYPES
from .runtime.errors import UserError
from .runtime.files import atomic_write, check_outputs, lock_folder, writing
from .training.metrics_log import Row, best_epoch, read_rows, results_table

# CTranslate2's converter takes these from the Hugging Face folder; it writes the others.
COPIED = ("tokenizer.json", "preprocessor_config.json")
# All files that a conversion may write, and replace, in a folder.
FILES = {"hf": huggingface.FILES, "ct2": {"model.bin", "config.json", "vocabulary.json", *COPIED}}
# Names that differ from openai/whisper-NAME on the Hub.
_HUB_NAMES = {"large-v1": "large", "large": "large-v3", "turbo": "large-v3-turbo"}


def convert(
    source: str | Path,
    dest: str | Path,
    *,
    to: str = "openai",
    dtype: str = "fp16",
    language: str = "ar",
    force: bool = False,
) -> str:
    """Convert the Whisper in ``source`` and return a report of what was read, left out and written.

    ``dest`` is written in a hidden folder beside it, then renamed. ``to`` is "openai", "hf" or "ct2"; ``dtype`` is
    "fp16", "bf16" or "fp32"; ``language`` is the default language of a Hugging Face Whisper.

    Raises:
        UserError: ``source`` is no checkpoint that :func:`read_checkpoint` opens, ``dest`` cannot be written, or is
            there already and not ``force``, or CTranslate2 is not installed.
    """
    dest = Path(os.path.abspath(dest))
    if to == "ct2":
        _import_converter()
    checkpoint = read_checkpoint(source)
    work = dest.with_name(f".{dest.name}.tmp")
    _restore(work, dest)
    _check_dest(checkpoint.source, dest, to, force)
    with lock_folder(work, "conversion", "DEST"), writing(dest):
        try:
            for name in ("old", *FILES):  # of a conversion that was killed
                shutil.rmtree(work / name, ignore_errors=True)
            if to == "openai":
                write_checkpoint(work / to, checkpoint.dims, checkpoint.tensors, DTYPES[dtype])
            else:
                _write_folder(work, checkpoint, to, dtype, language)
            _replace(work, work / to, dest)
        finally:
            _restore(work, dest)
            shutil.rmtree(work, ignore_errors=True)
    return _report(checkpoint, dest, f"{to}, {dtype}")


def _check_dest(source: Path, dest: Path, to: str, force: bool) -> None:
    """Raise a :class:`UserError` if content of ``dest`` would be lost."""
    check_outputs([dest], [source], mark=b"")
    if dest.is_dir() and to == "openai":
        raise UserError(f"{dest} is a folder: give DEST the name of a file, such as {dest / 'model.pt'}")
    if os.path.lexists(dest) and not force:
        raise UserError(f"{dest} is there already: give another DEST, or --force to replace it")
    if os.path.lexists(dest) and to != "openai":
        if not dest.is_dir() or dest.is_symlink():
            raise UserError(f"{dest} is no folder: give DEST the name of a folder")
        if others := sorted({entry.name for entry in dest.iterdir()} - FILES[to]):
            raise UserError(
                f"{dest} holds more than a conversion ({others[0]!r}): --force would lose it; give another DEST"
            )


def _import_converter() -> type:
    """Import CTranslate2's converter, which needs the extra ``ct2``."""
    try:
        import transformers  # noqa: F401
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise UserError(
            f"--to ct2 needs two libraries ({error}): install them (pip install ctranslate2 transformers)"
        ) from error
    return TransformersConverter


def _write_folder(work: Path, checkpoint: Checkpoint, to: str, dtype: str, language: str) -> None:
    """Write the Hugging Face folder ``work/hf`` and, if that is asked for, from it the CTranslate2 folder."""
    (work / "hf").mkdir()
    huggingface.write(work / "hf", checkpoint.dims, checkpoint.tensors, DTYPES[dtype], language)
    if to == "hf":
        with atomic_write(work / "hf" / "README.md") as file:
            file.write(model_card(checkpoint, language))
    else:
        converter = _import_converter()(str(work / "hf"), copy_files=list(COPIED))
        converter.convert(str(work / "ct2"), quantization=str(DTYPES[dtype]).removeprefix("torch."))


def _replace(work: Path, new: Path, dest: Path) -> None:
    """Rename ``new`` to ``dest``, a folder that is there out of the way first."""
    if dest.is_dir():
        dest.rename(work / "old")
    new.rename(dest)


def _restore(work: Path, dest: Path) -> None:
    """Put back a folder whose replacement was interrupted between the two renames of :func:`_replace`."""
    if (work / "old").exists() and not dest.exists():
        (work / "old").rename(dest)


def _report(checkpoint: Checkpoint, dest: Path, written: str) -> str:
    dims = checkpoint.dims
    size = size_name(dims) or f"{dims.n_audio_layer} + {dims.n_text_layer} layers of {dims.n_text_state}"
    lines = [f"read {checkpoint.source}: {size}, {len(checkpoint.tensors)} tensors"]
    if checkpoint.left_out:
        lines.append(f"left out {len(checkpoint.left_out)} that are not Whisper's: {', '.join(checkpoint.left_out)}")
    files = list(dest.iterdir()) if dest.is_dir() else [dest]
    lines.append(f"wrote {dest}: {written}, {format_size(sum(file.stat().st_size for file in files))}")
    return "\n".join(lines)


def model_card(checkpoint: Checkpoint, language: str) -> str:
    """Return a page about ``checkpoint``, which transcribes ``language`` unless it is English-only."""
    dims, size = checkpoint.dims, size_name(checkpoint.dims)
    language = tokenizer_for(dims, language if dims.n_vocab > ENGLISH_VOCAB else "en").language or "en"
    config, reciters, rows, epoch = _read_run(checkpoint.source)
    base = Path(str(config.get("model"))).name.removesuffix(".pt")
    title, tags = f"Whisper {size}" if size else "Whisper", "whisper"
    is_quran = bool(config) and not config.get("manifest") and not config.get("demo")
    if is_quran:
        title, tags = f"{title}, fine-tuned on Qur'an recitation", "whisper, quran, recitation"
    lines = ["---", f'language: ["{language}"]', "# license: to be filled in, see below"]
    lines += ["library_name: transformers", "pipeline_tag: automatic-speech-recognition"]
    if base in WHISPER_NAMES:
        lines.append(f"base_model: openai/whisper-{_HUB_NAMES.get(base, base)}")
    lines += [f"tags: [{tags}]", "metrics: [wer, cer]", "---", f"# {title}\n"]
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    lines.append(
        f"{parameters / 1e6:.1f} M parameters: {dims.n_audio_layer} encoder and {dims.n_text_layer} decoder layers, "
        f"{dims.n_text_state} wide, {dims.n_mels} mel bins, {dims.n_vocab:,} tokens.\n"
    )
    if config:
        part = "The whole model" if config.get("train_encoder") else "The decoder"
        lines.append(f"## Data\n\n{part} of {_text(base)} was trained with whisper_quran on these reciters:\n")
        lines.append(markdown_table(["reciter", "split", "ayat", "hours"], reciters))
    if rows:
        table = results_table([row | {"reciter": _text(row["reciter"])} for row in rows])
        lines.append("## Rates\n\n" + table.replace(f"\n| {epoch} |", f"\n| **{epoch}** |"))
        lines.append(f"This checkpoint is of epoch {epoch}; `vanilla` is the model before training. {_RATES}")
    return "\n".join(
        [*lines, _USE, *([_LIMITS] if is_quran else []), _LICENCE, f"Written by whisper_quran {__version__}."]
    )


def _read_run(checkpoint: Path) -> tuple[dict[str, Any], list[list[str]], list[Row], int | None]:
    """Return the options of the run that saved ``checkpoint``, a row for each of its reciters, the rows of its
    validation, and the checkpoint's epoch, from the files beside it; empty if it is none."""
    name = re.fullmatch(r"best|epoch-(\d{3,})", checkpoint.stem)
    config, metrics = checkpoint.with_name("config.json"), checkpoint.with_name("metrics.jsonl")
    options: dict[str, Any] = {}
    reciters: list[list[str]] = []
    rows: list[Row] = []
    with suppress(OSError, UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        if name and config.is_file():
            described = read_json(config)
            options = dict(described["config"])
            for split in ("train", "valid"):
                for reciter, amount in described["data"][split].items():
                    numbers = [f"{int(amount['ayat'])}", f"{float(amount['hours']):.2f}"]
                    reciters.append([_text(reciter), split, *numbers])
    with suppress(OSError):
        if name and metrics.is_file():
            rows = [row for row in read_rows(metrics)[0] if row["event"] == "valid"]
    epoch = int(name[1]) if name and name[1] else best_epoch(rows)
    return options, reciters, rows, epoch


_RATES = "Error rates (WER, CER) are by decoding each ayah from its audio alone, without diacritics.\n"

_USE = """\
## How to use it

```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="PATH")  # this folder, or its name on the Hub
print(recognise("001001.mp3")["text"])  # chunk_length_s=30 for recordings of more than 30 s
```

`python convert.py PATH model.pt` of whisper_quran makes a file that `whisper.load_model` opens.
"""

_LIMITS = """\
It writes down recitation of the Qur'an: to find, align or label recordings. Its text has mistakes, and is no mushaf; it
does not judge a recitation, and knows nothing of tajwid. Rates on some voices do not hold for others.
"""

_LICENCE = """\
## Licence

To be filled in by whoever publishes this, here and as `license` in the front matter. OpenAI published Whisper under the
MIT licence; recordings and text that a model is trained on have licences of their own.
"""


def _text(value: object) -> str:
    """Escape ``value`` for Markdown, on one line, cut to 100 characters."""
    return re.sub(r"([\\`*\[\]<>|#~&$])", r"\\\1", printable(str(value)[:100]))
