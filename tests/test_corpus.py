"""Which recordings are found, which text they get, and what is said of the rest."""

from collections import Counter
from pathlib import Path

import pytest

from whisper_quran.data.corpus import open_corpus, parse_surahs, read_text
from whisper_quran.runtime.errors import UserError


def make_data(folder: Path, files: list[str], csv: str = "sorah,ayah,text\n1,1,a\n1,2,b\n2,1,c\n") -> Path:
    """A data folder whose 'recordings' are empty files: the corpus goes by their names alone."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    (folder / "metadata" / "ayah_text_clear.csv").write_text(csv, encoding="utf-8")
    return folder


def test_the_real_recitations_are_paired_with_their_text(quran):
    corpus = open_corpus(quran)
    assert {"AbdulWadood_Haneef", "Yasser_Salama_hadr"} <= set(corpus.reciters)
    ayat, skipped = corpus.select(["AbdulWadood_Haneef"])
    assert len(ayat) == len(list((quran / "audio" / "AbdulWadood_Haneef").glob("*.mp3")))
    first = ayat[0]
    assert (first.surah, first.number, first.text) == (1, 1, "بسم الله الرحمن الرحيم")
    assert Counter(item.reason for item in skipped) == {"text without audio": 6236 - len(ayat)}


@pytest.mark.parametrize("layout", ["audio/R", "R"])
def test_both_layouts_are_read_and_every_audio_extension_counts(tmp_path, layout):
    data = make_data(tmp_path, [f"{layout}/001001.mp3", f"{layout}/001002.FLAC", f"{layout}/002001.m4a"])
    ayat, skipped = open_corpus(data).select(["R"])
    assert [ayah.text for ayah in ayat] == ["a", "b", "c"]
    assert not skipped


def test_whatever_is_no_ayah_is_left_out_with_its_reason(tmp_path):
    names = ["001000.mp3", "000001.mp3", "000_versebyverse.zip", "notes.txt", "intro.mp3", "114006.mp3", ".DS_Store"]
    data = make_data(tmp_path, [f"audio/R/{name}" for name in [*names, "001001.mp3", "001001.wav"]])
    ayat, skipped = open_corpus(data).select(["R"])
    assert [ayah.audio.name for ayah in ayat] == ["001001.mp3"]
    reasons = {Path(item.file).name: item.reason for item in skipped}
    assert "basmala" in reasons["001000.mp3"]
    assert "EveryAyah's own" in reasons["000001.mp3"] and "EveryAyah's own" in reasons["000_versebyverse.zip"]
    assert reasons["notes.txt"] == "not audio"
    assert reasons["intro.mp3"] == "audio not named SSSAAA"
    assert reasons["114006.mp3"] == "no text for this ayah"
    assert "second file" in reasons["001001.wav"]
    assert reasons["001002.*"] == reasons["002001.*"] == "text without audio"


def test_an_ayah_whose_text_is_empty_is_left_out(tmp_path):
    data = make_data(tmp_path, ["audio/R/001001.mp3", "audio/R/001002.mp3"], "sorah,ayah,text\n1,1,\n1,2,b\n")
    ayat, skipped = open_corpus(data).select(["R"])
    assert [ayah.number for ayah in ayat] == [2]
    assert "no text for this ayah" in {item.reason for item in skipped}


def test_surahs_limit_both_audio_and_text(tmp_path):
    data = make_data(tmp_path, ["audio/R/001001.mp3", "audio/R/002001.mp3"])
    ayat, skipped = open_corpus(data, surahs="2:2").select(["R"])
    assert [ayah.surah for ayah in ayat] == [2]
    assert not skipped


def test_text_with_bom_extra_columns_and_another_order_is_read(tmp_path):
    file = tmp_path / "text.csv"
    file.write_bytes("﻿juz,text,ayah,sorah\r\n1,نص,1,1\r\n1,x,y,z\r\n1,again,1,1\r\n".encode())
    texts, skipped = read_text(file)
    assert texts == {(1, 1): "نص"}
    assert [item.reason for item in skipped] == [
        "sorah and ayah are not numbers",
        "a second text for an ayah that has one already",
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "reads 'nothing'"),
        (b"surah,verse,text\n1,1,a\n", "lacks the columns sorah, ayah"),
        ("sorah,ayah,text\n1,1,نص\n".encode("utf-16"), "not UTF-8"),
        ("sorah,ayah,text\n1,1,نص\n".encode("cp1256"), "not UTF-8"),
        (b"sorah,ayah,text\n", "holds no text"),
        (b"sorah,ayah,text\n1,1,\n1,2,  \n", "holds no text"),
    ],
)
def test_a_text_that_cannot_be_used_says_why(tmp_path, content, says):
    file = tmp_path / "text.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_text(file)


def test_an_unknown_reciter_is_told_who_is_there(tmp_path):
    corpus = open_corpus(make_data(tmp_path, ["audio/Husary/001001.mp3", "audio/Minshawy/001001.mp3"]))
    with pytest.raises(UserError, match="did you mean Husary\\? there are Husary, Minshawy"):
        corpus.select(["Husari"])


@pytest.mark.parametrize("text", ["200:300", "0:5", "5:4", "a:b", "1:2:3", "-1", ""])
def test_a_range_of_surahs_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--surahs"):
        parse_surahs(text)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no recitations"):
        open_corpus(tmp_path)


def test_a_manifest_names_any_recordings(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("a.wav", "b.wav"):
        (tmp_path / "clips" / name).touch()
    manifest = tmp_path / "list.csv"
    manifest.write_text(
        "audio,text,reciter\nclips/a.wav,one,A\nclips/b.wav,two,\nclips/gone.wav,three,A\nclips/a.wav,again,A\n,x,A\n"
    )
    corpus = open_corpus(Path("unused"), manifest=manifest)
    assert list(corpus.reciters) == ["A", "list"]
    ayat, _ = corpus.select(["A", "list"])
    assert [(ayah.audio.name, ayah.text, ayah.surah) for ayah in ayat] == [
        ("a.wav", "one", None),
        ("b.wav", "two", None),
    ]
    reasons = " | ".join(item.reason for item in corpus.skipped)
    assert "no such file" in reasons and "a second time" in reasons and "no audio is named" in reasons
