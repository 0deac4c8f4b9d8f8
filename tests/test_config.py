"""The command line is the dataclass."""

import json
from pathlib import Path

import pytest

from whisper_quran.config import TrainingConfig, parse, to_json
from whisper_quran.runtime.errors import UserError


def test_no_option_is_experiment_2a():
    config = parse(TrainingConfig, "", [])
    assert config == TrainingConfig()
    assert (config.model, config.batch_size, config.lr, config.epochs, config.warmup_steps) == (
        "small",
        16,
        5e-4,
        10,
        2,
    )
    assert len(config.train_reciters) == 6 and len(config.valid_reciters) == 2
    assert not config.train_encoder


def test_every_kind_of_option_parses():
    line = (
        "--data x --train-reciters A B --lr 1e-3 --epochs 3 --surahs 1:2 --train-encoder --precision bf16 --max-steps 7"
    )
    config = parse(TrainingConfig, "", line.split())
    assert config.data == Path("x") and config.train_reciters == ("A", "B") and config.lr == 1e-3
    assert config.epochs == 3 and config.surahs == "1:2" and config.train_encoder
    assert config.precision == "bf16" and config.max_steps == 7
    json.dumps(to_json(config))


@pytest.mark.parametrize(
    "line",
    [
        "--batch-size 0", "--batch-size -1", "--batch-size 1.5", "--epochs 0", "--lr 0", "--lr nan", "--accumulate 0",
        "--max-duration 0", "--max-steps 0", "--workers 0", "--warmup-steps -1", "--precision int8", "--nonsense 1",
        "--epoch 3", "--valid-limit 0", "--clip-grad -1", "stray",
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(line):
    with pytest.raises(UserError) as caught:
        parse(TrainingConfig, "", line.split())
    assert "\n" not in str(caught.value)
    assert line.split()[0].lstrip("-") in str(caught.value)
