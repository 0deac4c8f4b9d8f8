"""Several processes, started by torchrun over gloo: the same weights as one, and no hanging."""

import os
import re
import signal
import subprocess
import time

import pytest
from conftest import results_of, rows_of, state_of

from whisper_quran.data.batches import shard

# 7 ayat: with 6 clips a step, the last step of each epoch has one clip, and one process has none.
RUN = ("--epochs", 10, "--max-steps", 20, "--no-vanilla", "--valid-limit", 3, "--keep", "best")


def weight_distance(folder, other) -> float:
    mine, its = state_of(folder), state_of(other)
    names = [name for name in mine if name.startswith(".model.")]
    difference = sum(((mine[n] - its[n]).double() ** 2).sum() for n in names)
    return (difference / sum((mine[n].double() ** 2).sum() for n in names)).sqrt().item()


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return out


def test_two_processes_give_the_weights_of_one(start, tmp_path):
    finish(start(*RUN, "--batch-size", 6, "--out", tmp_path / "one"))
    out = finish(start(*RUN, "--batch-size", 3, "--out", tmp_path / "two", processes=2))
    assert "2 processes" in out and out.count("device ") == 1  # only one of them speaks
    assert weight_distance(tmp_path / "one", tmp_path / "two") < 1e-6
    one, two = (rows_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) and one[-1]["event"] == "valid"
    for key in ("ayat", "words", "characters"):  # each ayah exactly once
        assert one[-1][key] == two[-1][key]
    assert one[-1]["loss"] == pytest.approx(two[-1]["loss"], rel=1e-5)


def test_the_shares_of_a_step_are_the_step():
    for count in range(1, 14):
        for processes in (1, 2, 3, 4):
            shares = [shard(range(count), 2, rank, processes) for rank in range(processes)]
            assert sorted(clip for batches in shares for batch in batches for clip in batch) == list(range(count))
            sizes = [sum(map(len, batches)) for batches in shares]
            assert max(sizes) - min(sizes) <= 1
            assert all(len(batch) <= 2 for batches in shares for batch in batches)


@pytest.mark.slow
def test_accumulation_times_processes_in_every_combination(start, tmp_path):
    finish(start(*RUN, "--batch-size", 4, "--out", tmp_path / "1x1"))
    for processes, accumulate in ((1, 2), (1, 4), (2, 1), (2, 2), (4, 1)):
        out = tmp_path / f"{processes}x{accumulate}"
        size = 4 // (processes * accumulate)
        finish(start(*RUN, "--batch-size", size, "--accumulate", accumulate, "--out", out, processes=processes))
        found = weight_distance(tmp_path / "1x1", out)
        print(f"{processes} processes × {accumulate} micro-batches × {size} clips: {found:.1e}")
        assert found < 1e-6


def worker_of(process: subprocess.Popen, folder) -> int:
    """The process id of rank 1, once it trains."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= 2:
            found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            for pid in map(int, found):
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if b"\0RANK=1\0" in b"\0" + file.read():
                        return pid
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
def test_a_killed_process_takes_the_others_down(start, tmp_path):
    options = ("--epochs", 500, "--no-vanilla", "--valid-limit", 1, "--batch-size", 2)
    process = start(*options, "--out", tmp_path / "run", processes=2)
    os.kill(worker_of(process, tmp_path / "run"), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process(start, tmp_path):
    options = (*RUN, "--batch-size", 2, "--save-every", 1, "--resume")
    finish(start(*options, "--out", tmp_path / "whole", processes=2))
    process = start(*options, "--out", tmp_path / "run", processes=2, torchrun=("--max-restarts=1",))
    os.kill(worker_of(process, tmp_path / "run"), signal.SIGKILL)
    out = finish(process)
    assert re.search(r"; \d+ are done", out)
    assert results_of(tmp_path / "run") == results_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_resume_what_one_began(start, run, tmp_path):
    finish(start(*RUN, "--batch-size", 4, "--out", tmp_path / "whole"))
    assert run(*RUN, "--batch-size", 4, "--out", tmp_path / "run", "--max-time", 1e-7)[0] == 0
    finish(start(*RUN, "--batch-size", 2, "--out", tmp_path / "run", "--resume", processes=2))
    assert weight_distance(tmp_path / "whole", tmp_path / "run") < 1e-6


@pytest.mark.slow
def test_a_mistake_is_told_once(start, tmp_path):
    process = start("--surahs", "200:300", "--out", tmp_path / "run", processes=2)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert len([line for line in err.splitlines() if line.startswith("error: --surahs")]) == 1
