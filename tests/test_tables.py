"""Data as people have it: parquet, JSONL, an audiofolder, pieces of long files; and tables that are broken."""

import csv
import json
import re
import sys
from collections.abc import Callable
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from whisper.tokenizer import get_tokenizer

from whisper_quran.config import TrainingConfig
from whisper_quran.data import parquet
from whisper_quran.data.audio import SAMPLE_RATE, Part, decode_file
from whisper_quran.data.ayat import Ayah, read_text
from whisper_quran.data.corpus import open_corpus, select_ayat
from whisper_quran.data.prepare import TrainingData, decode_ayat, prepare_data
from whisper_quran.data.text import recited
from whisper_quran.runtime.console import no_log
from whisper_quran.runtime.errors import UserError

TOKENIZER = get_tokenizer(True, num_languages=99, language="ar", task="transcribe")
RECITERS = ("Yasser_Salama_hadr", "Mishary_Rashid_Alafasy")
AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def ayat(quran) -> list[Ayah]:
    """The last three surahs by two reciters."""
    return open_corpus(quran, surahs="112:114").select(RECITERS)[0]


def write_parquet(path: Path, columns: dict[str, Any], rows_in_group: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
    return path


def with_bytes(ayat: list[Ayah]) -> pa.Array:
    """The recordings as the column that published data sets have."""
    return pa.array([{"bytes": Path(a.audio).read_bytes(), "path": Path(a.audio).name} for a in ayat], AUDIO)


def everyayah(folder: Path, ayat: list[Ayah]) -> Path:
    """Shards whose reciters are mixed."""
    mixed = ayat[::2] + ayat[1::2]
    for number in range(3):
        shard = mixed[number::3]
        columns = {"audio": with_bytes(shard), "duration": [1.0] * len(shard), "text": [a.text for a in shard]}
        name = f"data/train-{number:05}-of-00003.parquet"
        write_parquet(folder / name, columns | {"reciter": [a.reciter for a in shard]})
    return folder


def retasy(folder: Path, ayat: list[Ayah]) -> Path:
    """No text; the reciters are mixed."""
    ayat = ayat[::2] + ayat[1::2]
    columns = {"audio": with_bytes(ayat), "Surah": [str(a.surah) for a in ayat], "Aya": [a.number for a in ayat]}
    return write_parquet(folder / "retasy.parquet", columns | {"reciter_id": [a.reciter for a in ayat]})


def retasy_in_words(folder: Path, ayat: list[Ayah]) -> Path:
    """Names of the surahs, and the words of the ayat in place of their numbers."""
    columns = {"audio": with_bytes(ayat), "Surah": ["الإخلاص"] * len(ayat), "Aya": [a.text for a in ayat]}
    return write_parquet(folder / "words.parquet", columns | {"reciter_id": [a.reciter for a in ayat]})


def nemo(folder: Path, ayat: list[Ayah]) -> Path:
    rows = [{"audio_filepath": str(a.audio), "duration": 2.5, "text": a.text, "speaker": a.reciter} for a in ayat]
    (folder / "nemo.json").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder / "nemo.json"


def audiofolder(folder: Path, ayat: list[Ayah]) -> Path:
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "transcription", "speaker"])
        for a in ayat:
            name = f"{a.reciter}-{Path(a.audio).name}"
            (folder / name).symlink_to(a.audio)
            writer.writerow([name, a.text, a.reciter])
    return folder


def surahs(
    folder: Path, ayat: list[Ayah]
) -> list[tuple[Path, int, list[tuple[Ayah, float, float, list[list[float]]]]]]:
    """Write each reciter's surahs as files; return those, with start, end and words of each ayah in milliseconds."""
    found = []
    for (reciter, surah), group in groupby(ayat, key=lambda a: (a.reciter, a.surah)):
        assert surah
        clips, timed, start = [], [], 0.0
        for ayah in group:
            clips.append(decode_file(ayah.audio).samples)
            end = start + len(clips[-1]) / 16
            edges = np.linspace(start, end, len(ayah.text.split()) + 1).tolist()
            timed.append((ayah, start, end, [[a, b] for a, b in pairwise(edges)]))
            start = end
        path = folder / reciter / f"{surah:03}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.concatenate(clips), SAMPLE_RATE)
        found.append((path, surah, timed))
    return found


def quran_com(folder: Path, ayat: list[Ayah]) -> Path:
    for path, group in groupby(surahs(folder, ayat), key=lambda each: each[0].parent):
        files = []
        for _, surah, timed in group:
            timings = [
                {
                    "verse_key": f"{a.surah}:{a.number}",
                    "timestamp_from": start,
                    "timestamp_to": end,
                    "segments": [[n, *times] for n, times in enumerate(words, start=1)],
                }
                for a, start, end, words in timed
            ]
            address = f"https://example.org/reciter/{surah}.mp3"
            files.append({"chapter_id": surah, "audio_url": address, "verse_timings": timings})
        (path / "times.json").write_text(json.dumps({"audio_files": files}))
    return folder


def qul(folder: Path, ayat: list[Ayah]) -> Path:
    """Words that are said again have several times; one reciter's words have none, which is how some are published."""
    for path, group in groupby(surahs(folder, ayat), key=lambda each: each[0].parent):
        content = {}
        for _, surah, timed in group:
            for a, start, end, words in timed:
                times = [[n, *times] for n, times in enumerate([*words, words[-1]], start=1)]
                times[-1][0] = 1
                segments = times if a.reciter == RECITERS[0] else []
                times_of_ayah = {"timestamp_from": start, "timestamp_to": end, "segments": segments}
                content[f"{surah}:{a.number}"] = {"surah_number": surah, "ayah_number": a.number} | times_of_ayah
        (path / "times.json").write_text(json.dumps(content))
    return folder


def quran_align(folder: Path, ayat: list[Ayah]) -> Path:
    """Times of words alone, of which two may be one."""
    for path, group in groupby(surahs(folder, ayat), key=lambda each: each[0].parent):
        content = []
        for _, surah, timed in group:
            for a, _, _, words in timed:
                segments = [[n, n + 1, *times] for n, times in enumerate(words)]
                if len(words) > 1:
                    segments[:2] = [[0, 2, words[0][0], words[1][1]]]
                content.append({"surah": surah, "ayah": a.number, "segments": segments, "stats": {}})
        (path / "times.json").write_text(json.dumps(content))
    return folder


def quran_align_of_ayat(folder: Path, ayat: list[Ayah]) -> Path:
    """Recordings of ayat: the times are of their words."""
    for reciter in RECITERS:
        (folder / reciter).mkdir()
        for a in ayat:
            if a.reciter == reciter:
                (folder / reciter / Path(a.audio).name).symlink_to(a.audio)
        segments = [
            {"surah": a.surah, "ayah": a.number, "segments": [[0, len(a.text.split()), 10, 90]]}
            for a in ayat
            if a.reciter == reciter
        ]
        (folder / reciter / "times.json").write_text(json.dumps(segments))
    return folder


SHAPES = [
    everyayah,
    retasy,
    retasy_in_words,
    nemo,
    audiofolder,
    quran_com,
    qul,
    quran_align,
    quran_align_of_ayat,
]


def prepared(config: TrainingConfig) -> TrainingData:
    return prepare_data(config, *select_ayat(config), TOKENIZER, 448, no_log)


def contents(data: TrainingData) -> dict[str, list[tuple[tuple[int, ...], bytes]]]:
    """The tokens and the samples of all clips, by reciter and split."""
    found = {"train": data.train, **data.valid}
    return {
        name: sorted((example.tokens, data.cache.read(example.ayah.audio).tobytes()) for example in examples)
        for name, examples in found.items()
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_recordings_and_tokens_from_every_shape(quran, ayat, tmp_path, shape):
    options = {"cache": tmp_path / "cache", "train_reciters": RECITERS[:1], "valid_reciters": RECITERS[1:]}
    expected = contents(prepared(TrainingConfig(data=quran, surahs="112:114", **options)))
    (tmp_path / "data").mkdir()
    manifest = shape(tmp_path / "data", ayat)
    data = prepared(TrainingConfig(data=quran, manifest=manifest, **options))
    assert contents(data) == expected
    assert data.skipped == []


def test_rows_are_found_in_the_cache_again(quran, ayat, tmp_path):
    manifest = everyayah(tmp_path, ayat)
    config = TrainingConfig(manifest=manifest, cache=tmp_path / "cache", train_reciters=RECITERS)
    told: list[str] = []
    first = decode_ayat(select_ayat(config)[0], config, told.append)[0]
    assert told[0].startswith(f"Decoding {len(ayat)} files of 2 reciters")
    assert decode_ayat(select_ayat(config)[0], config, told.append)[0] == first
    assert len(told) == 1


def test_a_few_rows_of_a_large_file_are_decoded_alone(ayat, tmp_path):
    """Not even the row groups without them are read: here they are damaged."""
    columns = {"audio": with_bytes(ayat), "text": [a.text for a in ayat], "reciter": ["A", *"BBBBBB" * 9][: len(ayat)]}
    path = write_parquet(tmp_path / "a.parquet", columns, rows_in_group=1)
    metadata = pq.read_metadata(path)
    chunks = [metadata.row_group(group).column(0) for group in range(1, metadata.num_row_groups)]
    with open(path, "r+b") as file:
        for chunk in chunks:
            file.seek(chunk.data_page_offset)
            file.write(bytes(64))
    config = TrainingConfig(manifest=path, cache=tmp_path / "cache", workers=1, train_reciters=("A",))
    cache, skipped = decode_ayat(select_ayat(config)[0], config, no_log)
    assert len(cache.clips) == 1 and not skipped
    cache, skipped = decode_ayat(select_ayat(TrainingConfig(manifest=path))[0], config, no_log)
    assert len(cache.clips) == 1 and len(skipped) == len(ayat) - 1
    assert all("cannot be decoded" in item.reason for item in skipped)


# Pieces.

LONG = np.random.default_rng(0).integers(-9000, 9000, 10 * SAMPLE_RATE).astype(np.int16)


def pieces(folder: Path, table: str, name: str = "clips.csv") -> tuple[list[tuple[str, np.ndarray]], dict[str, str]]:
    """The text and samples of each piece of long.wav, and what was left out: reasons by what it concerns."""
    soundfile.write(folder / "long.wav", LONG, SAMPLE_RATE)
    (folder / name).write_text(table)
    config = TrainingConfig(manifest=folder / name, cache=folder / "cache", workers=1)
    ayat, _, skipped = select_ayat(config)
    told: list[str] = []
    cache, undecoded = decode_ayat(ayat, config, told.append)
    assert told[0].startswith("Decoding 1 file of")  # once, whatever is cut from it
    left_out = {Path(item.file).name: item.reason for item in (*skipped, *undecoded)}
    return [(ayah.text, cache.read(ayah.audio)) for ayah in ayat if ayah.audio in cache], left_out


@pytest.mark.parametrize(
    "table",
    [
        "audio,text,start,end\nlong.wav,one,0,4.1\nlong.wav,two,4.1,8.20006\nlong.wav,three,8.20006,10\n",
        "audio;text;offset;duration\nlong.wav;one;0;4,1\nlong.wav;two;4,1;4,10006\nlong.wav;three;8,20006;1,8\n",
        '{"audio_filepath": "long.wav", "text": "one", "offset": 0, "duration": 4.1}\n'
        '{"audio_filepath": "long.wav", "text": "two", "offset": 4.1, "duration": 4.10006}\n'
        '{"audio_filepath": "long.wav", "text": "three", "offset": 8.20006, "duration": 1.8}\n',
    ],
)
def test_pieces_are_cut_exactly(tmp_path, table):
    found, left_out = pieces(tmp_path, table)
    assert [text for text, _ in found] == ["one", "two", "three"] and not left_out
    for (_, samples), (start, end) in zip(found, [(0, 65600), (65600, 131201), (131201, 160000)], strict=True):
        np.testing.assert_array_equal(samples, LONG[start:end])


def test_pieces_that_cannot_be_cut_are_listed(tmp_path):
    rows = ["1,3", "2.9,5", "5,4", "6,6", "6,6.05", "7,11", "7,10.05", "-1,0.5", "x,1", ",1", "nan,1", "0,inf"]
    table = "audio,text,start,end\n" + "".join(f"long.wav,{chr(97 + n)},{row}\n" for n, row in enumerate(rows))
    found, left_out = pieces(tmp_path, table)
    assert [text for text, _ in found] == ["a"]
    reasons = {name.rpartition("line ")[2]: reason for name, reason in left_out.items()}
    assert reasons == {
        "3": f"the piece overlaps with one before it: {tmp_path}/long.wav#t=2.9,5.0",
        "4": "no piece of 0.1 s or more: from 5.0 to 4.0 s",
        "5": "no piece of 0.1 s or more: from 6.0 to 6.0 s",
        "6": "no piece of 0.1 s or more: from 6.0 to 6.05 s",
        "8": f"the piece overlaps with one before it: {tmp_path}/long.wav#t=7.0,10.05",
        "9": "the start is not a time in seconds: -1",
        "10": "the start is not a time in seconds: x",
        "11": "the start is not a time in seconds: it is empty",
        "12": "the start is nan, which stands for a missing value",
        "13": "the end is not a time in seconds: inf",
        "long.wav#t=7.0,11.0": "cannot be decoded: the piece is not in the recording, which has 10.00 s",
    }


def test_a_piece_may_end_a_little_after_its_recording_and_be_in_a_row(ayat, tmp_path):
    found, left_out = pieces(tmp_path, "audio,text,offset\nlong.wav,rest,4\n")
    assert len(found[0][1]) == 6 * SAMPLE_RATE and not left_out
    found, left_out = pieces(tmp_path, "audio,text,offset\nlong.wav,rest,500\n", "c.csv")
    assert not found and list(left_out) == ["long.wav#t=500.0,inf"]
    found, left_out = pieces(tmp_path, "audio,text,start,end\nlong.wav,rest,4,10.05\n", "b.csv")
    assert len(found[0][1]) == 6 * SAMPLE_RATE and not left_out
    columns = {"audio": with_bytes(ayat[:1]), "text": ["x"], "start": [0.5], "end": [1.5]}
    config = TrainingConfig(manifest=write_parquet(tmp_path / "a.parquet", columns), cache=tmp_path / "cache")
    part = select_ayat(config)[0][0].audio
    assert isinstance(part, Part) and str(part) == f"{tmp_path}/a.parquet#0#t=0.5,1.5"
    cache, _ = decode_ayat([*select_ayat(config)[0], ayat[0]], config, no_log)
    np.testing.assert_array_equal(cache.read(part), cache.read(ayat[0].audio)[8000:24000])
    assert cache.digest(part) == f"{cache.digest(ayat[0].audio)}-8000-24000"


# Ayat without text, takes and voices.


def test_ayat_get_their_text_and_may_have_several_takes(quran, tmp_path):
    (tmp_path / "a.wav").touch()
    rows = ["a.wav,112,1", "b.wav,112,1", "c.wav,112,2.0", "d.wav,112,5", "e.wav,115,1", "f.wav,,3"]
    for row in rows:
        (tmp_path / row.partition(",")[0]).touch()
    (tmp_path / "list.csv").write_text("path,sorah,aya\n" + "\n".join(rows) + "\n")
    told: list[str] = []
    corpus = open_corpus(quran, manifest=tmp_path / "list.csv", log=told.append)
    found = corpus.select(["list"])[0]
    texts = read_text(quran / "metadata" / "ayah_text_clear.csv")[0]
    assert [(a.surah, a.number, a.take) for a in found] == [(112, 1, 1), (112, 1, 2), (112, 2, 1)]
    assert [a.text for a in found] == [texts[112, 1], texts[112, 1], texts[112, 2]]
    assert [item.reason for item in corpus.skipped] == [
        "there is no text",
        "no ayah has this surah and ayah: 115,1",
        "no ayah has this surah and ayah: ,3",
    ]
    assert told == [
        f"manifest   {tmp_path}/list.csv: audio from path, surah from sorah, ayah from aya are read",
        "manifest   no reciter is named: all rows are one voice, list",
    ]
    (tmp_path / "words.csv").write_text("path,sorah,aya\na.wav,name,words\n")
    assert open_corpus(Path("no text"), manifest=tmp_path / "words.csv").select(["words"])[0][0].text == "words"
    assert len(open_corpus(quran, manifest=tmp_path / "list.csv", surahs="112:112").select(["list"])[0]) == 3
    with pytest.raises(UserError, match="names no recording that can be used"):
        open_corpus(quran, manifest=tmp_path / "list.csv", surahs="1:2")


def test_columns_may_have_any_name(quran, ayat, tmp_path):
    rows = [{"datei": str(a.audio), "text": "not this", "wörter": a.text, "speaker": "A"} for a in ayat[:3]]
    (tmp_path / "list.json").write_text(json.dumps(rows), encoding="utf-8")  # a list, not one a line
    told: list[str] = []
    corpus = open_corpus(Path("unused"), None, tmp_path / "list.json", None, told.append, "text=wörter,audio=datei")
    assert [a.text for a in corpus.select(["A"])[0]] == [a.text for a in ayat[:3]]
    assert told[0].endswith("/list.json: text from wörter, reciter from speaker, audio from datei are read, not text")
    with pytest.raises(UserError, match="give --manifest FILE too"):
        open_corpus(quran, columns="text=x")
    for columns, reason in [
        ("text=worter", "has no column worter: did you mean wörter"),
        ("words=text", "give some of audio=NAME, text=NAME"),
        ("audio", "give some of audio=NAME"),
    ]:
        with pytest.raises(UserError, match=reason):
            open_corpus(Path("unused"), None, tmp_path / "list.json", None, told.append, columns)


def test_all_texts_may_be_put_into_plain_spelling(quran, ayat, tmp_path):
    """Also those that the rows do not have."""
    vocalised = read_text(quran / "metadata" / "ayah_text_diacritics.csv")[0]
    rows = [{"path": str(a.audio), "speaker": "A", "text": vocalised[a.surah, a.number]} for a in ayat if a.surah]
    write = {
        "given.json": rows,
        "none.json": [{"path": str(a.audio), "surah": a.surah, "ayah": a.number} for a in ayat],
    }
    for name, content in write.items():
        (tmp_path / name).write_text(json.dumps(content))
        options = (quran, quran / "metadata" / "ayah_text_diacritics.csv", tmp_path / name)
        for spelling, expected in {"plain": [a.text for a in ayat], "as-it-is": [row["text"] for row in rows]}.items():
            told: list[str] = []
            corpus = open_corpus(*options, log=told.append, spelling=spelling)
            assert [a.text for a in corpus.select(corpus.reciters)[0]] == [recited(text) for text in expected]
            assert any("put into plain spelling" in line for line in told) == (spelling == "plain")


def test_rows_among_times_are_listed(quran, tmp_path):
    soundfile.write(tmp_path / "001001.wav", np.random.default_rng(0).normal(size=16_000) / 10, SAMPLE_RATE)
    times = {"surah": 1, "ayah": 1, "segments": [[0, 4, 0, 900]]}
    row = {"audio": "001001.wav", "surah": 1, "ayah": 2}
    (tmp_path / "times.json").write_text(json.dumps([row, times, "text"]))
    corpus = open_corpus(quran, manifest=tmp_path / "times.json")
    assert [(a.surah, a.number) for a in corpus.select([tmp_path.name])[0]] == [(1, 1)]
    reasons = {item.file.split(", ")[-1]: item.reason.split(",")[0] for item in corpus.skipped}
    assert reasons == {"item 1": "it has no times", "item 3": "it has no times"}


def test_times_that_do_not_fit_are_listed(quran, tmp_path):
    """2:21 begins with يا أيها, one word in Uthmani spelling."""
    soundfile.write(tmp_path / "055.wav", np.random.default_rng(0).normal(size=160_000) / 10, SAMPLE_RATE)
    soundfile.write(tmp_path / "2.wav", np.random.default_rng(0).normal(size=160_000) / 10, SAMPLE_RATE)

    def ayah(count: int, start: float | None = 0, end: float = 900, first: int = 1) -> dict[str, Any]:
        times = {} if start is None else {"timestamp_from": start, "timestamp_to": end}
        return times | {"segments": [[n, 1000 * n, 1000 * n + 500] for n in range(first, first + count)]}

    content = {
        "2:1": ayah(1),
        "2:2": ayah(6, 900, 1900),  # one word less
        "2:4": ayah(6, 2000, 3000, first=7),  # the last six of twelve
        "2:21": ayah(11, 3000, 4000),  # as others count
        "2:22": ayah(3, 5000, 5000),
        "2:23": ayah(0, 5000, 6000),
        "2:24": ayah(0, None),
        "2:25": {"segments": [["a", "b", "c"]]},
        "2:26": {"segments": [[1]], "timestamp_from": "x", "timestamp_to": 1},
        "2:300": ayah(3, 6000, 7000),
        "3:1": ayah(1),
        "55:1": ayah(1),
        "55:2": ayah(2, 800, 1500),
    }
    (tmp_path / "times.json").write_text(json.dumps(content))
    corpus = open_corpus(quran, manifest=tmp_path / "times.json")
    used = {(a.surah, a.number): a.audio for a in corpus.select([tmp_path.name])[0]}
    assert used == {
        (2, 1): Part(tmp_path / "2.wav", end=0.9),
        (2, 21): Part(tmp_path / "2.wav", start=3, end=4),
        (2, 23): Part(tmp_path / "2.wav", start=5, end=6),
        (55, 1): Part(tmp_path / "055.wav", end=0.9),
    }
    reasons = {item.file.split(", ")[-1]: item.reason for item in corpus.skipped}
    unknown = "it has no times, or they are written in none of the known shapes"
    assert reasons == {
        "2:2": "the times are of another number of words: 6, the text has 7",
        "2:4": "the times are of another number of words: 6, the text has 12",
        "2:22": "no piece of 0.1 s or more: from 5.0 to 5.0 s",
        "2:24": unknown,
        "2:25": unknown,
        "2:26": unknown,
        "2:300": "no ayah has this surah and ayah: 2,300",
        "3:1": f"no such file: {tmp_path}/003.mp3 (names are those on disk, in the same case)",
        "55:2": f"the piece overlaps with one before it: {tmp_path}/055.wav#t=0.8,1.5",
    }


# Broken tables: each gets one line, or a row in skipped.csv.

ONE = pa.array([{"bytes": b"x", "path": "a.mp3"}], AUDIO)


def jsonl(*rows: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "list.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def table(**columns: Any) -> Callable[[Path], Path]:
    return lambda folder: write_parquet(folder / "list.parquet", columns)


def cut_off(folder: Path) -> Path:
    path = table(audio=ONE, text=["x"])(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def damaged(folder: Path) -> Path:
    path = table(audio=ONE, text=["x"])(folder)
    offset = pq.read_metadata(path).row_group(0).column(2).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 12] = bytes(12)
    path.write_bytes(content)
    return path


def with_a_null(folder: Path) -> Path:
    audio = pa.array([{"bytes": (folder / "a.wav").read_bytes(), "path": None}, None], AUDIO)
    return table(audio=audio, text=["x", "y"])(folder)


def empty_folder(folder: Path) -> Path:
    (folder / "images").mkdir()
    return folder / "images"


GOOD = {"audio": "a.wav", "text": "one", "reciter": "R"}
BROKEN = [
    (jsonl(GOOD, {**GOOD, "audio": None}), "the audio is missing"),
    (jsonl(GOOD, {**GOOD, "text": None}), "the text is missing"),
    (jsonl(GOOD, {**GOOD, "reciter": None}), "the reciter is missing"),
    (jsonl(GOOD, {"audio": "b.wav", "text": "x"}), "the reciter is missing"),
    (jsonl({**GOOD, "offset": 0}, {**GOOD, "audio": "b.wav", "offset": None}), "the start is missing"),
    (jsonl(GOOD, {**GOOD, "text": ["a", "b"]}), "the text is a list, not a text or a number"),
    (jsonl(GOOD, {**GOOD, "text": True}), "the text is a bool, not a text or a number"),
    (jsonl(GOOD, {**GOOD, "audio": {"array": [0.1], "sampling_rate": 16000}}), "the audio is a dict"),
    (jsonl(GOOD, {**GOOD, "audio": {"path": None}}), "the audio is missing"),
    (jsonl(GOOD, {**GOOD, "text": float("nan")}), "the text is nan, which stands for a missing value"),
    (jsonl(GOOD, '{"audio": "b.wav", "te'), "not JSON"),
    (jsonl(GOOD, "[1, 2]"), "not a JSON object"),
    (jsonl(GOOD, "[" * 100_000), "not JSON"),
    (jsonl({**GOOD, "start": 0, "end": 4100, "duration": 4100}), "not in the recording, which has 1.00 s"),
    (jsonl(GOOD, {**GOOD, "audio": "sub\\\\gone.wav"}), "no such file"),
    (jsonl('[{"audio": "a.wav", "text": "x"}, 3]'), "not a JSON object"),
    (table(audio=pa.array([{"bytes": None, "path": "a.wav"}], AUDIO), text=["x"]), "there are no bytes in this row"),
    (table(audio=pa.array([[0.1]]), text=["x"]), "the audio is a list"),
    (table(audio=pa.array([{"array": [0.1]}]), text=["x"]), "the audio is a dict"),
    (with_a_null, "there are no bytes in this row"),
    (table(audio=ONE, text=pa.array([None], pa.string())), "the text is missing"),
    (table(audio=ONE, text=pa.array([["x", "y"]])), "the text is a list"),
    (table(audio=ONE, text=["x"]), "not audio"),
    (table(audio=pa.array([bytes(20 << 20)]), text=["x"]), "not audio"),
    (table(audio=pa.array([], AUDIO), text=pa.array([], pa.string())), "names no recording that can be used"),
    (table(words=["x"]), "lacks a column of audio .*finds 'words'"),
    (cut_off, "is no whole parquet file .*: download it again"),
    (damaged, "is damaged after row 0 .*: download it again"),
    (empty_folder, "holds no metadata.csv, metadata.jsonl,"),
]


@pytest.mark.parametrize(("write", "says"), BROKEN)
def test_a_broken_table_is_told(tmp_path, write, says):
    for seed, name in enumerate(("a.wav", "b.wav")):
        soundfile.write(tmp_path / name, np.random.default_rng(seed).uniform(-0.5, 0.5, SAMPLE_RATE), SAMPLE_RATE)
    path = write(tmp_path)
    config = TrainingConfig(manifest=path, cache=tmp_path / "cache", workers=1)
    try:
        train, _, skipped = select_ayat(config)
        _, undecoded = decode_ayat(train, config, no_log)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        reasons = [str(error)]
    else:
        reasons = [item.reason for item in (*skipped, *undecoded)]
        assert len(reasons) == 1
    assert re.search(says, reasons[0]), reasons


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"1:1": {"segments": [[Infinity, 0, 1000]]}}', "1:1: it has no times, or they are written in none"),
        ('{"1:1": {"segments": [[1%s, 0, 1000]]}}' % ("0" * 400), "1:1: it has no times"),
        ('{"1:1": {"segments": [], "timestamp_from": 1%s, "timestamp_to": 1}}' % ("0" * 400), "1:1: it has no times"),
        ('{"1:1": {"segments": "1234"}}', "1:1: it has no times"),
        ('{"1:1": {"segments": {"12": 1}}}', "1:1: it has no times"),
        (
            '{"audio_files": [{"audio_url": "%s", "verse_timings": [{"verse_key": "1:1"}]}]}' % ("a" * 5000),
            "1:1: it has no",
        ),
        ('{"audio_files": [{"verse_timings": [{"verse_key": "1:1:1", "segments": []}]}]}', "1:1:1: it has no times"),
        ('{"audio_files": 3, "x": {}}', "lacks a column of audio"),
        ("[" * 100_000, "lacks a column of audio"),
    ],
)
def test_hostile_times_are_one_line(tmp_path, content, says):
    soundfile.write(tmp_path / "001.wav", np.random.default_rng(0).uniform(-0.5, 0.5, SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "times.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(says)):
        open_corpus(Path("unused"), manifest=tmp_path / "times.json")


def test_two_columns_that_both_fit_are_said(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "list.csv").write_text("path,audio,sentence,text,speaker\nx,a.wav,other,words,A\n")
    told: list[str] = []
    corpus = open_corpus(Path("unused"), manifest=tmp_path / "list.csv", log=told.append)
    assert [a.text for a in corpus.select(["A"])[0]] == ["words"]
    assert told[0].endswith("audio, text, reciter from speaker are read, not path, sentence")
    with pytest.raises(UserError, match=r"no reciter B in .*there are A: name"):
        corpus.select(["B"])


def test_why_a_reciter_is_not_there_is_said(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "list.csv").write_text("audio,text,speaker,start,end\na.wav,words,A,0,1\na.wav,words,B,,\n")
    corpus = open_corpus(Path("unused"), manifest=tmp_path / "list.csv")
    with pytest.raises(UserError, match=r"there are A \(rows left out: 1 the start is not a time in seconds\): name"):
        corpus.select(["B"])


def test_without_pyarrow_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    path = table(audio=ONE, text=["x"])(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow, which is not installed .*: pip install pyarrow"):
        parquet.open_parquet(path)
