"""`python train.py` on real recordings, from the command line to the checkpoints."""

import csv
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import whisper
from conftest import results_of, rows_of
from tqdm import tqdm

from whisper_quran.training import train as training
from whisper_quran.training import trainer
from whisper_quran.training.optimizer import suited_lr
from whisper_quran.training.trainer import Trainer

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


def test_a_run_that_stopped_after_an_epoch_resumes_to_the_same_weights(run, tmp_path, monkeypatch):
    options = ("--epochs", 3, "--no-vanilla")
    assert run("--out", tmp_path / "whole", *options)[0] == 0

    validate = Trainer.validate

    def cut_off(self: Trainer, epoch: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        validate(self, epoch)

    monkeypatch.setattr(Trainer, "validate", cut_off)
    assert run("--out", tmp_path / "cut", *options)[0] == 130
    monkeypatch.setattr(Trainer, "validate", validate)
    assert run("--out", tmp_path / "cut", *options)[0] == 2
    code, _, err = run("--out", tmp_path / "cut", *options, "--resume")
    assert code == 0, err

    whole, cut = (torch.load(tmp_path / name / "epoch-002.pt")["model_state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert results_of(tmp_path / "whole") == results_of(tmp_path / "cut")


def test_resuming_with_options_that_change_the_run_is_refused(run, tmp_path):
    assert run("--out", tmp_path / "run", "--no-vanilla", "--epochs", 1)[0] == 0
    code, _, err = run("--out", tmp_path / "run", "--no-vanilla", "--epochs", 1, "--lr", "1e-3", "--resume")
    assert code == 2 and "--lr was 0.0005, is 0.001" in err


def test_resume_where_nothing_is_saved_starts_the_run(run, tmp_path):
    code, _, err = run("--out", tmp_path / "run", "--no-vanilla", "--epochs", 1, "--resume")
    assert code == 0, err
    assert (tmp_path / "run" / "best.pt").exists()


def test_damaged_and_undecodable_files_are_listed_not_fatal(run, quran, tmp_path):
    audio = tmp_path / "data" / "audio" / "R"
    audio.mkdir(parents=True)
    odd = quran / "odd"
    for number, name in enumerate(
        ["damaged_frames", "mono_8kHz", "stereo_48kHz", "truncated", "empty", "noise_bytes"], 1
    ):
        (audio / f"001{number:03}.mp3").symlink_to(odd / f"{name}.mp3")
    code, out, err = run(
        "--data", tmp_path / "data", "--text", quran / "metadata" / "ayah_text_clear.csv", "--train-reciters", "R",
        "--valid-reciters", "R", "--out", tmp_path / "run", "--epochs", 1, "--no-vanilla",
    )  # fmt: skip
    assert code == 0, err
    assert "in both splits" in out
    with open(tmp_path / "run" / "skipped.csv", newline="") as file:
        skipped = {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}
    assert set(skipped) == {"001005.mp3", "001006.mp3", "001007.*"}
    assert "soundfile" in skipped["001006.mp3"] and "ffmpeg" in skipped["001006.mp3"]


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
    (["--data", "{tmp}/nowhere"], "{tmp}/nowhere: it is no folder"),
    (["--data", "{tmp}"], "no recitations in {tmp}"),
    (["--text", "{tmp}/none.csv"], "no file {tmp}/none.csv"),
    (["--text", "{tmp}/columns.csv"], "lacks the columns"),
    (["--text", "{tmp}/utf16.csv"], "is not UTF-8"),
    (["--text", "{tmp}/empty.csv"], "lacks the columns"),
    (["--train-reciters", "Husary"], "there are AbdulWadood_Haneef, "),
    (["--valid-reciters", "Yasser_Salama"], "did you mean Yasser_Salama_hadr"),
    (["--surahs", "200:300"], "--surahs 200:300"),
    (["--surahs", "50:51"], "no ayah of"),
    (["--max-duration", "0.5"], "nothing left to train on"),
    (["--model", "{tmp}/columns.csv"], "columns.csv"),
    (["--model", "{tmp}/none.pt"], "none.pt"),
    (["--model", "enormous"], "enormous"),
    (["--model", "{workshop}/model.en.pt"], "English-only"),
    (["--language", "klingon"], "--language klingon"),
    (["--precision", "fp16"], "--precision fp16 needs a GPU"),
    (["--batch-size", "0"], "--batch-size"),
    (["--lr", "-1"], "--lr"),
    (["--device", "cuda:99"], "--device cuda:99"),
    (["--device", "toaster"], "--device toaster"),
    (["--out", "{tmp}/columns.csv"], "columns.csv"),
    (["--cache", "{tmp}/columns.csv"], "columns.csv"),
    (["--manifest", "{tmp}/none.csv"], "none.csv"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_bad_input_is_one_line_and_exit_2(run, workshop, tmp_path, options, says):
    (tmp_path / "columns.csv").write_text("surah,verse\n1,1\n")
    (tmp_path / "utf16.csv").write_text("sorah,ayah,text\n1,1,نص\n", encoding="utf-16")
    (tmp_path / "empty.csv").touch()
    places = {"tmp": tmp_path, "workshop": workshop}
    options = [option.format(**places) for option in options]
    if "--out" not in options:
        options += ["--out", tmp_path / "run"]
    code, _, err = run(*options)
    assert code == 2
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert says.format(**places) in lines[0]


def test_the_command_line_itself(tmp_path):
    """A real process: help without torch, and a mistake without a traceback."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def train(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "train.py"), *options]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    help = train("--help")
    assert help.returncode == 0 and "--train-reciters" in help.stdout and "--demo" in help.stdout
    wrong = train("--data", "nowhere")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: no folder nowhere"), wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "{tmp}/nowhere"], "no folder"),
        (["--data", "{quran}", "--train-reciters", "Husary", "--valid-reciters"], "no reciter Husary"),
        (["--data", "{quran}", "--surahs", "9:8"], "--surahs 9:8"),
        (["--manifest", "{tmp}/none.csv"], "none.csv"),
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


def test_the_end_of_a_run_says_where_everything_is_and_what_comes_next(run, quran, tmp_path):
    folder = tmp_path / "a run"
    code, out, err = run("--out", folder, "--epochs", 2, "--valid-limit", 2)
    assert code == 0, err
    lines = dict(
        line.split(maxsplit=1) for line in out.splitlines() if line.startswith(("table", "picture", "best", "next"))
    )
    assert lines["table"] == str(folder / "results.md") and lines["picture"] == str(folder / "loss.png")
    assert re.fullmatch(re.escape(str(folder / "best.pt")) + r" \(epoch [01], WER \d+\.\d\d %\)", lines["best"])
    assert re.search(r"^done in    \d+ s$", out, re.MULTILINE)
    python, script, best, *options = shlex.split(lines["next"])
    assert (python, script, best) == ("python", "evaluate.py", str(folder / "best.pt"))
    assert options == ["--data", str(quran), "--reciters", "AbdulWadood_Haneef"]


def test_the_bar_counts_epochs_of_the_run_and_the_time_that_it_takes(run, tmp_path, monkeypatch):
    labels, units, postfixes = [], [], []

    class Bar(tqdm):
        def set_postfix(self, values, refresh):
            postfixes.append(values)

    def progress_bar(total, unit, description, **options):
        labels.append(description)
        units.append(unit)
        return Bar(total=total, disable=True)

    monkeypatch.setattr(trainer, "progress_bar", progress_bar)
    assert run("--out", tmp_path / "run", "--epochs", 2, "--valid-limit", 2)[0] == 0
    assert labels == ["epoch 1/2 (epoch-000)", "epoch 2/2 (epoch-001)"]
    assert all(re.fullmatch(r"\d+ s", values["run_ends_in"]) for values in postfixes) and len(postfixes) == 4
    seconds = [int(values["run_ends_in"].split()[0]) for values in postfixes]
    assert seconds[0] >= seconds[-1]
    assert run("--out", tmp_path / "packed", "--epochs", 1, "--no-vanilla", "--pack", 1)[0] == 0
    assert units == ["clip", "clip", "window"]
    assert not {"ayat/s", "real time"} & {*postfixes[0]}
    rows = [row for row in rows_of(tmp_path / "packed") if row["event"] == "train"]
    assert postfixes[-1]["ayat/s"] == f"{statistics.median(row['ayat_per_s'] for row in rows):.2f}"
    assert float(postfixes[-1]["ayat/s"]) > statistics.median(row["clips_per_s"] for row in rows)


def test_a_run_that_gets_no_better_ends_when_patience_does(run, tmp_path):
    """At such a rate nothing moves: epoch 0 is the best, and 2 epochs later it is time."""
    options = ("--out", tmp_path / "run", "--epochs", 6, "--lr", 1e-12, "--no-vanilla", "--keep", "best")
    code, out, err = run(*options, "--patience", 2)
    assert code == 0, err
    assert [row["epoch"] for row in rows_of(tmp_path / "run") if row["event"] == "valid"] == [0, 1, 2]
    assert "no epoch after epoch 0 had a lower WER" in out
    code, out, err = run(*options, "--patience", 3, "--resume")
    assert code == 0, err
    assert [row["epoch"] for row in rows_of(tmp_path / "run") if row["event"] == "valid"] == [0, 1, 2, 3]


def test_a_rate_that_is_too_high_for_so_little_audio_is_told_beforehand(run, tmp_path, monkeypatch):
    options = ("--epochs", 1, "--max-steps", 1, "--no-vanilla")
    assert "suits" not in run("--out", tmp_path / "1", *options)[1]  # a model of no known size
    monkeypatch.setattr(training, "size_name", lambda dims: "base")
    out = run("--out", tmp_path / "2", *options)[1]
    assert "--lr 0.0005 with 2 steps of warmup suits 100 hours; on 0.0 h (1 steps)" in out
    assert "use --lr 0.0001 --warmup-steps 5" in out
    assert "suits" not in run("--out", tmp_path / "3", *options, "--lr", 2e-4)[1]


def test_the_suited_rate_grows_from_three_hours_to_experiment_2as():
    assert [suited_lr(hours) for hours in (0, 0.5, 3, 100, 1000)] == pytest.approx([1e-4, 1e-4, 1e-4, 5e-4, 5e-4])
    assert suited_lr(10) == pytest.approx(1.74e-4, rel=0.01)
