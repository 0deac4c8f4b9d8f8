"""Decoding a data set for the first time, measured: times real time, with one worker, two, and so on.

  python benchmarks/prepare.py --data DIR [--workers 1 2] [--repeat 3]

Whole preparations into an empty cache, the start of the workers and all that is written included; the best of
``--repeat`` counts, as other work on the machine can only slow it down. ``x real time / CPU s`` divides by the
processor time of all processes instead, which other work hardly changes. The files are read once beforehand, so that
it is not the disk that is measured. Then, in one process, where the time of a worker goes.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

# One thread in this process, like a worker; a numerical library reads this when it is loaded.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch
import torchaudio  # noqa: F401  The first import takes seconds, and in a training run both are there already.

from whisper_quran.data import audio
from whisper_quran.data.audio_cache import AudioCache, prepare_audio
from whisper_quran.runtime.console import no_log

torch.set_num_threads(1)


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def measure(sources: dict[str, list[Path]], workers: int) -> tuple[float, float, AudioCache]:
    """One preparation: wall-clock seconds, processor seconds, and what came of it."""
    with tempfile.TemporaryDirectory() as cache:
        start, cpu_start = time.perf_counter(), cpu_seconds()
        recordings = prepare_audio(sources, Path(cache), workers, log=no_log)
        return time.perf_counter() - start, cpu_seconds() - cpu_start, recordings


def stages(files: list[Path]) -> None:
    """Print how fast each step of decoding is, for each sampling rate among ``files``."""
    by_rate: dict[int, list[np.ndarray]] = {}
    spent: dict[int, float] = {}
    for file in files:
        start = time.process_time()
        decoded = audio._decode(str(file))
        spent[decoded.rate] = spent.get(decoded.rate, 0) + time.process_time() - start
        by_rate.setdefault(decoded.rate, []).append(decoded.samples)
    for rate, monos in sorted(by_rate.items()):
        seconds = sum(map(len, monos)) / rate
        start = time.process_time()
        for mono in monos:
            audio.resample(mono, rate)
        print(f"{f'{rate} Hz: decode, mix to mono int16':36} {seconds / spent[rate]:8.0f}")
        print(f"{f'{rate} Hz: resample':36} {seconds / (time.process_time() - start):8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with audio/<Reciter>/*")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()

    sources = {folder.name: sorted(folder.iterdir()) for folder in sorted((args.data / "audio").iterdir())}
    files = [file for each in sources.values() for file in each]
    for file in files:
        file.read_bytes()
    measured = {workers: [measure(sources, workers) for _ in range(args.repeat)] for workers in args.workers}
    recordings = measured[args.workers[0]][0][2]
    seconds = sum(clip.length for clip in recordings.clips.values()) / audio.SAMPLE_RATE
    print(f"{len(files)} files, {seconds / 3600:.2f} h, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'workers':>7} {'wall s':>8} {'x real time':>12} {'x one':>6} {'CPU s':>8} {'x real time / CPU s':>20}")
    for workers, runs in measured.items():
        wall, cpu = min(run[0] for run in runs), min(run[1] for run in runs)
        one = min(run[0] for run in measured[args.workers[0]]) / wall
        print(f"{workers:>7} {wall:8.2f} {seconds / wall:12.0f} {one:6.2f} {cpu:8.2f} {seconds / cpu:20.0f}")
    print("\nTimes real time, of one process's processor time")
    stages(files[:: max(1, len(files) // 100)])


if __name__ == "__main__":
    sys.exit(main())
