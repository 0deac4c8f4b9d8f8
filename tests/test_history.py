"""What a run shows: the picture, TensorBoard's scalars, and that neither can stop it."""

import json
import math
import sys
import threading
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
import pytest
from conftest import rows_of
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from whisper_quran.training.metrics_log import History, draw


def train_row(step: int, epoch: int, loss: float) -> dict:
    numbers = {"lr": 1e-4, "grad_norm": 1.0, "skipped": False, "clips_per_s": 20.0, "data_wait": 0.0}
    return {"event": "train", "epoch": epoch, "step": step, "loss": loss, **numbers}


def valid_row(step: int, epoch: int, reciter: str, loss: float, wer: float) -> dict:
    counts = {"words": 1000, "word_errors": round(1000 * wer), "characters": 4000, "character_errors": 50}
    numbers = {"loss": loss, "wer": wer, "cer": wer / 3, "seconds": 1.0}
    return {"event": "valid", "epoch": epoch, "step": step, "reciter": reciter, **numbers, **counts}


def made_up(folder: Path, *, epochs: int, steps: int, reciters: int) -> History:
    """A run in which every reciter's curves end close together, where labels would cover each other."""
    history = History(folder / "metrics.jsonl")
    random = np.random.default_rng(0)
    for epoch in range(-1, epochs):
        for step in range(epoch * steps + 1, (epoch + 1) * steps + 1) if epoch >= 0 else ():
            history.rows.append(train_row(step, epoch, float(math.exp(-step / steps) + 0.1 * random.random())))
        for index in range(reciters):
            share = math.exp(-(epoch + 1) / 3) + 0.001 * index
            row = valid_row((epoch + 1) * steps, epoch, f"Reciter_number_{index}_128kbps", share, 0.4 * share)
            history.rows.append(row)
    return history


@pytest.fixture
def figures(monkeypatch) -> list[matplotlib.figure.Figure]:
    """The figures that are drawn."""
    figures = []
    savefig = matplotlib.figure.Figure.savefig

    def remembered(figure: matplotlib.figure.Figure, *args, **kwargs) -> None:
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", remembered)
    return figures


@pytest.mark.parametrize(("epochs", "steps", "reciters"), [(10, 40, 9), (2, 30, 0), (0, 1, 3)])
def test_every_line_is_in_the_legend_and_no_two_look_alike_on_grey_paper(tmp_path, figures, epochs, steps, reciters):
    made_up(tmp_path, epochs=epochs, steps=steps, reciters=reciters).write_results()
    (figure,) = figures
    assert len(figure.axes) == (2 if reciters else 1)
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    assert not any(axes.get_window_extent().overlaps(box) for axes in figure.axes)
    names = {text.get_text() for text in legend.get_texts()}
    assert {f"Reciter_number_{index}_128kbps" for index in range(reciters)} <= names
    for axes in figure.axes:
        lines = [line for line in axes.lines if line.get_label() != "best.pt"]
        assert {line.get_label() for line in lines} <= names
        curves = [(line.get_linestyle(), line.get_marker()) for line in lines if "Reciter" in line.get_label()]
        assert len(set(curves)) == len(curves)


def test_epochs_are_numbered_as_their_checkpoints(tmp_path, figures):
    made_up(tmp_path, epochs=4, steps=10, reciters=1).write_results()
    for axes in figures[0].axes:
        (line,) = [line for line in axes.lines if line.get_label() == "Reciter_number_0_128kbps"]
        assert list(line.get_xdata()) == [-1, 0, 1, 2, 3]
    (smoothed,) = [line for line in figures[0].axes[0].lines if line.get_label() == "training, smoothed"]
    assert smoothed.get_xdata()[[0, 9, 39]] == pytest.approx([-0.9, 0, 3])  # epoch 0 ends at 0
    assert figures[0].axes[1].get_xlabel() == "epoch (-1: the untouched model)"


def test_losses_that_are_not_finite_leave_gaps(tmp_path):
    history = made_up(tmp_path, epochs=2, steps=60, reciters=1)
    for row in history.rows[1:90] + history.rows[-1:]:
        row["loss"] = None
    history.write_results()
    assert imread(tmp_path / "loss.png").shape[0] > 500
    nothing = {"loss": None, "wer": None}
    assert draw([train_row(1, 0, 1.0) | {"loss": None}, valid_row(1, 0, "R", 1.0, 1.0) | nothing], best=None)


def test_a_missing_or_broken_matplotlib_costs_the_picture_and_not_the_run(tmp_path, monkeypatch):
    def broken(*args, **kwargs) -> None:
        raise RuntimeError("libpng error")

    history = made_up(tmp_path, epochs=1, steps=2, reciters=1)
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", broken)
    with pytest.warns(UserWarning, match=r"loss\.png could not be drawn: RuntimeError\('libpng error'\)"):
        history.write_results()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    history.write_results()
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of ``folder``: by tag, then by step."""
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    shown: dict[str, dict[int, float]] = {}
    for tag in board.Tags()["scalars"]:
        events = board.Scalars(tag)
        shown[tag] = {event.step: event.value for event in events}
        assert len(shown[tag]) == len(events), f"{tag} is shown twice at a step"
    return shown


def test_tensorboard_shows_what_metrics_jsonl_says(run, tmp_path):
    code, _, err = run("--out", tmp_path / "run", "--epochs", 1, "--tensorboard")
    assert code == 0, err
    assert "_AsyncWriterThread" not in [type(thread).__name__ for thread in threading.enumerate()]  # all is written
    shown = scalars(tmp_path / "run" / "tensorboard")
    rows = rows_of(tmp_path / "run")
    for name in ("loss", "lr", "grad_norm", "clips_per_s", "data_wait"):
        expected = {row["step"]: row[name] for row in rows if row["event"] == "train"}
        assert shown.pop(f"train/{name}") == pytest.approx(expected), name
    for name in ("loss", "wer", "cer"):
        expected = {row["step"]: row[name] for row in rows if row["event"] == "valid"}
        assert len(expected) == 2
        assert shown.pop(f"valid_{name}/AbdulWadood_Haneef") == pytest.approx(expected), name
    assert not shown


def test_tensorboard_shows_no_step_of_an_interrupted_run_twice(tmp_path):
    first = History(tmp_path / "metrics.jsonl", tensorboard=True)
    for step in range(1, 7):
        first.append(train_row(step, 0, 1.0))
    first.close()
    second = History(tmp_path / "metrics.jsonl", tensorboard=True)
    second.restore(step=3, epoch=0)
    for step in range(4, 6):
        second.append(train_row(step, 0, float("nan") if step == 5 else 2.0))
    second.close()
    assert scalars(tmp_path / "tensorboard")["train/loss"] == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses == [1.0, 1.0, 1.0, 2.0, None]


def test_without_tensorboard_the_option_is_refused_before_anything_is_done(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    code, _, err = run("--out", tmp_path / "run", "--tensorboard")
    assert code == 2
    assert err.startswith("error: --tensorboard: ") and "pip install tensorboard" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
