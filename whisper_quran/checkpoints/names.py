"""Names of models and formats. Nothing here imports torch, so that a wrong name is reported at once."""

import os
import re
from pathlib import Path

from ..runtime.console import printable
from ..runtime.errors import UserError, did_you_mean

# `whisper.available_models()`, copied because whisper takes seconds to import.
WHISPER_NAMES = (
    "tiny.en tiny base.en base small.en small medium.en medium large-v1 large-v2 large-v3 large large-v3-turbo turbo"
).split()
READABLE = "a Whisper .pt, a PyTorch Lightning .ckpt, a Hugging Face folder, model.safetensors or pytorch_model.bin"
MERGE = "merge it into its base model (in PEFT, merge_and_unload() and save_pretrained()) and give the result"


def check_model_source(source: str | Path) -> None:
    """Raise a :class:`UserError` if ``source`` is neither a Whisper's name nor a path that may be a checkpoint."""
    if source not in WHISPER_NAMES:
        find_checkpoint(source)


def find_checkpoint(source: str | Path) -> Path:
    """Return the file or folder of the checkpoint ``source``; for a run's folder its ``best.pt``.

    Raises:
        UserError: it does not exist, the run has no best checkpoint yet, or it is an adapter.
    """
    path = Path(source)
    try:
        path.stat()
        inside = set(os.listdir(path)) if path.is_dir() else set()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte in the name
        raise UserError(f"no file or folder {printable(str(source))}: {_suggestion(str(source))}") from None
    except OSError as error:
        raise UserError(
            f"cannot read {printable(str(source))} ({error.strerror}): check the path and its permissions"
        ) from error
    if "adapter_config.json" in inside or path.stem == "adapter_model":
        raise UserError(f"{path} is an adapter (LoRA), not a whole Whisper: {MERGE}")
    if "best.pt" in inside:
        return path / "best.pt"
    if "metrics.jsonl" in inside:
        epochs = sorted(name for name in inside if re.fullmatch(r"epoch-\d+\.pt", name))
        others = f"give one of its checkpoints, such as {path / epochs[-1]}" if epochs else "let an epoch end first"
        raise UserError(f"{path} is a run's folder without best.pt, which validation chooses: {others}")
    return path


def _suggestion(source: str) -> str:
    """Suggest what to give in place of ``source``, which does not exist."""
    known = f"give one, or a Whisper's name: {', '.join(WHISPER_NAMES)}"
    if "://" in source:
        return "that is a URL; download the file or folder first, and give its path"
    if source in WHISPER_NAMES:
        return f"that is a Whisper's name; whisper.load_model keeps its file as ~/.cache/whisper/{source}.pt"
    owner, _, name = source.rpartition("/")
    is_file = Path(source).suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
    if owner in ("", "openai") and not is_file:
        return did_you_mean(name.removeprefix("whisper-"), WHISPER_NAMES) + known
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not is_file and not Path(owner).exists():
        return f"{known}; from the Hugging Face Hub, hf download {source} --local-dir {name} and give {name}"
    return known
