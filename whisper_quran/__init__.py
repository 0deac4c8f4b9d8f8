"""Fine-tune OpenAI Whisper on Qur'an recitation, and measure it, in plain PyTorch.

    from whisper_quran import EvaluationConfig, TrainingConfig, evaluate, train

    train(TrainingConfig(data=Path("data"), out=Path("runs/mine")))
    rows = evaluate(EvaluationConfig(models=("small", "runs/mine/best.pt"), data=Path("data")))

The names in ``__all__`` are the public interface; each is documented where it is defined.

========================================== =========================================================================
``train(config)``                          run a training; returns its :class:`.training.metrics_log.History`
``TrainingConfig``                         every option of ``train.py``, Experiment 2A by default
``evaluate(config)``                       measure checkpoints ayah by ayah; returns the rows of ``results.json``
``EvaluationConfig``                       every option of ``evaluate.py``
``recognize(config)``                      find the ayat that recordings hold; yields the result for each
``RecognitionConfig``                      every option of ``python -m whisper_quran.recognize``
``load_checkpoint(source, device)``        load a :class:`whisper.model.Whisper` from a name or any checkpoint
``save_checkpoint(path, model)``           write one that ``whisper.load_model`` opens
``decode_batch(model, mel)``               decode many clips at once, with the results of ``whisper.decode``
``decode_clips(model, clips, batch_size)`` decode any number of clips of any length; yields (index, text)
``UserError``                              an error that the user must fix; anything else raised is a bug
========================================== =========================================================================

A name is imported when it is first used, so that commands that do not need torch (``python -m whisper_quran.download``,
``--help``) start at once. The folder may be copied into another project, under any name.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Every command comes by here first: the other files have syntax and types that an older Python stumbles over.
if sys.version_info < (3, 10):  # noqa: UP036
    version = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write("error: this is Python " + version + ", and 3.10 or newer is needed: install one and use it\n")
    sys.exit(2)

from .runtime import __version__

if TYPE_CHECKING:
    from .checkpoints.checkpoint import load_checkpoint as load_checkpoint
    from .checkpoints.checkpoint import save_checkpoint as save_checkpoint
    from .config import EvaluationConfig as EvaluationConfig
    from .config import RecognitionConfig as RecognitionConfig
    from .config import TrainingConfig as TrainingConfig
    from .decoding.batch_decoder import decode_batch as decode_batch
    from .decoding.long_audio import decode_clips as decode_clips
    from .evaluation.evaluate import evaluate as evaluate
    from .recognition.recitations import recognize as recognize
    from .runtime.errors import UserError as UserError
    from .training.train import train as train

_HOME = {
    "EvaluationConfig": "config",
    "RecognitionConfig": "config",
    "TrainingConfig": "config",
    "UserError": "runtime.errors",
    "decode_batch": "decoding.batch_decoder",
    "decode_clips": "decoding.long_audio",
    "evaluate": "evaluation.evaluate",
    "load_checkpoint": "checkpoints.checkpoint",
    "recognize": "recognition.recitations",
    "save_checkpoint": "checkpoints.checkpoint",
    "train": "training.train",
}
__all__ = [*_HOME, "__version__"]


if not TYPE_CHECKING:  # or a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
