"""Which recordings are found, which text they get, and what is said of the rest."""

import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from whisper_quran.data.ayat import read_text
from whisper_quran.data.corpus import open_corpus, parse_surahs
from whisper_quran.runtime.console import printable
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
    names = "001000.mp3 000001.mp3 000_versebyverse.zip notes.txt intro.mp3 002.mp3 2-01.mp3 114006.mp3 .DS_Store"
    files = [f"audio/R/{name}" for name in [*names.split(), "001001.mp3", "001001.srt", "001001.wav", "002002.mp3"]]
    data = make_data(tmp_path, files, "sorah,ayah,text\n1,1,a\n1,2,b\n2,1,c\n2,2,\n")
    ayat, skipped = open_corpus(data).select(["R"])
    assert [ayah.audio.name for ayah in ayat] == ["001001.mp3"]
    reasons = {Path(item.file).name: item.reason for item in skipped}
    assert "basmala" in reasons["001000.mp3"]
    assert "EveryAyah's own" in reasons["000001.mp3"] and "EveryAyah's own" in reasons["000_versebyverse.zip"]
    assert reasons["notes.txt"] == "not audio" and "001001.srt" not in reasons  # subtitles by recognition
    misnamed = "audio not named SSSAAA: rename it or, if it is more than an ayah, list its pieces in a --manifest"
    assert {reasons[name] for name in ("intro.mp3", "002.mp3", "2-01.mp3")} == {misnamed}
    assert reasons["114006.mp3"] == reasons["002002.mp3"] == "no text for this ayah"
    assert "second file" in reasons["001001.wav"]
    assert reasons["001002.*"] == reasons["002001.*"] == "text without audio"


def test_surahs_limit_both_audio_and_text(tmp_path):
    data = make_data(tmp_path, ["audio/R/001001.mp3", "audio/R/002001.mp3"])
    ayat, skipped = open_corpus(data, surahs="2:2").select(["R"])
    assert [ayah.surah for ayah in ayat] == [2]
    assert not skipped


def test_an_unknown_reciter_is_told_who_is_there(tmp_path):
    corpus = open_corpus(make_data(tmp_path, ["audio/Husary/001001.mp3", "audio/Minshawy/001001.mp3"]))
    said = "there are Husary, Minshawy: name some with --valid-reciters, separated by spaces"
    with pytest.raises(UserError, match=f"did you mean Husary\\? {said}"):
        corpus.select(["Husari"], "--valid-reciters")
    with pytest.raises(UserError, match=said):
        corpus.select(["Husary,Minshawy"], "--valid-reciters")


@pytest.mark.parametrize("text", ["200:300", "0:5", "5:4", "1:2:3", ""])
def test_a_range_of_surahs_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--surahs"):
        parse_surahs(text)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("whole/audio", "has no text, but the folder it is in has: give --data .*/whole$"),
        ("whole/audio/R", "is the folder of one reciter: give --data .*/whole$"),
        ("surahs", "R/112.mp3 is audio not named SSSAAA: rename it or, .* list its pieces in a --manifest"),
        ("dashes", "R/112-1.mp3 is audio not named SSSAAA: rename it"),
        ("packed/R.zip", "no folder .*R.zip: --data takes a folder .* unpack an archive"),
        ("hidden", "no recitations in .*hidden: expected"),
        ("x" * 300, "no folder"),
    ],
)
def test_folders_that_are_laid_out_otherwise_are_told_what_to_do(tmp_path, given, says):
    make_data(tmp_path / "whole", ["audio/R/001001.mp3"])
    hidden = ("hidden/R/._112001.mp3", "hidden/.R/112001.mp3")
    for name in ("surahs/R/112.mp3", "dashes/audio/R/112-1.mp3", "packed/R.zip", *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=says):
        open_corpus(tmp_path / given)


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


def manifest(folder: Path, content: str | bytes, names: str = "a.wav b.wav c.wav d.wav e.wav ._a.wav") -> Path:
    """A manifest beside the (empty) recordings that it may name."""
    for name in names.split():
        (folder / name).touch()
    file = folder / "list.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def rows(file: Path) -> tuple[dict[str, str], dict[int, str]]:
    """What of a manifest is used (text by file), and what is listed (reason by line)."""
    corpus = open_corpus(Path("unused"), manifest=file)
    used = {ayah.audio.name: ayah.text for ayah in corpus.select(corpus.reciters)[0]}
    listed = {}
    for item in corpus.skipped:
        place, _, line = item.file.rpartition(", line ")
        assert place == str(file)
        listed[int(line)] = item.reason
    return used, listed


@pytest.mark.parametrize(("separator", "end"), [(",", "\n"), ("\t", "\r\n"), (";", "\r")])
def test_a_broken_row_is_listed_and_costs_no_other(tmp_path, separator, end):
    lines = [
        "audio,text,reciter",
        "a.wav,one,R",
        'b.wav,"two,R',  # never closed
        "c.wav,three,R",
        'd.wav,fo"ur,R',  # a stray one, which would close the other
        "e.wav,five,R,more",
        "e.wav,five",
        "",
        'e.wav,"a, quoted one",R',
    ]
    used, listed = rows(manifest(tmp_path, end.join(lines).replace(",", separator)))
    assert used == {"a.wav": "one", "c.wav": "three", "e.wav": f"a{separator} quoted one".replace("\t", "")}
    assert list(listed) == [3, 5, 6, 7]
    assert "quote" in listed[3] and "quote" in listed[5]
    assert listed[6] == "4 fields, where the first line has 3" and listed[7] == "2 fields, where the first line has 3"


@pytest.fixture
def cases(quran) -> Path:
    folder = quran.parent / "cases"
    if not folder.is_dir():
        pytest.skip("the cases are not beside the repository (../shared/cases)")
    return folder


@pytest.mark.parametrize("case", ["waqf-marks", "basmala-in-text"])
def test_signs_and_a_basmala_that_are_not_recited_are_named_and_left_out(cases, quran, case):
    name = "ayah_text_diacritics.csv" if case == "waqf-marks" else "ayah_text_clear.csv"
    told = []
    texts, _ = read_text(cases / case / "text.csv", told.append)
    assert texts == read_text(quran / "metadata" / name)[0]
    assert len(told) == 1
    assert "5,729 texts" in told[0] or "112 first ayat of" in told[0]


def test_a_basmala_is_left_out_only_where_most_first_ayat_have_it(tmp_path):
    text = tmp_path / "text.csv"
    basmala = "بِسۡمِ ٱللَّهِ ٱلرَّحۡمَـٰنِ ٱلرَّحِيمِ"
    text.write_text(f"sorah,ayah,text\n1,1,{basmala}\n2,1,{basmala} الم\n27,1,طس\n9,1,x\n2,2,{basmala} y\n3,1,الم\n")
    assert read_text(text)[0][2, 1].endswith(" الم")
    text.write_text(f"sorah,ayah,text\n1,1,{basmala}\n2,1,{basmala} الم\n95,1,{basmala}\n2,2,{basmala} y\n3,1,﷽ الم\n")
    texts = read_text(text)[0]
    assert [len(texts[key].split()) for key in ((1, 1), (2, 1), (95, 1), (2, 2), (3, 1))] == [4, 1, 4, 5, 1]


def test_columns_are_found_in_any_case_and_with_spaces(tmp_path):
    assert rows(manifest(tmp_path, "\ufeff Text ; AUDIO;note\none;a.wav;x\n"))[0] == {"a.wav": "one"}
    assert rows(manifest(tmp_path, "audio,text,,\na.wav,one,,\n"))[0] == {"a.wav": "one"}
    text = tmp_path / "text.csv"
    text.write_text("Sorah\tAYAH\tText\n1\t1\ta, b\n")
    assert read_text(text)[0] == {(1, 1): "a, b"}


def test_numbers_and_missing_values_as_programs_write_them(tmp_path):
    text = tmp_path / "text.csv"
    text.write_text("sorah,ayah,text\n112.0, 1 ,a\n112.5,2,b\n112,3.0,NaN\n2,287,d\n١١٢,٤,g\n<NA>,5,h\n1,2\n3,x,y\n")
    texts, skipped = read_text(text)
    assert texts == {(112, 1): "a", (112, 4): "g"}
    assert Counter(item.reason for item in skipped) == {
        "no ayah has this surah and ayah: 112.5,2": 1,
        "no ayah has this surah and ayah: 3,x": 1,
        "the text is NaN, which stands for a missing value": 1,
        "no ayah has this surah and ayah: 2,287": 1,
        "the surah is <NA>, which stands for a missing value": 1,
        "2 fields, where the first line has 3": 1,
    }
    used, listed = rows(manifest(tmp_path, "audio,text,reciter\na.wav,nan,R\nb.wav,two,nan\nc.wav,three,\nnan,x,R\n"))
    assert used == {"c.wav": "three"}
    assert listed[2] == "the text is nan, which stands for a missing value"
    assert listed[3] == "the reciter is nan, which stands for a missing value"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("audio,text\na.wav,نص\n".encode("utf-16-le"), "is not UTF-8"),
        ("audio,text\na.wav,one\nb.wav,نص\n".encode("cp1256"), "is not UTF-8"),
        (
            b"PK\x03\x04\x00",
            "is not UTF-8: --manifest takes CSV, JSON or JSONL in UTF-8, or parquet; .* unpack an archive",
        ),
        (b"", "lacks a column of audio .* finds 'nothing'"),
        (b"audio,text,Text\na.wav,one,two\n", "names a column twice"),
        (
            b"audio|text\na.wav|one\n",
            "lacks a column of audio .audio, file_name, audio_filepath, path.: .* 'audio.text'",
        ),
        (b"audio,note\na.wav,one\n", "lacks columns of text .text, .*, or surah and ayah"),
        (b"audio,surah,ayah\na.wav,1,1\n", "cannot read unused/metadata.*: --text takes CSV"),
        (b"audio,text\na.wav,one,two\n", "row by row: 3 fields, where the first line has 2"),
        (b"audio,text,Start_ms,end_ms\na.wav,one,0,1\n", "has Start_ms, end_ms: name them start and end, in seconds"),
        (b"audio,text\nhttps://x.y//a.wav,one\n", "a URL, not a file: download https://x.y//a.wav"),
        (b"audio,text\n._a.wav,one\n", "a hidden file, not a recording"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path, content, says):
    with pytest.raises(UserError, match=says):
        open_corpus(Path("unused"), manifest=manifest(tmp_path, content))


def test_a_name_that_is_not_as_on_disk_is_told_how_to_be_written(tmp_path):
    (tmp_path / "clips").mkdir()
    content = "audio,text\nclips\\a.wav,one\nClips/A.WAV,two\nclips/a.wav,three\n" + "x" * 300 + ",four\n"
    used, listed = rows(manifest(tmp_path, content, names="clips/a.wav"))
    assert used == {"a.wav": "one"} and list(listed) == [3, 5, 4]
    assert all(re.match("no such file: .* in the same case", listed[line]) for line in (3, 5))
    assert "named a second time" in listed[4]


def test_columns_that_are_not_read_are_named(tmp_path):
    told = []
    open_corpus(Path("unused"), manifest=manifest(tmp_path, "audio,text,Note,page,\na.wav,one,x,3,\n"), log=told.append)
    assert [line.partition("list.csv: ")[2] for line in told[:1]] == ["audio, text are read, not Note, page"]
    assert told[1:] == ["manifest   no reciter is named: all rows are one voice, list"]


NAME = "Husarī_é.wav"


@pytest.mark.parametrize(("on_disk", "given"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_file_and_a_reciter_are_found_whatever_their_unicode_form(tmp_path, on_disk, given):
    (tmp_path / unicodedata.normalize(on_disk, NAME)).touch()
    used, listed = rows(manifest(tmp_path, f"audio,text\n{unicodedata.normalize(given, NAME)},x\n", names=""))
    assert len(used) == 1 and not listed
    corpus = open_corpus(make_data(tmp_path, [unicodedata.normalize(on_disk, "audio/Ḥuṣarī/001001.mp3")]))
    assert list(corpus.reciters) == ["Ḥuṣarī"]
    assert len(corpus.select([unicodedata.normalize(given, "Ḥuṣarī")])[0]) == 1


def test_names_that_cannot_be_printed_are_escaped_alike(tmp_path):
    odd = os.fsdecode(b"odd\xff\xc2\xa0\xe2\x80\xa8\n.mp3")
    folder = os.fsdecode(b"R\xfe")
    data = make_data(tmp_path, [f"audio/{folder}/001001.mp3", f"audio/{folder}/{odd}"])
    corpus = open_corpus(data)
    assert list(corpus.reciters) == ["R\\udcfe"] == [printable(folder)]
    for name in (folder, "R\\udcfe"):
        ayat, skipped = corpus.select([name])
        assert [ayah.reciter for ayah in ayat] == ["R\\udcfe"]
        assert skipped[0].file.endswith("odd\\udcff\\xa0\\u2028\\n.mp3")
        for item in skipped:
            (item.file + item.reason).encode()  # any encoding error would end a run


def test_the_surahs_of_a_reciter_are_told(tmp_path):
    names = [f"audio/R/{surah:03}001.mp3" for surah in (1, 78, 114)]
    corpus = open_corpus(make_data(tmp_path, names), surahs="2:3")
    with pytest.raises(UserError, match=r"no ayah of R .*: it has surahs 1, 78, 114; .* others with --valid-reciters"):
        corpus.select(["R"], "--valid-reciters")
