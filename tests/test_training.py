"""`python train.py` on real recordings, from the command line to the checkpoints."""

import csv
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import whisper
from conftest import rows_of
from tqdm import tqdm

from whisper_quran.config import EvaluationConfig, TrainingConfig
from whisper_quran.runtime import console
from whisper_quran.runtime.command_line import parse
from whisper_quran.training import trainer
from whisper_quran.training.optimizer import LR, WARMUP_STEPS, choose_rate, suited

ROOT = Path(__file__).resolve().parents[1]


def test_a_run_on_real_recordings_leaves_what_the_contract_names(run, quran, workshop, tmp_path):
    code, out, err = run("--out", tmp_path / "run", "--epochs", 3)
    assert code == 0, err
    folder = tmp_path / "run"
    for name in ("config.json", "metrics.jsonl", "results.md", "loss.png", "skipped.csv", "state.pt", "best.pt"):
        assert (folder / name).stat().st_size > 0, name
    assert sorted(path.name for path in folder.glob("epoch-*.pt")) == ["epoch-000.pt", "epoch-001.pt", "epoch-002.pt"]
    assert [path.name for path in folder.glob(".*")] == [".lock"]

    rows = rows_of(folder)
    trained = [row for row in rows if row["event"] == "train"]
    valid = [row for row in rows if row["event"] == "valid"]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in valid] == [-1, 0, 1, 2]
    assert {"event", "epoch", "step", "loss", "lr", "clips_per_s"} <= trained[0].keys()
    assert {"event", "epoch", "reciter", "loss", "wer", "cer", "ayat"} <= valid[0].keys()
    assert valid[-1]["ayat"] == 7 and valid[-1]["reciter"] == "AbdulWadood_Haneef"
    assert valid[-1]["loss"] < valid[0]["loss"]
    assert trained[-1]["loss"] < trained[0]["loss"]

    table = (folder / "results.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table] == ["epoch", "---", "vanilla", "0", "1", "2"]
    assert table[0] in out and "the encoder is frozen" in out and "fp32: as asked" in out
    with open(folder / "skipped.csv", newline="") as file:
        assert list(csv.reader(file)) == [["file", "reason"]]


def test_checkpoints_are_whispers_own(run, quran, workshop, tmp_path):
    code, _, err = run("--out", tmp_path / "run", "--epochs", 1, "--no-vanilla")
    assert code == 0, err
    saved = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert set(saved) == {"dims", "model_state_dict"}
    state = saved["model_state_dict"]
    model = whisper.load_model(str(tmp_path / "run" / "best.pt"), device="cpu")
    assert list(state) == list(model.state_dict())
    assert all(value.dtype == torch.float16 for value in state.values())
    before = torch.load(workshop / "model.pt", weights_only=True)["model_state_dict"]
    assert all(torch.equal(state[name], before[name]) for name in state if name.startswith("encoder."))
    assert not torch.equal(state["decoder.ln.weight"], before["decoder.ln.weight"])
    audio = quran / "audio" / "AbdulWadood_Haneef" / "001001.mp3"
    assert isinstance(model.transcribe(str(audio), language="ar", fp16=False, sample_len=20)["text"], str)


def test_damaged_and_undecodable_files_are_listed_not_fatal(run, quran, tmp_path):
    audio = tmp_path / "data" / "audio" / "R"
    audio.mkdir(parents=True)
    odd = quran / "odd"
    for number, name in enumerate(["damaged_frames", "mono_8kHz", "truncated", "empty", "noise_bytes"], 1):
        (audio / f"001{number:03}.mp3").symlink_to(odd / f"{name}.mp3")
    code, out, err = run(
        "--data", tmp_path / "data", "--text", quran / "metadata" / "ayah_text_clear.csv", "--train-reciters", "R",
        "--valid-reciters", "R", "--out", tmp_path / "run", "--epochs", 1, "--no-vanilla",
    )  # fmt: skip
    assert code == 0, err
    assert "in both splits" in out
    assert "R is in the training data too" in (tmp_path / "run" / "results.md").read_text()
    with open(tmp_path / "run" / "skipped.csv", newline="") as file:
        skipped = {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}
    assert set(skipped) == {"001004.mp3", "001005.mp3", "001006.*", "001007.*"}
    assert "not audio" in skipped["001005.mp3"]


def test_a_manifest_trains_without_a_validation_reciter(run, quran, tmp_path):
    manifest = tmp_path / "clips.csv"
    folder = quran / "audio" / "Yasser_Salama_hadr"
    lines = [f"{folder / f'00100{n}.mp3'},some text {n}" for n in range(1, 5)]
    manifest.write_text("\n".join(["audio,text", *lines, "gone.mp3,never"]) + "\n")
    code, out, err = run("--manifest", manifest, "--out", tmp_path / "run", "--epochs", 1)
    assert code == 0, err
    assert "WER is not measured" in out and (tmp_path / "run" / "best.pt").exists()
    assert "no such file" in (tmp_path / "run" / "skipped.csv").read_text()


BAD = [
    (["--data", "{tmp}"], "no recitations in {tmp}"),
    (["--text", "{tmp}/none.csv"], "cannot read {tmp}/none.csv"),
    (["--valid-reciters", "Yasser_Salama"], "did you mean Yasser_Salama_hadr"),
    (["--surahs", "50:51"], "no ayah of"),
    (["--max-duration", "0.5"], "nothing left to train on"),
    (["--model", "{tmp}/none.pt"], "none.pt"),
    (["--model", "{workshop}/model.en.pt"], "English-only"),
    (["--language", "klingon"], "--language klingon"),
    (["--precision", "fp16"], "--precision fp16 needs a GPU"),
    (["--batch-size", "0"], "--batch-size"),
    (["--device", "cuda:99"], "--device cuda:99"),
    (["--out", "{tmp}/columns.csv"], "columns.csv"),
    (["--cache", "{tmp}/columns.csv"], "columns.csv"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_bad_input_is_one_line_and_exit_2(run, workshop, tmp_path, options, says):
    (tmp_path / "columns.csv").write_text("surah,verse\n1,1\n")
    places = {"tmp": tmp_path, "workshop": workshop}
    options = [option.format(**places) for option in options]
    if "--out" not in options:
        options += ["--out", tmp_path / "run"]
    code, _, err = run(*options)
    assert code == 2
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert says.format(**places) in lines[0]


def test_help_names_every_option(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert all(f"--{field.name.replace('_', '-')}" in done.stdout for field in fields(TrainingConfig))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "{tmp}/nowhere"], "no folder"),
        (["--data", "{quran}", "--train-reciters", "Husary", "--valid-reciters"], "no reciter Husary"),
        (["--data", "{quran}", "--surahs", "9:8"], "--surahs 9:8"),
        (["--data", "{quran}", "--model", "bse"], "did you mean base"),
    ],
)
def test_a_wrong_path_reciter_or_surah_is_answered_without_torch(quran, tmp_path, options, says):
    code = (
        "import runpy, sys; sys.argv[0] = 'train.py'\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert not {'torch', 'whisper'} & set(sys.modules)"
    )
    options = [option.format(tmp=tmp_path, quran=quran) for option in options]
    done = subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_end_of_a_run_says_where_everything_is_and_what_comes_next(run, quran, workshop, tmp_path):
    folder = tmp_path / "a run"
    code, out, err = run("--out", folder, "--epochs", 2, "--valid-limit", 2, "--max-duration", 20)
    assert code == 0, err
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith(("done", "best", "next")))
    assert re.fullmatch(r"in    \d+ s; the results are in " + re.escape(str(folder)), lines["done"])
    assert re.fullmatch(re.escape(str(folder / "best.pt")) + r" \(epoch [01], WER \d+\.\d\d %\)", lines["best"])
    python, script, best, *options = shlex.split(lines["next"])
    assert (python, script, best) == ("python", "evaluate.py", str(folder / "best.pt"))
    config = parse(EvaluationConfig, "", [best, *options])
    assert (config.data, config.reciters, config.surahs) == (quran, ("AbdulWadood_Haneef",), "1:1")
    assert (config.max_duration, config.precision, config.device) == (20, "fp32", "cpu")
    assert config.cache == workshop / "cache"


def test_the_bar_counts_epochs_as_the_table_does_and_the_time_that_the_run_takes(run, tmp_path, monkeypatch):
    labels, postfixes = [], []

    class Bar(tqdm):
        def set_postfix(self, **values):
            postfixes.append(values)

    def progress_bar(total, unit, description, **options):
        labels.append(description)
        return Bar(total=total, disable=True)

    monkeypatch.setattr(trainer, "progress_bar", progress_bar)
    assert run("--out", tmp_path / "run", "--epochs", 2, "--valid-limit", 2)[0] == 0
    assert labels == ["epoch 0 (last: 1)", "epoch 1 (last: 1)"]
    assert all(re.fullmatch(r"\d+ s", values["run_ends_in"]) for values in postfixes) and len(postfixes) == 4
    seconds = [int(values["run_ends_in"].split()[0]) for values in postfixes]
    assert seconds[0] >= seconds[-1]


def test_a_bar_in_a_log_is_whole_lines_and_none_if_it_is_short(capsys, monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.01)
    for clips in (4, 1):
        with console.progress_bar(clips, "clip", f"{clips} clips") as bar:
            for _ in range(clips):
                time.sleep(0.02 if clips > 1 else 0)
                bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1 and "\r" not in "".join(lines) and all(line.startswith("4 clips: ") for line in lines)


def test_no_epoch_that_is_better_than_the_untouched_model_is_said(run, tmp_path, monkeypatch):
    options = ("--epochs", 1, "--valid-limit", 1)
    row = {"loss": 1.0, "cer": 0.1, "der": None, "letters": 0, "ayat": 1, "words": 100}
    for errors, is_better in (([50, 49], True), ([50, 50], False)):
        counts = iter(errors)

        def measure(*_, counts=counts):
            wrong = next(counts)
            return row | {"wer": wrong / 100, "word_errors": wrong}

        monkeypatch.setattr(trainer, "validate", measure)
        code, out, err = run("--out", tmp_path / f"{is_better}", *options)
        assert code == 0, err
        assert ("no epoch was better than the untouched model (WER 50.00 %)" in out) != is_better


def test_the_rate_and_warmup_suit_the_hours_and_are_experiment_2as_at_its_100():
    assert [suited(LR, hours) for hours in (0, 0.5, 3, 5.2, 100, 1000)] == [1e-4, 1e-4, 1e-4, 1.3e-4, 5e-4, 5e-4]
    assert [suited(WARMUP_STEPS, hours) for hours in (0, 1, 5, 100, 1000)] == [10, 10, 25, 2, 2]
    said: list[str] = []

    def chosen(hours: float, steps: int = 10_000, pretrained: bool = True, **options) -> tuple[float, int]:
        config = choose_rate(TrainingConfig(**options), hours, steps, pretrained, said.append)
        return config.lr, config.warmup_steps

    assert chosen(100) == (5e-4, 2) and "--lr 0.0005 --warmup-steps 2: for 100.0 h" in said[-1]
    assert chosen(1) == (1e-4, 10) and "--lr 0.0001 --warmup-steps 10: for 1.0 h" in said[-1]
    assert chosen(1, steps=45) == (1e-4, 4)  # at most a tenth of the run
    assert chosen(1, pretrained=False) == (5e-4, 2) and "no known size" in said[-1]
    assert chosen(1, lora=16) == (5e-4, 10) and "adapters" in said[-1]
    assert chosen(100, train_encoder=True) == (1e-4, 10) and "for 100.0 h of audio, with the encoder" in said[-1]
    assert chosen(5, train_encoder=True) == (1e-4, 25) and chosen(100, train_encoder=True, lr=3e-4) == (3e-4, 10)
    assert chosen(1, train_encoder=True, pretrained=False) == (5e-4, 2)
    assert chosen(1, train_encoder=True, lora=16) == (5e-4, 10)
    assert chosen(1, lr=1e-3) == (1e-3, 10) and chosen(1, warmup_steps=0) == (1e-4, 0)
    said.clear()
    assert chosen(1, lr=1e-3, warmup_steps=7) == (1e-3, 7) and not said
