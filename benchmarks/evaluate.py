"""Decoding speed against the peers: the same ayat, the same weights, as many tokens, in the same run.

  python benchmarks/evaluate.py --data DIR [--device cuda]

The model has the shape of Whisper ``tiny`` (on a GPU ``small``) and random weights. Nobody may end a text, so that all
say the same number of tokens, by default 34, the mean of the Qur'an's 6,236 ayat; the script counts them. Every row
starts from audio decoded beforehand and includes the log-mel. Every row is a process of its own, is warmed up first,
and has the batch size, of ``--batch-sizes``, that it is fastest with. The last lines show that memory does not grow
with the number of ayat.

  python benchmarks/evaluate.py --data DIR --model base.pt

compares instead with real weights, with the WER beside the speed: see benchmarks/accuracy.py.
"""

import argparse
import importlib.util
import os
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # after this folder: there is an evaluate.py there, too

import numpy as np
import torch
import whisper
from whisper.model import ModelDimensions, Whisper

from whisper_quran.convert import convert
from whisper_quran.data.audio_cache import AudioCache, Clip, prepare_audio
from whisper_quran.decoding.batch_decoder import BatchDecoder
from whisper_quran.decoding.long_audio import decode_clips

TINY = ModelDimensions(80, 1500, 384, 6, 4, 51865, 448, 384, 6, 4)
SMALL = ModelDimensions(80, 1500, 768, 12, 12, 51865, 448, 768, 12, 12)
RATE, EOT = 16_000, 50257
SILENCED = [-1, *range(EOT, TINY.n_vocab)]  # whisper's own -1, and all that is not text
PEERS = {"faster-whisper": ["faster_whisper", "transformers"], "transformers": ["transformers"]}


@dataclass(frozen=True)
class Row:
    """What one process measures. ``folder`` holds the model in all forms."""

    way: str
    precision: str
    batch_size: int
    tokens: int
    device: str
    folder: Path
    clips: list[Clip]


@dataclass(frozen=True)
class Measured:
    """``memory`` in bytes: the process's at its peak, or the GPU's, where there is one."""

    seconds: float
    cpu_seconds: float
    memory: int
    tokens: int


Decode = Callable[[Sequence[np.ndarray]], int]  # decodes int16 clips and returns how many tokens came of them


def ours(row: Row) -> Decode:
    model = whisper.load_model(str(row.folder / "model.pt"), device=row.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[row.precision]
    said: list[int] = []
    result = BatchDecoder._result
    BatchDecoder._result = lambda *args: said.append(len((made := result(*args)).tokens)) or made
    if row.way.endswith("without graphs"):
        BatchDecoder._run = BatchDecoder._step

    def decode(clips: Sequence[np.ndarray]) -> int:
        said.clear()
        options = {"sample_len": row.tokens, "suppress_tokens": SILENCED}
        assert len(list(decode_clips(model, clips, batch_size=row.batch_size, dtype=dtype, **options))) == len(clips)
        return sum(said)

    return decode


def whisper_transcribe(row: Row) -> Decode:
    model = whisper.load_model(str(row.folder / "model.pt"), device=row.device)
    options = {
        "language": "ar",
        "without_timestamps": True,
        "fp16": row.precision == "fp16",
        "sample_len": row.tokens,
        "suppress_tokens": SILENCED,
        # One pass over each clip: no second try at a higher temperature.
        "temperature": 0.0,
        "no_speech_threshold": None,
    }

    def decode(clips: Sequence[np.ndarray]) -> int:
        results = [model.transcribe(as_float(clip), **options) for clip in clips]
        return sum(len(segment["tokens"]) for result in results for segment in result["segments"])

    return decode


def whisper_decode(row: Row) -> Decode:
    model = whisper.load_model(str(row.folder / "model.pt"), device=row.device)
    options = whisper.DecodingOptions(
        language="ar",
        without_timestamps=True,
        fp16=row.precision == "fp16",
        sample_len=row.tokens,
        suppress_tokens=SILENCED,
    )

    def decode(clips: Sequence[np.ndarray]) -> int:
        said = 0
        for first in range(0, len(clips), row.batch_size):
            batch = [
                whisper.pad_or_trim(as_float(clips[i])) for i in range(first, min(first + row.batch_size, len(clips)))
            ]
            mel = torch.stack([whisper.log_mel_spectrogram(clip, device=row.device) for clip in batch])
            said += sum(len(result.tokens) for result in whisper.decode(model, mel, options))
        return said

    return decode


def faster_whisper(row: Row) -> Decode:
    """Its batched pipeline takes one recording: all clips after one another, and where each begins and ends."""
    from ctranslate2.converters import TransformersConverter
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    converted = row.folder / f"ctranslate2-{row.precision}"
    if not converted.exists():
        copied = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(str(row.folder / "hf"), copy_files=copied).convert(
            str(converted), quantization=row.precision
        )
    model = WhisperModel(str(converted), row.device, compute_type=row.precision, cpu_threads=torch.get_num_threads())
    pipeline = BatchedInferencePipeline(model)

    def decode(clips: Sequence[np.ndarray]) -> int:
        ends = np.cumsum([len(clip) for clip in clips]) / RATE
        segments, _ = pipeline.transcribe(
            np.concatenate([as_float(clip) for clip in clips]),
            clip_timestamps=[{"start": start, "end": end} for start, end in zip([0, *ends], ends, strict=False)],
            batch_size=row.batch_size,
            language="ar",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            suppress_tokens=SILENCED,
            # CTranslate2 stops at half of prompt (4 tokens) and new tokens together.
            max_new_tokens=2 * row.tokens - 4,
        )
        return sum(len(segment.tokens) for segment in segments)

    return decode


def transformers_pipeline(row: Row) -> Decode:
    from transformers import pipeline

    pipe = pipeline(
        "automatic-speech-recognition",
        str(row.folder / "hf"),
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[row.precision],
        device=row.device,
        batch_size=row.batch_size,
    )
    said: list[int] = []
    generate = pipe.model.generate

    def counted(*args, **kwargs):
        generated = generate(*args, **kwargs)
        said.append(int((generated < EOT).sum()))
        return generated

    pipe.model.generate = counted
    options = {
        "language": "ar",
        "task": "transcribe",
        "max_new_tokens": row.tokens,
        "suppress_tokens": SILENCED[1:],
        "num_beams": 1,
        "do_sample": False,
    }

    def decode(clips: Sequence[np.ndarray]) -> int:
        said.clear()
        list(pipe((as_float(clip) for clip in clips), generate_kwargs=options))
        return sum(said)

    return decode


WAYS: dict[str, Callable[[Row], Decode]] = {
    "whisper.transcribe": whisper_transcribe,
    "whisper.decode": whisper_decode,
    "faster-whisper": faster_whisper,
    "transformers": transformers_pipeline,
    "ours, without graphs": ours,
    "ours": ours,
}
PRECISIONS = {
    "cpu": {
        "whisper.transcribe": ["fp32"],
        "whisper.decode": ["fp32"],
        "faster-whisper": ["float32", "int8"],
        "transformers": ["fp32", "bf16"],
        "ours": ["fp32", "bf16"],
    },
    "cuda": {
        "whisper.transcribe": ["fp16"],
        "whisper.decode": ["fp16"],
        "faster-whisper": ["float16"],
        "transformers": ["fp16"],
        "ours, without graphs": ["fp16"],
        "ours": ["fp16"],
    },
}


def as_float(clip: np.ndarray) -> np.ndarray:
    return clip.astype(np.float32) / 32768


def measure(row: Row) -> Measured:
    """Decode the row's clips, after a warm-up on a batch of them."""
    recordings = AudioCache({str(i): clip for i, clip in enumerate(row.clips)}, [], [])
    clips = Lazily(recordings)
    free = torch.cuda.mem_get_info()[0] if row.device == "cuda" else 0
    decode = WAYS[row.way](row)
    decode([clips[i] for i in range(min(row.batch_size, 16, len(clips)))])
    cpu, start = time.process_time(), time.perf_counter()
    tokens = decode(clips)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if row.device == "cuda":  # what its allocators took from the GPU, and keep
        memory = free - torch.cuda.mem_get_info()[0]
    return Measured(seconds, cpu_seconds, memory, tokens)


class Lazily(Sequence):
    """The recordings in order, each read from the disk when asked for."""

    def __init__(self, recordings: AudioCache) -> None:
        self.recordings = recordings

    def __len__(self) -> int:
        return len(self.recordings.clips)

    def __getitem__(self, index: int) -> np.ndarray:
        if index >= len(self):
            raise IndexError(index)
        return self.recordings.read(str(index))


def run(row: Row) -> Measured:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--row"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, input=pickle.dumps(row), env=environment, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{row.way}, {row.precision}, batches of {row.batch_size}:\n{done.stderr.decode()}")
    measured = Measured(**eval(done.stdout.splitlines()[-1]))
    if measured.tokens != row.tokens * len(row.clips):
        sys.exit(f"{row.way}, {row.precision} said {measured.tokens} tokens, not {row.tokens} a clip")
    return measured


def main() -> None:
    if sys.argv[1:] == ["--row"]:
        print(asdict(measure(pickle.load(sys.stdin.buffer))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with audio/<Reciter>/*")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clips", type=int, default=64, help="ayat of at most 30 s (default: 64)")
    parser.add_argument("--tokens", type=int, default=34, help="a clip (default: 34)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=1, help="passes over everything, of which the best counts")
    parser.add_argument("--model", help="compare WER and speed with these real weights instead")
    parser.add_argument("--reciter", help="with --model: of this reciter only")
    parser.add_argument("--long", action="store_true", help="with --model: on ayat over 30 s")
    args = parser.parse_args()
    if args.model:
        from accuracy import compare  # benchmarks/accuracy.py

        return compare(args)

    with tempfile.TemporaryDirectory() as folder:
        sources = {reciter.name: sorted(reciter.iterdir()) for reciter in sorted((args.data / "audio").iterdir())}
        recordings = prepare_audio(sources, Path(folder, "cache"), os.cpu_count() or 1)
        short = [clip for clip in recordings.clips.values() if clip.length <= 30 * RATE]
        random.Random(0).shuffle(short)

        def ayat(count: int) -> list[Clip]:
            return [short[i % len(short)] for i in range(count)]

        clips = ayat(args.clips)
        torch.manual_seed(0)
        model = Whisper(SMALL if args.device == "cuda" else TINY)
        torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)
        torch.save({"dims": asdict(model.dims), "model_state_dict": model.state_dict()}, Path(folder, "model.pt"))
        convert(Path(folder, "model.pt"), Path(folder, "hf"), to="hf", dtype="fp32")
        where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
        print(
            f"{len(clips)} ayat of {sum(clip.length for clip in clips) / len(clips) / RATE:.1f} s on average, "
            f"{args.tokens} tokens each, random weights in the shape of "
            f"{'small' if args.device == 'cuda' else 'tiny'}, {where}, load {os.getloadavg()[0]:.1f}"
        )
        print(f"{'':20} {'':9} batch  clips/s  ms/clip  CPU ms/clip  × transcribe  memory MB")
        base = Row("", "", 1, args.tokens, args.device, Path(folder), clips)
        slowest, fastest = None, None
        for way, precisions in PRECISIONS[args.device].items():
            if missing := [name for name in PEERS.get(way, []) if importlib.util.find_spec(name) is None]:
                print(f"{way:20} not installed: uv sync --group peers, or pip install {' '.join(missing)}")
                continue
            sizes = [1] if way == "whisper.transcribe" else args.batch_sizes
            for precision in precisions:
                rows = [replace(base, way=way, precision=precision, batch_size=size) for size in sizes * args.rounds]
                measured, row = min(((run(row), row) for row in rows), key=lambda each: each[0].seconds)
                slowest = slowest or measured.seconds
                each = 1000 / len(clips)
                print(
                    f"{way:20} {precision:9} {row.batch_size:5} {len(clips) / measured.seconds:8.2f} "
                    f"{each * measured.seconds:8.1f} {each * measured.cpu_seconds:12.1f} "
                    f"{slowest / measured.seconds:13.2f} {measured.memory / 1e6:10.0f}",
                    flush=True,
                )
                fastest = row
        for count in (64, 256):
            memory = run(replace(fastest, clips=ayat(count))).memory
            print(f"memory of {fastest.way}, {fastest.precision}, at its peak with {count} ayat: {memory / 1e6:.0f} MB")
        if args.device == "cuda":
            seconds = run(replace(fastest, clips=ayat(6236))).seconds
            print(f"a whole reciter, 6,236 ayat (the {len(short)} there are, again and again): {seconds:.1f} s")


if __name__ == "__main__":
    main()
