"""The package inside somebody else's project: copied, renamed, used from a script and from a notebook.

The code that is tried is docs/api.md's own example, so that what newcomers paste is what works.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import whisper

import whisper_quran

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "whisper_quran"


def example() -> str:
    """The Python code of docs/api.md."""
    return re.search(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.fixture
def project(tmp_path, quran) -> Path:
    """A project that has the package as ``recitation.speech``, and recordings under the names in the example.

    What looks for the package under its own name finds a module that refuses to be imported.
    """
    project = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, project / "recitation" / "speech", ignore=ignore)
    (project / "recitation" / "__init__.py").touch()
    (project / "whisper_quran.py").write_text("raise ImportError('looked up by the name it had at home')\n")
    (project / "data").mkdir()
    (project / "data" / "metadata").symlink_to(quran / "metadata")
    named = dict.fromkeys(re.findall(r'"(\w+_\d+kbps)"', example()))
    for name, reciter in zip(named, ("AbdulWadood_Haneef", "Yasser_Salama_hadr"), strict=True):
        (project / "data" / "audio" / name).mkdir(parents=True)
        for file in (quran / "audio" / reciter).glob("00100[12].mp3"):
            (project / "data" / "audio" / name / file.name).symlink_to(file)
    return project


def renamed(workshop: Path) -> str:
    """The example for the project: the package's new name, a small model, and two ayat that both reciters have.

    One of them is recognised: the small model babbles to the end of its context, at every temperature.
    """
    code = example()
    for pattern, replacement in (
        (r"from whisper_quran import", "from recitation.speech import"),
        (r'model="\w+"', f"model={str(workshop / 'model.pt')!r}"),
        (r'surahs="[\d:]+"', 'surahs="1:1"'),
        (r'f"(data/audio/{reciters\[0\]})"', r'f"\1/001001.mp3"'),
    ):
        code, count = re.subn(pattern, replacement, code)
        assert count, f"the README's example has no {pattern}"
    return code


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python in ``project``, with nothing from here on its path."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(project), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True)


def check_results(project: Path, done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stderr
    assert re.search(r"^WER \d+\.\d% on 2 ayat$", done.stdout, re.MULTILINE), done.stdout
    assert "Traceback" not in done.stderr
    (best,) = project.glob("runs/*/best.pt")
    assert whisper.load_model(str(best), device="cpu").dims.n_text_state == 64
    assert torch.load(best, weights_only=True).keys() == {"dims", "model_state_dict"}
    (report,) = project.glob("results/report.html")
    assert report.stat().st_size > 10_000


def test_the_example_runs_as_a_script_without_a_main_guard(project, workshop):
    """Were a process to start by importing the script again, as multiprocessing's do, this one would never end."""
    (project / "run.py").write_text(renamed(workshop), encoding="utf-8")
    check_results(project, python(project, "run.py"))


NOTEBOOK = """
import contextlib, io, os, sys

def forked():
    raise RuntimeError("forked: CUDA, had it been used, would be broken in the new process")

os.fork = forked
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(io.StringIO()):
    for cell in ({code!r}, "module = train.__module__"):
        exec(compile(cell, "<cell>", "exec"), globals())
print(shown.getvalue())
assert "__file__" not in globals() and module == "recitation.speech.training.train"
"""


def test_the_example_runs_in_a_notebook(project, workshop):
    """No ``__main__`` file to import again, streams that are no files, and a process that must not be forked.

    Up to recognising, which starts what evaluating does.
    """
    code = renamed(workshop).partition("for recording in recognize(")[0]
    check_results(project, python(project, "-c", NOTEBOOK.format(code=code)))


QUIET = """
import importlib, logging, os, pkgutil, signal, sys, threading
from pathlib import Path

import torch, whisper, jiwer, tqdm, numpy
before = dict(os.environ), list(sys.path), torch.get_num_threads(), torch.get_default_dtype()
import recitation.speech

names = [module.name for module in pkgutil.walk_packages(recitation.speech.__path__, "recitation.speech.")]
for name in names:
    importlib.import_module(name)
assert len(names) > 30
assert not logging.root.handlers and logging.root.level == logging.WARNING
assert threading.active_count() == 1
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert before == (dict(os.environ), list(sys.path), torch.get_num_threads(), torch.get_default_dtype())
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    pass
else:
    raise AssertionError("a process was started")
assert sorted(path.name for path in Path.cwd().iterdir()) == ["data", "recitation", "whisper_quran.py"]
"""


def test_importing_every_module_does_nothing(project):
    done = python(project, "-B", "-c", QUIET)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_package_imports_itself_by_relative_names_only():
    """Also where no test comes by."""
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        assert not any(name.split(".")[0] == "whisper_quran" for name in names), path.name


def test_the_public_names_are_the_same_for_python_and_for_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    seen_by_checkers = {alias.name: node.module for node in relative for alias in node.names}
    assert seen_by_checkers.pop("__version__") == "runtime"
    assert seen_by_checkers == whisper_quran._HOME
    assert set(whisper_quran.__all__) == {*seen_by_checkers, "__version__"} == set(dir(whisper_quran))
    for name, module in seen_by_checkers.items():
        value = whisper_quran.__getattr__(name)
        assert value.__module__ == f"whisper_quran.{module}" and value.__doc__, name
        assert f"``{name}" in whisper_quran.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        whisper_quran.trian  # noqa: B018


def test_the_download_and_the_configurations_need_no_torch(project):
    code = "import sys, recitation.speech.download.__main__; from recitation.speech import TrainingConfig, UserError"
    done = python(project, "-c", code + "; print([name for name in ('torch', 'whisper') if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr
