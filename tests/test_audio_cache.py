"""Decoded once, found again, and true whatever happens in between."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from whisper_quran.data import audio_cache
from whisper_quran.data.audio import SAMPLE_RATE
from whisper_quran.data.audio_cache import AudioCache, default_cache, prepare_audio
from whisper_quran.runtime.console import no_log
from whisper_quran.runtime.errors import UserError

REPOSITORY = Path(__file__).parents[1]


def write_wav(path: Path, seed: int, samples: int = 3000) -> np.ndarray:
    """A 16 kHz file of its own content, which is returned: cheap to decode, and known to the bit."""
    content = np.random.default_rng(seed).integers(-32768, 32768, samples).astype(np.int16)
    soundfile.write(os.fsencode(path), content, SAMPLE_RATE)
    return content


@pytest.fixture
def reciter(tmp_path) -> tuple[list[Path], list[np.ndarray]]:
    """Twelve files of a reciter, and what is in them."""
    folder = tmp_path / "data" / "Reciter"
    folder.mkdir(parents=True)
    files = [folder / f"001{ayah:03}.wav" for ayah in range(1, 13)]
    return files, [write_wav(file, seed, 3000 + 100 * seed) for seed, file in enumerate(files)]


def entries(cache: Path) -> dict[str, bytes]:
    """Every recording and verdict in ``cache``, by its folder and name."""
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in cache.glob("*/*")}


def assert_holds(recordings: AudioCache, files: list[Path], expected: list[np.ndarray]) -> None:
    for file, samples in zip(files, expected, strict=True):
        assert recordings.length(file) == len(samples)
        np.testing.assert_array_equal(recordings.read(file), samples)


PREPARE = """
import sys
from pathlib import Path
from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.runtime.errors import run_command
data, cache = map(Path, sys.argv[1:])
sources = {folder.name: sorted(folder.iterdir()) for folder in sorted(data.iterdir())}
log = lambda line: print(line, flush=True)
run_command(lambda: print("clips", len(prepare_audio(sources, cache, workers=2, log=log).clips)))
"""


def start_preparing(data: Path, cache: Path) -> subprocess.Popen[str]:
    """A process that prepares all of ``data``."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, data, cache],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_real_recitations_are_decoded_once(quran, tmp_path, capfd):
    sources = {
        name: sorted((quran / "audio" / name).glob("001*.mp3")) for name in ("AbdulWadood_Haneef", "Yasser_Salama_hadr")
    }
    sources["odd"] = sorted((quran / "odd").iterdir())
    first = prepare_audio(sources, tmp_path, workers=2)
    said = capfd.readouterr()
    assert said.out.startswith("Decoding 23 files of 3 reciters, about 2 min of audio: 3.5 MB in ")
    assert said.out.endswith(f"{tmp_path}\n")

    assert len(first.clips) == 20
    assert [path.name for path, _ in first.skipped] == ["empty.mp3", "noise_bytes.mp3", "text_named.mp3"]
    assert {path.name for path in first.damaged} == {"truncated.mp3"}
    for name, seconds in [("001000_basmala.mp3", 9.822), ("stereo_48kHz.mp3", 10.68), ("truncated.mp3", 1.073)]:
        assert first.length(quran / "odd" / name) / SAMPLE_RATE == pytest.approx(seconds, abs=0.001)
    ayah = sources["AbdulWadood_Haneef"][0]
    assert ayah in first
    assert quran / "odd" / "empty.mp3" not in first
    assert np.abs(first.read(ayah).astype(int)).max() > 1000

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = prepare_audio(sources, tmp_path, workers=2)
    assert capfd.readouterr() == ("", "")
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_added_and_changed_files_are_decoded_and_no_others(reciter, tmp_path, capfd):
    files, expected = reciter
    cache = tmp_path / "cache"
    prepare_audio({"Reciter": files[:8]}, cache, workers=1)
    expected[3] = write_wav(files[3], seed=100, samples=len(expected[3]))  # Of the same size as before.
    files[5].write_bytes(b"no audio any more")
    capfd.readouterr()
    recordings = prepare_audio({"Reciter": files}, cache, workers=1)
    assert "Decoding 6 files of Reciter" in capfd.readouterr().out
    assert [path for path, _ in recordings.skipped] == [files[5]]
    assert_holds(recordings, files[:5] + files[6:], expected[:5] + expected[6:])

    prepare_audio({"Reciter": files}, cache, workers=1)
    assert capfd.readouterr().out == ""
    expected[5] = write_wav(files[5], seed=101)
    recordings = prepare_audio({"Reciter": files}, cache, workers=1)
    assert "Decoding 1 file of Reciter" in capfd.readouterr().out
    assert recordings.skipped == []
    assert_holds(recordings, files, expected)


def test_a_reader_is_not_disturbed_by_a_later_preparation(reciter, tmp_path):
    files, expected = reciter
    before = prepare_audio({"Reciter": files[:6]}, tmp_path / "cache", workers=1, log=no_log)
    for file in files[:6]:
        write_wav(file, seed=200)
    prepare_audio({"Reciter": files}, tmp_path / "cache", workers=1, log=no_log)
    assert_holds(before, files[:6], expected[:6])


def test_what_cannot_be_opened_is_skipped_and_tried_again(reciter, tmp_path):
    files, expected = reciter
    gone = files[0].with_name("gone.wav")
    recordings = prepare_audio({"Reciter": [gone, *files]}, tmp_path / "cache", workers=1, log=no_log)
    assert recordings.skipped == [(gone, "cannot be read (No such file or directory)")]
    assert_holds(recordings, files, expected)
    content = write_wav(gone, seed=50)
    assert_holds(prepare_audio({"Reciter": [gone]}, tmp_path / "cache", workers=1, log=no_log), [gone], [content])


def test_two_data_sets_with_a_reciter_of_one_name(tmp_path):
    expected = []
    for data in ("a", "b"):
        (tmp_path / data / "Reciter").mkdir(parents=True)
        expected.append(write_wav(tmp_path / data / "Reciter" / "001001.wav", seed=len(expected)))
        os.utime(tmp_path / data / "Reciter" / "001001.wav", (0, 0))  # As an archive might have it.
    for _ in range(2):
        for data, content in zip(("a", "b"), expected, strict=True):
            files = [tmp_path / data / "Reciter" / "001001.wav"]
            assert_holds(prepare_audio({"Reciter": files}, tmp_path / "cache", workers=1, log=no_log), files, [content])


def test_reciters_and_files_of_any_name(tmp_path):
    sources, expected = {}, []
    for i, reciter in enumerate(["../../up", "الحصري", "x" * 300, ""]):
        file = tmp_path / os.fsdecode(b"not utf-8 \xff %d\n.wav" % i)
        sources[reciter] = [file]
        expected.append(write_wav(file, seed=i))
    for _ in range(2):
        recordings = prepare_audio(sources, tmp_path / "cache", workers=1, log=no_log)
        assert_holds(recordings, [file for files in sources.values() for file in files], expected)


# A cache that something happened to.


def damage_cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 3 | 1)


def damage_emptied(file: Path) -> None:
    os.truncate(file, 0)  # as a power cut may leave it


def damage_grown(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def damage_removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    "damage", [f for name, f in list(globals().items()) if name.startswith("damage_")], ids=lambda f: f.__name__[7:]
)
def test_a_damaged_cache_is_mended(reciter, tmp_path, damage):
    files, expected = reciter
    bad = files[0].with_name("bad.wav")
    bad.write_bytes(b"no audio")
    cache = tmp_path / "cache"
    prepare_audio({"Reciter": [*files, bad]}, cache, workers=1, log=no_log)
    before = entries(cache)
    for file in cache.glob("*/*"):
        damage(file)
    recordings = prepare_audio({"Reciter": [*files, bad]}, cache, workers=1, log=no_log)
    assert_holds(recordings, files, expected)
    assert [path for path, _ in recordings.skipped] == [bad]
    assert entries(cache) == before


def test_a_cache_removed_during_a_run_is_one_line(reciter, tmp_path):
    files, _ = reciter
    recordings = prepare_audio({"Reciter": files}, tmp_path / "cache", workers=1, log=no_log)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"was removed while in use .*: run the command again"):
        recordings.read(files[0])


# Processes that are killed, that meet, and that run out of disk.


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A data folder with two reciters of 300 files each."""
    data = tmp_path_factory.mktemp("many") / "data"
    for reciter in ("A", "B"):
        (data / reciter).mkdir(parents=True)
        for ayah in range(300):
            write_wav(data / reciter / f"002{ayah:03}.wav", seed=ayah, samples=20_000 + 10 * ayah)
    return data


def test_a_killed_preparation_goes_on_to_the_same_result(many, tmp_path):
    """Killed eight times, wherever it is when it has gone on by some recordings."""
    assert start_preparing(many, tmp_path / "whole").communicate()[0].endswith("clips 600\n")
    generator = random.Random(0)
    left = []
    for _ in range(8):
        process = start_preparing(many, tmp_path / "killed")
        left.append(process.stdout.readline())
        enough = len([*(tmp_path / "killed").glob("*/*")]) + generator.uniform(0, 100)
        while len([*(tmp_path / "killed").glob("*/*")]) < enough and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.communicate()
    assert start_preparing(many, tmp_path / "killed").communicate()[0].endswith("clips 600\n")
    assert len(set(left)) > 4, f"it was hardly ever killed half-way: {left}"
    found = {name: content for name, content in entries(tmp_path / "killed").items() if not name.endswith(".tmp")}
    assert found == entries(tmp_path / "whole")


def test_processes_that_meet_share_the_work(many, tmp_path):
    first = start_preparing(many, tmp_path / "cache")
    assert first.stdout.readline().startswith("Decoding 600 files of 2 reciters")
    second = start_preparing(many, tmp_path / "cache")
    waiting = f"Waiting for another process that is decoding into {tmp_path / 'cache'}\n"
    assert second.communicate()[0] == f"{waiting}clips 600\n"
    assert first.communicate()[0] == "clips 600\n"
    assert len(entries(tmp_path / "cache")) == 600


def test_a_disk_without_locks_costs_work_and_nothing_else(reciter, tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(audio_cache.fcntl, "flock", no_locks)
    files, expected = reciter
    assert_holds(prepare_audio({"Reciter": files}, tmp_path / "cache", workers=1, log=no_log), files, expected)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small disk of its own at ``folder``, where mounting is allowed."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_keeps_what_was_whole(tmp_path):
    files = [tmp_path / f"001{ayah:03}.wav" for ayah in range(20)]
    expected = [write_wav(file, seed, samples=55_000) for seed, file in enumerate(files)]
    with mounted(tmp_path / "cache", "size=2m") as cache:  # 2.2 MB are wanted, which may be an error of the estimate.
        with pytest.raises(UserError, match=r"No space left .*\(--cache\)"):
            prepare_audio({"R": files}, cache, workers=2, log=no_log)
        kept = entries(cache)
        assert 0 < len(kept) < 20
        assert {len(content) for content in kept.values()} == {110_128}
        some = files[: len(kept)]
        assert_holds(prepare_audio({"R": some}, cache, workers=2, log=no_log), some, expected[: len(kept)])
        subprocess.run(["mount", "-o", "remount,size=4m", cache], check=True)
        assert_holds(prepare_audio({"R": files}, cache, workers=2, log=no_log), files, expected)


def test_what_clearly_does_not_fit_is_refused_beforehand(quran, tmp_path):
    files = sorted((quran / "audio" / "Yasser_Salama_hadr").glob("002*.mp3"))
    with mounted(tmp_path / "cache", "size=2m") as cache:
        with pytest.raises(UserError, match=r"needs about \d+\.\d MB in .*, where 2\.\d MB are free: .*--cache"):
            prepare_audio({"R": files}, cache, workers=2, log=no_log)
        assert not entries(cache)


def test_a_cache_that_cannot_be_written(reciter, tmp_path):
    files, expected = reciter
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*\(--cache\)"):
        prepare_audio({"Reciter": files}, tmp_path / "file", workers=1, log=no_log)
    (tmp_path / "loop").symlink_to("loop")  # Not even its folders can be listed.
    with pytest.raises(UserError, match=r"loop.*\(--cache\)"):
        prepare_audio({"Reciter": files}, tmp_path / "loop", workers=1, log=no_log)
    with mounted(tmp_path / "cache", "size=4m") as cache:
        prepare_audio({"Reciter": files[:6]}, cache, workers=1, log=no_log)
        subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
        with pytest.raises(UserError, match=r"cannot write .*\(--cache\)"):
            prepare_audio({"Reciter": files}, cache, workers=1, log=no_log)
        # What is there can be used all the same.
        assert_holds(prepare_audio({"Reciter": files[:6]}, cache, workers=1, log=no_log), files[:6], expected[:6])


def test_an_entry_that_cannot_be_replaced_costs_that_recording_alone(reciter, tmp_path):
    files, _ = reciter
    prepare_audio({"Reciter": files}, tmp_path / "cache", workers=1, log=no_log)
    entry = min((tmp_path / "cache").glob("*/*.npy"))
    entry.unlink()
    entry.mkdir()
    recordings = prepare_audio({"Reciter": files}, tmp_path / "cache", workers=1, log=no_log)
    ((path, reason),) = recordings.skipped
    assert reason.startswith(f"cannot be kept in {entry} (")
    assert len(recordings.clips) == len(files) - 1 and path not in recordings


def test_ctrl_c_leaves_whole_recordings_and_one_line(many, tmp_path):
    process = start_preparing(many, tmp_path / "cache")
    process.stdout.readline()
    while not any((tmp_path / "cache").glob("*/*.npy")):  # one that is still being written has another name
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in complaints
    assert entries(tmp_path / "cache")
    for name, content in entries(tmp_path / "cache").items():
        assert len(content) == 128 + 2 * int(name.rpartition("-")[2].removesuffix(".npy"))


def test_the_default_cache_is_where_caches_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "whisper_quran"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "whisper_quran"
