"""One rule for every file that a command writes: it replaces neither what is read nor what is not its own."""

import os
from pathlib import Path

import pytest

from whisper_quran.runtime.errors import UserError
from whisper_quran.runtime.files import atomic_write, check_folder, check_outputs, lock_folder, make_folder

MARK = b"our mark"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp3").write_bytes(b"audio, with our mark")
    return tmp_path / "in" / "a.mp3"


@pytest.mark.parametrize("mark", [MARK, b""])
def test_what_is_read_is_never_an_output(recording, tmp_path, monkeypatch, mark):
    (tmp_path / "link.mp3").symlink_to(recording)
    (tmp_path / "folder").symlink_to(recording.parent)
    os.link(recording, tmp_path / "hard.mp3")
    monkeypatch.chdir(tmp_path)
    same = [recording, "in/../in/a.mp3", "link.mp3", "hard.mp3", "folder/a.mp3"]
    for output in same:
        for source in same:
            with pytest.raises(UserError, match="which is read"):
                check_outputs([output], ["base", source], mark)
    for output in ("in", "folder", "."):  # a folder would be replaced whole
        for source in ("in/a.mp3", "link.mp3", "in"):
            with pytest.raises(UserError, match="which is read"):
                check_outputs([output], [source], mark)


def test_only_our_own_earlier_output_is_replaced(recording, tmp_path):
    output = recording.with_name("page.html")  # in a folder that is read
    for content in (None, b"", b"<html>" + MARK):
        if content is not None:
            output.write_bytes(content)
        check_outputs([output], [recording, recording.parent], MARK)
    output.write_bytes(b"somebody else's")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "other").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for foreign in (output, tmp_path / "dangling", tmp_path / "other", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match="is there already") as caught:
            check_outputs([foreign], [recording], MARK)
        assert "\n" not in str(caught.value)
        check_outputs([foreign], [recording], b"")


def test_an_output_whose_folder_cannot_be_made_is_refused(recording):
    with pytest.raises(UserError, match="mp3 is not a folder"):
        check_outputs([recording / "page.html"], [])
    check_outputs([recording.parent / "new" / "folder" / "page.html"], [])


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("n" * 255, "ن" * 127, "\U0001f54b" * 63):
        with atomic_write(tmp_path / name) as file:
            file.write("text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("place", ["/dev/full/page.html", "{file}/page.html"])
def test_what_cannot_be_written_is_one_line_that_names_it(recording, place):
    path = Path(place.format(file=recording))
    for write in (
        check_folder,
        make_folder,
        lambda path: lock_folder(path, "run"),
        lambda path: atomic_write(path).__enter__(),
    ):
        with pytest.raises(UserError, match=f"^cannot write {path}") as caught:
            write(path)
        assert "\n" not in str(caught.value)
