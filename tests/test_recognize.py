"""`python -m whisper_quran.recognize` on real recordings, with OpenAI's real `base`: where they are, and when."""

import json
import re
import subprocess
import sys
import wave
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_whisper
from whisper import timing
from whisper.tokenizer import get_tokenizer

import whisper_quran
from whisper_quran.checkpoints.checkpoint import load_checkpoint
from whisper_quran.config import RecognitionConfig
from whisper_quran.data.audio import decode_file
from whisper_quran.data.ayat import read_text
from whisper_quran.data.corpus import open_corpus
from whisper_quran.data.features import AudioFeatures, collate, encode, log_mel
from whisper_quran.data.text import letters
from whisper_quran.decoding.batch_decoder import BatchDecoder, DecodedClip
from whisper_quran.decoding.long_audio import RecognizedPiece, Transcript
from whisper_quran.decoding.quran_search import Candidate, Quran, Recognizer, Span
from whisper_quran.decoding.word_times import alignment_heads, letter_times, median_filter, token_starts, word_times
from whisper_quran.recognition import check_results, recitations
from whisper_quran.recognition.output import subtitles
from whisper_quran.recognition.recitations import Recitation, RecitedAyah, RecitedWord, Recognition
from whisper_quran.recognize import main
from whisper_quran.runtime.errors import UserError


def write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.astype(np.int16).tobytes())


@pytest.fixture(scope="module")
def recited(quran, base_weights, tmp_path_factory) -> tuple[list[dict], Path, list[float]]:
    """What is recognised in a folder: surahs 112 and 113 as one file, 112:1 amid 6 s of silence, English, silence, and
    112:1 three times before 112:2.

    With it the folder, and where the ayat of the first really end.
    """
    folder = tmp_path_factory.mktemp("recordings")
    alafasy = quran / "audio" / "Mishary_Rashid_Alafasy"
    clips = [decode_file(file).samples for file in sorted(alafasy.glob("11[23]*.mp3"))]
    write_wav(folder / "a.wav", np.concatenate(clips))
    write_wav(folder / "a.wave", np.pad(clips[0], 96_000))
    (folder / "b.flac").write_bytes((quran / "odd" / "jfk_english_44kHz.flac").read_bytes())
    (folder / "notes.txt").write_text("not audio")
    (folder / "broken.mp3").write_bytes(b"nothing")
    write_wav(folder / "c.wav", np.zeros(32_000))
    write_wav(folder / "d.wav", np.concatenate([*[clips[0]] * 3, clips[1]]))
    options = ["--model", base_weights / "base.pt", "--precision", "fp32", "--json", "--srt"]
    options += ["--html", folder / "page" / "page.html", "--segments", folder / "page" / "times.json"]
    command = [sys.executable, "-m", "whisper_quran.recognize", folder, folder / "a.wave", *options]
    result = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "broken.mp3: left out" in result.stderr and "notes.txt" not in result.stderr
    assert f"listen to: {folder / 'page' / 'page.html'}" in result.stderr
    assert f"subtitles: {folder / 'a.wav.srt'}" in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return found, folder, [end / 16_000 for end in accumulate(map(len, clips))]


def test_a_recording_of_two_surahs_is_found_ayah_by_ayah_word_by_word(recited):
    """By the untouched model, which hears half of the words wrong."""
    found, folder, ends = recited
    assert [row["file"] for row in found] == [
        str(folder / name) for name in ("a.wav", "b.flac", "c.wav", "d.wav", "a.wave")
    ]
    ayat = [(each["surah"], ayah) for each in found[0]["recitations"] for ayah in each["ayat"]]
    assert [(surah, ayah["ayah"]) for surah, ayah in ayat] == [
        *((112, number) for number in range(1, 5)),
        *((113, number) for number in range(1, 6)),
    ]
    near = [abs(ayah["end"] - end) <= 1 for (_, ayah), end in zip(ayat, ends, strict=True)]
    assert sum(near) >= 8, [(ayah["end"], end) for (_, ayah), end in zip(ayat, ends, strict=True)]
    times = [time for _, ayah in ayat for word in ayah["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times)
    for _, ayah in ayat:
        assert " ".join(word["text"] for word in ayah["words"]) == ayah["text"]
        assert [ayah["words"][0]["start"], ayah["words"][-1]["end"]] == [ayah["start"], ayah["end"]]
    long = [end - start >= 0.1 for start, end in zip(times[::2], times[1::2], strict=True)]
    assert sum(long) >= 0.8 * len(long)
    assert all(0.5 < each["confidence"] <= 1 for each in found[0]["recitations"])


def test_the_first_and_the_last_word_do_not_take_the_silence_around_them(recited):
    (recitation,) = recited[0][4]["recitations"]
    ((first, *_, last),) = (ayah["words"] for ayah in recitation["ayat"])
    assert 5.8 <= first["start"] < first["end"] < 7 < last["start"] < last["end"] <= 9


def test_each_time_that_an_ayah_is_said_is_found(recited):
    """Of which the untouched model writes one, when it hears them together."""
    passes = recited[0][3]["recitations"]
    assert [[ayah["ayah"] for ayah in each["ayat"]] for each in passes] == [[1], [1], [1, 2]]
    starts = [each["ayat"][0]["start"] for each in passes]
    length = recited[2][0]
    assert starts == pytest.approx([0, length, 2 * length], abs=1)


def test_page_and_subtitles_have_all_recordings(recited):
    found, folder, _ = recited
    page = (folder / "page" / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert "tanzil.net" in data["facts"]["text"]  # where the package's text is from
    shown = data["recordings"]
    assert [(each["name"], each["address"]) for each in shown] == [
        (name, f"../{name}") for name in ("a.wav", "b.flac", "c.wav", "d.wav", "a.wave")
    ]
    assert [line[0] for each in shown[0]["recitations"] for line in each["lines"] if line[0]] == [
        f"{each['surah']}:{ayah['ayah']}" for each in found[0]["recitations"] for ayah in each["ayat"]
    ]
    assert sorted(path.name for path in folder.glob("*.srt")) == ["a.wav.srt", "a.wave.srt", "d.srt"]
    places = re.findall(r"\((\d+:\d+)\)", (folder / "a.wav.srt").read_text(encoding="utf-8"))
    assert list(dict.fromkeys(places)) == [f"112:{n}" for n in range(1, 5)] + [f"113:{n}" for n in range(1, 6)]


def test_a_recitation_is_followed_as_it_comes_and_nothing_is_taken_back(recited, base_weights):
    """On standard input; the last of nine ayat ends at the end."""
    with wave.open(str(recited[1] / "a.wav")) as file:
        pcm = file.readframes(file.getnframes())
    options = ["--follow", "--json", "--model", base_weights / "base.pt", "--precision", "fp32"]
    command = [sys.executable, "-m", "whisper_quran.recognize", "-", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, input=pcm)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) >= 5 and told[0]["seconds"] < 15
    ayat = [(each["surah"], ayah) for row in told for each in row["recitations"] for ayah in each["ayat"]]
    places = [(surah, ayah["ayah"]) for surah, ayah in ayat]
    assert list(dict.fromkeys(places)) == [*((112, n) for n in range(1, 5)), *((113, n) for n in range(1, 6))]
    words = [(surah, ayah["ayah"], n) for surah, ayah in ayat for n in range(ayah["first_word"], ayah["last_word"] + 1)]
    assert words == sorted(set(words))
    times = [time for _, ayah in ayat for time in (ayah["start"], ayah["end"])]
    assert times == sorted(times) and times[-1] <= recited[2][-1]
    for row in told:
        assert all(ayah["end"] <= row["seconds"] for each in row["recitations"] for ayah in each["ayat"])


def test_english_and_silence_are_not_the_quran(recited):
    found = recited[0]
    assert [(each["recitations"], each["seconds"]) for each in found[1:3]] == [([], 11.0), ([], 2.0)]
    assert [(each["start"], each["end"]) for each in found[1]["others"]] == [(0.0, 11.0)]
    assert found[2]["heard"] == "" and found[2]["others"] == []


def test_a_training_reads_the_times_that_were_found(recited, quran):
    """But of ayat with a word that was not heard."""
    found, folder, _ = recited
    corpus = open_corpus(quran, manifest=folder / "page" / "times.json")
    ayat = [(row["file"], each["surah"], ayah) for row in found for each in row["recitations"] for ayah in each["ayat"]]
    whole = [each for each in ayat if all(word["end"] > word["start"] for word in each[2]["words"])]
    assert len(ayat) - len(whole) == len(corpus.skipped) < 3
    read = [
        (a.surah, a.number, Path(a.audio.path), a.audio.start, a.audio.end) for a in corpus.select([folder.name])[0]
    ]
    assert [each[:2] for each in read] == [(surah, ayah["ayah"]) for _, surah, ayah in whole]
    for (_, _, path, start, end), (file, _, ayah) in zip(read, whole, strict=True):
        assert path.samefile(file)
        assert [start, end] == pytest.approx([ayah["start"], ayah["end"]], abs=0.001)


@pytest.fixture
def command(quran, tmp_path, monkeypatch):
    """Run the command in this process, in a folder with a recording ``x.wav`` and a model ``m.pt``."""
    monkeypatch.chdir(tmp_path)
    write_wav(Path("x.wav"), np.random.default_rng(0).normal(size=16_000) * 3000)
    Path("m.pt").write_bytes(b"not opened")
    Path("text.csv").write_bytes((quran / "metadata" / "ayah_text_clear.csv").read_bytes())
    Path("mine.html").write_text("<p>mine")
    Path("theirs.json").write_text('{"audio_files": []}')

    def command(*options: str) -> None:
        text = [] if "--text" in options else ["--text", "text.csv"]
        monkeypatch.setattr(sys, "argv", ["recognize", *options, *text])
        main()

    return command


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nowhere.mp3"], "no file or folder nowhere.mp3"),
        (["https://example.org/a//b.mp3"], "https://example.org/a//b.mp3: this is a URL"),
        (["empty"], "no recordings in empty"),
        (["x.wav", "--text", "no.csv"], "no text no.csv: give a CSV sorah,ayah,text"),
        (["x.wav", "--model", "no.pt"], "no.pt"),
        (["x.wav", "--embed-audio"], "give --html PAGE.html too"),
        ([".", "--html", "link.html"], "x.wav, which is read"),
        (["x.wav", "--html", "text.csv"], "text.csv, which is read"),
        (["x.wav", "--model", "m.pt", "--html", "m.pt"], "m.pt, which is read"),
        (["x.wav", "--html", "mine.html"], "is not this command's own"),
        (["x.wav", "--segments", "mine.html"], "is not this command's own"),
        (["x.wav", "--segments", "theirs.json"], "is not this command's own"),
        (["x.wav", "--segments", "a.x", "--html", "a.x"], "are both a.x"),
        (["x.wav", "--srt-dir", "x.wav/srt"], "x.wav/srt"),
        (["x.wav", "-", "--follow"], "--follow takes one FILE, or -"),
        (["x.wav", "--follow", "--srt"], "--follow takes one FILE, or -, without --html, --segments, --srt, --srt-dir"),
        (["-", "--srt"], "no file or folder -"),
    ],
)
def test_bad_input_is_one_line_before_any_model_is_opened(command, monkeypatch, options, reason):
    Path("empty").mkdir()
    Path("link.html").symlink_to("x.wav")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    monkeypatch.setattr(recitations, "load_checkpoint", lambda *_: pytest.fail("the model was opened"))
    with pytest.raises(UserError, match=re.escape(reason)):
        command(*options)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("vocabulary", "language", "reason"), [(51865, "klingon", "not one of"), (51864, "ar", "English-only")]
)
def test_a_language_that_the_model_lacks_is_one_line_before_any_recording_is_decoded(
    command, monkeypatch, vocabulary, language, reason
):
    monkeypatch.setattr(recitations, "load_checkpoint", lambda *_: make_whisper(n_vocab=vocabulary))
    monkeypatch.setattr(recitations, "decode_files", lambda *_: pytest.fail("recordings were decoded"))
    with pytest.raises(UserError, match=f"--language {language}.*{reason}"):
        command("x.wav", "--model", "m.pt", "--language", language, "--precision", "fp32")


def test_subtitles_beside_recordings_that_cannot_be_written_are_refused_first(monkeypatch, tmp_path):
    config = RecognitionConfig((str(tmp_path / "a.mp3"),), srt=True)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="--srt-dir FOLDER"):
        check_results(config, [tmp_path / "a.mp3"])


def test_each_recording_has_subtitles_of_its_own(tmp_path):
    files = [Path(name) for name in ("a.mp3", "a.wav", "b.mp3", "c/b.mp3", "c/d.mp3")]
    beside = check_results(RecognitionConfig(("x",), srt=True), files)
    assert [str(path) for path in beside.values()] == ["a.mp3.srt", "a.wav.srt", "b.srt", "c/b.srt", "c/d.srt"]
    together = check_results(RecognitionConfig(("x",), srt_dir=tmp_path), files)
    names = ["a.mp3.srt", "a.wav.srt", "b.mp3.srt", "b.mp3.2.srt", "d.srt"]
    assert [*together.values()] == [tmp_path / name for name in names]


def ikhlas(number: int, times: tuple) -> RecognizedPiece:
    """112:1, heard as it is written."""
    words = tuple("قل هو الله احد".split())
    heard = Candidate(Span(112, 0, 3), "", words, 0, 0, "قل هو الله أحد", -1.0, -1.0, times)
    return Transcript(number, heard.heard, 0.0, pieces=(RecognizedPiece(0.0, 3.0, heard.heard, heard),))


@pytest.mark.parametrize(
    ("cost", "lost", "likely"), [(0, 0, True), (8, 2, True), (9, 2, False), (2, 20, True), (2, 30, False)]
)
def test_far_from_what_was_heard_or_unlikely_to_the_model_is_not_the_quran(cost, lost, likely):
    """Of 11 letters."""
    words = tuple("قل هو الله احد".split())
    found = Candidate(Span(112, 0, 3), "", words, 0, cost, "", -10.0 - lost, -10.0)
    assert recitations.is_likely(found) == likely


def test_the_function_is_not_hidden_by_the_command_of_its_name():
    """Importing whisper_quran.recognize, as this file does, makes the module an attribute of the package."""
    with pytest.raises(UserError, match="no file or folder nowhere"):
        next(whisper_quran.recognize(RecognitionConfig(("nowhere.mp3",))))


@pytest.fixture
def transcribed(command, monkeypatch):
    """The command, which hears 112:1 in all recordings; the second of two ends it by an error that nobody expects."""
    monkeypatch.setattr(recitations, "load_checkpoint", lambda *_: make_whisper())

    def transcribe(_, clips, **options):
        times = tuple((letter, float(i), i + 1.0) for i, letter in enumerate("قلهواللهاحد"))
        for number in range(len(clips)):
            if len(clips) == 2 and number == 1:
                raise RuntimeError("of the second")
            yield ikhlas(number, times)

    monkeypatch.setattr(recitations, "transcribe_clips", transcribe)
    return command


def test_what_was_done_is_kept_when_something_ends_the_run(transcribed, capsys):
    Path("y.wav").write_bytes(Path("x.wav").read_bytes())
    with pytest.raises(RuntimeError, match="of the second"):
        transcribed("x.wav", "y.wav", "--json", "--srt", "--html", "page.html")
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["file"] == "x.wav" and row["recitations"][0]["surah"] == 112
    assert "112:1" in Path("x.srt").read_text(encoding="utf-8") and "x.wav" in Path("page.html").read_text()


def test_subtitles_that_cannot_be_written_lose_no_others(transcribed, capsys):
    """Two of one long name would need a longer one; an existing file is kept."""
    long = ["a" * 250 + ending for ending in (".wav", ".mp3")]
    for name in (*long, "mine.wav", "z.wav"):
        Path(name).write_bytes(Path("x.wav").read_bytes())
    Path("mine.srt").write_text("mine")
    with pytest.raises(UserError, match="2 of 4 recordings have no subtitles"):
        transcribed(*long, "mine.wav", "z.wav", "--srt")
    said = capsys.readouterr().err
    assert said.count(": no subtitles: ") == 2 and "mine.srt is there already" in said and "subtitles: z.srt" in said
    assert Path("mine.srt").read_text() == "mine" and Path("z.srt").exists()


def test_a_cue_is_at_most_two_lines_and_seven_seconds(quran):
    """2:282, said in 81 s, with a word that takes 8."""
    text = read_text(quran / "metadata" / "ayah_text_clear.csv")[0][2, 282].split()
    ends = [*accumulate(8.0 if n == 50 else 0.57 for n in range(len(text)))]
    words = tuple(RecitedWord(*each) for each in zip(text, [0.0, *ends], ends, strict=False))
    ayah = RecitedAyah(282, 1, len(words), 0.0, ends[-1], " ".join(text), words)
    recognition = Recognition("x", 81.0, False, "", (Recitation(2, (), (ayah,), "", "", 1.0),))
    blocks = [block.split("\n") for block in subtitles(recognition).rstrip().split("\n\n")]
    said = []
    for number, (shown, times, *lines) in enumerate(blocks, 1):
        hours = [[float(part.replace(",", ".")) for part in time.split(":")] for time in times.split(" --> ")]
        start, end = (60 * minutes + seconds for _, minutes, seconds in hours)
        assert int(shown) == number and 0 < end - start <= 7.001 and len(lines) <= 2
        assert max(map(len, lines)) <= 42 and lines[-1].endswith("(2:282)")
        said += " ".join(lines).removesuffix(" (2:282)").split()
    assert said == text
    assert subtitles(Recognition("x", 1.0, False, "", ())) == ""


def test_letters_that_are_pronounced_by_name_are_right(quran):
    """«الف لام ميم» is how الم is said; a mistake beside it is still one."""
    recognizer = Recognizer(Quran(read_text(quran / "metadata" / "ayah_text_clear.csv")[0]), torch.device("cpu"))
    for heard, edits in (
        ("ألف لام ميم ذلك الكتاب لا ريب فيه هدى للمتقين", ""),
        ("الم ذلك الكتاب لا ريب فيه هدى للمتقين", ""),
        ("ألف لام ميم ذلك الكتاب لا عيب فيه هدى للمتقين", "=4 ~عيب"),
        ("كاف هاء ياء عين صاد", ""),
    ):
        times = tuple((letter, i / 2, i / 2 + 0.5) for i, letter in enumerate(letters(heard)))
        candidate = replace(recognizer.nearest(heard)[0], times=times)
        transcript = Transcript(0, heard, 0.0, pieces=(RecognizedPiece(0.0, 9.0, heard, candidate),))
        (recitation,) = recitations.recognition_of(Path("x"), 1.0, transcript, recognizer).recitations
        assert recitation.edits == edits
        if heard.startswith("ألف"):
            assert (recitation.words[0].end, recitation.confidence) == (4.5, 1.0 if not edits else 0.972)


def test_tokens_have_the_times_that_whisper_gives_them(quran, base_weights):
    """An ayah by the real base: as whisper's own alignment, within a tenth of a second most often."""
    model = load_checkpoint(base_weights / "base.pt", torch.device("cpu"))
    assert alignment_heads(model) == [(3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)]
    audio = decode_file(quran / "audio" / "Mishary_Rashid_Alafasy" / "104002.mp3").samples
    mel = log_mel(collate([audio]), 80)
    tokenizer = get_tokenizer(True, language="ar", task="transcribe")
    tokens = tokenizer.encode(" الذي جمع مالا وعدده")
    (clip,) = BatchDecoder(model, 1, sample_len=2).decode([AudioFeatures(encode(model.encoder, mel), [1500])])
    frames = len(audio) // 320
    ours = token_starts(clip.attention(tokens, alignment_heads(model), frames), clip.decoder.begin - 1)
    threads = torch.get_num_threads()
    words = timing.find_alignment(model, tokenizer, tokens, mel[0], 2 * frames)
    torch.set_num_threads(threads)  # numba, which whisper aligns with, takes as many as there are cores
    starts = [*accumulate((len(word.tokens) for word in words[:-1]), initial=0)]
    differences = [abs(ours[start] - word.start) for start, word in zip(starts, words, strict=True)]
    assert sorted(differences)[len(differences) // 2] <= 0.1, differences
    assert all(a <= b for a, b in pairwise(ours))


@pytest.mark.parametrize("length", [1, 3, 4, 7, 2_000])
def test_the_median_of_seven_frames_is_the_one_that_sorting_finds(length):
    """Of zeros and ones in all patterns: what a network of minima and maxima does with these, it does with all."""
    x = torch.randint(0, 2, (2, 3, length), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(median_filter(x), timing.median_filter(x, 7))


@pytest.mark.parametrize("text", ["قل ﴿", "قل ﻻ"])
def test_a_text_may_end_inside_a_character(text):
    """One of several tokens, which the limit or a stopped loop cuts."""
    model = make_whisper(layers=2)
    (clip,) = BatchDecoder(model, 1, sample_len=2).decode([AudioFeatures(torch.randn(1, 400, 64), [400])])
    tokens = clip.decoder.task.tokenizer.encode(text)
    for count in range(1, len(tokens) + 1):
        cut = DecodedClip(0, replace(clip.result, tokens=tokens[:count]), clip.decoder, clip.slot)
        times = letter_times(cut, alignment_heads(model), 3.0)
        assert "قللا".startswith("".join(letter for letter, *_ in times))
        assert all(0 <= start <= end <= 3.0 for _, start, end in times)


def test_words_take_the_times_of_the_letters_they_are_aligned_with():
    said = [(letter, float(i), i + 1.0) for i, letter in enumerate(letters("قل هو الله احذ"))]
    assert word_times(["قل", "هو", "الله", "احد"], said) == [(0.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, 11.0)]
    # A word that was not heard has no length; what was heard besides belongs to its neighbours.
    assert word_times(["قل", "نعم", "هو"], said[:4]) == [(0.0, 2.0), (2.0, 2.0), (2.0, 4.0)]
