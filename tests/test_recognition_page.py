"""The page of `python -m whisper_quran.recognize --html`, opened from disk in a headless Chromium."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import HOSTILE, assert_nothing_ran, wait_until

from whisper_quran.config import RecognitionConfig
from whisper_quran.data.audio import SAMPLE_RATE
from whisper_quran.evaluation.word_errors import align
from whisper_quran.recognition.output import describe, write_page
from whisper_quran.recognition.recitations import Recitation, RecitedAyah, RecitedWord, Recognition, judge

BASMALA, IKHLAS = "بسم الله الرحمن الرحيم", ("قل هو الله أحد", "الله الصمد")
SECONDS = 8  # of a recording


def words(text: str, first: int) -> tuple[RecitedWord, ...]:
    """Words that are said half a second each, the first after so many others."""
    return tuple(RecitedWord(word, n / 2, (n + 1) / 2, doubt=20.0) for n, word in enumerate(text.split(), first))


def ikhlas(heard: str) -> Recitation:
    """112:1 and 2, after a basmala."""
    whole = " ".join([BASMALA, *IKHLAS])
    edits = align(whole, heard).edits
    all_words = judge(words(whole, 0), edits, 0.0)
    preface, first, second = (tuple(all_words[a:b]) for a, b in ((0, 4), (4, 8), (8, 10)))
    ayat = (RecitedAyah(1, 1, 4, 2.0, 4.0, IKHLAS[0], first), RecitedAyah(2, 1, 2, 4.0, 5.0, IKHLAS[1], second))
    return Recitation(112, preface, ayat, heard, edits, 0.937)


@pytest.fixture
def open_recitations(open_page: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Write the page of recordings, which are of a tone, and open it: of (name, text heard, recitation or none)."""

    def open_recitations(*recordings: tuple[str, str, Recitation | None], model: str = "base", **options: Any) -> Any:
        config = RecognitionConfig(("audio",), model=model, html=tmp_path / "page.html", **options)
        found = []
        for name, heard, recitation in recordings:
            path = tmp_path / "audio" / name
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, np.sin(np.arange(SECONDS * SAMPLE_RATE) / 8), SAMPLE_RATE, format="MP3")
            found.append(Recognition(str(path), SECONDS, name == "cut.mp3", heard, (recitation,) if recitation else ()))
        write_page(config, found)
        if config.embed_audio:
            shutil.rmtree(tmp_path / "audio")
        return open_page(tmp_path / "page.html", viewport={"width": 360, "height": 740})

    return open_recitations


def test_it_says_where_a_recording_is_and_what_was_heard_differently(open_recitations: Callable[..., Any]) -> None:
    heard = "بسم الله الرحمن الرحيم قل هو احد أحد الله السمد"
    page = open_recitations(("a b.mp3", heard, ikhlas(heard)), ("cut.mp3", "ask not what", None))
    assert page.locator("h1").inner_text() == page.title()
    assert page.locator("#subtitle").inner_text() == "2\u00a0recordings · 16 s of audio"
    assert page.locator("#contents li").all_inner_texts() == ["a b.mp3 الإخلاص 112:1–2", "cut.mp3 not the Qur'an"]
    first, second = page.locator("#recordings section").all()
    assert first.locator("h3 bdi").all_inner_texts() == [
        "سورة الإخلاص",
        "surah 112, ayah 1 to 2",
        "confidence 93.70 %",
    ]
    lines = first.locator("article")
    assert lines.locator(".where").all_inner_texts() == ["▶ 0:00", "112:1\n▶ 0:02", "112:2\n▶ 0:04"]
    assert [line.locator(".s, .d, .i").count() for line in lines.all()] == [0, 1, 1]
    assert [lines.nth(n).locator(".s").inner_text().split() for n in (1, 2)] == [["الله", "احد"], ["الصمد", "السمد"]]
    assert {(text.get_attribute("lang"), text.get_attribute("dir")) for text in lines.locator(".text").all()} == {
        ("ar", "rtl")
    }
    assert second.locator("h3").inner_text() == "Not the Qur'an"
    assert second.locator(".text").inner_text() == "ask not what"
    assert ["damaged" in each.inner_text() for each in (first, second)] == [False, True]


def test_other_spellings_are_not_marked_and_errors_stay_in_their_ayah(open_recitations: Callable[..., Any]) -> None:
    """The hamza of أحد makes no sound of its own; two words are heard as one across the end of an ayah."""
    heard = "قل هو الله احد بسم الله الرحمن الرحيم قل هو الله أحدالله الصمد"
    page = open_recitations(("a.mp3", heard, ikhlas(heard)))
    lines = page.locator("article")
    assert "".join(lines.nth(0).locator(".i").all_inner_texts()).replace("+\u00a0", "") == "قل هو الله احد"
    assert [line.locator(".word").count() for line in lines.all()] == [4, 4, 2]
    heard = "بسم الله الرحمن الرحيم قل هو الله احد الله الصمد"
    page = open_recitations(("a.mp3", heard, ikhlas(heard)))
    assert page.locator("article :is(.s, .d, .i)").count() == 0


@pytest.mark.parametrize("embed_audio", [False, True])
def test_a_word_plays_from_where_it_is_said_and_is_marked(
    open_recitations: Callable[..., Any], embed_audio: bool
) -> None:
    heard = "قل هو الله احد الله السمد"
    page = open_recitations(
        ("#1 'a'.mp3", heard, ikhlas(heard)), ("b.mp3", heard, ikhlas(heard)), embed_audio=embed_audio
    )
    # At a tenth of the speed, a word is said for as long as a busy machine needs to look.
    page.evaluate("document.querySelector('#audio').defaultPlaybackRate = 0.1")
    plays = (
        "document.querySelector('#audio').currentTime > {0} && document.querySelector('#audio').currentTime < {0} + 0.5"
    )
    for recording, word in ((0, 6), (0, 2), (1, 9)):
        page.locator("#recordings section").nth(recording).locator(".word").nth(word).click()
        wait_until(page, plays.format(word / 2))
        wait_until(page, f"document.querySelector('#recording-{recording} .now')?.dataset.word === '{word}'")
        assert page.locator(".now").count() == 1
    # What was heard in its place plays the word too; so does the button of a line, by keyboard.
    page.locator("#recordings section").nth(0).locator(".s span").last.click()
    wait_until(page, plays.format(4.5))
    page.locator("article .play").nth(1).focus()
    page.keyboard.press("Enter")
    wait_until(page, plays.format(2))
    # And the words of a line: it is one stop of the Tab key, arrows go on from there.
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    wait_until(page, plays.format(2.5))
    # Where nothing is said nothing is marked, nor when the player is closed.
    page.evaluate("document.querySelector('#audio').currentTime = 7")
    wait_until(page, "!document.querySelector('.now')")
    page.evaluate("document.querySelector('#audio').currentTime = 1")
    wait_until(page, "document.querySelector('.now')")
    page.locator("#close").click()
    wait_until(page, "!document.querySelector('.now') && document.querySelector('#audio').paused")


def test_hostile_names_and_texts_are_shown_on_a_phone_and_never_run(open_recitations: Callable[..., Any]) -> None:
    recordings: list[Any] = [(f"{'long_name_' * 12}.mp3", "", None)]
    for number, hostile in enumerate(HOSTILE):
        word = "".join(hostile.split())
        heard = f"{BASMALA} قل {word} الله أحد الله الصمد {word}"
        name = hostile.replace("/", "\N{FRACTION SLASH}")
        recordings.append((name, f"{hostile} {word}", ikhlas(heard) if number % 2 else None))
    page = open_recitations(*recordings, model="".join(HOSTILE))
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("h2").count() == len(recordings)
    assert page.locator("#recordings > section > .text").nth(1).text_content().startswith(HOSTILE[0])
    assert HOSTILE[0] in page.locator("#measured").inner_text()
    for button in page.locator(".recording .play").all():
        button.click()
        wait_until(page, "document.querySelector('#audio').currentTime > 0")
    page.locator(".s").first.hover()
    page.locator("#contents a").last.click()
    assert_nothing_ran(page)


def test_only_what_is_doubted_enough_is_marked(open_recitations: Callable[..., Any]) -> None:
    heard = "بسم الله الرحمن الرحيم قل هو احد أحد اللهم السمد كان"
    whole = " ".join([BASMALA, *IKHLAS])
    doubted = [replace(word, doubt=n) for n, word in enumerate(words(whole, 0))]
    judged = judge(doubted, align(whole, heard).edits, 8.5)
    assert [(word.verdict, word.heard, word.added) for word in judged] == [("said", "", "")] * 9 + [
        ("differently", "السمد", "كان")
    ]
    recitation = Recitation(
        112, tuple(judged[:4]), (RecitedAyah(1, 1, 6, 2.0, 5.0, "", tuple(judged[4:])),), heard, "", 0.9
    )
    page = open_recitations(("a.mp3", heard, recitation))
    marked = page.locator("article :is(.s, .d, .i)").all_inner_texts()
    assert [text.split() for text in marked] == [["الصمد", "السمد"], ["كان"]]
    assert "heard differently: الصمد (السمد; then كان)" in describe(Recognition("a", 5, False, heard, (recitation,)))
