"""Everything about a GPU in one command of under ten minutes: is it right, how fast is it, and what does it take.

  python benchmarks/gpu.py --data DIR [--json gpu.json]         on one card, or two
  python benchmarks/gpu.py --data DIR --parts training memory   some parts (--help names them)
  python benchmarks/gpu.py --data DIR --device cpu              the same at ``tiny`` dimensions, to try the script

DIR holds audio/<Reciter>/SSSAAA.mp3 and metadata/ayah_text_clear.csv. The weights are random, since speed does not
depend on them; ``--model FILE`` has the precisions compared with real ones. Parts come in the order of their importance
and each of their measurements is a process of its own with a time limit: what fails, or no longer fits into
``--minutes``, is a row that says so. Rows are printed as they come, and at the end as tables for benchmarks/README.md.
The exit code is 1 if a measurement failed; a goal that was missed is not a failure.
"""

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isolated import run_isolated  # benchmarks/isolated.py

if TYPE_CHECKING:
    from gpu_parts import Unit  # benchmarks/gpu_parts.py

LEAST = 15.0  # seconds that must be left to begin a measurement
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "whisper": "openai-whisper",
    "tiktoken": "tiktoken",
    "numba": "numba",
    "more_itertools": "more-itertools",
    "tqdm": "tqdm",
    "jiwer": "jiwer",
    "rapidfuzz": "rapidfuzz",
    "soundfile": "soundfile",
    "torchaudio": "torchaudio",
    "safetensors": "safetensors",
}
HOW = """\
not installed: {missing}. For a machine without a network, on another with the same system and Python:
  pip wheel --no-deps -w wheels openai-whisper && pip download -d wheels {others}
carry the folder wheels over, and there:
  pip install --no-index --find-links wheels --no-deps openai-whisper
  pip install --no-index --find-links wheels {others}
(torchaudio with --no-deps, in torch's version; transformers and accelerate, in the same way, for one row alone)"""


@dataclass(frozen=True)
class Row:
    """A line of a part's table."""

    name: str
    values: dict[str, Any]
    result: str

    @property
    def failed(self) -> bool:
        return self.result.startswith("failed")


def check_installed() -> None:
    """Exit with 2 and the way to bring the wheels if a package is missing."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        others = [name for name in NEEDED.values() if name not in ("torch", "torchaudio", "openai-whisper")]
        print(HOW.format(missing=", ".join(missing), others=" ".join(others)), file=sys.stderr)
        sys.exit(2)


def run_unit(unit: "Unit", left: float) -> Iterator[Row]:
    """Measure ``unit`` in the seconds that are left; yield its rows, and one that says how it failed, if it did."""
    if isinstance(unit.work, str):
        yield Row(unit.name, {}, f"skipped: {unit.work}")
    elif left < LEAST:
        yield Row(unit.name, {}, "skipped: no time left")
    else:
        outcome = run_isolated(unit.work, min(unit.limit, left))
        yield from (Row(unit.name, values, result) for values, result in outcome.rows)
        if outcome.error:
            yield Row(unit.name, {}, f"failed: {outcome.error}")


def shown(value: Any) -> str:
    """A number with three digits, or more if they are before the point."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, a column for each value that any of them has."""
    from whisper_quran.runtime.console import markdown_table

    names = list(dict.fromkeys(name for row in rows for name in row.values))
    lines = [[row.name, *(shown(row.values.get(name, "")) for name in names), row.result] for row in rows]
    return markdown_table(["", *names, "result"], [[cell.replace("|", "\\|") for cell in line] for line in lines])


def as_json(about: dict[str, Any], results: dict[str, list[Row]]) -> str:
    """The rows of every part, with the machine that they were measured on."""
    parts = {
        part: [{"name": row.name, **row.values, "result": row.result} for row in rows] for part, rows in results.items()
    }
    return json.dumps({"about": about, "parts": parts}, indent=1, ensure_ascii=False)


def main() -> None:
    check_installed()
    # If an import asks for GPUs, it must not start CUDA here: a process forked from this one could not use it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    from gpu_parts import PARTS, prepare  # benchmarks/gpu_parts.py

    from train import SIZES  # benchmarks/train.py

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="(default: base to large-v3; on a CPU tiny)")
    parser.add_argument("--model", type=Path, help="a Whisper checkpoint, to compare precisions with real weights")
    parser.add_argument("--clips", type=int, default=512, help="ayat to train on, at most (default: 512)")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--json", type=Path, help="write everything to this file, too")
    args = parser.parse_args()
    start = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is ended, too
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepared = run_isolated(lambda report: report(prepare(args, Path(folder))), 60 * args.minutes)
        if prepared.error:
            sys.exit(f"preparing failed: {prepared.error}")
        (bench,) = prepared.rows
        about = "\n".join(f"- {name}: {value}" for name, value in bench.about.items())
        print(f"{about}\n", flush=True)
        units = [
            (part, unit) for part, measurements in PARTS.items() if part in args.parts for unit in measurements(bench)
        ]
        for part, unit in units:
            for row in run_unit(unit, start + 60 * args.minutes - time.monotonic()):
                results.setdefault(part, []).append(row)
                values = "".join(f", {name} {shown(value)}" for name, value in row.values.items())
                print(f"{time.monotonic() - start:4.0f} s  {part}: {row.name}{values}: {row.result}", flush=True)
            if args.json:
                args.json.write_text(as_json(bench.about, results), encoding="utf-8")
    print(f"\n{about}")
    for part, rows in results.items():
        print(f"\n### {part}\n\n{' '.join((PARTS[part].__doc__ or '').split())}\n\n{table(rows)}", end="")
    everything = [row for rows in results.values() for row in rows]
    failed = sum(row.failed for row in everything)
    print(f"\n{failed} of {len(everything)} rows failed; {time.monotonic() - start:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
