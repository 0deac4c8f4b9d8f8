"""What the tests share: the real recitations beside the repository, and small Whispers made on the spot."""

import collections
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from whisper.model import ModelDimensions, Whisper

import train
from whisper_quran.checkpoints import huggingface
from whisper_quran.checkpoints.checkpoint import save_checkpoint
from whisper_quran.config import TrainingConfig
from whisper_quran.runtime.command_line import parse
from whisper_quran.runtime.errors import run_command
from whisper_quran.training.train import train as run_training

ROOT = Path(__file__).resolve().parents[1]

QURAN = ROOT.parent / "shared" / "quran"


# One thread: the order of a sum, and so its last bit, depends on how many there are; and small tensors are no slower.
# In processes that tests start, too: their threads would wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print why tests were skipped: a line a reason, with how many it concerns."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = collections.Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(autouse=True)
def signals() -> None:
    """Signals as in a terminal, here and in every process a test starts: a shell's background ignores Ctrl-C, and so
    does a command that has ended by it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def quran() -> Path:
    """The folder of real recitations (``audio/<Reciter>/SSSAAA.mp3``, ``metadata``, ``odd``)."""
    if not QURAN.is_dir():
        pytest.skip("the real recitations are not beside the repository (../shared/quran)")
    return QURAN


def make_whisper(*, n_mels: int = 80, state: int = 64, layers: int = 1, n_vocab: int = 51865, seed: int = 0) -> Whisper:
    """A Whisper with random weights, multilingual by default, 64 wide a head as every real size is."""
    torch.manual_seed(seed)
    heads = state // 64
    model = Whisper(ModelDimensions(n_mels, 1500, state, heads, layers, n_vocab, 448, state, heads, layers))
    # Whisper leaves this parameter uninitialised.
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    return model.eval()


def talkative(model: Whisper, eot_gain: float = 3.5) -> Whisper:
    """Give random weights something to say: texts that hang on the audio, differ, and end (or not) by themselves.

    Random Whispers repeat one token to the limit whatever they hear. Here all embeddings are large, eot's largest, so
    that it comes up every few tokens, and the encoder listens to the audio more than to the position.
    """
    encoder, decoder = model.encoder, model.decoder
    with torch.no_grad():
        encoder.conv1.weight *= 8
        encoder.conv2.weight *= 8
        decoder.token_embedding.weight.normal_(std=0.5)
        decoder.positional_embedding.normal_(std=0.5)
        decoder.token_embedding.weight[50257 if model.is_multilingual else 50256] *= eot_gain
        for block in decoder.blocks:
            for attention in (block.attn, block.cross_attn):
                for linear in (attention.query, attention.key, attention.value):
                    linear.weight *= 6
    return model


QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
# What sets window.hacked, if a page takes it for anything but text.
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    '<img/src=x onerror="window.hacked=1">',
    "<svg/onload=window.hacked=1>",
    "javascript:window.hacked=1",
    '" onmouseover="window.hacked=1" x="',
    "' autofocus onfocus='window.hacked=1",
    "<!--<script>window.hacked=1//",
    "\u2028window.hacked=1\u2029",
    "{{script}}{{data}}&lt;script&gt;window.hacked=1",
    "<iframe/srcdoc='<script>parent.hacked=1</script>'>",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open a page of ``tmp_path``; at the end, none has logged a complaint or asked for anything but its file.

    Recordings may be asked for too, in the folder ``audio``, or out of the page itself.
    """
    complaints: list[str] = []
    requests: list[str] = []
    paths: list[Path] = []
    contexts = []

    def open_page(path: Path, **options: Any) -> Any:
        paths.append(path)
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    expected = (*(path.as_uri() for path in paths), "data:audio/webm;", (tmp_path / "audio").as_uri())
    assert [url for url in requests if not url.startswith(expected)] == []


def assert_nothing_ran(page: Any) -> None:
    """Assert that of what is :data:`HOSTILE` nothing has run, and nothing became an element."""
    assert page.evaluate("window.hacked") is None
    assert (
        page.evaluate("document.querySelectorAll('img, iframe, [onload], [autofocus], #data ~ script ~ script').length")
        == 0
    )


def wait_until(page: Any, condition: str) -> None:
    """Wait for a condition in the page. (Playwright's own wait evaluates text there, which the page forbids.)"""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never came true: {condition}")


GET_BASE = ROOT.parent / "shared" / "weights" / "get_base.py"


@pytest.fixture(scope="session")
def base_weights() -> Path:
    """OpenAI's real `base`: a folder with ``base.pt`` and ``ct2/``, the same weights as CTranslate2 wrote them.

    Downloaded once, into the user's cache, whichever of the tests' processes comes first.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper_quran_tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "base"
    with open(cache / "base.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not folder.is_dir():
            if not GET_BASE.is_file():
                pytest.skip("the script that gets the real weights is not beside the repository (../shared/weights)")
            with tempfile.TemporaryDirectory(dir=cache) as new:
                command = [sys.executable, str(GET_BASE), new + "/base"]
                # The script downloads with the first python3's pip, which the environment of `uv run` has not.
                path = [each for each in os.environ["PATH"].split(os.pathsep) if Path(each) != Path(sys.prefix, "bin")]
                environment = os.environ | {"PIP_RETRIES": "1", "PIP_TIMEOUT": "15", "PATH": os.pathsep.join(path)}
                done = subprocess.run(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
                )
                if "CalledProcessError" in done.stderr:  # pip's own exit code
                    pytest.skip("the real weights cannot be downloaded: no network")
                assert done.returncode == 0, done.stderr
                os.rename(new + "/base", folder)
    return folder


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the tokenizer's files, which take seconds."""
    monkeypatch.setattr(huggingface, "write_tokenizer", lambda *arguments: None)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Path:
    """A folder with a small multilingual Whisper, an English-only one, and a cache that the tests share."""
    folder = tmp_path_factory.mktemp("workshop")
    model = make_whisper()
    torch.nn.init.normal_(model.decoder.token_embedding.weight, std=0.02)  # a loss near log(vocabulary), that falls
    save_checkpoint(folder / "model.pt", model)
    save_checkpoint(folder / "model.en.pt", make_whisper(n_vocab=51864))
    return folder


def training_options(quran: Path, workshop: Path, options: tuple) -> list[str]:
    """The command line of a short training on real recordings; ``options`` come first and replace defaults."""
    defaults = {
        "--data": quran,
        "--model": workshop / "model.pt",
        "--cache": workshop / "cache",
        "--train-reciters": "Yasser_Salama_hadr",
        "--valid-reciters": "AbdulWadood_Haneef",
        "--surahs": "1:1",
        "--batch-size": 4,
        "--epochs": 2,
        "--precision": "fp32",
        "--device": "cpu",
    }
    given = [str(option) for option in options]
    if "--manifest" in given:
        for name in ("--data", "--surahs", "--train-reciters", "--valid-reciters"):
            defaults.pop(name)
    return [*given, *(str(x) for pair in defaults.items() if pair[0] not in given for x in pair)]


@pytest.fixture
def run(quran, workshop, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `train.py` with options, in this process; return (exit code, stdout, stderr)."""

    def run(*options: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *training_options(quran, workshop, options)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            run_command(train.main)
        out, err = capsys.readouterr()
        return exit.value.code, out, err

    return run


@pytest.fixture
def start(quran, workshop) -> Callable[..., subprocess.Popen]:
    """Start `train.py` with options as processes of its own (``torchrun`` where ``processes`` > 1)."""
    started = []

    def start(*options: object, processes: int = 1, torchrun: tuple[str, ...] = ()) -> subprocess.Popen:
        launcher = [sys.executable]
        if processes > 1 or torchrun:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *torchrun]
        command = [*launcher, str(ROOT / "train.py"), *training_options(quran, workshop, options)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def rows_of(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]]


def results_of(folder: Path) -> tuple[list[dict], dict[str, str]]:
    """All that a run's options decide: what it measured (but for timings), and a digest of each tensor of its state."""
    timing = {"clips_per_s", "data_wait", "seconds"}
    rows = [{key: value for key, value in row.items() if key not in timing} for row in rows_of(folder)]
    digests = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state_of(folder).items()}
    return rows, digests


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's state.pt, by their path in it."""
    return flat(torch.load(folder / "state.pt", weights_only=True))


def flat(value: object, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors in nested dicts and lists, by their path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {path: tensor for key, item in items for path, tensor in flat(item, f"{name}.{key}").items()}


# 11 steps of 2 clips, in epochs of 4; every step is saved.
RUN = ("--epochs", 3, "--max-steps", 11, "--batch-size", 2, "--save-every", 1, "--valid-limit", 2, "--no-vanilla")


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until metrics.jsonl has ``count`` lines, or the process has ended."""
    file = folder / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)


@pytest.fixture(scope="session")
def undisturbed(quran, workshop, tmp_path_factory):
    """The results of the run that nothing happens to."""
    out = tmp_path_factory.mktemp("undisturbed")
    run_training(parse(TrainingConfig, "", training_options(quran, workshop, (*RUN, "--out", out))))
    return results_of(out)
