"""Whatever happens to a run, the last good state stays, and what is resumed ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import time

import pytest
import torch
from conftest import RUN, results_of, rows_of, state_of, wait_for_rows

from whisper_quran.runtime.errors import UserError
from whisper_quran.training import train as train_module
from whisper_quran.training import trainer as trainer_module
from whisper_quran.training.loss import Objective
from whisper_quran.training.resume import find_state, read_state
from whisper_quran.training.trainer import Trainer


@pytest.mark.parametrize(
    ("seed", "trials"),
    [
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(20, 20, marks=pytest.mark.soak),
    ],
)
def test_runs_killed_at_random_moments_end_bit_identical(start, undisturbed, tmp_path, seed, trials):
    choice = random.Random(seed)
    killed = 0
    for trial in range(trials):
        out = tmp_path / str(trial)
        process = start(*RUN, "--out", out, "--resume")
        wait_for_rows(out, choice.randrange(1, 13), process)
        time.sleep(choice.uniform(0, 0.3))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        process = start(*RUN, "--out", out, "--resume")
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert results_of(out) == undisturbed, f"trial {trial}"
    print(f"{killed} of {trials} were killed before their end; all {trials} ended bit-identical")
    assert killed > trials / 2


def test_a_signal_finishes_the_step_saves_and_resumes_exactly(start, undisturbed, tmp_path):
    out = tmp_path / "run"
    # Only the signal makes it save within an epoch: the state it leaves is that of the step at hand.
    options = [*RUN, "--out", out, "--resume"]
    options[options.index("--save-every") + 1] = 1000
    process = start(*options)
    wait_for_rows(out, 6, process)
    process.send_signal(signal.SIGTERM)
    stdout, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "what is saved goes on with --resume" in stdout and "Traceback" not in err
    saved = torch.load(out / "state.pt", weights_only=True)
    assert saved["step"] == len([row for row in rows_of(out) if row["event"] == "train"]) >= 5
    process = start(*RUN, "--out", out, "--resume")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert results_of(out) == undisturbed


def test_a_second_ctrl_c_leaves_at_once(run, tmp_path, monkeypatch):
    """The first one comes while a step runs; the second before that step's end."""
    forward = Objective.forward

    def interrupted(self, *batch):
        os.kill(os.getpid(), signal.SIGINT)
        loss = forward(self, *batch)
        os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(Objective, "forward", interrupted)
    assert run(*RUN, "--out", tmp_path / "run")[0] == 130
    assert not (tmp_path / "run" / "state.pt").exists()


def test_the_time_limit_saves_and_the_same_line_goes_on(run, undisturbed, tmp_path):
    options = (*RUN, "--out", tmp_path / "run", "--resume")
    code, out, err = run(*options, "--max-time", 1e-7)
    assert code == 0, err
    assert "time is up at step 1 of 11: continue with --resume" in out
    code, out, err = run(*options)
    assert code == 0 and "1 are done" in out, err
    assert results_of(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before_it(run, undisturbed, tmp_path, damage):
    out = tmp_path / "run"
    assert run(*RUN, "--out", out, "--max-time", 1e-7)[0] == 0
    assert run(*RUN, "--out", out, "--max-time", 1e-7, "--resume")[0] == 0
    file = out / "state.pt"
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    code, said, err = run(*RUN, "--out", out, "--resume")
    assert code == 0, err
    assert "cannot be used" in said and "the one before it is" in said and "1 are done" in said
    assert results_of(out) == undisturbed


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 200 MB of room: a state of the test's model is 42 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_too_small_a_disk_is_said_before_the_start(run, small_disk):
    (small_disk / "ballast").write_bytes(bytes(100_000_000))
    code, _, err = run(*RUN, "--out", small_disk / "run")
    assert code == 2 and "GB free, and this run needs" in err
    assert len(err.strip().splitlines()) == 1


def test_a_disk_that_fills_up_leaves_the_last_good_state(run, undisturbed, small_disk, monkeypatch):
    monkeypatch.setattr(train_module, "check_space", lambda *_: 0)
    step = Trainer.training_step
    steps = 0

    def spoil(*args):
        nonlocal steps
        steps += 1
        if steps == 6:
            free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            (small_disk / "ballast").write_bytes(bytes(free - 8192))
        return step(*args)

    monkeypatch.setattr(Trainer, "training_step", spoil)
    code, _, err = run(*RUN, "--out", small_disk / "run", "--keep", "best")
    assert code == 2 and "No space left" in err
    assert len([line for line in err.splitlines() if line.startswith("error")]) == 1
    monkeypatch.setattr(Trainer, "training_step", step)
    (small_disk / "ballast").unlink()
    code, said, err = run(*RUN, "--out", small_disk / "run", "--keep", "best", "--resume")
    assert code == 0 and "are done" in said, err
    assert results_of(small_disk / "run") == undisturbed


def test_a_step_that_is_not_finite_is_skipped_and_several_in_a_row_stop_the_run(run, tmp_path, monkeypatch):
    loss, calls, bad = Objective.loss, [], {3}

    def poisoned(self, *batch):
        calls.append(1)
        return loss(self, *batch) * (float("nan") if len(calls) in bad else 1.0)

    monkeypatch.setattr(Objective, "loss", poisoned)
    code, out, err = run(*RUN, "--out", tmp_path / "run")
    assert code == 0, err
    assert "1 of 11 steps were skipped" in out
    rows = [row for row in rows_of(tmp_path / "run") if row["event"] == "train"]
    assert [row["step"] for row in rows if row["skipped"]] == [3] and rows[2]["loss"] is None
    calls.clear()
    bad.update(range(3, 9))
    code, _, err = run(*RUN, "--out", tmp_path / "stopped")
    assert code == 2 and "5 steps in a row" in err and "--lr" in err
    for name in ("run", "stopped"):
        assert all(tensor.isfinite().all() for tensor in state_of(tmp_path / name).values())


def test_out_of_memory_halves_the_micro_batch_and_not_the_step(run, tmp_path, monkeypatch):
    options = ("--epochs", 2, "--batch-size", 4, "--no-vanilla", "--valid-limit", 1)
    assert run(*options, "--out", tmp_path / "whole")[0] == 0
    forward = Objective.forward

    def in_little_memory(self, mel, *text):
        if len(mel) > 1:
            raise torch.OutOfMemoryError
        return forward(self, mel, *text)

    monkeypatch.setattr(Objective, "forward", in_little_memory)
    code, out, err = run(*options, "--out", tmp_path / "small")
    assert code == 0, err
    assert out.count("out of memory") == 2 and "1 clips at a time" in out
    whole, small = (state_of(tmp_path / name) for name in ("whole", "small"))
    for name in whole:
        assert (whole[name] - small[name]).norm() <= 1e-5 * whole[name].norm(), name

    monkeypatch.setattr(Objective, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    code, _, err = run(*options, "--out", tmp_path / "none")
    assert code == 2 and "no memory for a single clip" in err


def test_keep_bounds_what_stays_on_disk(run, tmp_path):
    for keep, names in (("best", ["best.pt"]), ("last", ["best.pt", "epoch-001.pt"])):
        assert run("--keep", keep, "--no-vanilla", "--valid-limit", 1, "--out", tmp_path / keep)[0] == 0
        found = sorted(path.name for path in (tmp_path / keep).glob("*.pt") if "state" not in path.name)
        assert found == names


def test_another_number_of_clips_a_step_is_refused_another_cut_of_them_is_not(run, tmp_path):
    options = ("--epochs", 2, "--no-vanilla", "--valid-limit", 1, "--out", tmp_path / "run")
    assert run(*options, "--batch-size", 4, "--max-time", 1e-7)[0] == 0
    code, _, err = run(*options, "--batch-size", 2, "--resume")
    assert code == 2 and "clips a step were 4, are 2" in err
    code, _, err = run(*options, "--batch-size", 2, "--accumulate", 2, "--resume")
    assert code == 0, err


def test_validation_out_of_memory_takes_fewer_clips_at_a_time(run, tmp_path, monkeypatch):
    validate = trainer_module.validate

    def in_little_memory(*args):
        if args[5] > 1:
            raise torch.OutOfMemoryError
        return validate(*args)

    assert run(*RUN, "--out", tmp_path / "whole")[0] == 0
    monkeypatch.setattr(trainer_module, "validate", in_little_memory)
    code, out, err = run(*RUN, "--out", tmp_path / "run")
    assert code == 0 and out.count("out of memory") == 1, err
    whole, small = (rows_of(tmp_path / name)[-1] for name in ("whole", "run"))
    assert (whole["ayat"], whole["wer"]) == (small["ayat"], small["wer"])


def test_memory_that_runs_out_anywhere_else_is_one_line(run, tmp_path, monkeypatch):
    def out_of_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(train_module, "load_model", out_of_memory)
    code, _, err = run(*RUN, "--out", tmp_path / "run")
    assert code == 2 and "cpu has too little memory" in err and len(err.splitlines()) == 1


def test_a_run_that_ended_before_its_first_save_begins_anew(run, undisturbed, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"event": "train", "epoch": 0, "step": 1, "loss": 1.0}\n')
    (out / "config.json").write_text('{"config": {}}')
    (out / ".state.pt.0123abcd.tmp").write_bytes(b"half a state")
    code, _, err = run(*RUN, "--out", out, "--resume")
    assert code == 0, err
    assert results_of(out) == undisturbed
    assert [path.name for path in out.glob(".*")] == [".lock"]


def test_a_signal_during_validation_loses_nothing(run, undisturbed, tmp_path, monkeypatch):
    validate = trainer_module.validate

    def terminated(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*args)

    monkeypatch.setattr(trainer_module, "validate", terminated)
    code, out, _ = run(*RUN, "--out", tmp_path / "run")
    assert code == 143 and "stopped at step 4 of 11" in out
    monkeypatch.setattr(trainer_module, "validate", validate)
    assert run(*RUN, "--out", tmp_path / "run", "--resume")[0] == 0
    assert results_of(tmp_path / "run") == undisturbed


def test_other_recordings_or_another_model_are_refused(run, quran, workshop, tmp_path):
    data = tmp_path / "data"
    for reciter in ("Yasser_Salama_hadr", "AbdulWadood_Haneef"):
        folder = data / reciter
        folder.mkdir(parents=True)
        for file in (quran / "audio" / reciter).glob("00100[1-6].mp3"):
            (folder / file.name).symlink_to(file)
    options = (*RUN, "--data", data, "--text", quran / "metadata" / "ayah_text_clear.csv", "--out", tmp_path / "run")
    assert run(*options, "--max-time", 1e-7)[0] == 0
    late = data / "Yasser_Salama_hadr" / "001007.mp3"
    late.symlink_to(quran / "audio" / "Yasser_Salama_hadr" / "001007.mp3")
    code, _, err = run(*options, "--resume")
    assert code == 2 and "now 7 ayat to train on" in err
    late.unlink()
    assert run(*options, "--resume")[0] == 0


def test_a_run_goes_on_on_a_device_without_its_precision(run, tmp_path):
    out = tmp_path / "run"
    options = (*RUN, "--precision", "auto", "--out", out)
    assert run(*options, "--max-time", 1e-7)[0] == 0
    state = torch.load(out / "state.pt", weights_only=True)
    torch.save(state | {"precision": "fp16"}, out / "state.pt")
    code, said, err = run(*options, "--resume")
    assert code == 0 and "the run began in fp16" in said, err


def test_whatever_bit_flips_a_state_is_whole_or_passed_over(tmp_path):
    """Damage that the checksums do not cover, in the zip's own headers, makes readers fail in many ways."""
    whole = {"step": 0, "model": {"weight": torch.arange(50.0)}}
    file = tmp_path / "state.pt"
    torch.save(whole, file)
    content = file.read_bytes()
    choice = random.Random(4)
    passed_over = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[choice.randrange(len(damaged))] ^= 1 << choice.randrange(8)
        file.write_bytes(damaged)
        try:
            found = find_state(tmp_path, lambda message: None)
        except UserError:
            passed_over += 1
            continue
        assert torch.equal(read_state(found)["model"]["weight"], torch.arange(50.0))
    assert passed_over > 50
