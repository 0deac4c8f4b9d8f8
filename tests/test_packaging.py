"""What is published, and what it needs: the wheel, the sdist, their dependencies, and what the documentation names."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import whisper_quran

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("whisper_quran", "tests", "benchmarks", "docs", ".ci")
SOURCES = [*FOLDERS, *(path.name for path in ROOT.iterdir() if path.is_file())]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist, built from a checkout that has been worked in."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    for stray in ("data/audio/R/001001.mp3", "runs/a/best.pt", "whisper_quran/model.pt", ".venv/lib/x.py", "notes.txt"):
        (checkout / stray).parent.mkdir(parents=True, exist_ok=True)
        (checkout / stray).write_text("not for publication")
    out = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(out)], cwd=checkout, check=True)
    return out


def files_of_the_package() -> set[str]:
    files = [path for path in (ROOT / "whisper_quran").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.suffix for path in files} == {".py", ".typed", ".html", ".css", ".js", ".gz", ".csv"}
    return {str(path.relative_to(ROOT)) for path in files}


def metadata(built: Path) -> Message:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (path,) = built.glob("*.whl")
    assert path.name == f"whisper_quran-{whisper_quran.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    info = {name for name in names if name.startswith(f"whisper_quran-{whisper_quran.__version__}.dist-info/")}
    assert names - info == files_of_the_package()
    assert any(name.endswith("licenses/LICENSE") for name in info)


def test_the_sdist_holds_what_it_takes_to_build_and_to_test(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    written = {f"{folder}/{p.name}" for folder in ("tests", "benchmarks", "docs") for p in (ROOT / folder).glob("*.*")}
    top = {"pyproject.toml", "README.md", "LICENSE", "train.py", "evaluate.py", "convert.py", ".gitignore", "PKG-INFO"}
    assert names == files_of_the_package() | written | top | {"constraints.txt"}


def test_uv_and_pip_install_the_same_exact_versions(built):
    """In a checkout: of everything that is needed, and of torch and torchaudio a pair that works together."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^constraint-dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert [line.strip(' ",') for line in listed.splitlines()] == constraints
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; python_full_version (<|>=) '[\d.]+')*", line) for line in constraints)
    pinned = {line.partition("==")[0] for line in constraints}
    assert pinned >= {re.match(r"[\w.-]+", line)[0] for line in metadata(built).get_all("Requires-Dist")}
    assert {"torch==2.11.0", "torchaudio==2.11.0"} <= set(constraints)


def test_everything_imported_is_declared(built):
    """At the top of a file: a dependency. Elsewhere: a dependency or an extra."""
    owners = importlib.metadata.packages_distributions()
    needed, optional = set(), set()
    for line in metadata(built).get_all("Requires-Dist"):
        name = re.match(r"[\w.-]+", line)[0]
        (optional if "extra ==" in line else needed).add(name)
    for path in (ROOT / "whisper_quran").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module.split(".")[0]]
            else:
                continue
            for module in set(modules) - sys.stdlib_module_names:
                allowed = needed if node in tree.body else needed | optional
                assert {owner.lower() for owner in owners[module]} & allowed, f"{path.name} imports {module}"


@pytest.mark.parametrize("command", ["train.py", "evaluate.py", "convert.py", "whisper_quran/__init__.py"])
def test_an_older_python_gets_one_line(command):
    """This one says that it is older; what is read before that is checked must be readable to an old one."""
    run = f"runpy.run_path({command!r}, run_name='__main__')"
    code = f"import runpy, sys; sys.version_info = (3, 9, 18, 'final', 0); {run}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: this is Python 3.9.18, and 3.10 or newer is needed")
    ast.parse((ROOT / command).read_text(encoding="utf-8"), feature_version=(3, 7))


COMMANDS = ("train.py", "evaluate.py", "convert.py", "-m whisper_quran.recognize", "-m whisper_quran.download")
TORCHRUN = {"--standalone", "--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--max-restarts"}


def test_what_the_documentation_names_exists():
    """Options, in a command's help, in a benchmark or in torchrun; and files that are linked or said to be run."""
    named = re.compile(r"(?<![\w-])--[a-z][\w-]+")
    known = set(TORCHRUN)
    for command in COMMANDS:
        done = subprocess.run([sys.executable, *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True)
        known |= set(named.findall(done.stdout))
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= set(named.findall(script.read_text(encoding="utf-8")))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"):
        text = page.read_text(encoding="utf-8")
        assert set(named.findall(text)) <= known, page.name
        linked = {page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
        linked |= {ROOT / script for script in re.findall(r"benchmarks/\w+\.py", text)}
        assert [path for path in linked if not path.exists()] == [], page.name
