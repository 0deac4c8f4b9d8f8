"""The options of each command, one dataclass each, which checks its values.

The fields define the command line (:mod:`.runtime.command_line`), ``config.json`` and the documentation. The defaults
of :class:`TrainingConfig` are Experiment 2A's; None means "not given".
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .runtime.command_line import check, option
from .runtime.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STRICTNESS = ("lenient", "usual", "strict")
SPELLINGS = ("as-it-is", "plain")
Names = tuple[str, ...]

# Options, by their group in --help.
_data = partial(option, group="data")
_model = partial(option, group="model")
_training = partial(option, group="training")
_speed = partial(option, group="speed and memory")
_output = partial(option, group="output")


@dataclass(frozen=True)
class TrainingConfig:
    """The options of a training run; written to ``config.json``.

    Raises:
        UserError: a value of the wrong type or out of bounds.
    """

    data: Path = _data(Path("data"), "folder of recitations: audio/<Reciter>/SSSAAA.mp3 and metadata/")
    text: Path | None = _data(None, "table sorah,ayah,text (default: DATA/metadata/ayah_text_clear.csv)")
    manifest: Path | None = _data(None, "table or times of recordings, or a folder of it, in place of --data")
    columns: str | None = _data(
        None, "what its columns hold: audio=file,text=words …", metavar="ROLE=NAME,…", fixed=True
    )
    spelling: str = _data("as-it-is", "of the texts; plain has no diacritics", choices=SPELLINGS, fixed=True)
    train_reciters: Names | None = _data(None, "train on (default: 2A's six, or all others)", metavar="R", fixed=True)
    valid_reciters: Names | None = _data(None, "validate on (default: 2A's two, or none)", metavar="R", fixed=True)
    surahs: str | None = _data(None, "only surahs A to B, inclusive, in both splits", metavar="A:B", fixed=True)
    valid_surahs: str | None = _data(None, "validate on these alone, train on all others", metavar="A:B", fixed=True)
    max_duration: float = _data(30.0, "leave out longer ayat (seconds, 30 at most)", above=0, max=30, fixed=True)
    valid_limit: int | None = _data(None, "ayat per validation reciter", min=1, fixed=True)

    augment: bool = _data(False, "change voice, speed, room, band, noise and loudness of most clips", fixed=True)

    model: str = _model("small", "Whisper name or checkpoint to start from", fixed=True)
    language: str = _model("ar", "language token", fixed=True)
    train_encoder: bool = _model(False, "train the encoder too, which is slower (2A froze it)", fixed=True)
    lora: int | None = _model(None, "train adapters of this rank: less memory", min=1, fixed=True, metavar="RANK")

    epochs: int = _training(10, "passes over the training ayat", min=1, max=10_000, fixed=True)
    batch_size: int = _training(16, "clips a micro-batch, on each process", min=1, max=10_000)
    accumulate: int = _training(1, "micro-batches an optimiser step", min=1, max=10_000)
    lr: float | None = _training(None, "peak learning rate (default: by the hours)", above=0, max=1, fixed=True)
    weight_decay: float = _training(0.01, "AdamW's; none on biases and LayerNorm", min=0, max=10, fixed=True)
    adam_eps: float = _training(1e-8, "AdamW's epsilon", above=0, max=1, fixed=True)
    warmup_steps: int | None = _training(None, "steps of linear warmup (default: by the hours)", min=0, fixed=True)
    clip_grad: float = _training(1.0, "largest norm of the gradient; 0 for no limit", min=0, fixed=True)
    seed: int = _training(0, "decides order, augmentation and adapters", min=0, max=2**64 - 1, fixed=True)
    max_steps: int | None = _training(None, "stop after this many optimiser steps", min=1, fixed=True)
    no_vanilla: bool = _training(False, "do not validate the untouched model first", fixed=True)

    precision: str = _speed("auto", "auto takes the fastest", choices=PRECISIONS)
    device: str = _speed("auto", "auto, cpu, cuda or cuda:N")
    workers: int = _speed(4, "processes that decode audio the first time a reciter is used", min=1, max=1024)
    grad_checkpoint: bool = _speed(False, "recompute activations in the backward pass: less memory, more time")
    compile: bool = _speed(False, "torch.compile encoder and decoder, for a GPU: slow first steps; a CPU gains nothing")
    cache: Path | None = _speed(None, "folder of decoded recordings (default: ~/.cache/whisper_quran)")

    out: Path = _output(Path("runs/experiment-2a"), "folder that the run writes")
    resume: bool = _output(False, "continue the run in OUT; if nothing is saved yet, start it")
    max_time: float | None = _output(None, "save and stop before this many hours have passed", above=0, metavar="HOURS")
    save_every: int | None = _output(None, "save the state this often (default: 10 min)", min=1, metavar="STEPS")
    keep: str = _output("all", "epochs kept: all, last beside best.pt, or best.pt", choices=("all", "last", "best"))
    tensorboard: bool = _output(False, "write scalars for TensorBoard to OUT/tensorboard")
    demo: bool = _output(False, "train a small Whisper from nothing on synthetic reciters: no data, no network")

    def __post_init__(self) -> None:
        check(self)


# Defaults that --demo changes. demo.py makes its data, model and reciters.
DEMO = {
    "out": Path("runs/demo"),
    "epochs": 5,
    "batch_size": 8,
    "lr": 2e-3,
    "warmup_steps": 20,
    "train_encoder": True,
}


@dataclass(frozen=True)
class EvaluationConfig:
    """The options of an evaluation; predictions depend on the ``fixed`` ones.

    Raises:
        UserError: a value of the wrong type or out of bounds.
    """

    models: Names = _model(dataclasses.MISSING, "Whisper names, or checkpoints that convert.py reads", metavar="MODEL")
    language: str = _model("ar", "language token", fixed=True)
    context: str = _model(
        "natural", "what is encoded: each clip's own length, or Whisper's 30 s", choices=("natural", "full"), fixed=True
    )
    constrain: str | None = _model(None, "find which words of the Qur'an were said, too", choices=("quran",))
    no_fallback: bool = _model(False, "never decode again at higher temperatures, as Whisper does", fixed=True)

    data: Path = _data(Path("data"), "folder of recitations: audio/<Reciter>/SSSAAA.mp3 and metadata/")
    text: Path | None = _data(None, "table sorah,ayah,text (default: DATA/metadata/ayah_text_clear.csv)")
    manifest: Path | None = _data(None, "table or times of recordings, or a folder of it, in place of --data")
    columns: str | None = _data(None, "what its columns hold: audio=file,text=words …", metavar="ROLE=NAME,…")
    spelling: str = _data("as-it-is", "of the texts; plain has no diacritics", choices=SPELLINGS)
    reciters: Names | None = _data(None, "reciters to evaluate on (default: 2A's two; of a manifest, all)", metavar="R")
    surahs: str | None = _data(None, "only surahs A to B, inclusive", metavar="A:B")
    max_duration: float | None = _data(None, "leave out ayat longer than this (seconds; default: no limit)", above=0)
    trained: Path | None = _data(None, "a run: WER of voices and texts known and new to it", metavar="RUN")
    normalize: str = _data("diacritics", "taken from both texts", choices=("diacritics", "full", "none"), fixed=True)

    batch_size: int | None = _speed(None, "clips decoded at a time (default: 32, GPU 64)", min=1, max=10_000)
    precision: str = _speed("auto", "auto takes the fastest", choices=PRECISIONS, fixed=True)
    device: str = _speed("auto", "auto, cpu, cuda or cuda:N")
    workers: int = _speed(4, "processes that decode audio the first time a reciter is used", min=1, max=1024)
    cache: Path | None = _speed(None, "folder of decoded recordings (default: ~/.cache/whisper_quran)")

    out: Path = _output(Path("results"), "folder for the table, the predictions and the report")
    embed_audio: bool = _output(False, "put the recordings into report.html, which can then be sent: 19 MB an hour")
    quiet: bool = _output(False, "print nothing but errors")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class RecognitionConfig:
    """The options of recognition.

    Raises:
        UserError: a value of the wrong type or out of bounds.
    """

    files: Names = _data(dataclasses.MISSING, "recordings of any length, or folders of them", metavar="FILE")
    text: Path | None = _data(None, "CSV sorah,ayah,text to search in (default: the Qur'an, in the package)")
    model: str = _model("base", "Whisper name, or any checkpoint that convert.py reads")
    language: str = _model("ar", "language token")
    batch_size: int = _speed(16, "pieces of up to 30 s decoded at a time", min=1, max=10_000)
    precision: str = _speed("auto", "auto takes the fastest", choices=PRECISIONS)
    device: str = _speed("auto", "auto, cpu, cuda or cuda:N")
    workers: int = _speed(4, "processes that decode audio", min=1, max=1024)
    strictness: str = _output("usual", "how much is marked as heard differently", choices=STRICTNESS)
    follow: bool = _output(False, "print places while FILE is heard, or what comes on standard input if it is -")
    json: bool = _output(False, "print a JSON object a recording in place of text")
    srt: bool = _output(False, "write subtitles beside each recording: NAME.srt")
    srt_dir: Path | None = _output(
        None, "write subtitles to this folder, in place of beside each recording", metavar="DIR"
    )
    segments: Path | None = _output(
        None, "write when each ayah and word is said: JSON that --manifest reads", metavar="FILE.json"
    )
    html: Path | None = _output(None, "write a page that plays them and follows the words", metavar="PAGE.html")
    embed_audio: bool = _output(False, "put the recordings into the page, which can then be sent: 19 MB an hour")

    def __post_init__(self) -> None:
        check(self)
        if self.embed_audio and self.html is None:
            raise UserError("--embed-audio puts recordings into a page: give --html PAGE.html too")
        results = {"html": self.html, "segments": self.segments, "srt": self.srt, "srt-dir": self.srt_dir}
        if self.follow and (len(self.files) > 1 or any(results.values())):
            raise UserError(f"--follow takes one FILE, or -, without {', '.join(f'--{name}' for name in results)}")
        if self.segments and self.segments == self.html:
            raise UserError(f"--segments and --html are both {self.html}: give two names")
