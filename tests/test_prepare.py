"""From a configuration to examples: what is left out, what is warned of, and by what a run knows its data."""

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from whisper.tokenizer import get_tokenizer

from whisper_quran.config import EvaluationConfig, TrainingConfig
from whisper_quran.data.audio import SAMPLE_RATE
from whisper_quran.data.corpus import open_corpus, select_ayat
from whisper_quran.data.prepare import TrainingData, decode_ayat, prepare_data
from whisper_quran.runtime.console import no_log
from whisper_quran.runtime.errors import UserError

REPOSITORY = Path(__file__).parents[1]
TOKENIZER = get_tokenizer(True, num_languages=99, language="ar", task="transcribe")


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 8000), SAMPLE_RATE)


@pytest.fixture
def config(tmp_path) -> TrainingConfig:
    """Reciters A and B with four ayat each, every recording its own."""
    data = tmp_path / "data"
    for seed, reciter in enumerate("AB"):
        for ayah in range(1, 5):
            write(data / reciter / f"112{ayah:03}.wav", 10 * seed + ayah)
    (data / "metadata").mkdir()
    (data / "metadata" / "ayah_text_clear.csv").write_text(
        "sorah,ayah,text\n" + "".join(f"112,{ayah},text {'abcd'[ayah - 1]}\n" for ayah in range(1, 5))
    )
    return TrainingConfig(data=data, cache=tmp_path / "cache", workers=1, train_reciters=("A",), valid_reciters=("B",))


def prepared(config: TrainingConfig) -> TrainingData:
    return prepare_data(config, *select_ayat(config), TOKENIZER, 448, no_log)


def digest(config: TrainingConfig) -> str:
    return prepared(config).digest


def test_both_splits_are_prepared_in_order(config):
    data = prepared(config)
    assert [example.ayah.number for example in data.train] == [1, 2, 3, 4]
    assert [example.ayah.reciter for example in data.valid["B"]] == ["B"] * 4
    assert data.skipped == []


def test_a_manifests_rows_are_trained_on_in_the_order_of_the_mushaf_and_validated_on_in_their_own(config):
    table = config.data / "clips.csv"
    rows = [f"{reciter}/112{ayah:03}.wav,text,{reciter},112,{ayah}\n" for reciter in "AB" for ayah in (3, 1, 4, 2)]
    table.write_text("audio,text,reciter,surah,ayah\n" + "".join(rows))
    data = prepared(replace(config, manifest=table))
    assert [example.ayah.number for example in data.train] == [1, 2, 3, 4]
    assert [example.ayah.number for example in data.valid["B"]] == [3, 1, 4, 2]


def test_a_reciter_in_both_splits_is_said(config):
    lines = []
    select_ayat(replace(config, train_reciters=("A", "B")), lines.append)
    assert len(lines) == 1 and lines[0].startswith("warning    B is in both splits")


def test_surahs_that_are_validated_on_are_not_trained_on(config):
    write(config.data / "A" / "113001.wav", 100)
    write(config.data / "B" / "113001.wav", 101)
    with open(config.data / "metadata" / "ayah_text_clear.csv", "a") as file:
        file.write("113,1,text e\n")

    def split(**options: object) -> list[set[tuple[str, int | None]]]:
        chosen = select_ayat(replace(config, **options), lines.append)[:2]
        return [{(ayah.reciter, ayah.surah) for ayah in ayat} for ayat in chosen]

    lines: list[str] = []
    assert split(valid_surahs="113") == [{("A", 112)}, {("B", 113)}]
    assert split(valid_surahs="113:114", valid_reciters=("A",)) == [{("A", 112)}, {("A", 113)}]
    assert split(valid_surahs="113:114", valid_reciters=None) == [{("A", 112)}, {("A", 113)}]
    assert lines == []  # no warning of a reciter in both splits
    for surahs, says in (
        ("1:2", "no ayah to validate on"),
        ("112:114", "no ayah to train on"),
        ("x", "--valid-surahs x"),
    ):
        with pytest.raises(UserError, match=says):
            split(valid_surahs=surahs)
    (config.data / "list.csv").write_text("audio,text\nA/112001.wav,one\n")
    with pytest.raises(UserError, match="needs columns of surah and ayah"):
        split(valid_surahs="113", manifest=config.data / "list.csv", train_reciters=None, valid_reciters=None)


def test_the_same_data_under_another_path_is_the_same(config, tmp_path):
    before = digest(config)
    shutil.copytree(config.data, tmp_path / "moved", copy_function=shutil.copyfile)  # other times, too
    assert digest(replace(config, data=tmp_path / "moved", cache=tmp_path / "other cache")) == before
    rows = [
        (tmp_path / "data" / reciter / f"112{ayah:03}.wav", f"text {'abcd'[ayah - 1]}", name)
        for reciter, name in (("A", "someone"), ("B", "else"))
        for ayah in range(1, 5)
    ]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("audio", "text", "reciter"), *rows])
    as_manifest = replace(config, manifest=tmp_path / "list.csv", train_reciters=("someone",), valid_reciters=("else",))
    assert digest(as_manifest) == before


@pytest.mark.parametrize("change", ["other audio of the same length", "two swapped", "another text"])
def test_any_other_data_is_not_the_same(config, change):
    before = digest(config)
    folder, text = config.data / "A", config.data / "metadata" / "ayah_text_clear.csv"
    if change == "other audio of the same length":
        times = (folder / "112002.wav").stat()
        write(folder / "112002.wav", 99)
        os.utime(folder / "112002.wav", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    elif change == "two swapped":
        (folder / "112002.wav").rename(folder / "x")
        (folder / "112003.wav").rename(folder / "112002.wav")
        (folder / "x").rename(folder / "112003.wav")
    else:
        text.write_text(text.read_text().replace("text c", "text e"))
    assert digest(config) != before


def test_identical_recordings_are_named(config):
    shutil.copy(config.data / "A" / "112001.wav", config.data / "A" / "112003.wav")
    for _ in range(2):  # also when all is in the cache
        lines = []
        decode_ayat(open_corpus(config.data).select("AB")[0], config, lines.append)
        warnings = [line for line in lines if line.startswith("warning")]
        assert len(warnings) == 1
        assert "1 recordings are there more than once" in warnings[0]
        assert "A/112001.wav and " in warnings[0] and "A/112003.wav" in warnings[0]


def test_audio_without_speech_is_listed_and_counted(config):
    soundfile.write(config.data / "A" / "112001.wav", np.zeros(20_000), SAMPLE_RATE)
    soundfile.write(config.data / "A" / "112002.wav", np.ones(20_000), SAMPLE_RATE)
    (config.data / "A" / "112003.wav").write_bytes(b"no audio")
    data = prepared(config)
    assert [Path(item.file).name for item in data.skipped] == ["112001.wav", "112002.wav", "112003.wav"]
    reasons = [item.reason.split(":")[0] for item in data.skipped]
    assert reasons == ["no speech", "no speech", "cannot be decoded"]
    assert [example.ayah.number for example in data.train] == [4]


def test_uthmani_spelling_is_told_once(config):
    path = config.data / "metadata" / "ayah_text_clear.csv"
    path.write_text("sorah,ayah,text\n" + "".join(f"112,{ayah},بِرَبِّ ٱلۡفَلَقِ ۝{ayah}\n" for ayah in range(1, 5)))
    for options, times in ((config, 1), (EvaluationConfig(("m",), data=config.data, normalize="full"), 0)):
        told: list[str] = []
        ayat = open_corpus(config.data, log=told.append).select("A")[0]
        decode_ayat(ayat, replace(options, cache=config.cache), told.append)
        assert ayat[0].text == "بِرَبِّ ٱلۡفَلَقِ"
        assert sum("--normalize full" in line for line in told) == times
        assert sum("4 texts of" in line for line in told) == 1
