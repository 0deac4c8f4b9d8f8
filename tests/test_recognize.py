"""`python -m whisper_quran.recognize` on real recordings, with OpenAI's real `base`: where they are, and when."""

import json
import re
import subprocess
import sys
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, make_whisper
from whisper import timing
from whisper.tokenizer import get_tokenizer

from whisper_quran.checkpoints.checkpoint import load_checkpoint
from whisper_quran.data.audio import decode_file
from whisper_quran.data.text import letters
from whisper_quran.decoding.batch_decoder import BatchDecoder
from whisper_quran.decoding.quran_search import Candidate, Span
from whisper_quran.decoding.word_times import alignment_heads, token_starts, word_times
from whisper_quran.recognition.recitations import Recognition, is_likely
from whisper_quran.recognition.written import subtitles, write_subtitles


def recognize(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "whisper_quran.recognize", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def recited(quran, base_weights, tmp_path_factory) -> tuple[list[dict], Path, list[float]]:
    """What is recognised in a folder of two recordings: surahs 112 and 113 as one file, and English.

    With it the folder, and where the ayat really end.
    """
    folder = tmp_path_factory.mktemp("recordings")
    alafasy = quran / "audio" / "Mishary_Rashid_Alafasy"
    clips = [decode_file(file).samples for file in sorted(alafasy.glob("11[23]*.mp3"))]
    soundfile.write(folder / "a.wav", np.concatenate(clips), 16_000)
    (folder / "b.flac").write_bytes((quran / "odd" / "jfk_english_44kHz.flac").read_bytes())
    (folder / "notes.txt").write_text("not audio")
    (folder / "broken.mp3").write_bytes(b"nothing")
    soundfile.write(folder / "c.wav", np.zeros(32_000), 16_000)
    text = quran / "metadata" / "ayah_text_clear.csv"
    options = ["--model", base_weights / "base.pt", "--text", text, "--precision", "fp32", "--json", "--srt"]
    options += ["--html", folder / "page" / "page.html"]
    result = recognize(folder, *options)
    assert result.returncode == 0, result.stderr
    assert "broken.mp3: left out" in result.stderr and "notes.txt" not in result.stderr
    assert f"listen to: {folder / 'page' / 'page.html'}" in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return found, folder, [end / 16_000 for end in accumulate(map(len, clips))]


def test_a_recording_of_two_surahs_is_found_ayah_by_ayah(recited):
    """By the untouched model, which hears half of the words wrong."""
    found, folder, ends = recited
    assert [row["file"] for row in found] == [str(folder / name) for name in ("a.wav", "b.flac", "c.wav")]
    ayat = [(each["surah"], ayah) for each in found[0]["recitations"] for ayah in each["ayat"]]
    assert [(surah, ayah["ayah"]) for surah, ayah in ayat] == [
        *((112, number) for number in range(1, 5)),
        *((113, number) for number in range(1, 6)),
    ]
    near = [abs(ayah["end"] - end) <= 1 for (_, ayah), end in zip(ayat, ends, strict=True)]
    assert sum(near) >= 8, [(ayah["end"], end) for (_, ayah), end in zip(ayat, ends, strict=True)]
    times = [time for _, ayah in ayat for time in (ayah["start"], ayah["end"])]
    assert times == sorted(times)
    assert all(0.5 < each["confidence"] <= 1 for each in found[0]["recitations"])


def test_every_word_has_its_time(recited):
    for each in recited[0][0]["recitations"]:
        for ayah in each["ayat"]:
            assert " ".join(word["text"] for word in ayah["words"]) == ayah["text"]
            times = [time for word in ayah["words"] for time in (word["start"], word["end"])]
            assert times == sorted(times) and [times[0], times[-1]] == [ayah["start"], ayah["end"]]
        long = [word["end"] - word["start"] >= 0.1 for ayah in each["ayat"] for word in ayah["words"]]
        assert sum(long) >= 0.8 * len(long)


def test_the_page_has_all_recordings_and_links_them(recited):
    found, folder, _ = recited
    page = (folder / "page" / "page.html").read_text(encoding="utf-8")
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["recordings"]
    assert [(each["name"], each["addresses"]) for each in shown] == [
        (name, [f"../{name}"]) for name in ("a.wav", "b.flac", "c.wav")
    ]
    assert [line[0] for each in shown[0]["recitations"] for line in each["lines"] if line[0]] == [
        f"{each['surah']}:{ayah['ayah']}" for each in found[0]["recitations"] for ayah in each["ayat"]
    ]


def test_english_and_silence_are_not_the_quran(recited):
    found = recited[0]
    assert [(each["recitations"], each["seconds"]) for each in found[1:]] == [([], 11.0), ([], 2.0)]
    assert [(each["start"], each["end"]) for each in found[1]["others"]] == [(0.0, 11.0)]
    assert found[2]["heard"] == "" and found[2]["others"] == []


def test_subtitles_are_an_ayah_each(recited):
    _, folder, _ = recited
    blocks = (folder / "a.srt").read_text(encoding="utf-8").strip().split("\n\n")
    assert len(blocks) == 9
    number, times, text = blocks[0].split("\n")
    assert number == "1" and times.startswith("00:00:0") and " --> 00:00:0" in times and text.endswith("(112:1)")
    assert not (folder / "b.srt").exists()
    assert subtitles(Recognition("x", 1.0, False, "", ())) == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["nowhere.mp3"], "no file or folder nowhere.mp3"),
        (["{tmp}"], "no recordings in"),
        (["{tmp}/x.mp3", "--text", "{tmp}/no.csv"], "give the whole Qur'an with --text FILE"),
        (["{tmp}/x.mp3", "--model", "{tmp}/no.pt", "--text", "{quran}/metadata/ayah_text_clear.csv"], "no.pt"),
        (["{tmp}/x.mp3", "--embed-audio"], "give --html PAGE.html too"),
        (["{tmp}/x.mp3", "--html", "{tmp}"], "is a folder: give a file"),
        ([], "FILE"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(quran, tmp_path, options, says):
    if "{tmp}" not in options:
        (tmp_path / "x.mp3").write_bytes(b"x")
    result = recognize(*(option.format(tmp=tmp_path, quran=quran) for option in options))
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and says in result.stderr


def test_tokens_have_the_times_that_whisper_gives_them(quran, base_weights):
    """An ayah by the real base: as whisper's own alignment, within a tenth of a second most often."""
    model = load_checkpoint(base_weights / "base.pt", torch.device("cpu"))
    assert alignment_heads(model) == [(3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)]
    audio = decode_file(quran / "audio" / "Mishary_Rashid_Alafasy" / "104002.mp3").samples
    from whisper_quran.data.features import collate, encode, log_mel

    mel = log_mel(collate([audio]), 80)
    tokenizer = get_tokenizer(True, language="ar", task="transcribe")
    tokens = tokenizer.encode(" الذي جمع مالا وعدده")
    decoder = BatchDecoder(model, 1, sample_len=2)
    (clip,) = decoder.decode([encode(model.encoder, mel)])
    frames = len(audio) // 320
    ours = token_starts(clip.attention(tokens, alignment_heads(model), frames), decoder.begin - 1)
    threads = torch.get_num_threads()
    words = timing.find_alignment(model, tokenizer, tokens, mel[0], 2 * frames)
    torch.set_num_threads(threads)  # numba, which whisper aligns with, takes as many as there are cores
    starts = [*accumulate((len(word.tokens) for word in words[:-1]), initial=0)]
    differences = [abs(ours[start] - word.start) for start, word in zip(starts, words, strict=True)]
    assert sorted(differences)[len(differences) // 2] <= 0.1, differences
    assert all(a <= b for a, b in pairwise(ours))


def test_words_take_the_times_of_the_letters_they_are_aligned_with():
    said = [(letter, float(i), i + 1.0) for i, letter in enumerate(letters("قل هو الله احذ"))]
    assert word_times(["قل", "هو", "الله", "احد"], said) == [(0.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, 11.0)]
    # A word that was not heard has no length; what was heard besides belongs to its neighbours.
    assert word_times(["قل", "نعم", "هو"], said[:4]) == [(0.0, 2.0), (2.0, 2.0), (2.0, 4.0)]


def test_other_models_have_whispers_default_heads():
    assert alignment_heads(make_whisper(state=128, layers=2)) == [(1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("distance", "lost", "text", "likely"),
    [
        (0, 0.0, "حم", True),
        (1, 0.0, "حم", False),
        (2, 2.0, "الصمد", True),
        (3, 2.0, "الصمد", False),
        (2, 4.0, "الصمد", False),
        (5, 6.0, "قل هو الله أحد", True),
        (5, 7.0, "قل هو الله أحد", False),
        (6, 6.0, "قل هو الله أحد", False),
    ],
)
def test_half_of_the_letters_must_be_right_and_the_model_must_find_it_likely(distance, lost, text, likely):
    said = tuple(map(letters, text.split()))
    assert is_likely(Candidate(Span(1, 0, 0), "", said, distance, distance, "", -10.0 - lost, -10.0)) == likely


def test_subtitles_that_are_there_are_not_replaced(tmp_path, capsys):
    (tmp_path / "a.srt").write_text("somebody's")
    for name in ("a", "b"):
        write_subtitles(Recognition(f"{name}.mp3", 1.0, False, "", ()), tmp_path / f"{name}.srt")
    assert (tmp_path / "a.srt").read_text() == "somebody's" and (tmp_path / "b.srt").exists()
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'a.srt'} is there already: not written",
        f"subtitles: {tmp_path / 'b.srt'}",
    ]
