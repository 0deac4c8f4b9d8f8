"""Downloading, against a real server that misbehaves as servers and networks do."""

import contextlib
import csv
import hashlib
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import misbehaving_server as faults
import pytest
from misbehaving_server import MisbehavingServer, cut, length, no_length, other_body, redirect, status

from whisper_quran.data.corpus import open_corpus
from whisper_quran.download import http
from whisper_quran.download.__main__ import DownloadConfig, main
from whisper_quran.download.sources import KNOWN_RECITERS, ayat_of, listed
from whisper_quran.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RECITER, OTHER = "Husary_128kbps", "Ghamadi_40kbps"
LICENCE = (
    "# PLEASE DO NOT REMOVE OR CHANGE THIS COPYRIGHT BLOCK\n#\n#  Tanzil Quran Text (Simple Clean, Version 1.1)\n#"
)
AYAT = 23  # in surahs 110 to 114
HTML = b"<!DOCTYPE html><html><body>Please log in to the network</body></html>" * 50


@pytest.fixture
def server(quran: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MisbehavingServer]:
    """EveryAyah with the surahs 110 to 114 of two reciters, and Tanzil."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(http, "ATTEMPTS", 3)
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    server = MisbehavingServer()
    for reciter in (RECITER, OTHER):
        for file in sorted((quran / "audio" / "Yasser_Salama_hadr").glob("11[0-4]*.mp3")):
            server.files[f"/data/{reciter}/{file.name}"] = file.read_bytes()
    server.files["/text"] = tanzil_text(quran)
    yield server
    server.close()


def published_text(quran: Path) -> dict[tuple[int, int], str]:
    with open(quran / "metadata" / "ayah_text_clear.csv", encoding="utf-8-sig", newline="") as file:
        return {(int(row["sorah"]), int(row["ayah"])): row["text"] for row in csv.DictReader(file)}


def tanzil_text(quran: Path) -> bytes:
    """The published text as Tanzil sends it: with the basmala before each surah, and the licence behind."""
    lines = []
    for (surah, ayah), text in published_text(quran).items():
        basmala = "بسم الله الرحمن الرحيم " if ayah == 1 and surah not in (1, 9) else ""
        lines.append(f"{surah}|{ayah}|{basmala}{text}")
    return ("\n".join(lines) + f"\n\n\n{LICENCE}\n").encode()


def options(server: MisbehavingServer, out: Path, *more: str) -> list[str]:
    sites = ["--mirror", f"everyayah={server.url}/data", f"tanzil={server.url}/text"]
    return [*sites, "--out", str(out), "--surahs", "110:114", "--reciters", RECITER, *more]


def fetch(server: MisbehavingServer, out: Path, *more: str) -> None:
    main(options(server, out, *more))


def mp3s(out: Path, reciter: str = RECITER) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (out / "audio" / reciter).glob("*.mp3")}


def served(server: MisbehavingServer, reciter: str = RECITER) -> dict[str, bytes]:
    folder = f"/data/{reciter}/"
    return {path.removeprefix(folder): body for path, body in server.files.items() if path.startswith(folder + "1")}


def files_asked_for(server: MisbehavingServer) -> list[str]:
    return sorted(r.path.rpartition("/")[2] for r in server.requests if r.path.endswith(".mp3"))


def list_digests(server: MisbehavingServer) -> None:
    """Give the reciter a checksum list as EveryAyah writes it, with lines of Windows, and its folder before each."""
    lines = [f"{hashlib.md5(body).hexdigest()} *{RECITER}/{name}" for name, body in served(server).items()]
    server.files[f"/data/{RECITER}/000_checksum.md5"] = "\r\n".join(lines).encode()


def test_fills_the_layout_that_training_reads_and_is_a_light_guest(server, tmp_path, capsys):
    fetch(server, tmp_path, OTHER)
    assert mp3s(tmp_path) == served(server)
    assert mp3s(tmp_path, OTHER) == served(server, OTHER)
    assert len(mp3s(tmp_path)) == AYAT
    ayat, skipped = open_corpus(tmp_path, surahs="110:114").select([RECITER, OTHER])
    assert len(ayat) == 2 * AYAT and not skipped
    assert f"{RECITER}: 23 of 23 ayat" in capsys.readouterr().out
    assert {request.headers["User-Agent"] for request in server.requests} == {"whisper-quran"}
    # Few connections, kept open; a 404, here that of the checksum list, may cost one.
    assert server.connections <= http.CONNECTIONS + 2 < len(server.requests)


def test_the_text_is_the_published_one_and_keeps_its_licence(server, quran, tmp_path):
    server.files["/text"] = b"\xef\xbb\xbf" + server.files["/text"].replace(b"\n", b"\r\n")
    fetch(server, tmp_path)
    ours = (tmp_path / "metadata" / "ayah_text_clear.csv").read_text(encoding="utf-8")
    rows = {(int(s), int(a)): text for s, a, text in list(csv.reader(io.StringIO(ours)))[1:]}
    assert ours.startswith("sorah,ayah,text\n1,1,بسم الله الرحمن الرحيم\n")
    assert rows == published_text(quran)
    assert rows[2, 1] == "الم"
    assert "بسم الله الرحمن الرحيم" in rows[27, 30]
    licence = (tmp_path / "metadata" / "LICENSE-tanzil.txt").read_text(encoding="utf-8")
    assert licence.startswith(LICENCE) and "basmala" in licence


def test_fetches_only_what_is_missing_and_replaces_empty_files(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / "metadata" / "ayah_text_clear.csv").write_text("the user's own")
    server.requests.clear()
    fetch(server, tmp_path)
    assert server.requests == []
    folder = tmp_path / "audio" / RECITER
    (folder / "112001.mp3").unlink()
    (folder / "113002.mp3").write_bytes(b"")
    fetch(server, tmp_path)
    assert mp3s(tmp_path) == served(server)
    assert files_asked_for(server) == ["112001.mp3", "113002.mp3"]


PASSING = {
    "500": status(500),
    "429 with Retry-After": status(429, {"Retry-After": "1"}),
    "cut in the middle of the file": cut,
    "cut in a chunk": faults.chunked_cut,
    "hung up": faults.hang_up,
    "silence": faults.silence,
    "stated too long": length(1000),
    "stated no length, and cut": no_length,
    "a web page for an MP3": other_body(HTML, {"Content-Type": "audio/mpeg"}),
}


def afflict(server: MisbehavingServer, times: int) -> dict[str, str]:
    """Give each fault a file of its own, between good ones; the name of the fault by the file's path."""
    paths = [path for path in server.files if path.startswith(f"/data/{RECITER}/11")]
    afflicted = dict(zip(paths[::2], PASSING, strict=False))
    assert len(afflicted) == len(PASSING)
    server.faults = {path: [PASSING[name]] * times for path, name in afflicted.items()}
    return afflicted


def test_a_fault_that_passes_is_outlived(server, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT", 1.5)
    afflicted = afflict(server, times=1)
    fetch(server, tmp_path)
    assert mp3s(tmp_path) == served(server)
    assert {name: server.count()[path] for path, name in afflicted.items()} == dict.fromkeys(PASSING, 2)


def test_a_fault_that_stays_is_reported_and_leaves_nothing_in_use(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(http, "TIMEOUT", 1.5)
    monkeypatch.setattr(http, "LONGEST_PAUSE", 0.1)
    afflicted = afflict(server, times=100)
    files = {path.rpartition("/")[2] for path in afflicted}
    with pytest.raises(UserError, match=f"{len(PASSING)} files could not be fetched"):
        fetch(server, tmp_path)
    assert mp3s(tmp_path).keys() == served(server).keys() - files
    assert not list(tmp_path.rglob("*.tmp"))
    assert {name: server.count()[path] for path, name in afflicted.items()} == dict.fromkeys(PASSING, http.ATTEMPTS)
    assert f"{AYAT - len(PASSING)} of 23 ayat\n  failed: " in capsys.readouterr().out

    server.faults.clear()
    server.requests.clear()
    fetch(server, tmp_path)
    assert mp3s(tmp_path) == served(server)
    assert sorted(files_asked_for(server)) == sorted(files)


def test_what_the_server_lacks_is_listed_and_no_error(server, tmp_path, capsys):
    for name in ("112001.mp3", "112002.mp3", "114006.mp3"):
        del server.files[f"/data/{RECITER}/{name}"]
    fetch(server, tmp_path)
    assert mp3s(tmp_path) == served(server)
    expected = f"{RECITER}: 20 of 23 ayat\n  left out: 112:1, 112:2, 114:6 (answered 404 Not Found)"
    assert expected in capsys.readouterr().out
    assert server.count()[f"/data/{RECITER}/112001.mp3"] == 1


def test_what_differs_from_the_checksum_list_is_fetched_again_and_then_left_out(server, tmp_path, capsys):
    list_digests(server)
    path, other = (f"/data/{RECITER}/{name}.mp3" for name in ("112001", "112002"))
    server.faults[path] = [other_body(server.files[path][:-1] + b"\0"), length(-200)]
    server.files[other] += b"\0"
    fetch(server, tmp_path)
    del server.files[other]
    assert mp3s(tmp_path) == served(server)
    assert server.count()[path] == server.count()[other] == http.ATTEMPTS == 3
    assert "left out: 112:2 (not the file that 000_checksum.md5 lists)" in capsys.readouterr().out


def test_no_other_host_is_contacted(server, tmp_path, capsys):
    elsewhere = MisbehavingServer()
    for number, target in enumerate([elsewhere.url + "/1.mp3", "http://[", "file:///etc/passwd"], 1):
        server.faults[f"/data/{RECITER}/11200{number}.mp3"] = [redirect(target)] * 9
    with pytest.raises(UserError, match="3 files"):
        fetch(server, tmp_path)
    elsewhere.close()
    assert elsewhere.requests == []
    assert "redirects to another host" in capsys.readouterr().out
    assert not {"112001.mp3", "112002.mp3", "112003.mp3"} & mp3s(tmp_path).keys()


def test_a_server_that_breaks_down_ends_the_run(server, tmp_path):
    for path in list(server.files):
        if re.search(r"/11[1-4]\d+\.mp3$", path):
            server.faults[path] = [status(502)] * 100
    with pytest.raises(UserError, match=r"10 files in a row failed, .* \(answered 502 Bad Gateway\)"):
        fetch(server, tmp_path)
    assert sorted(mp3s(tmp_path)) == ["110001.mp3", "110002.mp3", "110003.mp3"]


PROGRAM = """
import sys
from whisper_quran.download import http
from whisper_quran.download.__main__ import main
from whisper_quran.runtime.errors import run_command
http.BACKOFF, http.TIMEOUT = 0.01, 20
run_command(lambda: main(sys.argv[1:]))
"""


def start(server: MisbehavingServer, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *options(server, out, *more)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def stuck_after(server: MisbehavingServer, out: Path, first: str) -> Callable[[], bool]:
    """Let the server serve only names that begin with ``first``; true once those are there and six requests wait."""
    server.held = re.compile(rf"/(?!{first})\d+\.mp3$")
    server.open.clear()
    server.requests.clear()
    names = {name for name in served(server) if re.match(first, name)}

    def condition() -> bool:
        waiting = [request for request in server.requests if server.held.search(request.path)]
        return len(waiting) == http.CONNECTIONS and names <= mp3s(out).keys()

    return condition


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)], ids=["SIGINT", "SIGKILL"]
)
def test_interrupted_twice_it_goes_on_and_fetches_nothing_twice(server, tmp_path, sent, code):
    for first in ("11[01]", "11[0-2]"):
        stuck = stuck_after(server, tmp_path, first)
        there_before = mp3s(tmp_path)
        process = start(server, tmp_path)
        wait_until(stuck)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == code
        there = mp3s(tmp_path)
        assert there.items() <= served(server).items()
        assert not {name for name in there_before if server.count()[f"/data/{RECITER}/{name}"]}
        if sent == signal.SIGINT:
            assert re.fullmatch(r"interrupted: .+\n", errors), errors
        server.open.set()
    server.requests.clear()
    process = start(server, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert mp3s(tmp_path) == served(server)
    assert sorted(files_asked_for(server)) == sorted(served(server).keys() - there.keys())


def refusal(*arguments: str) -> str:
    with pytest.raises((UserError, OSError)) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_reciter_is_refused_with_the_nearest(tmp_path):
    for name, near in (("Husary_128kbs", "Husary_128kbps"), ("Sudais", "Abdurrahmaan_As-Sudais_192kbps")):
        line = refusal("--reciters", name, "--out", str(tmp_path / "data"))
        assert line.startswith(f"no reciter {name} ") and near in line
    assert not (tmp_path / "data").exists()


def test_no_name_leads_out_of_the_folder(tmp_path):
    for name in ("../../etc", "a/b", "/tmp", ".hidden", ""):
        line = refusal("--reciters", name, "--mirror", "everyayah=http://127.0.0.1:9", "--out", str(tmp_path / "data"))
        assert "cannot name a folder" in line
    assert list(tmp_path.iterdir()) == []


def test_other_bad_input_is_one_line(tmp_path):
    out = "--out", str(tmp_path)
    addresses = "ftp://host file:///etc http:// http://host/é".split()
    for mirror in ["http://127.0.0.1:9", "there=http://host", *(f"everyayah={address}" for address in addresses)]:
        assert refusal("--mirror", mirror, *out).startswith(f"--mirror {mirror}: give everyayah=URL")
    assert "--surahs" in refusal("--surahs", "0:115", *out)
    assert "names nobody" in refusal("--reciters", *out)


def test_no_connection_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with contextlib.closing(MisbehavingServer()) as closed:
        address = closed.url
    line = refusal("--mirror", f"tanzil={address}/text", "--out", str(tmp_path))
    assert address in line and "refused" in line and "check the connection" in line
    line = refusal("--mirror", "tanzil=http://nowhere.invalid/text", "--out", str(tmp_path))
    assert "Failed to resolve" in line


def test_places_that_are_no_folders_are_one_line(server, tmp_path):
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(*options(server, tmp_path / "file"))
    (tmp_path / "audio" / RECITER / "112001.mp3").mkdir(parents=True)
    assert "Is a directory" in refusal(*options(server, tmp_path))


def test_a_text_that_is_not_tanzils_is_refused(server, tmp_path):
    text = server.files["/text"]
    lines = text.decode().split("\n")
    wrong = {
        "web page": HTML,
        "empty": b"",
        "cut": text[: len(text) // 2],
        "without licence": text.replace(LICENCE.encode(), b""),
        "an ayah missing": "\n".join(lines[:99] + lines[100:]).encode(),
        "with diacritics": text.replace("الحمد لله".encode(), "الْحَمْدُ لِلَّهِ".encode()),
        "an ayah without text": text.replace("1|3|الرحمن الرحيم".encode(), b"1|3|"),
        "not UTF-8": text.decode().encode("utf-16"),
    }
    for name, server.files["/text"] in wrong.items():
        assert re.match("cannot fetch .*/text .*Tanzil's", refusal(*options(server, tmp_path))), name
    assert list((tmp_path / "metadata").iterdir()) == []


def test_the_default_is_experiment_2a(capsys):
    config = DownloadConfig()
    assert len(config.reciters) == 8 and {*config.reciters} <= KNOWN_RECITERS.keys()
    main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(KNOWN_RECITERS)
    assert sum("Experiment 2A: training" in line for line in lines) == 6
    assert sum("Experiment 2A: validation" in line for line in lines) == 2


def test_many_ayat_are_named_in_part():
    assert listed([(1, 7), (1, 1), (3, 5)]) == "1:1, 1:7, 3:5"
    assert listed(ayat_of([2])).endswith("2:20, and 266 more")
