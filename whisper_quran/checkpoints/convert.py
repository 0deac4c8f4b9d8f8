"""Convert a Whisper from any checkpoint into a Whisper `.pt`, a Hugging Face or a CTranslate2 folder."""

import ctypes
import os
import shutil
from pathlib import Path

from ..runtime.console import format_size
from ..runtime.device import DTYPES
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, check_outputs, lock_folder, make_folder, writing
from . import huggingface
from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .dims import size_name
from .model_card import model_card

# CTranslate2's converter takes these from the Hugging Face folder; it writes the others.
COPIED = ("tokenizer.json", "preprocessor_config.json")
# All files that a conversion may write, and replace, in a folder.
FILES = {"hf": huggingface.FILES, "ct2": {"model.bin", "config.json", "vocabulary.json", *COPIED}}
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


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

    ``dest`` is written beside its name, then renamed. ``to`` is "openai", "hf" or "ct2"; ``dtype`` is "fp16", "bf16" or
    "fp32"; ``language`` is the default language of a Hugging Face Whisper.

    Raises:
        UserError: ``source`` is no checkpoint that :func:`read_checkpoint` opens, ``dest`` cannot be written, or is
            there already and not ``force``, or CTranslate2 is not installed.
    """
    dest = Path(os.path.abspath(dest))
    if to == "ct2":
        _import_converter()
    checkpoint = read_checkpoint(source)
    _restore(dest)
    _check_dest(checkpoint.source, dest, to, force)
    make_folder(dest.parent)
    if to == "openai":
        write_checkpoint(dest, checkpoint.dims, checkpoint.tensors, DTYPES[dtype])
    else:
        _write_folder(dest, checkpoint, to, dtype, language)
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


def _write_folder(dest: Path, checkpoint: Checkpoint, to: str, dtype: str, language: str) -> None:
    """Write a Hugging Face or CTranslate2 folder in a hidden folder beside ``dest``, and put it in its place."""
    work = _work(dest)
    with lock_folder(work, "conversion"), writing(dest):
        try:
            for name in ("hf", "ct2"):  # of a conversion that was killed
                shutil.rmtree(work / name, ignore_errors=True)
            (work / "hf").mkdir()
            huggingface.write(work / "hf", checkpoint.dims, checkpoint.tensors, DTYPES[dtype], language)
            if to == "hf":
                with atomic_write(work / "hf" / "README.md") as file:
                    file.write(model_card(checkpoint, language))
            else:
                converter = _import_converter()(str(work / "hf"), copy_files=list(COPIED))
                converter.convert(str(work / "ct2"), quantization=str(DTYPES[dtype]).removeprefix("torch."))
            _replace_folder(work / to, dest)
        finally:
            _restore(dest)
            shutil.rmtree(work, ignore_errors=True)


def _work(dest: Path) -> Path:
    return dest.with_name(f".{dest.name}.tmp")


def _restore(dest: Path) -> None:
    """Put back a folder whose replacement was interrupted between the two renames of :func:`_replace_folder`."""
    old = _work(dest) / "old"
    if old.exists() and not dest.exists():
        old.rename(dest)


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


def _replace_folder(new: Path, dest: Path) -> None:
    """Rename ``new`` to ``dest``; a folder that is there is exchanged with it, so that there always is one."""
    if not dest.exists():
        new.rename(dest)
        return
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    if exchange and exchange(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(dest), RENAME_EXCHANGE) == 0:
        return
    dest.rename(_work(dest) / "old")  # macOS and some file systems cannot exchange
    new.rename(dest)


def _report(checkpoint: Checkpoint, dest: Path, written: str) -> str:
    dims = checkpoint.dims
    size = size_name(dims) or (
        f"no named size ({dims.n_audio_layer} + {dims.n_text_layer} layers of {dims.n_text_state}, "
        f"{dims.n_mels} mels, {dims.n_vocab} tokens)"
    )
    lines = [f"read {checkpoint.source}: {size}, {len(checkpoint.tensors)} tensors"]
    if checkpoint.left_out:
        lines.append(f"left out {len(checkpoint.left_out)} that are not Whisper's: {', '.join(checkpoint.left_out)}")
    files = list(dest.iterdir()) if dest.is_dir() else [dest]
    lines.append(f"wrote {dest}: {written}, {format_size(sum(file.stat().st_size for file in files))}")
    return "\n".join(lines)
