"""benchmarks/gpu.py, whole, on the CPU: every part ends, and one that breaks leaves the others as they were; and
some smaller ones: benchmarks/memory.py counts what a real step takes."""

import json
import os
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from rapidfuzz.distance import Levenshtein

from whisper_quran import load_checkpoint
from whisper_quran.data.audio import as_part
from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.data.corpus import open_corpus
from whisper_quran.data.text import letters
from whisper_quran.decoding.long_audio import transcribe_clips

ROOT = Path(__file__).resolve().parents[1]
PARTS = "training decoding throughput context augmentation evaluation scaler memory attention peers nccl".split()
# Parts that break, each in its own way, around one that does not.
BREAKING = """
import os, signal, sys, time, types

sys.path.insert(0, sys.argv.pop(1))
import gpu, gpu_parts

def fails(report):
    report(({"before": 1.5}, "measured"))
    raise RuntimeError("no such kernel")

units = {
    "training": gpu_parts.Unit("fails", fails),
    "decoding": gpu_parts.Unit("dies", lambda report: os.kill(os.getpid(), signal.SIGKILL)),
    "throughput": gpu_parts.Unit("hangs", lambda report: time.sleep(600), limit=1),
    "context": gpu_parts.Unit("works", lambda report: report(({"clips/s": 2.0}, "measured"))),
    "nccl": gpu_parts.Unit("is left out", "needs two GPUs"),
}
gpu_parts.prepare = lambda args, folder: types.SimpleNamespace(about={"device": "none"})
gpu_parts.PARTS = {part: lambda bench, unit=unit: [unit] for part, unit in units.items()}
gpu.main()
"""


@pytest.fixture(scope="module")
def ayat(quran, tmp_path_factory) -> Path:
    """A folder of recitations with five ayat."""
    data = tmp_path_factory.mktemp("ayat")
    shutil.copytree(quran / "metadata", data / "metadata")
    folder = Path("audio/Yasser_Salama_hadr")
    (data / folder).mkdir(parents=True)
    for number in range(1, 6):
        shutil.copy(quran / folder / f"00100{number}.mp3", data / folder)
    return data


def run(command: list[str], data: Path, out: Path) -> tuple[int, dict, str]:
    """Run it on ``data`` at ``nano`` dimensions; return the exit code, the JSON and what was printed."""
    options = ["--data", str(data), "--device", "cpu", "--sizes", "nano", "--json", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *command, *options], capture_output=True, text=True, env=environment)
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text(encoding="utf-8")), done.stdout


@pytest.mark.slow
def test_the_gpu_benchmark_runs_whole_on_a_cpu(ayat, tmp_path):
    code, measured, printed = run([str(ROOT / "benchmarks" / "gpu.py")], ayat, tmp_path / "gpu.json")
    assert list(measured["parts"]) == PARTS
    rows = [(part, row) for part, rows in measured["parts"].items() for row in rows]
    assert [(part, row) for part, row in rows if row["result"].startswith("failed")] == []
    assert code == 0 and "\n0 of " in printed
    for part, row in rows:
        assert f"{part}: {row['name']}" in printed, "as it was measured"
        assert f"\n| {row['name']} | " in printed, "in the table"
    for part in ("training", "decoding", "attention"):
        compared = [row for row in measured["parts"][part] if row["result"] in ("pass", "measured")]
        assert compared and all("tolerance" in row for row in compared)
    left_out = {part for part, row in rows if "needs" in row["result"]}
    assert left_out == {"training", "decoding", "evaluation", "scaler", "memory", "nccl"}
    assert measured["about"]["torch"] and measured["about"]["TFLOP/s of a matrix product"]


def test_a_part_that_breaks_leaves_the_others(tmp_path):
    code, measured, printed = run(["-c", BREAKING, str(ROOT / "benchmarks")], tmp_path, tmp_path / "gpu.json")
    results = [(row["name"], row["result"]) for rows in measured["parts"].values() for row in rows]
    assert results == [
        ("fails", "measured"),
        ("fails", "failed: RuntimeError: no such kernel"),
        ("dies", "failed: died, exit code -9"),
        ("hangs", "failed: out of time"),
        ("works", "measured"),
        ("is left out", "skipped: needs two GPUs"),
    ]
    assert code == 1 and "3 of 6 rows failed" in printed


def test_without_the_packages_it_says_how_to_bring_them(tmp_path):
    """A Python that sees no packages at all: -S leaves out site-packages."""
    script = str(ROOT / "benchmarks" / "gpu.py")
    done = subprocess.run([sys.executable, "-S", script, "--data", "x"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "pip wheel --no-deps" in done.stderr and "--no-index --find-links wheels" in done.stderr


@pytest.mark.soak
def test_recognition_is_measured_in_all_parts(ayat, base_weights):
    """Five ayat of surah 1, of which untouched ``base`` hears most well enough."""
    command = [sys.executable, str(ROOT / "benchmarks" / "recognition.py"), "--data", str(ayat), "--model"]
    command += [str(base_weights / "base.pt"), "--parts"]
    others = ["follow", "lookalikes", "repeats", "others"]
    done = subprocess.run([*command, *others], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no two ayat with three words in common" in done.stdout
    (taken,) = [line for line in done.stdout.splitlines() if "1 to 1" in line]
    assert "| 0 of " in taken
    done = subprocess.run([*command, "ayat", "cut", "long", "words"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| Yasser")]
    whole, cut, long, *words = rows
    free, nearest, constrained, found_nearest, found, _ = (float(cell.removesuffix(" %")) for cell in whole[2:])
    assert max(nearest, constrained) < free / 3 and min(found_nearest, found) >= 80
    assert long[1] == "1:1 to 1:5" and long[3] == "5 of 5"
    assert int(cut[1]) <= 5 and len(words) == 5


@pytest.mark.slow
def test_pieces_are_the_words_that_their_texts_say(ayat, base_weights, tmp_path):
    """Three of surah 1's first five ayat have four words. Of all runs of an ayah's words a piece is nearest to its own,
    but for one word at most, as far as untouched ``base`` hears it: in two of the three."""
    command = [sys.executable, str(ROOT / "benchmarks" / "pieces.py"), "--data", str(ayat), "--model"]
    command += [str(base_weights / "base.pt"), "--reciters", "Yasser_Salama_hadr", "--cache", str(tmp_path)]
    found = []
    for options, said in (
        (["--share", "1"], "3 pieces and 2 whole ayat; 0 over 30 s or undecodable, 0 not cut"),
        (["--share", "1", "--only-pieces"], "3 pieces and 0 whole ayat"),
    ):
        table = tmp_path / f"{len(options)}.csv"
        done = subprocess.run([*command, *options, "--out", str(table)], capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout, done.stderr
        corpus = open_corpus(ayat, manifest=table)
        assert not corpus.skipped
        found.append(corpus.select(corpus.reciters)[0])
    pieces = found[1]
    assert {(str(piece.audio), piece.text) for piece in pieces} < {(str(each.audio), each.text) for each in found[0]}
    texts = {Path(ayah.audio).name: ayah.text.split() for ayah in open_corpus(ayat).select(["Yasser_Salama_hadr"])[0]}
    cache = prepare_audio({"A": [piece.audio for piece in pieces]}, tmp_path, 1)
    assert not cache.skipped
    clips = [cache.read(piece.audio) for piece in pieces]
    right = []
    for each in transcribe_clips(load_checkpoint(base_weights / "base.pt"), clips, batch_size=4, language="ar"):
        words = texts[as_part(pieces[each.clip].audio).path.name]
        runs = [" ".join(words[a:b]) for a, b in combinations(range(len(words) + 1), 2)]
        nearest = min(runs, key=lambda run: Levenshtein.distance(letters(run), letters(each.text)))
        more, less = sorted((nearest.split(), pieces[each.clip].text.split()), key=len, reverse=True)
        right.append(" ".join(less) in " ".join(more) and len(more) - len(less) <= 1)
    assert len(right) == 3 and sum(right) >= 2


@pytest.mark.soak
def test_memory_is_counted_as_a_real_step_takes_it():
    """Of every way to train, with contents and without; and the table has a row for each."""
    script = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--tokens", "9"]
    checked, table = (
        subprocess.run([*script, *options], capture_output=True, text=True)
        for options in (["--check", "nano", "--clips", "2"], ["--models", "nano"])
    )
    assert checked.returncode == 0 == table.returncode, checked.stderr + table.stderr
    rows = [line.split(" | ") for line in checked.stdout.splitlines() if "coder" in line]
    assert len(rows) == 8
    for *_, counted, real, _grown in rows:
        assert counted == real
    assert table.stdout.count("| nano | ") == 8 and "| 16 |" in table.stdout
