"""Carry a Whisper from any checkpoint file into a Whisper `.pt` or a Hugging Face folder."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.device import DTYPES
from ..runtime.errors import UserError
from ..runtime.files import make_folder, storage_error
from . import huggingface
from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .dims import size_name
from .huggingface_tokenizer import tokenizer_of


def convert(
    source: str | Path, dest: str | Path, *, to: str, dtype: str, language: str = "ar", force: bool = False
) -> str:
    """Convert the Whisper in ``source`` and return a report of what was read, left out and written.

    ``dest`` is written whole or not at all: beside its name, then renamed. ``to`` is "openai" or "hf"; ``dtype`` is
    "fp16" or "fp32"; ``language`` is what a Hugging Face Whisper transcribes by default.

    Raises:
        UserError: ``source`` is no checkpoint that :func:`read_checkpoint` opens, or ``dest`` cannot be written.
    """
    dest = Path(os.path.abspath(dest))
    _check_dest(Path(source), dest, to, force)
    checkpoint = read_checkpoint(source)
    make_folder(dest.parent)
    if to == "openai":
        tensors = ((name, tensor.read()) for name, tensor in checkpoint.tensors.items())
        write_checkpoint(dest, checkpoint.dims, tensors, DTYPES[dtype])
    else:
        with _whole_folder(dest) as folder:
            huggingface.write_folder(folder, checkpoint.dims, checkpoint.tensors, DTYPES[dtype], language)
    return _report(checkpoint, dest, to, dtype)


def _check_dest(source: Path, dest: Path, to: str, force: bool) -> None:
    if not os.path.lexists(dest):
        return
    if dest in (real := source.resolve(), *real.parents) or dest.resolve() in (real, *real.parents):
        raise UserError(f"{dest} is, or holds, SOURCE: give another DEST")
    if dest.is_dir() and to == "openai":
        raise UserError(f"{dest} is a folder: give DEST the name of a file, such as {dest / 'model.pt'}")
    if not force:
        raise UserError(f"{dest} is there already: give another DEST, or --force to replace it")
    if to == "hf":
        if not dest.is_dir() or dest.is_symlink():
            raise UserError(f"{dest} is no folder: give DEST the name of a folder")
        if others := sorted({entry.name for entry in dest.iterdir()} - huggingface.FILES):
            raise UserError(
                f"{dest} holds more than a conversion ({others[0]!r}): --force would lose it; give another DEST"
            )


@contextmanager
def _whole_folder(dest: Path) -> Iterator[Path]:
    """A new folder that takes ``dest``'s place when the block ends well, and is gone when it does not."""
    beside = dest.with_name(f".{dest.name}.{secrets.token_hex(4)}.tmp")
    replaced = beside.with_suffix(".old")
    try:
        beside.mkdir()
        yield beside
        if dest.exists():
            dest.rename(replaced)
        beside.rename(dest)
    except OSError as error:
        raise storage_error(error, dest) from error
    finally:
        if replaced.exists() and not dest.exists():
            replaced.rename(dest)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(beside, ignore_errors=True)


def _report(checkpoint: Checkpoint, dest: Path, to: str, dtype: str) -> str:
    dims = checkpoint.dims
    size = size_name(dims) or (
        f"no named size ({dims.n_audio_layer} + {dims.n_text_layer} layers of {dims.n_text_state}, "
        f"{dims.n_mels} mels, {dims.n_vocab} tokens)"
    )
    lines = [f"read {checkpoint.source}: {checkpoint.kind}, {size}, {len(checkpoint.tensors)} tensors"]
    if checkpoint.left_out:
        lines.append(f"left out {len(checkpoint.left_out)} that are not Whisper's: {', '.join(checkpoint.left_out)}")
    if tokenizer_of(dims.n_vocab) is None:
        files = "; no tokenizer files were written" if to == "hf" else ""
        lines.append(f"warning: no tokenizer of Whisper's has {dims.n_vocab} tokens{files}")
    files = [dest] if to == "openai" else list(dest.iterdir())
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    lines.append(f"wrote {dest}: {to}, {dtype}, {megabytes:,.1f} MB")
    return "\n".join(lines)
