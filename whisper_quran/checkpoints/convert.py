"""Convert a Whisper from any checkpoint into a Whisper `.pt`, a Hugging Face or a CTranslate2 folder."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from ..runtime.console import format_size
from ..runtime.device import DTYPES
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, make_folder, storage_error
from .checkpoint import Checkpoint, format_module, read_checkpoint
from .dims import size_name
from .huggingface import CARD
from .model_card import model_card

LEFT_BEHIND = 24 * 3600.0  # seconds without a change, after which a temporary file is removed


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

    ``dest`` is written atomically: under a temporary name, then renamed. ``to`` is one of :data:`names.FORMATS`;
    ``dtype`` is "fp16", "bf16" or "fp32"; ``language`` is the default language of a Hugging Face Whisper.

    Raises:
        UserError: ``source`` is no checkpoint that :func:`read_checkpoint` opens, or ``dest`` cannot be written.
    """
    dest = Path(os.path.abspath(dest))
    files = format_module(to).FILES
    checkpoint = read_checkpoint(source)
    _check_dest(checkpoint.source, dest, files, force)
    make_folder(dest.parent)
    _sweep(dest)
    tensors = ((name, tensor.read()) for name, tensor in checkpoint.tensors.items())
    with _whole_folder(dest) if files else nullcontext(dest) as path:
        format_module(to).write(path, checkpoint.dims, tensors, DTYPES[dtype], language)
        if to == "hf":
            with atomic_write(path / CARD) as file:
                file.write(model_card(checkpoint, language))
    return _report(checkpoint, dest, f"{to}, {dtype}")


def _check_dest(source: Path, dest: Path, files: frozenset[str], force: bool) -> None:
    """Raise a :class:`UserError` if content of ``dest`` would be lost; ``files`` are those a conversion may replace."""
    if not os.path.lexists(dest):
        return
    if dest in (real := source.resolve(), *real.parents) or dest.resolve() in (real, *real.parents):
        raise UserError(f"{dest} is, or holds, SOURCE: give another DEST")
    if dest.is_dir() and not files:
        raise UserError(f"{dest} is a folder: give DEST the name of a file, such as {dest / 'model.pt'}")
    if not force:
        raise UserError(f"{dest} is there already: give another DEST, or --force to replace it")
    if files:
        if not dest.is_dir() or dest.is_symlink():
            raise UserError(f"{dest} is no folder: give DEST the name of a folder")
        if others := sorted({entry.name for entry in dest.iterdir()} - files):
            raise UserError(
                f"{dest} holds more than a conversion ({others[0]!r}): --force would lose it; give another DEST"
            )


def _sweep(dest: Path) -> None:
    """Remove temporary files and folders of killed conversions to ``dest``, but none of a running one."""
    leftover = re.compile(rf"\.{re.escape(dest.name)}\.[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):
        for entry in dest.parent.iterdir():
            if not leftover.fullmatch(entry.name) or time.time() - entry.lstat().st_mtime < LEFT_BEHIND:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()


@contextmanager
def _whole_folder(dest: Path) -> Iterator[Path]:
    """Make a temporary folder that replaces ``dest`` if the block succeeds, and is removed otherwise."""
    temporary = dest.with_name(f".{dest.name}.{secrets.token_hex(4)}.tmp")
    replaced = temporary.with_suffix(".old")
    try:
        temporary.mkdir()
        yield temporary
        if dest.exists():
            dest.rename(replaced)
        temporary.rename(dest)
    except OSError as error:
        raise storage_error(error, dest) from error
    finally:
        if replaced.exists() and not dest.exists():
            replaced.rename(dest)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _report(checkpoint: Checkpoint, dest: Path, written: str) -> str:
    dims = checkpoint.dims
    size = size_name(dims) or (
        f"no named size ({dims.n_audio_layer} + {dims.n_text_layer} layers of {dims.n_text_state}, "
        f"{dims.n_mels} mels, {dims.n_vocab} tokens)"
    )
    lines = [f"read {checkpoint.source}: {checkpoint.kind}, {size}, {len(checkpoint.tensors)} tensors"]
    if checkpoint.left_out:
        lines.append(f"left out {len(checkpoint.left_out)} that are not Whisper's: {', '.join(checkpoint.left_out)}")
    files = list(dest.iterdir()) if dest.is_dir() else [dest]
    lines.append(f"wrote {dest}: {written}, {format_size(sum(file.stat().st_size for file in files))}")
    return "\n".join(lines)
