"""`train.py --dry-run` says what the run then says, refuses what it refuses, and writes nothing."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import RUN, rows_of
from test_training import BAD

from whisper_quran.data import audio_cache
from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.runtime.files import lock_folder
from whisper_quran.training import dry_run

OF_THE_ESTIMATE = ("epoch ", "whole run", "estimated", "dry run", "resume", "    ")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder in ``folder``: size and time of change."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def before_the_first_step(out: str) -> list[str]:
    """What a run says before its first step, but for the room on a disk, and the list that only a run writes."""
    lines = out.splitlines()
    end = next(index for index, line in enumerate(lines) if line.startswith("disk"))
    return [re.sub(r", where .*| \(listed in .*", "", line) for line in lines[: end + 1]]


def hours_of(out: str) -> list[float]:
    return [float(hours) for hours in re.findall(r"ayat.*, (\S+) h$", out, re.MULTILINE)]


def test_it_says_what_the_run_says_before_its_first_step_and_writes_nothing(run, workshop, tmp_path):
    options = ("--out", tmp_path / "run", "--epochs", 2, "--pack", 0.5, "--timestamps", 0.5, "--surahs", "1:2")
    options += ("--max-duration", 8, "--valid-limit", 9, "--batch-size", 16)
    limit = ("--max-steps", 1, "--no-vanilla")
    assert run(*options, *limit, "--out", tmp_path / "first")[0] == 0  # all is decoded
    before = snapshot(tmp_path), snapshot(workshop)
    code, dry, err = run(*options, *limit, "--dry-run")
    assert code == 0, err
    assert (snapshot(tmp_path), snapshot(workshop)) == before and not (tmp_path / "run").exists()
    code, wet, err = run(*options, *limit)
    assert code == 0, err
    assert before_the_first_step(dry) == before_the_first_step(wet)
    assert " windows, " in dry and "longer than 8 s" in dry and "warning    --lr" not in dry
    rest = [line for line in dry.splitlines() if line.startswith(OF_THE_ESTIMATE)]
    assert [line.split()[0] for line in rest] == ["epoch", "whole", "estimated", "dry"]
    assert re.search(r"^whole run  about \d+ s: 1 steps and 1 validations$", dry, re.MULTILINE)


def test_what_is_not_decoded_is_not_decoded_into_the_cache_but_counted(run, tmp_path):
    options = ("--cache", tmp_path / "cache", "--out", tmp_path / "run", "--timestamps", 1, "--epochs", 1)
    code, dry, err = run(*options, "--dry-run")
    assert code == 0, err
    assert list(tmp_path.iterdir()) == []
    assert "Not decoded yet: 14 files of 2 reciters" in dry and "14 recordings are not decoded" in dry
    code, wet, err = run(*options)
    assert code == 0, err
    assert hours_of(dry) == pytest.approx(hours_of(wet), abs=0.011)
    steps = [line for line in wet.splitlines() if line.startswith(("model", "steps", "disk", "encoder"))]
    assert {line.partition(", where")[0] for line in steps} <= {
        line.partition(", where")[0] for line in dry.splitlines()
    }


def test_it_decodes_the_few_recordings_that_it_tries_and_no_more(run, tmp_path, monkeypatch):
    decoded = []
    decode_file = audio_cache.decode_file
    monkeypatch.setattr(audio_cache, "decode_file", lambda path: decoded.append(path) or decode_file(path))
    options = ("--cache", tmp_path / "cache", "--out", tmp_path / "run", "--surahs", "1:2", "--timestamps", 1)
    code, said, err = run(*options, "--dry-run")
    assert code == 0 and re.search(r"Not decoded yet: 2\d\d files", said), err
    assert 0 < len(set(decoded)) <= 4 + dry_run.VALIDATED


def test_with_resume_it_says_from_where_and_leaves_the_run_as_it_is(run, tmp_path):
    out = tmp_path / "run"
    options = (*RUN, "--average", 2, "--out", out)
    assert "nothing is saved in" in run(*options, "--resume", "--dry-run")[1]
    assert run(*options, "--max-time", 1e-7)[0] == 0
    step = rows_of(out)[-1]["step"]
    (out / "state-previous.pt").write_bytes((out / "state.pt").read_bytes())
    damaged = bytearray((out / "state.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (out / "state.pt").write_bytes(damaged)
    (out / ".state.pt.01234567.tmp").touch()
    before = snapshot(tmp_path)
    code, said, err = run("--resume", "--dry-run", "--out", out, *RUN, "--average", 2)
    assert code == 0, err
    assert f"after step {step}, in epoch 0" in said and f"11 in all; {step} are done" in said
    assert f"{11 - step} steps and 4 validations" in said and "the one before it is" in said
    # Without the cache its recordings are not known to be those of the run, and not known not to be.
    code, said, err = run("--resume", "--dry-run", "--out", out, *RUN, "--average", 2, "--cache", tmp_path / "other")
    assert code == 0 and f"after step {step}" in said, err
    assert snapshot(tmp_path) == before
    assert "already holds a run" in run(*options, "--dry-run")[2]
    assert "--lr was" in run(*options, "--resume", "--lr", 1e-5, "--dry-run")[2]
    with lock_folder(out, "training"):
        code, _, err = run(*options, "--resume", "--dry-run")
    assert code == 2 and "another training is writing" in err
    assert run(*options, "--resume")[0] == 0
    code, said, err = run(*options, "--resume", "--dry-run")
    assert code == 0 and "all epochs are done" in said, err


@pytest.mark.parametrize(("options", "says"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_it_refuses_what_the_run_refuses(run, workshop, tmp_path, options, says):
    (tmp_path / "columns.csv").write_text("surah,verse\n1,1\n")
    (tmp_path / "utf16.csv").write_text("sorah,ayah,text\n1,1,نص\n", encoding="utf-16")
    (tmp_path / "empty.csv").touch()
    options = [option.format(tmp=tmp_path, workshop=workshop) for option in options]
    if "--out" not in options:
        options += ["--out", tmp_path / "run"]
    before = snapshot(tmp_path)
    code, _, err = run(*options, "--dry-run")
    assert snapshot(tmp_path) == before
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1
    assert (code, err) == (run(*options)[0], run(*options)[2])


def test_folders_and_disks_that_will_not_do_are_refused_before_they_are_needed(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for options in (
        ("--out", tmp_path / "file" / "run"),
        ("--out", tmp_path / "run", "--cache", tmp_path / "file" / "c"),
    ):
        code, _, err = run(*options, "--dry-run")
        assert code == 2 and (code, err) == (run(*options)[0], run(*options)[2])
    assert run("--out", tmp_path / "decoded", "--max-steps", 1, "--no-vanilla")[0] == 0
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    code, _, err = run("--out", tmp_path / "full", "--cache", tmp_path / "empty", "--dry-run")
    assert code == 2 and "decoding needs about" in err
    code, _, err = run("--out", tmp_path / "full", "--dry-run")
    assert code == 2 and "0.0 GB free, and this run needs" in err and not (tmp_path / "full").exists()


def test_encoding_is_counted_once_where_it_is_kept_and_every_time_where_it_is_not(run, tmp_path, monkeypatch):
    counted = []
    original = dry_run.encodings_to_do

    def counting(*arguments):
        counted.append(original(*arguments))
        return counted[-1]

    monkeypatch.setattr(dry_run, "encodings_to_do", counting)
    options = ("--out", tmp_path / "run", "--cache", tmp_path / "cache", "--epochs", 3)
    for extra in ((), ("--encoder-cache", "off"), ("--train-encoder",), ("--augment",)):
        assert run(*options, *extra, "--dry-run")[0] == 0
    # 7 ayat to train on three times, and 7 validated four times.
    assert counted == [14, 49, 0, 28]
    assert run(*options)[0] == 0
    assert run(*options, "--out", tmp_path / "more", "--dry-run")[0] == 0
    assert counted[-1] == 0


def test_a_whisper_that_is_not_there_is_not_downloaded(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper" / "tiny.pt").write_bytes(b"PK the beginning of a download")
    monkeypatch.setattr("urllib.request.urlopen", None)
    before = snapshot(tmp_path)
    code, said, err = run("--model", "tiny", "--out", tmp_path / "run", "--epochs", 1, "--valid-limit", 1, "--dry-run")
    assert code == 0, err
    assert snapshot(tmp_path) == before
    assert "a run would download it" in said and "37.2 M parameters" in said


def test_it_leaves_the_weights_and_the_demo_alone(run, workshop, tmp_path):
    before = (workshop / "model.pt").read_bytes()
    code, _, err = run("--demo", "--dry-run", "--out", tmp_path / "demo")
    assert code == 2 and "leave one out" in err and not (tmp_path / "demo").exists()
    assert (workshop / "model.pt").read_bytes() == before


def test_a_file_that_cannot_be_decoded_does_not_stop_it(quran, tmp_path):
    noise = quran / "odd" / "noise_bytes.mp3"
    cache = prepare_audio({"R": [noise]}, tmp_path / "cache", workers=1, log=lambda line: None, decode=False)
    assert not cache.is_decoded(noise) and list(tmp_path.iterdir()) == []
    samples = torch.from_numpy(cache.read(noise))
    assert len(samples) == cache.length(noise) > 0 and not samples.any()
