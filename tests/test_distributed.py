"""Several processes, started by torchrun over gloo: the same weights as one, and no hanging."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import ROOT, results_of, rows_of, state_of, training_options, wait_for_rows

from whisper_quran.data.batches import shard

# 7 ayat: with 6 clips a step, the last step of each epoch has one clip, and one process has none.
RUN = ("--epochs", 4, "--max-steps", 8, "--no-vanilla", "--valid-limit", 3, "--keep", "best")


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
    assert "2 processes" in out and out.count("\ntrain ") == 1  # only one of them speaks
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


def wait_for_file(file: Path, process: subprocess.Popen) -> None:
    """Wait until ``file`` is there, or the process has ended."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and not file.exists():
        time.sleep(0.01)


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


@pytest.fixture
def start_ranks(quran, workshop) -> Callable[..., list[subprocess.Popen]]:
    """Start `train.py` as two processes without torchrun, each with options of its own, and no one who stops them."""
    started = []

    def start_ranks(*options_of_ranks: tuple, program: Sequence[str] = ()) -> list[subprocess.Popen]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        for rank, options in enumerate(options_of_ranks):
            ours = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{len(options_of_ranks)}"}
            ours |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "OMP_NUM_THREADS": "1"}
            environment = os.environ | ours
            training = [str(ROOT / "train.py"), *training_options(quran, workshop, options)]
            command = [sys.executable, *(program or training)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=environment, cwd=ROOT, **pipes))
        return started

    yield start_ranks
    for process in started:
        process.kill()
        process.communicate()


SLOW_MACHINE = """
import datetime, sys, time, torch
import torch.distributed.distributed_c10d as c10d
from whisper_quran.runtime import device
from whisper_quran.runtime.errors import run_command

c10d.default_pg_timeout = datetime.timedelta(seconds=1)  # torch's own limit, of half an hour, and for NCCL ten minutes
if sys.argv[1] == "hangs":
    device._TIMEOUT = datetime.timedelta(seconds=1)

def main():
    world = device.join_world()
    device.connect(world, torch.device("cpu"))
    print(world.on_main(lambda: time.sleep(4) or "decoded"))

run_command(main)
"""


@pytest.mark.parametrize("how", ["is slow", "hangs"])
def test_a_machine_that_decodes_for_long_is_waited_for_and_one_that_hangs_is_one_line(start_ranks, how):
    first, second = start_ranks((), (), program=["-c", SLOW_MACHINE, how.split()[-1]])
    if how == "hangs":
        (line,) = errors_of(first)
        assert "or did not come for a day" in line and first.returncode == 2
    else:
        assert errors_of(first) == errors_of(second) == []
        assert first.returncode == second.returncode == 0


def errors_of(process: subprocess.Popen) -> list[str]:
    """The lines on stderr, but for PyTorch's own notes on its connections."""
    err = process.communicate(timeout=200)[1]
    assert "Traceback" not in err, err
    return [line for line in err.splitlines() if line.startswith("error")]


def test_the_error_of_one_process_is_told_by_it_alone_and_ends_all(start_ranks, tmp_path):
    (tmp_path / "file").touch()
    options = (*RUN, "--out", tmp_path / "run")
    first, second = start_ranks(options, (*options, "--cache", tmp_path / "file"))
    assert [str(tmp_path / "file") in line for line in errors_of(second)] == [True]
    assert errors_of(first) == []
    assert first.returncode == second.returncode == 2


def test_a_process_that_is_lost_in_training_is_one_line_of_the_first(start_ranks, tmp_path):
    options = ("--epochs", 500, "--no-vanilla", "--valid-limit", 1, "--batch-size", 2, "--out", tmp_path / "run")
    first, second = start_ranks(options, options)
    wait_for_rows(tmp_path / "run", 2, first)
    second.kill()
    (line,) = errors_of(first)
    assert "another process of this run has ended" in line and first.returncode == 2
    assert (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("rows", [0, 3], ids=["while preparing", "while training"])
def test_sigterm_ends_every_process_as_143(start_ranks, tmp_path, rows):
    """As torchrun sends it, to one process after the other."""
    options = ("--epochs", 500, "--valid-limit", 7, "--batch-size", 2, "--out", tmp_path / "run")
    first, second = start_ranks(options, options)
    if rows:
        wait_for_rows(tmp_path / "run", rows, first)
    else:
        wait_for_file(tmp_path / "run" / ".lock", first)
    for process in (first, second):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert errors_of(first) == errors_of(second) == []
    assert first.returncode == second.returncode == 143


def test_a_process_group_that_the_host_program_made_stays(run, tmp_path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert run("--out", tmp_path / "run", "--epochs", 1, "--no-vanilla", "--valid-limit", 1)[0] == 0
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
