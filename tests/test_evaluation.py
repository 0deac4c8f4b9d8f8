"""`python evaluate.py` on real recordings: what it counts, writes, keeps and refuses."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import ROOT, make_whisper, talkative
from whisper import DecodingOptions, log_mel_spectrogram, pad_or_trim

import evaluate as command
from whisper_quran.checkpoints.checkpoint import save_checkpoint
from whisper_quran.config import TrainingConfig
from whisper_quran.data.audio import decode_file
from whisper_quran.data.text import normalize
from whisper_quran.decoding.long_audio import Transcript
from whisper_quran.evaluation import evaluate as evaluation
from whisper_quran.evaluation.chance import plus_minus
from whisper_quran.evaluation.predictions import COLUMNS, Prediction, Predictions
from whisper_quran.evaluation.predictions import read_predictions as predictions_in
from whisper_quran.evaluation.word_errors import ErrorCounts, count_errors
from whisper_quran.runtime.command_line import to_json
from whisper_quran.runtime.errors import run_command

LIMIT = 12  # tokens a clip: random weights would ramble on to the end of the context


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    for seed in (0, 1):
        save_checkpoint(folder / f"model{seed}.pt", talkative(make_whisper(seed=seed)))
    save_checkpoint(folder / "model.en.pt", make_whisper(n_vocab=51864))
    return folder


@pytest.fixture
def run(quran, workshop, monkeypatch, capsys):
    """Run `evaluate.py` with options, in this process; check its exit code, and return (stdout, stderr)."""
    decode = evaluation.transcribe_clips
    monkeypatch.setattr(
        evaluation, "transcribe_clips", lambda *args, **options: decode(*args, sample_len=LIMIT, **options)
    )

    def run(*options: object, code: int = 0, fallback: bool = False) -> tuple[str, str]:
        defaults = {
            "--data": quran,
            "--cache": workshop / "cache",
            "--reciters": "AbdulWadood_Haneef",
            "--surahs": "1:1",
            "--precision": "fp32",
            "--device": "cpu",
        }
        given = [str(option) for option in options]
        if "--manifest" in given:
            for name in ("--data", "--reciters", "--surahs"):
                defaults.pop(name)
        # Random weights are unsure of everything, so that every clip would be decoded six times.
        given += [] if fallback else ["--no-fallback"]
        rest = [str(x) for pair in defaults.items() if pair[0] not in given for x in pair]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *given, *rest])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            run_command(command.main)
        out, err = capsys.readouterr()
        assert exit.value.code == code, err
        return out, err

    return run


def read_predictions(folder: Path) -> list[dict]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_models_and_two_reciters_give_one_table(run, workshop, tmp_path):
    models = [str(workshop / "model0.pt"), str(workshop / "model1.pt")]
    reciters = ["AbdulWadood_Haneef", "Yasser_Salama_hadr"]
    out, _ = run(*models, "--reciters", *reciters, "--out", tmp_path / "r")
    predictions = read_predictions(tmp_path / "r")
    assert [(row["model"], row["reciter"], row["sorah"], row["ayah"]) for row in predictions] == [
        (model, reciter, "1", str(ayah)) for model in models for reciter in reciters for ayah in range(1, 8)
    ]
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert [(row["model"], row["reciter"]) for row in results["rows"]] == [(m, r) for m in models for r in reciters]
    for row in results["rows"]:
        mine = [p for p in predictions if (p["model"], p["reciter"]) == (row["model"], row["reciter"])]
        total = sum((count_errors(p["reference"], p["hypothesis"]) for p in mine), ErrorCounts())
        assert (row["wer"], row["cer"], row["words"]) == (total.wer, total.cer, total.words)
        assert sum(int(p["substitutions"]) for p in mine) == row["substitutions"] == total.substitutions
        assert row["ayat"] == 7 and row["skipped"] == 0
        assert row["audio_s"] == pytest.approx(sum(float(p["duration"]) for p in mine))
        assert row["rtf"] == pytest.approx(row["wall_s"] / row["audio_s"])
        low, high = row["wer_interval"]
        assert low <= row["wer"] <= high
    table = (tmp_path / "r" / "results.md").read_text()
    assert table in out
    first, second = table.split("\n\n")
    assert [line.split("|")[1].strip() for line in first.splitlines()] == ["model", "---", *models]
    assert [line.split("|")[1].strip() for line in second.splitlines()][2:] == [" − ".join(models)]
    assert "(p = " in second
    assert [(row["model"], row["recordings"]) for row in results["overall"]] == [(m, 14) for m in models]
    assert [each["reciter"] for each in results["differences"]] == [*reciters, None]
    assert "AbdulWadood_Haneef WER" in table.splitlines()[0]
    assert (tmp_path / "r" / "report.html").stat().st_size > 10_000
    assert re.search(r"done in \d+ s.*r/report\.html$", out.strip().splitlines()[-1])


def test_what_a_run_was_trained_on_and_what_is_new_to_it(run, quran, workshop, tmp_path):
    config = TrainingConfig(data=quran, train_reciters=("Yasser_Salama_hadr",), valid_reciters=(), surahs="1:1")
    of_an_older_run = to_json(config) | {"pack": 0.0}  # an option that is gone
    (tmp_path / "config.json").write_text(json.dumps({"config": of_an_older_run}))
    left_out = quran / "audio" / "Yasser_Salama_hadr" / "001007.mp3"  # which the run did not use
    (tmp_path / "skipped.csv").write_text(f"file,reason\n{left_out},longer than 10 s\n")
    reciters, options = ["AbdulWadood_Haneef", "Yasser_Salama_hadr"], ("--out", tmp_path / "r", "--trained", tmp_path)
    run(workshop / "model0.pt", "--reciters", *reciters, *options)
    expected: dict[tuple[str, bool], list[dict]] = defaultdict(list)
    for row in read_predictions(tmp_path / "r"):
        expected[row["reciter"], row["ayah"] != "7"].append(row)
    pairs = [("Yasser_Salama_hadr", True), ("Yasser_Salama_hadr", False)]
    pairs += [("AbdulWadood_Haneef", True), ("AbdulWadood_Haneef", False)]
    header, cells = json.loads((tmp_path / "r" / "results.json").read_text())["novelty"]
    assert header[1:] == [f"{voice} voice, {text} text" for voice in ("known", "new") for text in ("known", "new")]
    for cell, pair in zip(cells[1:], pairs, strict=True):
        total = sum((count_errors(p["reference"], p["hypothesis"]) for p in expected[pair]), ErrorCounts())
        assert cell.startswith(f"{100 * total.wer:.1f} ") and cell.endswith(f"({len(expected[pair])})")
    assert "| known voice, known text | known voice, new text |" in (tmp_path / "r" / "results.md").read_text()
    _, err = run(workshop / "model0.pt", "--out", tmp_path / "s", "--trained", tmp_path / "r", code=2)
    assert "is no folder that train.py wrote" in err


def test_a_page_cannot_play_a_row_of_a_table_but_a_piece(run, quran, workshop, tmp_path):
    file = quran / "audio" / "AbdulWadood_Haneef" / "001001.mp3"
    (tmp_path / "clips.csv").write_text(f"audio,text,start,end\n{file},word,0.5,2\n")
    audio = pa.array([{"bytes": file.read_bytes(), "path": None}])
    pq.write_table(pa.table({"audio": audio, "text": ["word"]}), tmp_path / "clips.parquet")
    for name, count in (("clips.csv", 2), ("clips.parquet", 0)):  # its name, and its address
        run(workshop / "model0.pt", "--manifest", tmp_path / name, "--out", tmp_path / name[-3:])
        page = (tmp_path / name[-3:] / "report.html").read_text()
        assert page.count("AbdulWadood_Haneef/001001.mp3#t=0.5,2.0") == count
        assert len(read_predictions(tmp_path / name[-3:])) == 1


def test_hypotheses_are_whispers_own(run, quran, workshop, tmp_path):
    """A clip decoded here in a batch reads as `whisper.decode` reads it alone."""
    run(workshop / "model0.pt", "--normalize", "none", "--context", "full", "--out", tmp_path / "r")
    import whisper

    model = whisper.load_model(str(workshop / "model0.pt"), device="cpu")
    options = DecodingOptions(language="ar", without_timestamps=True, fp16=False, sample_len=LIMIT)
    tokenizer = whisper.tokenizer.get_tokenizer(True)
    for row in read_predictions(tmp_path / "r"):
        samples = decode_file(quran / "audio" / "AbdulWadood_Haneef" / f"001{int(row['ayah']):03}.mp3").samples
        audio = torch.from_numpy(samples).float() / 32768
        alone = model.decode(log_mel_spectrogram(pad_or_trim(audio)), options).tokens
        text = tokenizer.decode([token for token in alone if token < tokenizer.eot])
        assert row["hypothesis"] == normalize(text, "none")


def test_an_interrupted_evaluation_goes_on_from_its_predictions(run, workshop, tmp_path, monkeypatch):
    model = workshop / "model0.pt"
    run(model, "--out", tmp_path / "whole")
    decode, decoded = evaluation.transcribe_clips, []

    def terminated(model, clips, **options):
        for done, result in enumerate(decode(model, clips, **options)):
            if done == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield result

    monkeypatch.setattr(evaluation, "transcribe_clips", terminated)
    run(model, "--out", tmp_path / "cut", code=143)
    assert len(read_predictions(tmp_path / "cut")) == 3
    made = json.loads((tmp_path / "cut" / "results.json").read_text())["made_with"]["models"]
    assert made[str(model)]["seconds"]["AbdulWadood_Haneef"][1] > 0
    with open(tmp_path / "cut" / "predictions.csv", "ab") as file:
        file.write("torn,row,1,1,2.5,ب".encode()[:-1])  # in the middle of a letter

    def counted(model, clips, **options):
        decoded.append(len(clips))
        return decode(model, clips, **options)

    monkeypatch.setattr(evaluation, "transcribe_clips", counted)
    out, _ = run(model, "--out", tmp_path / "cut")
    assert decoded == [4] and "3 predictions are there already" in out
    assert (tmp_path / "cut" / "predictions.csv").read_text() == (tmp_path / "whole" / "predictions.csv").read_text()


def test_a_checkpoint_that_changed_is_decoded_anew_and_another_model_keeps_its_rows(run, workshop, tmp_path):
    model = tmp_path / "best.pt"
    save_checkpoint(model, talkative(make_whisper(seed=0)))
    run(model, workshop / "model1.pt", "--out", tmp_path / "r")
    before = read_predictions(tmp_path / "r")
    save_checkpoint(model, talkative(make_whisper(seed=2)))
    assert "are there already" not in run(model, "--out", tmp_path / "r")[0]
    after = read_predictions(tmp_path / "r")
    assert [row["hypothesis"] for row in after[:7]] != [row["hypothesis"] for row in before[:7]]
    assert after[7:] == before[7:]


def test_other_options_do_not_overwrite_predictions(run, workshop, tmp_path):
    run(workshop / "model0.pt", "--out", tmp_path / "r")
    before = (tmp_path / "r" / "predictions.csv").read_bytes()
    _, err = run(workshop / "model0.pt", "--normalize", "full", "--out", tmp_path / "r", code=2)
    assert "--normalize diacritics" in err
    assert (tmp_path / "r" / "predictions.csv").read_bytes() == before


def test_what_cannot_be_decoded_is_skipped_and_never_right(run, quran, workshop, tmp_path):
    audio = tmp_path / "data" / "R"
    audio.mkdir(parents=True)
    (audio / "001001.mp3").symlink_to(quran / "odd" / "mono_8kHz.mp3")
    (audio / "001002.mp3").symlink_to(quran / "odd" / "noise_bytes.mp3")
    out, _ = run(
        workshop / "model0.pt", "--data", tmp_path / "data", "--text", quran / "metadata" / "ayah_text_clear.csv",
        "--reciters", "R", "--out", tmp_path / "r",
    )  # fmt: skip
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert (results["rows"][0]["ayat"], results["rows"][0]["skipped"]) == (1, 1)
    assert "not audio" in results["skipped"][0]["reason"]
    assert "1 cannot be decoded" in out


def test_an_ayah_over_30_seconds_is_decoded_whole(run, quran, workshop, tmp_path):
    folder = tmp_path / "data" / "audio" / "R"
    folder.mkdir(parents=True)
    (folder / "002102.mp3").symlink_to(quran / "audio" / "AbdulWadood_Haneef" / "002102.mp3")
    (tmp_path / "data" / "metadata").symlink_to(quran / "metadata")
    options = ["--data", tmp_path / "data", "--reciters", "R", "--surahs", "2:2", "--out", tmp_path / "r"]
    run(workshop / "model0.pt", *options)
    (row,) = read_predictions(tmp_path / "r")
    assert float(row["duration"]) > 30
    assert len(row["hypothesis"].split()) > LIMIT, "the texts of several pieces"


def test_two_evaluations_do_not_write_one_folder(run, workshop, tmp_path):
    with closing(Predictions(tmp_path / "r", {})):
        _, err = run(workshop / "model0.pt", "--out", tmp_path / "r", code=2)
    assert "another evaluation is writing" in err


def test_a_reference_without_words_gives_valid_json(run, quran, workshop, tmp_path):
    manifest = tmp_path / "clips.csv"
    manifest.write_text(f"audio,text\n{quran / 'audio' / 'AbdulWadood_Haneef' / '001001.mp3'},ۥ\n")
    run(workshop / "model0.pt", "--manifest", manifest, "--normalize", "full", "--out", tmp_path / "r")
    results = json.loads((tmp_path / "r" / "results.json").read_text(), parse_constant=pytest.fail)
    assert results["rows"][0]["wer"] is None and "– (–)" in (tmp_path / "r" / "results.md").read_text()


def test_quiet_prints_nothing(run, workshop, tmp_path):
    assert run(workshop / "model0.pt", "--quiet", "--out", tmp_path / "r") == ("", "")


BAD = [
    (["{tmp}/text.pt"], "text.pt"),
    (["{workshop}/model.en.pt"], "English-only"),
    (["{workshop}/model0.pt", "--max-duration", "0.1"], "no ayah left"),
    (["{workshop}/model0.pt", "--out", "{tmp}/text.pt"], "text.pt"),
    (["{workshop}/model0.pt", "--batch-size", "0"], "--batch-size"),
    (["{workshop}/model0.pt", "--precision", "fp16"], "needs a GPU"),
    (["{workshop}/model0.pt", "--normalize", "everything"], "--normalize"),
    (["{workshop}/model0.pt", "--constrain", "koran"], "--constrain"),
    ([], "no MODEL given: models come first"),
    (["{workshop}/model0.pt", "--language", "klingon"], "--language klingon"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[" ".join(options) or "nothing" for options, _ in BAD])
def test_bad_input_is_one_line_and_exit_2(run, workshop, tmp_path, options, says):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    options = [option.format(tmp=tmp_path, workshop=workshop) for option in options]
    if "--out" not in options:
        options += ["--out", str(tmp_path / "r")]
    _, err = run(*options, code=2)
    assert len(err.strip().splitlines()) == 1 and says in err, err


def lines_of(text: str) -> int:
    return len(text.strip().splitlines())


def test_an_evaluation_killed_at_once_can_be_started_again(run, workshop, tmp_path):
    predictions = Predictions(tmp_path, {"normalize": "none"})
    predictions.start(str(workshop / "model0.pt"), {})
    predictions.close()  # as the system does
    run(workshop / "model0.pt", "--out", tmp_path)
    assert len(read_predictions(tmp_path)) == 7


ROWS = [Prediction("m", "R", "1", str(ayah), 2.5, "قل هو الله", "قل الله", audio="a") for ayah in range(1, 4)]


def written(rows: list[Prediction]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *(row.cells() for row in rows)])
    return text.getvalue()


def edited(column: str, value: str) -> Callable[[str], str]:
    def edit(row: str) -> str:
        cells = row.split(",")
        cells[COLUMNS.index(column)] = value
        return ",".join(cells)

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: row[: len(row) // 2],
        lambda row: '"' + row,
        lambda row: "\0" * len(row),
        lambda row: row + ",surplus",
        lambda row: row.replace("الله", "\udcff"),
        edited("hits", "3"),
        edited("duration", "inf"),
        edited("fallback", "nan"),
        edited("diacritic_errors", "9" * 400),
        edited("located", "99"),
        edited("sorah", "one"),
    ],
)
def test_a_damaged_row_is_left_out_and_the_others_are_kept(tmp_path, damage):
    lines = written(ROWS).split("\n")
    lines[2] = damage(lines[2])
    file = tmp_path / "predictions.csv"
    file.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    said: list[str] = []
    assert list(predictions_in(file, said.append)) == [ROWS[0], ROWS[2]]
    assert "1 rows were cut short or edited" in said[0]


@pytest.mark.parametrize(
    "save",
    [
        lambda text: "\ufeff" + text.replace("\n", "\r\n").replace(",0.0,0,", ",0,0,"),
        lambda text: text.replace(",", ";").replace(".", ",").replace("\n", "\r\n"),
        lambda text: text.replace(",", "\t"),
    ],
    ids=["BOM and CRLF", "semicolons", "tabs"],
)
def test_a_file_that_a_spreadsheet_saved_is_read(tmp_path, save):
    file = tmp_path / "predictions.csv"
    file.write_bytes(save(written(ROWS)).encode())
    assert list(predictions_in(file)) == ROWS


def test_other_audio_of_the_same_length_is_heard_anew(run, quran, workshop, tmp_path):
    """The names, the text and the lengths stay as they were."""
    folder = tmp_path / "data" / "R"
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for number in (1, 2):
        samples = decode_file(quran / "audio" / "AbdulWadood_Haneef" / f"00100{number}.mp3").samples
        soundfile.write(folder / f"00100{number}.wav", samples, 16000)
    options = [workshop / "model0.pt", "--data", tmp_path / "data", "--reciters", "R", "--out", tmp_path / "r"]
    options += ["--text", quran / "metadata" / "ayah_text_clear.csv"]
    run(*options)
    before = read_predictions(tmp_path / "r")
    noise = chance.integers(-9999, 9999, len(samples)).astype(np.int16)
    soundfile.write(folder / "001002.wav", noise, 16000)
    out, _ = run(*options)
    assert "1 predictions are there already" in out
    assert "1 predictions are of other audio or another text: they are made again" in out
    after = read_predictions(tmp_path / "r")
    assert after[0] == before[0]
    assert after[1]["duration"] == before[1]["duration"] and after[1]["hypothesis"] != before[1]["hypothesis"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("predictions.csv", b"\x89PNG\r\n\x1a\n\0\0"),
        ("predictions.csv", "model,hypothesis\n".encode("utf-16")),
        ("predictions.csv", b"model,hypothesis\n"),
        ("results.json", None),
        ("results.json", b'{"rows": ['),
        ("results.json", b'{"rows": [], "made_with": [1]}'),
        ("results.json", b""),
        ("results.md", b"| epoch | Husary loss |\n"),  # of a training run
        ("report.html", b"<!doctype html>"),
    ],
)  # fmt: skip
def test_what_is_not_an_evaluations_is_refused_in_a_line_and_left_alone(run, workshop, tmp_path, name, content):
    (tmp_path / "predictions.csv").write_text(written(ROWS))
    file = tmp_path / name
    file.mkdir() if content is None else file.write_bytes(content)
    before = (tmp_path / "predictions.csv").read_bytes()
    _, err = run(workshop / "model0.pt", "--out", tmp_path, code=2)
    assert lines_of(err) == 1 and name in err
    assert (tmp_path / "predictions.csv").read_bytes() == before
    assert content is None or file.read_bytes() == content


ODD_NAMES = [
    "=cmd()",
    "a;=1+1;b",
    "+1",
    "@x",
    "'quoted",
    "a|b",
    "line\u2028end\nand",
    os.fsdecode(b"not-\xff-utf8"),
    "na\u00a0me",
]


def test_odd_names_are_escaped_alike_in_every_file_and_run_nowhere(run, quran, workshop, tmp_path, monkeypatch):
    audio = quran / "audio" / "AbdulWadood_Haneef" / "001001.mp3"
    for name in ODD_NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "001001.mp3").symlink_to(audio)
    (tmp_path / "=model").symlink_to(workshop / "model0.pt")
    monkeypatch.chdir(tmp_path)
    options = ["--data", "data", "--text", quran / "metadata" / "ayah_text_clear.csv", "--out", "r"]
    run("=model", "--reciters", *ODD_NAMES, *options)
    with open("r/predictions.csv", newline="", encoding="utf-8") as file:
        cells = [cell for row in list(csv.reader(file))[1:] for cell in row]
    # Neither as the cells are, nor where a spreadsheet takes semicolons for their ends.
    assert not [cell for cell in cells for part in cell.split(";") if part.startswith(("=", "+", "-", "@"))]
    rows = list(predictions_in(Path("r/predictions.csv")))
    results = json.loads(Path("r/results.json").read_text())["rows"]
    assert {(row.model, row.reciter) for row in rows} == {(row["model"], row["reciter"]) for row in results}
    assert {row.reciter for row in rows} >= {"=cmd()", "a;=1+1;b", "+1", "@x", "'quoted", "a|b"}
    assert all(name.isprintable() for row in results for name in (row["model"], row["reciter"]))
    table = Path("r/results.md").read_text().splitlines()
    assert len(table) == 3
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    monkeypatch.setattr(evaluation, "transcribe_clips", lambda *_, **__: pytest.fail("decoded again"))
    out, _ = run("=model", "--reciters", *ODD_NAMES, *options)
    assert f"{len(ODD_NAMES)} predictions are there already" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["bse"], "did you mean base?"),
        (["base", "--reciters", "Nobody"], "no reciter Nobody"),
        (["base", "--surahs", "60:61", "--reciters", "AbdulWadood_Haneef"], "no ayah of AbdulWadood_Haneef"),
        (["base", "--manifest", "nowhere.csv"], "nowhere.csv"),
        (["--reciters", "AbdulWadood_Haneef", "base"], "models come first, as in evaluate.py small --reciters"),
    ],
)
def test_a_mistake_is_answered_before_torch_is_imported(quran, options, says):
    code = (
        "import sys, evaluate; from whisper_quran.runtime.errors import run_command\n"
        "try: run_command(evaluate.main)\n"
        "finally: print(sorted({'torch', 'whisper'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *options, "--data", str(quran)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "[]"), done.stderr
    assert lines_of(done.stderr) == 1 and says in done.stderr


def test_the_report_plays_the_recordings_from_where_they_are_or_from_inside_itself(run, workshop, quran, tmp_path):
    out = tmp_path / "a # folder" / "r"
    run(workshop / "model0.pt", "--out", out)
    audio = json.loads(re.search(r'id="data">(.*?)</script>', (out / "report.html").read_text())[1])["recordings"]
    assert len(audio) == 7
    for number, (*_, address, damaged) in enumerate(audio, start=1):
        file = quran / "audio" / "AbdulWadood_Haneef" / f"001{number:03}.mp3"
        assert (out / unquote(address)).resolve() == file.resolve() and not damaged
    assert "0.2 MB" in run(workshop / "model0.pt", "--out", out, "--embed-audio")[0]
    page = (out / "report.html").read_text()
    assert page.count("data:audio/webm;base64,") == 7 and "001001.mp3" not in page
    assert 150_000 < (out / "report.html").stat().st_size < 400_000


def test_what_was_decoded_again_is_counted_and_the_same_every_time(run, workshop, tmp_path):
    out, _ = run(workshop / "model0.pt", "--out", tmp_path / "r", fallback=True)
    first = read_predictions(tmp_path / "r")
    count = sum(float(row["fallback"]) > 0 for row in first)
    assert count > 3, "random weights are unsure of most"
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert results["rows"][0]["fallback"] == count
    assert f"{count} of 7 recordings were decoded again" in out
    assert f"{count} of 7 recordings were decoded again" in (tmp_path / "r" / "results.md").read_text()
    run(workshop / "model0.pt", "--out", tmp_path / "s", "--batch-size", "3", fallback=True)
    assert read_predictions(tmp_path / "s") == first


def test_a_vocalised_text_has_a_diacritic_error_rate(run, workshop, quran, tmp_path, monkeypatch):
    """1:1 is heard without a sukun, the rest of the surah without any diacritic."""
    vocalised = quran / "metadata" / "ayah_text_diacritics.csv"
    with open(vocalised, encoding="utf-8-sig", newline="") as file:
        texts = [row["text"] for row in list(csv.DictReader(file))[:7]]
    bare = [normalize(text, "diacritics").replace("ٰ", "") for text in texts]
    heard = [texts[0].replace("سْ", "س"), *bare[1:]]

    def decoded(model, clips, **options):
        yield from (Transcript(clip, text, 0.0) for clip, text in enumerate(heard))

    monkeypatch.setattr(evaluation, "transcribe_clips", decoded)
    out, _ = run(workshop / "model0.pt", "--out", tmp_path, "--text", vocalised)
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    first, *others = read_predictions(tmp_path)
    assert (first["letters"], first["diacritic_errors"]) == ("19", "1")
    assert all(int(each["diacritic_errors"]) > 0.5 * int(each["letters"]) > 0 for each in others)
    assert row["letters"] == sum(int(each["letters"]) for each in (first, *others))
    assert "WER (CER, DER)" in out and plus_minus(row["der"], row["der_interval"]) in out
    # The clear text is another reference, although both are compared without diacritics.
    out, _ = run(workshop / "model0.pt", "--out", tmp_path)
    assert "DER" not in out
    assert {each["letters"] for each in read_predictions(tmp_path)} == {"0"}


def test_the_real_base_knows_where_in_the_quran_it_is(quran, base_weights, tmp_path):
    """Al-Fatiha of a voice it was not trained on: half of the words wrong when free, all right among what is recited.

    Its row beside the free one; going on decodes nothing.
    """
    out, model = tmp_path / "r", str(base_weights / "base.pt")
    options = [model, "--data", quran, "--reciters", "AbdulWadood_Haneef", "--surahs", "1:1"]
    options += ["--precision", "fp32", "--out", out]
    evaluate_py = [sys.executable, ROOT / "evaluate.py", *map(str, options)]
    subprocess.run([*evaluate_py, "--constrain", "quran"], check=True, capture_output=True)
    free, constrained = json.loads((out / "results.json").read_text())["rows"]
    assert free["wer"] > 0.3 and constrained["wer"] == 0
    assert (free["located"], constrained["located"], constrained["ayat"]) == (None, 7, 7)
    assert [row["place"] for row in read_predictions(out)][7:9] == ["1:1:1-1:1:4", "1:2:1-1:2:4"]
    assert "located: " + model + " (constrained) names the ayat" in (out / "results.md").read_text()
    written = (out / "predictions.csv").read_bytes()

    again = subprocess.run([*evaluate_py, "--constrain", "quran"], check=True, capture_output=True, text=True)
    assert again.stdout.count("7 predictions are there already") == 2
    assert (out / "predictions.csv").read_bytes() == written
