"""The report, opened as a reader opens it: from disk, in a headless Chromium."""

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from conftest import HOSTILE, assert_nothing_ran, wait_until

from whisper_quran.data.audio_cache import AudioCache, prepare_audio
from whisper_quran.data.ayat import Ayah
from whisper_quran.evaluation.chance import differences, overall, plus_minus, rates_of
from whisper_quran.evaluation.pages import data_address, embedded_size, relative_address, short_names, write_report
from whisper_quran.evaluation.predictions import COLUMNS, Prediction, key_of, read_predictions
from whisper_quran.evaluation.word_errors import ErrorCounts

FATIHA = [
    "بسم الله الرحمن الرحيم",
    "الحمد لله رب العالمين",
    "الرحمن الرحيم",
    "مالك يوم الدين",
    "إياك نعبد وإياك نستعين",
    "اهدنا الصراط المستقيم",
    "صراط الذين أنعمت عليهم غير المغضوب عليهم ولا الضالين",
]
IKHLAS = ["قل هو الله أحد", "الله الصمد", "لم يلد ولم يولد", "ولم يكن له كفوا أحد"]


# ---- evaluations to report on


def prediction(
    model: str, reciter: str, surah: int | str, ayah: int | str, reference: str, hypothesis: str
) -> Prediction:
    duration = 1.5 + len(reference.split())
    return Prediction(model, reciter, str(surah), str(ayah), duration, reference, hypothesis)


def summarize(predictions: list[Prediction], **extra: Any) -> dict:
    """What results.json holds for these predictions."""
    rows = []
    for model, reciter in dict.fromkeys((row.model, row.reciter) for row in predictions):
        some = [row for row in predictions if (row.model, row.reciter) == (model, reciter)]
        total = sum((row.alignment.errors for row in some), start=ErrorCounts())
        counts = {name: getattr(total, name) for name in ("words", "hits", "substitutions", "deletions", "insertions")}
        counts |= rates_of(some)
        audio = sum(row.duration for row in some)
        rows.append(
            {"model": model, "reciter": reciter, "ayat": len(some), "skipped": 0, **counts}
            | {"audio_s": audio, "wall_s": audio / 50, "rtf": 0.02, "parameters": 39_000_000}
        )
    found = {"overall": overall(predictions), "differences": differences(predictions)}
    return {"rows": rows, "environment": {"device": "cpu", "torch": "2.11"}, **found, **extra}


def misheard(reference: str, rate: float, chance: random.Random) -> str:
    """``reference`` as a model of that error rate might write it: letters mistaken, words dropped, doubled, swapped."""
    words = []
    for word in reference.split():
        kind = chance.random() / rate
        if kind < 0.6:
            words.append(word.replace("ص", "س") if "ص" in word else word[:-1] + "ن")
        elif kind < 0.8:
            words += [word, word]
        elif kind >= 1:
            words.append(word)
    if len(words) > 1 and chance.random() < rate / 2:
        words[0], words[1] = words[1], words[0]
    return " ".join(words)


def two_models_two_reciters() -> list[Prediction]:
    """A poor model and a good one, each with errors whose place is known."""
    heard = {
        ("tiny", "Husary"): {(1, 7): "سراط الذين أنعمت غير المغضوب عليهم ولا الضالين آمين", (112, 2): "الله السمد"},
        ("tiny", "Minshawy"): {(1, 6): "اهدنا السراط المستقيم", (112, 1): ""},
        ("best.pt", "Minshawy"): {(1, 6): "اهدنا السراط المستقيم"},
    }
    return [
        prediction(model, reciter, surah, ayah, text, heard.get((model, reciter), {}).get((surah, ayah), text))
        for model in ("tiny", "best.pt")
        for reciter in ("Husary", "Minshawy")
        for surah, texts in ((1, FATIHA), (112, IKHLAS))
        for ayah, text in enumerate(texts, start=1)
    ]


# ---- the browser


@pytest.fixture
def open_report(open_page, tmp_path):
    """Write a report and open it."""

    def open_report(predictions, results=None, recordings=None, **options):
        path = tmp_path / "report.html"
        write_report(path, predictions, results or summarize(predictions), recordings)
        return open_page(path, **options)

    return open_report


def listed(page: Any) -> list[str]:
    """The recordings listed, as "surah:ayah, reciter", when all are asked for."""
    for _ in range(99):
        if page.locator("#more").is_hidden():
            break
        page.locator("#more").click()
    return page.locator("article").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")


def search(page: Any, query: str, number: int) -> None:
    page.fill("#by-query", query)
    wait_until(page, f"document.querySelector('#status').textContent.startsWith('{number} of')")


# ---- without a browser


def test_a_report_made_again_from_the_files_is_the_same(tmp_path):
    predictions = two_models_two_reciters()
    results = summarize(predictions)
    write_report(tmp_path / "report.html", predictions, results)
    with open(tmp_path / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row.cells() for row in predictions)
    again = read_predictions(tmp_path / "predictions.csv")
    write_report(tmp_path / "again.html", again, json.loads(json.dumps(results)))
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()


# ---- what is shown


def test_the_table_has_every_rate_and_marks_the_best_of_each_column(open_report):
    predictions = two_models_two_reciters()
    results = summarize(predictions)
    page = open_report(predictions, results)
    rows = page.locator("#table tbody tr")
    rates = [rows.nth(model).locator(".rate").all_inner_texts() for model in (0, 1)]
    by_model = [results["rows"][:2], results["rows"][2:]]
    for model in (0, 1):
        name = by_model[model][0]["model"]
        total = next(row for row in results["overall"] if row["model"] == name)
        its_rows = [*by_model[model], total]
        assert rates[model] == [plus_minus(row["wer"], row["wer_interval"]) for row in its_rows]
    assert page.locator("td.best").count() == 3
    assert rows.nth(1).locator("td.best").count() == 3
    cer = next(row for row in results["overall"] if row["model"] == "tiny")
    assert rows.nth(0).locator("td small").nth(2).inner_text() == f"CER {plus_minus(cer['cer'], cer['cer_interval'])}"
    assert "39 M" in rows.nth(0).inner_text() and "50×" in rows.nth(0).inner_text()
    page.locator("#differences summary").click()
    cells = page.locator("#differences td").all_inner_texts()
    assert cells[:4] == ["difference in WER", "Husary", "Minshawy", "all reciters"]
    assert cells[4] == "tiny − best.pt" and "(p = " in cells[7]


def test_charts_show_chance_the_number_of_recordings_and_rates_above_100_percent(open_report):
    chance = random.Random(0)
    rows = [
        prediction("tiny", "Husary", 2, ayah, reference, misheard(reference, 0.4, chance))
        for ayah, reference in enumerate(FATIHA * 9, start=1)
    ] + [prediction("tiny", "Husary", 112, 2, "الله الصمد", "ا ب ج د ه و ز")]
    page = open_report(rows)
    # The page's intervals are of its filtered recordings, by the formula of the table's.
    found = page.evaluate("tallied(recordings, ({ayah}) => ayah.surah, String, String).map(column => column.rates[0])")
    low, high = rates_of(rows[:-1])["wer_interval"]
    assert (found[0]["low"], found[0]["high"]) == pytest.approx((low, high), rel=1e-9)
    said = page.locator("#charts .plot").first.get_attribute("aria-label")
    assert f"± {50 * (high - low):.1f} %" in said and "350.0 %" in said
    assert page.locator("#charts .plot").first.locator("text", has_text="350 %").count() == 1
    assert page.locator("#charts .plot").first.locator(".chance").count() == 1
    page.locator("#charts .plot").nth(1).hover(position={"x": 60, "y": 60})
    assert "28\u00a0recitations" in page.locator("#charts .readout").nth(1).inner_text()


def test_words_are_aligned_from_right_to_left_with_each_error_in_its_place(open_report):
    page = open_report(two_models_two_reciters())
    page.select_option("#by-model", label="tiny")
    page.select_option("#by-reciter", label="Husary")
    search(page, "1:7", 1)
    assert listed(page) == ["1:7, Husary"]
    text = page.locator("article .text").first
    assert text.get_attribute("dir") == "rtl"
    assert text.locator(".s").inner_text().split() == ["صراط", "سراط"]
    assert text.locator(".d").inner_text() == "عليهم"
    assert text.locator(".i").inner_text() == "آمين"
    assert "1\u00a0substitution, 1\u00a0deletion, 1\u00a0insertion" in page.locator("article").first.inner_text()
    reference, heard = (text.locator(".s span").nth(row).bounding_box() for row in (0, 1))
    deleted, inserted = (text.locator(kind).bounding_box() for kind in (".d", ".i"))
    assert heard["y"] >= reference["y"] + reference["height"] - 1
    assert reference["x"] > deleted["x"] + deleted["width"] > inserted["x"] + inserted["width"]
    # Without colour: a wave below, brackets, a plus.
    style = "(node, [part, name]) => getComputedStyle(node, part)[name]"
    assert "wavy" in text.locator(".s span").nth(1).evaluate(style, [None, "textDecorationStyle"])
    assert text.locator(".d").evaluate(style, ["::before", "content"]) == '"["'
    assert text.locator(".i").evaluate(style, ["::before", "content"]).startswith('"+')


def test_sorting_and_filters(open_report):
    page = open_report(two_models_two_reciters())
    assert page.locator("#status").inner_text() == "22\u00a0recitations"
    # Most errors: an ayah that was not heard at all has four, 1:7 three, 1:6 one of each model.
    assert listed(page)[:3] == ["112:1, Minshawy", "1:7, Husary", "1:6, Minshawy"]
    page.select_option("#by-sort", "wer")
    assert listed(page)[:4] == ["112:1, Minshawy", "1:6, Minshawy", "112:2, Husary", "1:7, Husary"]
    page.select_option("#by-sort", "order")
    assert listed(page)[:3] == ["1:1, Husary", "1:1, Minshawy", "1:2, Husary"]
    page.select_option("#by-sort", "duration")
    assert listed(page)[0].startswith("1:7")
    page.select_option("#by-reciter", label="Husary")
    page.select_option("#by-surah", "112")
    assert sorted(listed(page)) == [f"112:{ayah}, Husary" for ayah in (1, 2, 3, 4)]
    assert page.locator("#status").inner_text() == "4 of 22\u00a0recitations"
    page.select_option("#by-model", label="best.pt")
    assert page.locator("#tally-error li").count() == 0


def test_kinds_of_error_are_counted_with_an_example_and_lead_to_where_they_happen(open_report):
    loop = prediction("tiny", "Husary", 2, 6, "أم لم تنذرهم", "أم " * 110 + "لم تنذرهم")
    joined = prediction("tiny", "Husary", 109, 1, "قل يا أيها الكافرون", "قليا أيها الكافرون")
    page = open_report([*two_models_two_reciters(), loop, joined])
    kinds = page.locator("#tally-kind button")
    counts = dict(zip(kinds.locator(".kind").all_inner_texts(), kinds.locator("b").all_inner_texts(), strict=True))
    # 1:7 has a letter, a word left out and one added; 112:2 a letter; 1:6 of each model too; 112:1 was not heard.
    assert counts == {
        "Repeated or looping": "109",
        "Word left out": "5",
        "One letter": "4",
        "Words joined or split": "2",
        "Word added": "1",
    }
    kinds.first.click()
    assert listed(page) == ["2:6, Husary"]
    assert page.locator("article .i").first.inner_text() == "أم ×109"
    assert page.locator("article .i").first.get_attribute("title") == "insertion: Repeated or looping"
    assert page.locator("#tally-error button").count() == 1  # the commonest of the kind
    assert page.locator("#chip").inner_text() == "\u2068Repeated or looping\u2069 ×"
    page.locator("#chip").focus()
    page.keyboard.press("Enter")
    assert page.locator("#chip").is_hidden()
    common = page.locator("#tally-error button", has_text="السراط")
    assert common.locator("bdi").all_inner_texts() == ["الصراط", "السراط"]
    assert common.get_attribute("title") == "tiny: 1\nbest.pt: 1"
    common.focus()
    page.keyboard.press("Enter")
    assert listed(page) == ["1:6, Minshawy"]
    assert common.get_attribute("aria-pressed") == "true"
    assert common.evaluate("button => button === document.activeElement")
    page.locator("#chip").click()
    page.locator("#tally-letters button").first.click()
    assert page.locator("#tally-letters bdi").all_inner_texts() == ["ص", "س"]
    assert sorted(listed(page)) == ["112:2, Husary", "1:6, Minshawy", "1:7, Husary"]
    page.locator("#tally-letters button").first.click()
    page.locator("#tally-kind button", has_text="joined").click()
    assert listed(page) == ["109:1, Husary"]
    assert page.locator("article .s span").all_inner_texts() == ["قل يا", "قليا"]


def test_the_address_holds_what_is_chosen(open_report, tmp_path):
    page = open_report(two_models_two_reciters())
    assert "#" not in page.url
    page.select_option("#by-model", label="tiny")
    page.select_option("#by-sort", "order")
    page.locator("#tally-letters button").first.click()
    search(page, "الصمد", 1)
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    assert listed(page) == ["112:2, Husary"]
    chosen = [page.locator(f"#by-{name}").input_value() for name in ("model", "sort", "query")]
    assert chosen == ["tiny", "order", "الصمد"]
    assert page.locator("#tally-letters button").get_attribute("aria-pressed") == "true"
    page.evaluate("location.hash = '#surah=112'")
    wait_until(page, "document.querySelector('#status').textContent.startsWith('8 of')")
    # What is no option chooses nothing, and nothing in an address runs.
    page.evaluate("location.hash = '#model=nope&sort=constructor&__proto__=x&reciter=<img src=x onerror=hacked=1>'")
    wait_until(page, "document.querySelector('#status').textContent.startsWith('22')")
    assert len(listed(page)) == 22


def test_search_finds_texts_names_and_numbers_and_marks_the_words(open_report):
    page = open_report(two_models_two_reciters())
    for query, found in {
        "السِّراط": ["1:6, Minshawy"],  # heard only; vowel signs make no difference
        "انعمت": ["1:7, Husary", "1:7, Minshawy"],  # nor does the hamza of an alef
        "no such word": [],
        "112:3": ["112:3, Husary", "112:3, Minshawy"],
    }.items():
        search(page, query, len(found))
        assert sorted(listed(page)) == found
        assert ("Nothing fits" in page.locator("#ayat").inner_text()) == (not found)
    search(page, "husary", 11)
    assert {name.split(", ")[1] for name in listed(page)} == {"Husary"}
    places = [(2, 5), (2, 50), (12, 5), (2, "6-10")]
    rows = [prediction("tiny", "Husary", *place, "هو الله أحد", "هو احد") for place in places]
    page = open_report([*rows, prediction("tiny", "Husary", 112, 3, IKHLAS[2], IKHLAS[2])])
    search(page, "2:5", 1)
    assert listed(page) == ["2:5, Husary"]
    search(page, "احد", 4)
    search(page, "2:7", 1)
    assert listed(page) == ["2:6-10, Husary"]
    search(page, "يوسف", 1)


def test_a_rate_in_the_table_chooses_its_model_and_reciter(open_report):
    page = open_report(two_models_two_reciters())
    page.locator("#table .rate").nth(1).click()
    assert {name.split(", ")[1] for name in listed(page)} == {"Minshawy"}
    chosen = [page.locator(f"#by-{name}").input_value() for name in ("model", "reciter")]
    assert chosen == ["tiny", "Minshawy"]


def test_models_have_short_names():
    assert short_names(["/runs/a/best.pt", "/runs/b/best.pt", "tiny"]) == ["a/best.pt", "b/best.pt", "tiny"]


def test_a_screen_reader_and_a_keyboard_find_their_way(open_report):
    page = open_report(two_models_two_reciters())
    arabic = page.locator("article .text, article .ar, #tally-error .words, .sample")
    assert {(lang, dir) for lang, dir in arabic.evaluate_all("all => all.map(one => [one.lang, one.dir])")} <= {
        ("ar", "rtl"),
        ("ar", ""),
    }
    # The list comes before the long lists of errors.
    order = page.evaluate("""['filters', 'charts', 'tally-kind', 'ayat', 'tally-error', 'tally-letters'].map(id =>
        [...document.querySelectorAll('*')].indexOf(document.getElementById(id)))""")
    assert order == sorted(order)
    # A chart gives its figures, and filters by a click as its menu does.
    chart = page.locator(".plot").first
    assert f"tiny: Surah 1 \u2068الفاتحة\u2069 {100 * 4 / (2 * 29):.1f} ± " in chart.get_attribute("aria-label")
    chart.click(position={"x": 38 + 120 * 1.5, "y": 100})
    assert page.locator("#by-surah").input_value() == "112"
    # The skip link leads to the list, below the bar that stays.
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    bar, top = page.locator("#filters").bounding_box(), page.locator("#ayat").bounding_box()
    assert top["y"] >= bar["y"] + bar["height"]
    assert page.locator("#by-surah").input_value() == "112"


def test_recordings_that_are_not_the_quran_have_no_surahs(open_report):
    page = open_report(
        [
            prediction("tiny", "jfk", "", "a/speech 2.flac", "ask not what your country", "ask what your country"),
            prediction("tiny", "jfk", "", "a/speech 10.flac", "can do for you", "can do for you"),
            prediction("tiny", "jfk", "", "a/silence.flac", "", "thank you"),
        ]
    )
    page.select_option("#by-sort", "order")
    assert listed(page) == ["a/silence.flac, jfk", "a/speech 2.flac, jfk", "a/speech 10.flac, jfk"]
    assert page.locator("#charts h3").all_inner_texts() == ["WER by length"]
    assert page.locator("#by-surah").is_hidden()
    assert page.locator(".text").nth(1).get_attribute("dir") == "ltr"
    assert "3\u00a0recordings" in page.locator("#subtitle").inner_text()


def test_what_was_left_out_is_listed_with_its_reason_even_where_nothing_is_left(open_report):
    nothing = dict.fromkeys(("words", "hits", "substitutions", "deletions", "insertions", "audio_s", "wall_s"), 0)
    rates = dict.fromkeys(("wer", "cer", "rtf"))
    row = {"model": "tiny", "reciter": "Husary", "ayat": 0, "skipped": 1} | nothing | rates
    skipped = [{"file": "Husary/001001.mp3", "reason": "empty file"}]
    page = open_report([], {"rows": [row], "environment": {"device": "cpu"}, "skipped": skipped})
    page.locator("#skipped summary").click()
    assert page.locator("#skipped td").all_inner_texts() == ["Husary/001001.mp3", "empty file"]
    assert page.locator(".rate").inner_text() == "–"


def recite(path: Path) -> None:
    """A second of a tone, as an MP3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), np.sin(np.arange(16000) / 8), 16000, format="MP3")


def recited(tmp_path: Path, names: list[str]) -> tuple[list[Ayah], AudioCache]:
    """Recordings of 1:1, 1:2, … by a reciter, in files of these names."""
    paths = [tmp_path / "audio" / "Husary" / name for name in names]
    for path in paths:
        recite(path)
    cache = prepare_audio({"Husary": paths}, tmp_path / "cache", workers=1)
    return [Ayah("Husary", path, FATIHA[n], 1, n + 1) for n, path in enumerate(paths)], cache


def linked(ayat: list[Ayah], folder: Path, damaged: list[Path] = []) -> dict:  # noqa: B006
    """What the page plays: the ayat from their files."""
    return {key_of("", ayah): (relative_address(ayah.audio, folder), ayah.audio in damaged) for ayah in ayat}


def heard(ayat: list[Ayah]) -> list[Prediction]:
    return [prediction("tiny", "Husary", 1, ayah.number, ayah.text, "x") for ayah in ayat]


ODD_FILES = ["a b.mp3", "#1?.mp3", "100%25.mp3", "'\"<script>.mp3", "line\nend.mp3", "a:b;c.mp3", "سورة.mp3"]


def test_each_ayah_plays_from_its_file_whatever_its_name(open_report, tmp_path):
    ayat, _ = recited(tmp_path, ODD_FILES)
    page = open_report(heard(ayat), recordings=linked(ayat, tmp_path))
    page.select_option("#by-sort", "order")
    assert len(listed(page)) == len(ayat)
    for number in range(len(ODD_FILES)):
        page.locator(".play").nth(number).click()
        source = unquote(page.evaluate("document.querySelector('#audio').src"))
        assert source == f"file://{ayat[number].audio}"
        wait_until(page, "document.querySelector('#audio').duration > 0.9")
        assert page.locator("#playing").inner_text() == f"1:{number + 1}, Husary"


def test_a_page_with_its_audio_plays_alone(open_report, tmp_path):
    (ayah,), cache = recited(tmp_path, ["001001.mp3"])
    recordings = {key_of("", ayah): (data_address(cache.read(ayah.audio)), False)}
    page = open_report(heard([ayah]), recordings=recordings)
    shutil.rmtree(tmp_path / "audio")
    embedded = sum(len(address) for address, _ in recordings.values())
    assert embedded == pytest.approx(embedded_size(cache.length(ayah.audio) / 16000), rel=0.3)
    page.get_by_role("button", name="Play 1:1, Husary").click()
    wait_until(page, "document.querySelector('#audio').duration > 0.9")
    wait_until(page, "document.querySelector('#audio').currentTime > 0.1")
    # The player covers no text: the end of the page is above it.
    page.evaluate("scrollTo(0, 1e6)")
    footer, player = page.locator("footer").bounding_box(), page.locator("#player").bounding_box()
    assert footer["y"] + footer["height"] <= player["y"] + 1
    for close in (lambda: page.locator("#close").click(), lambda: page.keyboard.press("Escape")):
        close()
        assert page.locator("#player").is_hidden() and page.evaluate("document.querySelector('#audio').paused")
        page.locator(".play").first.click()
        assert page.locator("#player").is_visible()


def test_audio_that_is_damaged_or_gone_says_so(open_report, tmp_path, quran):
    ayat, _ = recited(tmp_path, ["001001.mp3"])
    broken = tmp_path / "audio" / "Husary" / "001002.mp3"
    broken.symlink_to(quran / "odd" / "truncated.mp3")
    cache = prepare_audio({"Husary": [ayat[0].audio, broken]}, tmp_path / "cache", workers=1)
    assert cache.damaged == [broken]
    ayat.append(Ayah("Husary", broken, FATIHA[1], 1, 2))
    page = open_report(heard(ayat), recordings=linked(ayat, tmp_path, cache.damaged))
    page.select_option("#by-sort", "order")
    listed(page)
    articles = page.locator("article")
    assert ["damaged or cut short" in articles.nth(n).inner_text() for n in (0, 1)] == [False, True]
    ayat[0].audio.write_text("no longer audio")
    articles.nth(0).locator(".play").click()
    wait_until(page, "document.querySelector('#playing').textContent.includes('cannot be played')")


def test_hostile_names_and_texts_are_shown_and_never_run(open_report, tmp_path):
    """In every field, with audio in the page and without."""
    (ayah,), cache = recited(tmp_path, ["001001.mp3"])
    predictions, recordings = [], {}
    for hostile in HOSTILE:
        word = "".join(hostile.split())
        predictions += [
            prediction(f"runs/{hostile}", hostile, 1, 1, FATIHA[0], f"{word} الله الرحمن الرحيم"),
            prediction("tiny", hostile, 1, 1, FATIHA[0], f"{FATIHA[0]} {word}"),
            prediction("tiny", hostile, "", hostile, f"الحمد {word}", "الحمد"),
        ]
        recordings["", hostile, "1", "1"] = data_address(cache.read(ayah.audio)), False
        recordings["", hostile, "", hostile] = hostile, True
    skipped = [{"file": hostile, "reason": hostile} for hostile in HOSTILE]
    results = summarize(predictions, skipped=skipped, normalization=HOSTILE[0])
    results["environment"] = dict(zip(HOSTILE, HOSTILE, strict=True))
    page = open_report(predictions, results, recordings)
    page.locator("#skipped summary").click()
    assert page.locator("#skipped td").all_text_contents() == [hostile for hostile in HOSTILE for _ in range(2)]
    page.locator("#tally-error button").first.click()
    page.locator("#chip").click()
    page.locator(".plot").first.hover()
    assert len(listed(page)) == 2 * len(HOSTILE)
    page.locator(".play").nth(1).click()
    search(page, "onmouseover", 2)
    page.locator("article .s, article .d").first.hover()
    titles = page.locator("tbody th .name").evaluate_all("all => all.map(one => one.title)")
    assert titles == [f"runs/{HOSTILE[0]}", "tiny", *(f"runs/{hostile}" for hostile in HOSTILE[1:])]
    assert_nothing_ran(page)


def test_the_page_allows_no_script_but_its_own(browser, tmp_path):
    path = tmp_path / "report.html"
    predictions = two_models_two_reciters()
    write_report(path, predictions, summarize(predictions))
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("<main>", "<main><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>")
    )
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.locator("#table tbody tr").count() == 2
    assert page.evaluate("window.hacked") is None
    page.close()


# ---- at full size


@pytest.fixture(scope="module")
def whole_quran(quran: Path) -> list[Prediction]:
    """6,236 ayat heard by two models."""
    with open(quran / "metadata" / "ayah_text_clear.csv", newline="", encoding="utf-8-sig") as file:
        ayat = list(csv.DictReader(file))
    chance = random.Random(0)
    return [
        prediction(model, "Minshawy", row["sorah"], row["ayah"], row["text"], misheard(row["text"], rate, chance))
        for model, rate in (("small", 0.35), ("best.pt", 0.06))
        for row in ayat
    ]


def test_the_whole_quran_twice_opens_quickly_and_lists_more_when_asked(open_report, whole_quran, tmp_path):
    page = open_report(whole_quran)
    took = page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart")
    print(f"12,472 rows opened in {took} ms")
    assert len(whole_quran) == 12_472 and took < 10_000  # 2 s on an idle core
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    assert page.evaluate("document.querySelectorAll('*').length") < 6_000
    page.select_option("#by-sort", "order")
    assert page.locator("#more").inner_text() == "Show 100 more of 6,236"
    page.locator("#more").click()
    assert page.locator("article").count() == 120
    page.select_option("#by-surah", "114")
    assert listed(page)[-1] == "114:6, Minshawy"


def test_it_fits_a_phone_and_paper(open_report, whole_quran):
    page = open_report(whole_quran, viewport={"width": 360, "height": 740}, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    heights = page.locator("button:visible, select:visible, input, summary").evaluate_all(
        "all => all.map(e => e.offsetHeight)"
    )
    assert min(heights) >= 32
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
