"""The model card of `convert.py --to hf`: what is known, and nothing that a file beside the checkpoint can break."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import make_whisper, rows_of

from whisper_quran.checkpoints.checkpoint import save_checkpoint
from whisper_quran.config import TrainingConfig
from whisper_quran.convert import convert
from whisper_quran.runtime.command_line import to_json

yaml = pytest.importorskip("yaml")  # of the group `peers`
pytestmark = pytest.mark.usefixtures("no_tokenizer")
NASTY = "A\"b: 'c'\n---\n| # [x](y) `z` <b>*\\ \u2028 \ud800 \U0001f54b {d} & \x85 \ufeff"


def card_of(checkpoint: Path, dest: Path) -> tuple[dict[str, Any], str]:
    """Convert, and return the card's front matter and its text."""
    convert(checkpoint, dest, to="hf", force=True)
    return parsed((dest / "README.md").read_text(encoding="utf-8"))


def parsed(card: str) -> tuple[dict[str, Any], str]:
    nothing, front_matter, text = card.split("---\n", 2)
    assert nothing == ""
    return yaml.safe_load(front_matter), text


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables in ``text``: rows of cells. A pipe after a backslash is text."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()] for table in found]


def made_up_run(folder: Path, reciter: str = "R", wers: tuple[float, ...] = (0.5, 0.2, 0.3), **options: Any) -> Path:
    """A run's folder with a checkpoint, an epoch a WER; the first is the untouched model's."""
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder / "best.pt", make_whisper())
    config = to_json(TrainingConfig(train_reciters=("T",), valid_reciters=(reciter,), **options))
    data = {"train": {"T": {"ayat": 5, "hours": 0.5}}}
    (folder / "config.json").write_text(json.dumps({"config": config, "data": data}))
    counts = {"words": 1000, "characters": 4000, "character_errors": 50, "step": 1, "seconds": 1.0, "loss": 1.0}
    rows = [
        {"event": "valid", "epoch": epoch, "reciter": reciter, "wer": wer, "cer": wer / 4, **counts}
        | {"word_errors": round(1000 * wer)}
        for epoch, wer in enumerate(wers, -1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "best.pt"


def test_the_card_of_a_run_says_what_it_was_made_from_and_measured(run, quran, workshop, tmp_path):
    folder = tmp_path / "run"
    code, out, err = run("--out", folder, "--lr", 1e-3)
    assert code == 0, err
    rows = rows_of(folder)
    best = min((row for row in rows if row["event"] == "valid" and row["epoch"] >= 0), key=lambda row: row["wer"])
    first = next(row for row in rows if row["event"] == "valid" and row["epoch"] == 0)
    for name, row, label in (
        ("best.pt", best, str(best["epoch"])),
        ("epoch-000.pt", first, "0"),
    ):
        about, text = card_of(folder / name, tmp_path / "hf")
        assert (about["language"], about["pipeline_tag"]) == (["ar"], "automatic-speech-recognition")
        data, measured = tables(text)
        (its_row,) = (cells for cells in measured if cells[0] == f" **{label}** ")
        assert its_row[2].strip() == f"{100 * row['wer']:.2f} %" and its_row[3].strip() == f"{100 * row['cer']:.2f} %"
        assert f"is of epoch {label};" in text
        assert [cells[0].strip(" *") for cells in measured[2:]] == ["vanilla", "0", "1"]
        said = [
            re.search(rf"^{split} +(\w+): (\d+) ayat, (\S+) h$", out, re.M).groups() for split in ("train", "valid")
        ]
        assert [[cell.strip() for cell in cells] for cells in data[2:]] == [
            [said[0][0], "train", said[0][1], said[0][2]],
            [said[1][0], "valid", said[1][1], said[1][2]],
        ]
        assert "The decoder of model was trained" in text
        for place in (tmp_path, workshop, quran):
            assert str(place) not in text + str(about)


def test_without_a_run_there_is_only_what_is_in_the_weights(tmp_path):
    best = made_up_run(tmp_path / "run")
    save_checkpoint(tmp_path / "best.pt", make_whisper())
    for checkpoint in (tmp_path / "best.pt", best.rename(best.with_name("other.pt"))):
        about, text = card_of(checkpoint, tmp_path / "hf")
        assert "1 encoder and 1 decoder layers, 64 wide" in text and "trained" not in text.partition("## Licence")[0]
        assert "base_model" not in about and not tables(text)


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("base", "openai/whisper-base"), ("large", "openai/whisper-large-v3"),
        ("turbo", "openai/whisper-large-v3-turbo"),
        ("/home/me/.cache/whisper/small.pt", "openai/whisper-small"), ("/home/me/mine.pt", None),
    ],
)  # fmt: skip
def test_the_base_model_is_named_as_on_the_hub_and_never_by_its_path(tmp_path, model, base):
    about, text = card_of(made_up_run(tmp_path / "run", model=model), tmp_path / "hf")
    assert about.get("base_model") == base
    assert "/home/me" not in text and f"of {Path(model).stem} was trained" in text


def test_what_is_not_the_quran_is_not_called_so(tmp_path):
    for options in ({"manifest": Path("/home/me/clips.csv")}, {"demo": True}):
        about, text = card_of(made_up_run(tmp_path / "run", **options), tmp_path / "hf")
        assert "Qur'an" not in text and "quran" not in about["tags"] and "/home/me" not in text


def test_whatever_a_name_holds_the_front_matter_is_yaml_and_the_tables_are_tables(tmp_path):
    checkpoint = made_up_run(tmp_path / "run", reciter=NASTY, model=NASTY, text=Path(NASTY), surahs=NASTY)
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    described["data"]["valid"] = {NASTY: {"ayat": 1, "hours": 1}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(described))
    about, text = card_of(checkpoint, tmp_path / "hf")
    assert about.keys() == parsed((tmp_path / "hf" / "README.md").read_text())[0].keys()
    data, measured = tables(text)
    assert [len(cells) for cells in data] == [4] * 4 and {len(cells) for cells in measured} == {4}
    assert "\n---\n" not in text and "\u2028" not in text
    assert not re.search(r"(?<!\\)<b>", text)


VALID = b'{"event": "valid", "epoch": 0, "step": 1, "reciter": "R", "seconds": 1, '
DAMAGE = {
    "config.json": {
        "noise": os.urandom(2000),
        "deep": b"[" * 100_000,
        "options of other types": b'{"config": {"lr": "x", "model": 3, "train_reciters": 7}}',
        "huge": b'{"config": {"lr": 1e999, "epochs": 1'
        + b"0" * 4000
        + b'}, "data": {"train": {"R": {"ayat": 1e999}}}}',
    },
    "metrics.jsonl": {
        "noise": os.urandom(2000),
        "rows": VALID[:-2] + b'}\n{"event": []}\n{"event": "average"}\n7\n"x"\n',
        "other types": VALID + b'"loss": "x", "wer": {}, "cer": [], "words": null, "word_errors": 1}\n',
        "no bounds": VALID + b'"loss": 1, "cer": NaN, "words": 0, "word_errors": 1, "wer": 1' + b"0" * 400 + b"}\n",
        "other numbers": VALID + b'"loss": 1, "wer": 1, "cer": 1, "words": 1, "word_errors": 1, "der": "x"}\n',
    },
}


@pytest.mark.parametrize(
    "name, damage", [(name, damage) for name in DAMAGE for damage in (*DAMAGE[name], "folder", "fifo", "loop")]
)
def test_no_damage_beside_a_checkpoint_breaks_its_conversion(tmp_path, name, damage):
    checkpoint = made_up_run(tmp_path / "run")
    path = checkpoint.with_name(name)
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(DAMAGE[name][damage])
    about, text = card_of(checkpoint, tmp_path / "hf")
    assert about["library_name"] == "transformers"
    assert ("**0**" in text) == (name == "config.json")
