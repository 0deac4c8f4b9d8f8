"""The command line is the dataclass."""

import json
from pathlib import Path

import pytest

from whisper_quran.config import DEMO, EvaluationConfig, RecognitionConfig, TrainingConfig
from whisper_quran.runtime.command_line import parse, to_json
from whisper_quran.runtime.errors import UserError


def test_no_option_is_experiment_2a():
    config = parse(TrainingConfig, "", [])
    assert config == TrainingConfig()
    assert (config.model, config.batch_size, config.epochs, config.adam_eps) == ("small", 16, 10, 1e-8)
    assert config.lr is None and config.warmup_steps is None  # by the hours: 5e-4 and 2 at Experiment 2A's
    assert config.train_reciters is None and config.valid_reciters is None
    assert not config.train_encoder


@pytest.mark.parametrize(
    "line",
    [
        "--batch-size 0", "--batch-size 1.5", "--lr 0", "--lr nan", "--lr inf", "--lr 2", "--precision int8", "stray",
        "--max-duration 60", "--max-time -1", "--epochs 10001", "--accumulate 1e9", "--adam-eps 5", "--pack 1",
        f"--lora {10**10}", f"--seed {2**64}", f"--save-every {10**400}", "--nonsense 1", "--data https://a.b/c",
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(line):
    with pytest.raises(UserError) as caught:
        parse(TrainingConfig, "", line.split())
    assert "\n" not in str(caught.value)
    assert line.split()[0].lstrip("-") in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0}, {"epochs": 2.5}, {"epochs": True}, {"lr": -1}, {"lr": float("nan")}, {"lr": "1e-3"},
        {"precision": "bfloat16"}, {"train_reciters": "Husary_128kbps"}, {"train_reciters": (1,)}, {"resume": 1},
        {"max_duration": 60}, {"lr": 10**400}, {"epochs": 10**400}, {"keep": None}, {"data": 3},
    ],
)  # fmt: skip
def test_python_is_refused_what_the_command_line_refuses(values):
    with pytest.raises(UserError) as caught:
        TrainingConfig(**values)
    assert "\n" not in str(caught.value)
    assert next(iter(values)).replace("_", "-") in str(caught.value)


def test_a_url_is_called_one_and_keeps_its_slashes():
    for name, config in (("data", TrainingConfig), ("text", RecognitionConfig), ("model", TrainingConfig)):
        with pytest.raises(UserError, match=f"--{name} https://a.b//c.zip: this is a URL"):
            parse(config, "", ["FILE"] * (config is RecognitionConfig) + [f"--{name}", "https://a.b//c.zip"])
    with pytest.raises(UserError, match=r"^FILE https://a.b//c.mp3: this is a URL"):  # no option --files is there
        RecognitionConfig(("https://a.b//c.mp3",))


def test_python_may_give_strings_for_paths_lists_for_names_and_whole_numbers_for_floats():
    config = TrainingConfig(data="x", train_reciters=["A", "B"], lr=1)
    assert config.data == Path("x") and config.train_reciters == ("A", "B") and type(config.lr) is float
    assert config == parse(TrainingConfig, "", "--data x --train-reciters A B --lr 1".split())
    json.dumps(to_json(config))
    with pytest.raises(UserError, match="MODEL"):
        EvaluationConfig(models="base.pt")


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("--epoch 3", "--epochs"), ("--batchsize=4", "--batch-size"), ("--reciters A", "--train-reciters or --valid-"),
        ("--encoder", "--train-encoder"), ("--Epochs 3", "--epochs"),
    ],
)  # fmt: skip
def test_a_mistyped_option_is_told_the_one_it_resembles(mistyped, meant):
    with pytest.raises(UserError, match=rf"^no option --\w+: did you mean {meant}"):
        parse(TrainingConfig, "", mistyped.split())
    with pytest.raises(UserError, match=r"^no option --qqq \(see"):
        parse(TrainingConfig, "", ["--qqq"])


def test_an_option_given_beside_demo_wins_even_at_its_usual_default():
    config = parse(TrainingConfig, "", ["--demo", "--epochs", "10"], presets={"demo": DEMO})
    assert (config.epochs, config.batch_size, config.out) == (10, 8, Path("runs/demo"))
    assert parse(TrainingConfig, "", [], presets={"demo": DEMO}) == TrainingConfig()
