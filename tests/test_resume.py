"""The folder of a run: whose it is, what of it may be damaged or missing, and that no signal or pipe costs a state."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, RUN, results_of, rows_of, training_options, wait_for_rows

import train
from whisper_quran.runtime import files
from whisper_quran.runtime.errors import Interrupts, run_command
from whisper_quran.training import trainer
from whisper_quran.training.loss import Objective
from whisper_quran.training.metrics_log import History

# Stops after the first of RUN's steps.
ONE_STEP = (*RUN, "--max-time", 1e-7)
SHORT = ("--epochs", 1, "--no-vanilla", "--valid-limit", 1)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `train.py` with exactly these arguments, in this process; return (exit code, stdout, stderr)."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            run_command(train.main)
        return exit.value.code, *capsys.readouterr()

    return command


def one_line(err: str) -> str:
    """The one line on stderr, which is an error."""
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    return line


# --- Whose folder it is


def test_a_second_training_on_the_same_folder_is_refused_and_the_first_goes_on(start, run, tmp_path):
    out = tmp_path / "run"
    first = start("--epochs", 500, "--no-vanilla", "--out", out)
    wait_for_rows(out, 1, first)
    for resuming in ((), ("--resume",)):
        code, _, err = run("--epochs", 500, "--no-vanilla", "--out", out, *resuming)
        assert code == 2 and "another training is writing" in one_line(err)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    assert first.returncode == 143
    steps = [row["step"] for row in rows_of(out) if row["event"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    assert run("--epochs", 500, "--no-vanilla", "--out", out, "--resume", "--max-time", 1e-7)[0] == 0


def test_checkpoints_without_a_state_are_not_written_over(run, tmp_path):
    out = tmp_path / "run"
    assert run("--out", out, *SHORT)[0] == 0
    for name in ("state.pt", "state-previous.pt"):
        (out / name).unlink()
    before = (out / "best.pt").stat().st_mtime_ns
    code, _, err = run("--out", out, *SHORT, "--resume")
    assert code == 2 and f"--model {out / 'best.pt'} and another --out" in one_line(err)
    assert (out / "best.pt").stat().st_mtime_ns == before


def test_no_checkpoint_is_written_before_there_is_a_state(run, tmp_path, monkeypatch):
    """Killed between the two, the same line with --resume would be refused."""
    save, there = trainer.save_checkpoint, []

    def save_beside_state(*args: object) -> None:
        there.append((tmp_path / "run" / "state.pt").exists())
        save(*args)

    monkeypatch.setattr(trainer, "save_checkpoint", save_beside_state)
    assert run("--out", tmp_path / "run", *SHORT)[0] == 0
    assert there == [True, True]


def test_only_our_own_leftovers_are_removed(run, tmp_path):
    out = tmp_path / "run"
    assert run(*ONE_STEP, "--out", out)[0] == 0
    ours, theirs = ".state.pt.0123abcd.tmp", (".notes.tmp", ".best.pt.mine.tmp", "state.pt.0123abcd.tmp")
    for name in (ours, *theirs):
        (out / name).write_text("x")
    code, _, err = run(*ONE_STEP, "--out", out, "--resume")
    assert code == 0, err
    assert not (out / ours).exists() and all((out / name).exists() for name in theirs)


def test_a_file_that_is_no_runs_is_not_replaced(run, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "results.md").write_text("| model | A |\n")  # as evaluate.py writes it
    code, _, err = run("--out", out, *SHORT)
    assert code == 2 and "results.md" in one_line(err)
    assert (out / "results.md").read_text() == "| model | A |\n" and not (out / "metrics.jsonl").exists()


# --- What it needs


def test_resume_and_out_are_enough_and_the_first_model_is_not_needed(run, command, undisturbed, workshop, tmp_path):
    out, model = tmp_path / "run", tmp_path / "first.pt"
    shutil.copy(workshop / "model.pt", model)
    assert run(*ONE_STEP, "--model", model, "--out", out)[0] == 0
    model.unlink()
    code, _, err = command("--resume", "--out", out, "--lr", "1e-3")
    assert code == 2 and "--lr was 0.0005, is 0.001" in one_line(err)
    code, said, err = command("--resume", "--out", out)
    assert code == 0 and "1 are done" in said, err
    assert results_of(out) == undisturbed


def test_a_run_of_an_older_version_resumes_unless_it_used_what_is_gone(run, undisturbed, tmp_path):
    out = tmp_path / "run"
    assert run(*ONE_STEP, "--out", out)[0] == 0
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["config"].pop("augment") is False  # as if it had come later
    gone = {"prompt": 0.0, "pack": 0.0, "timestamps": 0.0}
    config = state["config"] | {"adam_eps": 1e-8, "allow_overlap": True} | gone
    older = state | {"best_wer": 0.5, "config": config}
    for option in gone:
        torch.save(older | {"config": config | {option: 0.5}}, out / "state.pt")
        code, _, err = run(*RUN, "--out", out, "--resume")
        assert code == 2 and f"was begun with --{option} 0.5, which is gone" in one_line(err)
    torch.save(older, out / "state.pt")
    code, _, err = run(*RUN, "--out", out, "--resume", "--augment")
    assert code == 2 and "--augment was False, is True" in one_line(err)
    code, said, err = run(*RUN, "--out", out, "--resume")
    assert code == 0 and "1 are done" in said, err
    assert results_of(out) == undisturbed


def test_a_rate_that_was_chosen_is_that_of_the_run_when_it_resumes(run, tmp_path):
    """Also if config.json, where it is, was lost; the hours may then suggest another."""
    out = tmp_path / "run"
    assert run(*ONE_STEP, "--out", out)[0] == 0
    assert json.loads((out / "config.json").read_text())["config"]["lr"] == 5e-4
    state = torch.load(out / "state.pt", weights_only=True)
    torch.save(state | {"config": state["config"] | {"lr": 3e-4, "warmup_steps": 1}}, out / "state.pt")
    (out / "config.json").unlink()
    code, said, err = run(*RUN, "--out", out, "--resume")
    assert code == 0 and "rate " not in said, err
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["lr"], config["warmup_steps"]) == (3e-4, 1)
    assert rows_of(out)[1]["lr"] == 3e-4


DAMAGE = {
    "torn": lambda content: content[: len(content) // 2],
    "edited": lambda content: content.replace(b'"batch_size": 2', b'"batch_size": "two"').replace(b'"lr"', b'"rl"'),
}


@pytest.mark.parametrize("damage", [*DAMAGE, "a folder"])
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_damaged_text_file_is_one_line_or_passed_over(run, command, tmp_path, name, damage):
    out = tmp_path / "run"
    assert run(*ONE_STEP, "--out", out)[0] == 0
    content = (out / name).read_bytes()
    (out / name).unlink()
    if damage == "a folder":
        (out / name).mkdir()
    else:
        (out / name).write_bytes(DAMAGE[damage](content))
    if name == "config.json":
        code, _, err = command("--resume", "--out", out, "--max-time", 1e-7)
        assert code == 2
        one_line(err)
    code, said, err = run(*ONE_STEP, "--out", out, "--resume")
    if damage == "a folder":
        assert code == 2 and name in one_line(err)
    else:
        assert code == 0 and "1 are done" in said, err
        assert json.loads((out / "config.json").read_text())["config"]["lr"] == 5e-4
        assert [row["step"] for row in rows_of(out)] in ([1, 2], [2])


@pytest.mark.parametrize("damage", ["a folder", "a list", "other tensors"])
def test_a_state_of_another_kind_is_passed_over_or_one_line(run, tmp_path, damage):
    out = tmp_path / "run"
    assert run(*ONE_STEP, "--out", out)[0] == 0
    assert run(*ONE_STEP, "--out", out, "--resume")[0] == 0
    state = torch.load(out / "state.pt", weights_only=True)
    (out / "state.pt").unlink()
    if damage == "a folder":
        (out / "state.pt").mkdir()
    else:
        torch.save([1] if damage == "a list" else state | {"model": {"weight": torch.zeros(1)}}, out / "state.pt")
    code, said, err = run(*ONE_STEP, "--out", out, "--resume")
    if damage == "other tensors":
        assert code == 2 and "does not fit its run" in one_line(err)
    else:
        assert code == 0 and "the one before it is" in said and "1 are done" in said, err
        assert (out / "damaged-state.pt").exists()
        assert torch.load(out / "state-previous.pt", weights_only=True)["step"] == 1


def test_a_row_with_a_line_separator_or_a_name_that_is_not_utf8_stays_one_row(tmp_path):
    row = {"event": "valid", "epoch": 0, "step": 1, "loss": 1.0, "wer": 0.5, "cer": 0.2, "words": 4, "word_errors": 2}
    names = ["two\u2028lines", "next\x85line", os.fsdecode(b"Latin\xe9")]
    history = History(tmp_path / "metrics.jsonl")
    for name in names:
        history.append(row | {"reciter": name, "seconds": 1.0})
    again = History(tmp_path / "metrics.jsonl")
    assert again.restore(step=1, epoch=1) == 0
    assert again.rows == history.rows and list(again.valid()[0]) == names
    assert again.restore(step=1, epoch=1) == 0 and again.rows == history.rows


def test_what_a_state_counts_on_is_on_disk_before_it(run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(number: int) -> None:
        fsync(number)
        events.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{number}'))}")

    def recorded_replace(source: object, target: object) -> None:
        replace(source, target)
        events.append(f"rename {os.path.basename(target)}")

    monkeypatch.setattr(files.os, "fsync", recorded_fsync)
    monkeypatch.setattr(files.os, "replace", recorded_replace)
    assert run("--out", out, *SHORT)[0] == 0
    last = len(events) - 1 - events[::-1].index("rename state.pt")
    checkpoint = events.index("rename best.pt")
    assert checkpoint < last
    assert {"sync metrics.jsonl", "sync run"} <= set(events[checkpoint:last])


# --- Signals, pipes and terminals


def test_nothing_interrupts_the_last_save(run, tmp_path, monkeypatch):
    """Ctrl-C once in a step, and again and again while the state that it asks for is being written."""
    forward, write = Objective.forward, torch.save

    def interrupted(self, *batch):
        os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *batch)

    def slow_write(*args: object) -> None:
        for _ in range(5):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
        write(*args)
        time.sleep(0.1)

    monkeypatch.setattr(Objective, "forward", interrupted)
    monkeypatch.setattr(torch, "save", slow_write)
    options = list(RUN)
    options[options.index("--save-every") + 1] = 1000
    code, _, err = run(*options, "--out", tmp_path / "run")
    assert code == 130, err
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 1
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_nohup_is_respected():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.requested is None
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_reader_that_goes_away_costs_the_output_and_not_the_run(quran, workshop, tmp_path):
    for name in ("closed early", "none"):
        out = tmp_path / name
        line = shlex.join(training_line(quran, workshop, (*SHORT, "--out", out)))
        shell = f"{line} >&- 2>&-" if name == "none" else f"{line} 2>&1 | head -c 1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
        assert (out / "best.pt").exists() and torch.load(out / "state.pt", weights_only=True)["epoch"] == 1
    assert rows_of(tmp_path / "none")[-1]["event"] == "valid"


def training_line(quran: Path, workshop: Path, options: tuple) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *training_options(quran, workshop, options)]


def test_a_terminal_that_knows_ascii_only_is_no_reason_to_stop(quran, workshop, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = training_line(quran, workshop, (*SHORT, "--accumulate", 2, "--out", tmp_path / "run"))
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"4 clips \\xd7 2 micro-batches" in done.stdout
    assert (tmp_path / "run" / "best.pt").exists()
