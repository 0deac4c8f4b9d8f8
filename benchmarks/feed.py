"""Feeding the training loop from decoded recordings against decoding on the fly: the same ayat, in the same run.

  python benchmarks/feed.py --data DIR [--clips 256]

Every row puts the same clips into the same batches of 16 (``collate``), in one thread. On the fly, clips are decoded
the way this project does it, the way it is done with torchaudio's functions, and the way openai-whisper does it
(ffmpeg). ``clips / CPU s`` divides by processor time, which other work on the machine hardly changes. The last line
is what reading every recording over and over does to the resident memory of this process.
"""

import argparse
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# One thread; a numerical library reads this when it is loaded.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import soundfile
import torch
import torchaudio
import whisper

from whisper_quran.data.audio import SAMPLE_RATE, decode_file
from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.data.batches import split
from whisper_quran.data.features import collate

torch.set_num_threads(1)


def with_torchaudio(file: Path) -> np.ndarray:
    """soundfile and ``torchaudio.functional.resample``, as most fine-tuning scripts have it."""
    sound, rate = soundfile.read(file, dtype="float32", always_2d=True)
    mono = torch.from_numpy(sound.mean(axis=1))
    return (torchaudio.functional.resample(mono, rate, SAMPLE_RATE) * 32767).to(torch.int16).numpy()


def with_whisper(file: Path) -> np.ndarray:
    return (whisper.load_audio(str(file)) * 32767).astype(np.int16)


def cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with audio/<Reciter>/*")
    parser.add_argument("--clips", type=int, default=256)
    args = parser.parse_args()

    sources = {folder.name: sorted(folder.iterdir()) for folder in sorted((args.data / "audio").iterdir())}
    with tempfile.TemporaryDirectory() as cache:
        recordings = prepare_audio(sources, Path(cache), os.cpu_count() or 1)
        short = [Path(file) for file, clip in recordings.clips.items() if clip.length <= 30 * SAMPLE_RATE]
        files = random.Random(0).sample(short, min(args.clips, len(short)))
        ways: dict[str, Callable[[Path], np.ndarray]] = {
            "decoded recordings": recordings.read,
            "on the fly: this project": lambda file: decode_file(file).samples,
            "on the fly: torchaudio": with_torchaudio,
            "on the fly: whisper.load_audio": with_whisper,
        }
        seconds = sum(recordings.length(file) for file in files) / SAMPLE_RATE
        print(f"{len(files)} ayat, {seconds / len(files):.1f} s on average, load {os.getloadavg()[0]:.1f}")
        print(f"{'':32} {'clips / s':>10} {'clips / CPU s':>14} {'CPU, slower than recordings':>28}")
        fastest = 0.0
        for name, read in ways.items():
            repeat = 10 if read == recordings.read else 1
            collate([read(file) for file in files[:16]])  # The first call pays for what is imported and computed once.
            start, cpu_start = time.perf_counter(), cpu_seconds()
            for batch in split(files * repeat, 16):
                collate([read(file) for file in batch])
            wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
            rate, cpu_rate = repeat * len(files) / wall, repeat * len(files) / cpu
            fastest = fastest or cpu_rate
            print(f"{name:32} {rate:10.0f} {cpu_rate:14.0f} {fastest / cpu_rate:27.0f}x")

        hours = sum(clip.length for clip in recordings.clips.values()) / SAMPLE_RATE / 3600
        before, resident = resident_mb(), []
        for _ in range(3):
            for file in recordings.clips:
                recordings.read(file).max()
            resident.append(f"{resident_mb() - before:+.1f}")
        print(f"resident memory after reading {hours:.2f} h once, twice, three times: {', '.join(resident)} MB")


if __name__ == "__main__":
    main()
