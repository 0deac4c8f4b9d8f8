"""The command line of evaluate.py, and checks of its values, without torch, whose import takes seconds."""

from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.names import WHISPER_NAMES, check_model_source
from ..config import EvaluationConfig
from ..data.corpus import EXPERIMENT_2A_VALID, Corpus, open_corpus
from ..runtime.command_line import parse
from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError

QURAN = "quran"  # --constrain: the text of the whole Qur'an, of --text or of the data


def parse_command_line(doc: str, argv: Sequence[str]) -> EvaluationConfig:
    """Read the command line and check its values.

    Raises:
        UserError: an option, a model, a reciter or the data must be changed.
    """
    try:
        config = parse(EvaluationConfig, doc, argv)
    except UserError as error:
        if "required: MODEL" not in str(error):
            raise
        # An option with several values takes a model after it for one of them.
        model = next((arg for arg in argv if arg in WHISPER_NAMES or Path(arg).suffix in (".pt", ".ckpt")), "small")
        raise UserError(f"no MODEL given: models come first, as in evaluate.py {model} --reciters NAME") from None
    check_inputs(config)
    return config


def check_inputs(config: EvaluationConfig, log: Log = no_log) -> tuple[Corpus, list[str]]:
    """Check that the models are there, and return the corpus and the reciters to evaluate on; no audio is opened.

    Raises:
        UserError: a model, a reciter or the data must be changed.
    """
    for source in config.models:
        check_model_source(source)
    corpus = open_corpus(config.data, config.text, config.manifest, config.surahs, log)
    chosen = config.reciters
    if chosen is None:
        chosen = EXPERIMENT_2A_VALID if config.manifest is None else tuple(corpus.reciters)
    if not chosen:
        raise UserError(f"no reciter to evaluate on: name some of {', '.join(corpus.reciters)} with --reciters")
    reciters = list(dict.fromkeys(map(printable, chosen)))
    corpus.select(reciters)
    return corpus, reciters
