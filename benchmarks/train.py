"""The training step, measured: clips a second, model-FLOPs utilisation, waiting for data, memory, and exactness.

  python benchmarks/train.py --data DIR                          a tiny-sized Whisper on this CPU
  python benchmarks/train.py --data DIR --size small --device cuda --batch-size 16 32 64

The weights are random, since speed does not depend on them; the recordings are real, through the real cache, loader
and loop. Utilisation counts the arithmetic that the model needs (2 operations a multiply-add; a frozen encoder once, a
trained part three times), and not what recomputing or padding adds, against the rate this machine reaches on a large
matrix product in the same dtype, in the same run.
"""

import argparse
import copy
import resource
import tempfile
import time
from pathlib import Path

import torch
from whisper.audio import N_FRAMES
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import get_tokenizer

from whisper_quran.config import TrainingConfig
from whisper_quran.data.audio_cache import AudioCache, prepare_audio
from whisper_quran.data.batches import Batch, Example, build_examples, epoch_order, make_batch, prefetch, split
from whisper_quran.data.corpus import open_corpus
from whisper_quran.data.prepare import TrainingData
from whisper_quran.runtime.device import choose_device, choose_precision
from whisper_quran.training.setup import Setup
from whisper_quran.training.trainer import Trainer

SIZES = {"tiny": (384, 6, 4), "base": (512, 8, 6), "small": (768, 12, 12), "medium": (1024, 16, 24)}
PROMPT = 4


def make_model(size: str) -> Whisper:
    state, heads, layers = SIZES[size]
    torch.manual_seed(0)
    model = Whisper(ModelDimensions(80, 1500, state, heads, layers, 51865, 448, state, heads, layers))
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    torch.nn.init.normal_(model.decoder.token_embedding.weight, std=0.02)
    return model


def step_flops(model: Whisper, batch: Batch, train_encoder: bool) -> float:
    """Floating-point operations that a training step on ``batch`` needs."""
    dims = model.dims
    clips, length = batch.tokens.shape
    d, frames = dims.n_audio_state, dims.n_audio_ctx
    conv = N_FRAMES * 3 * dims.n_mels * d + frames * 3 * d * d
    encoder = conv + dims.n_audio_layer * (12 * frames * d * d + 2 * frames * frames * d)
    d = dims.n_text_state
    self_attention = 4 * length * d * d + length * length * d
    cross_attention = 2 * length * d * d + 2 * frames * d * d + 2 * length * frames * d
    decoder = dims.n_text_layer * (self_attention + cross_attention + 8 * length * d * d)
    output = batch.target_tokens * d * dims.n_vocab
    return 2 * (clips * (encoder * (3 if train_encoder else 1) + 3 * decoder) + 3 * output)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: what utilisation is measured against."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    model: Whisper, examples: list[Example], recordings: AudioCache, args: argparse.Namespace, setup: Setup, rate: float
) -> str:
    """Train a few steps of ``args.batch_size`` clips; return the table's row."""
    batch_size, device = args.batch_size, setup.device
    config = TrainingConfig(lr=1e-5, train_encoder=args.train_encoder, compile=args.compile)
    trainer = Trainer(config, TrainingData(examples, {}, recordings, []), model, setup)
    order = [i for epoch in range(1000) for i in epoch_order(len(examples), 0, epoch)][: batch_size * (args.steps + 3)]
    pin = device.type == "cuda"
    feed = prefetch(make_batch([examples[i] for i in part], recordings, pin) for part in split(order, batch_size))
    if pin:
        torch.cuda.reset_peak_memory_stats(device)
    clips = flops = waited = 0.0
    for number in range(args.steps + 3):
        if number == 3:  # the first ones warm up
            synchronize(device)
            start, clips, flops, waited = time.perf_counter(), 0.0, 0.0, 0.0
        asked = time.perf_counter()
        batch = next(feed)
        waited += time.perf_counter() - asked
        trainer.training_step([batch], batch.target_tokens)
        clips += len(batch)
        flops += step_flops(model, batch, args.train_encoder)
    synchronize(device)
    seconds = time.perf_counter() - start
    memory = (
        torch.cuda.max_memory_allocated(device) if pin else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    cells = [
        f"{args.size}{' compiled' if args.compile else ''}",
        setup.precision.name,
        batch_size,
        f"{clips / seconds:.1f}",
    ]
    cells += [f"{1000 * seconds / args.steps:.0f}", f"{100 * flops / seconds / rate:.0f} %"]
    cells += [f"{100 * waited / seconds:.2f} %", f"{memory / 2**30:.2f} GiB"]
    return f"| {' | '.join(map(str, cells))} |"


def accumulation_error(examples: list[Example], recordings: AudioCache) -> tuple[float, float]:
    """How far 4 × 4 accumulated is from a batch of 16, in fp32 on the CPU: gradient and update, relative."""
    original = make_model("tiny")
    gradients, updates = [], []
    for size in (16, 4):
        model = copy.deepcopy(original)
        config = TrainingConfig(lr=1e-3, warmup_steps=0, clip_grad=0)
        trainer = Trainer(config, TrainingData(examples, {}, recordings, []), model, Setup(torch.device("cpu")))
        trainer.optimizer.register_step_pre_hook(
            lambda *_, model=model: gradients.append(torch.cat([p.grad.flatten() for p in model.decoder.parameters()]))
        )
        batches = [make_batch(part, recordings) for part in split(examples[:16], size)]
        trainer.training_step(batches, sum(batch.target_tokens for batch in batches))
        moved = zip(model.decoder.parameters(), original.decoder.parameters(), strict=True)
        updates.append(torch.cat([(new - old).detach().flatten() for new, old in moved]))
    gradient, step = (((a - b).norm() / a.norm()).item() for a, b in (gradients, updates))
    return gradient, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--train-encoder", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    device, reason = choose_device(args.device)
    model = make_model(args.size).to(device)
    precision = choose_precision(args.precision, device, model)
    tokenizer = get_tokenizer(True, num_languages=99, language="ar", task="transcribe")
    corpus = open_corpus(args.data)
    ayat, _ = corpus.select(corpus.reciters)
    sources = {reciter: [ayah.audio for ayah in ayat if ayah.reciter == reciter] for reciter in corpus.reciters}
    with tempfile.TemporaryDirectory() as cache:
        recordings = prepare_audio(sources, Path(cache), workers=4)
        examples, _ = build_examples(ayat, recordings, tokenizer, 30, 448)
        setup = Setup(device, precision)
        rate = matmul_rate(device, precision.dtype)
        print(f"\n{device}: {reason}; {rate / 1e12:.2f} TFLOP/s on a large {precision.name} matrix product")
        print(f"{len(examples)} real ayat, encoder {'trained' if args.train_encoder else 'frozen'}, random weights\n")
        print("| model | precision | batch | clips/s | ms a step | utilisation | waiting for data | memory |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for batch_size in args.batch_size:
            args.batch_size = batch_size
            print(measure(model, examples, recordings, args, setup, rate))
        gradient, step = accumulation_error(examples, recordings)
        print("\n4 × 4 accumulated against a batch of 16, fp32, relative:")
        print(f"gradients differ by {gradient:.1e}, AdamW's first updates by {step:.1e}")


if __name__ == "__main__":
    main()
