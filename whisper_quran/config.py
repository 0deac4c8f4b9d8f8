"""One dataclass a command: its fields are the command line, ``config.json`` and the documentation.

``parse(TrainingConfig, …)`` derives the options from the fields: ``batch_size: int = option(16, "…")`` is
``--batch-size 16``. The defaults of :class:`TrainingConfig` are Experiment 2A's.
"""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .runtime.errors import UserError

T = TypeVar("T")


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    above: float | None = None,
    at_least: float | None = None,
    metavar: str | None = None,
    fixed: bool = False,
) -> Any:
    """A dataclass field that is a command-line option.

    ``above`` and ``at_least`` bound a number; ``fixed`` marks what gives a run its meaning and so cannot change when
    the run is resumed.
    """
    metadata = {"help": help, "choices": choices, "above": above, "at_least": at_least}
    return dataclasses.field(default=default, metadata={**metadata, "metavar": metavar, "fixed": fixed})


EXPERIMENT_2A_TRAIN = (
    "Abdul_Basit_Murattal_192kbps",
    "Hudhaify_64kbps",
    "Husary_128kbps",
    "Mohammad_al_Tablaway_128kbps",
    "Muhammad_Jibreel_64kbps",
    "Ghamadi_40kbps",
)
EXPERIMENT_2A_VALID = ("Minshawy_Murattal_128kbps", "Yasser_Ad-Dussary_128kbps")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a training run; written to ``config.json``."""

    data: Path = option(Path("data"), "folder of recitations: audio/<Reciter>/SSSAAA.mp3 and metadata/", fixed=True)
    text: Path | None = option(None, "CSV sorah,ayah,text (default: DATA/metadata/ayah_text_clear.csv)", fixed=True)
    manifest: Path | None = option(
        None, "CSV audio,text[,reciter] to use in place of --data; paths are relative to it", fixed=True
    )
    train_reciters: tuple[str, ...] = option(
        EXPERIMENT_2A_TRAIN,
        "reciters to train on (default: Experiment 2A's six; with --manifest, all that do not validate)",
        metavar="R", fixed=True,
    )  # fmt: skip
    valid_reciters: tuple[str, ...] = option(
        EXPERIMENT_2A_VALID,
        "reciters to validate on (default: Experiment 2A's two; with --manifest, none)",
        metavar="R", fixed=True,
    )  # fmt: skip
    surahs: str | None = option(None, "only surahs A to B, inclusive, in both splits", metavar="A:B", fixed=True)
    max_duration: float = option(30.0, "leave out ayat longer than this (seconds, 30 at most)", above=0, fixed=True)
    model: str = option("small", "Whisper name or checkpoint to start from", fixed=True)
    language: str = option("ar", "language token", fixed=True)
    out: Path = option(Path("runs/experiment-2a"), "folder that the run writes")
    epochs: int = option(10, "passes over the training ayat", at_least=1, fixed=True)
    batch_size: int = option(16, "clips a micro-batch, on each process", at_least=1)
    accumulate: int = option(1, "micro-batches an optimiser step", at_least=1)
    lr: float = option(5e-4, "peak learning rate", above=0, fixed=True)
    weight_decay: float = option(0.01, "AdamW's; none on biases and LayerNorm", at_least=0, fixed=True)
    adam_eps: float = option(1e-8, "AdamW's epsilon", above=0, fixed=True)
    warmup_steps: int = option(2, "optimiser steps of linear warmup, before the linear decay", at_least=0, fixed=True)
    clip_grad: float = option(1.0, "largest norm of the gradient; 0 leaves it alone", at_least=0, fixed=True)
    workers: int = option(4, "processes that decode audio the first time a reciter is used", at_least=1)
    seed: int = option(0, "decides the shuffling", at_least=0, fixed=True)
    precision: str = option("auto", "auto takes the fastest", choices=("auto", "fp32", "bf16", "fp16"))
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    train_encoder: bool = option(False, "train the encoder too (Experiment 2A froze it)", fixed=True)
    grad_checkpoint: bool = option(False, "recompute activations in the backward pass: less memory, more time")
    compile: bool = option(False, "torch.compile encoder and decoder: slow first steps, faster ones after")
    max_steps: int | None = option(None, "stop after this many optimiser steps", at_least=1, fixed=True)
    max_time: float | None = option(None, "save and stop before this many hours have passed", above=0, metavar="HOURS")
    save_every: int | None = option(
        None, "save the state this often (default: every 10 minutes)", at_least=1, metavar="STEPS"
    )
    keep: str = option(
        "all", "epoch checkpoints that stay on disk: all, the last beside best.pt, or best.pt alone",
        choices=("all", "last", "best"),
    )  # fmt: skip
    valid_limit: int | None = option(None, "ayat per validation reciter", at_least=1, fixed=True)
    no_vanilla: bool = option(False, "do not validate the untouched model first", fixed=True)
    tensorboard: bool = option(False, "write scalars for TensorBoard to OUT/tensorboard")
    cache: Path | None = option(None, "folder of decoded recordings (default: ~/.cache/whisper_quran)")
    resume: bool = option(False, "continue the run in OUT; where nothing is saved yet, start it")
    demo: bool = option(False, "train a small Whisper from nothing on synthetic reciters: no data, no network")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated on what; ``fixed`` options are those that predictions depend on."""

    models: tuple[str, ...] = option(
        dataclasses.MISSING, "Whisper names, or any checkpoints that convert.py reads", metavar="MODEL"
    )
    data: Path = option(Path("data"), "folder of recitations: audio/<Reciter>/SSSAAA.mp3 and metadata/", fixed=True)
    text: Path | None = option(None, "CSV sorah,ayah,text (default: DATA/metadata/ayah_text_clear.csv)", fixed=True)
    manifest: Path | None = option(
        None, "CSV audio,text[,reciter] to use in place of --data; paths are relative to it", fixed=True
    )
    reciters: tuple[str, ...] = option(
        EXPERIMENT_2A_VALID,
        "reciters to evaluate on (default: Experiment 2A's two for validation; with --manifest, all)",
        metavar="R",
    )
    surahs: str | None = option(None, "only surahs A to B, inclusive", metavar="A:B")
    max_duration: float | None = option(None, "leave out ayat longer than this (seconds; default: no limit)", above=0)
    normalize: str = option(
        "diacritics",
        "what is taken from both texts before they are compared",
        choices=("diacritics", "full", "none"),
        fixed=True,
    )
    long_form: str = option(
        "segments",
        "beyond 30 s: cut at the quietest points, or openai-whisper's own sequential algorithm",
        choices=("segments", "transcribe"),
        fixed=True,
    )
    batch_size: int | None = option(None, "clips decoded at a time (default: 32, on a GPU 64)", at_least=1)
    language: str = option("ar", "language token", fixed=True)
    precision: str = option("auto", "auto takes the fastest", choices=("auto", "fp32", "bf16", "fp16"), fixed=True)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    workers: int = option(4, "processes that decode audio the first time a reciter is used", at_least=1)
    cache: Path | None = option(None, "folder of decoded recordings (default: ~/.cache/whisper_quran)")
    out: Path = option(Path("results"), "folder for the table, the predictions and the report")
    quiet: bool = option(False, "print nothing but errors")


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is a :class:`UserError`, so one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parse(config: type[T], doc: str, argv: Sequence[str] | None = None, prog: str | None = None) -> T:
    """Read a command line (``sys.argv`` by default) into ``config``.

    A field without a default is a positional argument that takes one or more values. ``doc``, the script's docstring,
    is the description that ``--help`` shows, and ``prog`` the command's name where that is not the script's.

    Raises:
        UserError: an unknown option, a value that does not parse, or a number out of bounds.
    """
    parser = Parser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        _add_option(parser, field, hints[field.name])
    values = vars(parser.parse_args(sys.argv[1:] if argv is None else argv))
    return config(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field, hint: Any) -> None:
    metadata = field.metadata
    help = metadata["help"].replace("%", "%%")
    name = "--" + field.name.replace("_", "-")
    if hint is bool:
        parser.add_argument(name, action="store_true", help=help)
        return
    if field.default is dataclasses.MISSING:
        parser.add_argument(field.name, nargs="+", help=help, metavar=metadata["metavar"])
        return
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(choice for choice in typing.get_args(hint) if choice is not type(None))
    if field.default is not None and "default" not in help:
        help += f" (default: {field.default})"
    keywords: dict[str, Any] = {"default": field.default, "help": help, "metavar": metadata["metavar"]}
    if typing.get_origin(hint) is tuple:
        keywords["nargs"] = "*"
    elif metadata["choices"]:
        keywords.update(choices=metadata["choices"], metavar=None)
    else:
        keywords["type"] = _bounded(hint, metadata["above"], metadata["at_least"])
        keywords["metavar"] = metadata["metavar"] or {int: "N", float: "X", Path: "PATH"}.get(hint)
    parser.add_argument(name, **keywords)


def _bounded(kind: type, above: float | None, at_least: float | None) -> Any:
    """A converter for argparse that refuses numbers out of bounds (and NaN, which is out of every bound)."""

    def convert(text: str) -> Any:
        value = kind(text)
        if above is not None and not value > above:
            raise argparse.ArgumentTypeError(f"must be more than {above:g}, not {text}")
        if at_least is not None and not value >= at_least:
            raise argparse.ArgumentTypeError(f"must be at least {at_least:g}, not {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names the type in "invalid int value: 'x'"
    return convert


def to_json(config: Any) -> dict[str, Any]:
    """The config as ``config.json`` holds it: paths as strings, tuples as lists."""
    values = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}
