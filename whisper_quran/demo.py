"""``train.py --demo``: synthetic reciters and a small Whisper with random weights.

Only the recordings and the initial weights are synthetic; the run uses the same cache, loop, validation and checkpoints
as any other. Each letter is a vowel-like sound with two formants of its own; each reciter has a pitch, a vocal tract
and a tempo. There are many training voices, because recognising a new voice depends on the number of voices, not of
ayat.
"""

import csv
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from whisper.model import ModelDimensions, Whisper

from .checkpoints.checkpoint import save_checkpoint
from .config import TrainingConfig
from .runtime.files import atomic_write, make_folder

_SAMPLE_RATE = 16000
_VOICES = 40
# Surahs 1, 112 and 114: al-Fatihah, al-Ikhlas and an-Nas.
_TEXT = {
    (1, 1): "بسم الله الرحمن الرحيم",
    (1, 2): "الحمد لله رب العالمين",
    (1, 3): "الرحمن الرحيم",
    (1, 4): "مالك يوم الدين",
    (1, 5): "إياك نعبد وإياك نستعين",
    (1, 6): "اهدنا الصراط المستقيم",
    (1, 7): "صراط الذين أنعمت عليهم غير المغضوب عليهم ولا الضالين",
    (112, 1): "قل هو الله أحد",
    (112, 2): "الله الصمد",
    (112, 3): "لم يلد ولم يولد",
    (112, 4): "ولم يكن له كفوا أحد",
    (114, 1): "قل أعوذ برب الناس",
    (114, 2): "ملك الناس",
    (114, 3): "إله الناس",
    (114, 4): "من شر الوسواس الخناس",
    (114, 5): "الذي يوسوس في صدور الناس",
    (114, 6): "من الجنة والناس",
}
_LETTERS = sorted(set("".join(_TEXT.values())) - {" "})


def make(config: TrainingConfig) -> TrainingConfig:
    """Make the reciters and the model in ``config.out``; return ``config`` with these as its data and model."""
    data = config.out / "demo"
    train, valid = [f"voice_{n:02}" for n in range(_VOICES)], "voice_unheard"
    if not (data / "model.pt").exists():
        _make_reciters(make_folder(data), [*train, valid])
        save_checkpoint(data / "model.pt", _make_model())
    return replace(
        config,
        data=data,
        cache=config.cache or data / "cache",
        model=str(data / "model.pt"),
        train_reciters=tuple(train),
        valid_reciters=(valid,),
    )


def next_steps(config: TrainingConfig) -> str:
    """Return a text on what to run after the demo."""
    return (
        f"{config.out / 'best.pt'} is opened by whisper.load_model; it knows made-up voices only.\n"
        "Next, real recitations, in data/audio/<Reciter>/SSSAAA.mp3 with data/metadata/ayah_text_clear.csv:\n"
        "  python train.py --data data --train-reciters A B --valid-reciters C --out runs/mine"
    )


def _make_model() -> Whisper:
    """Make a one-layer Whisper with random weights, small enough for a CPU, that whisper.load_model opens."""
    torch.manual_seed(0)
    state, heads, layers = 64, 1, 1
    model = Whisper(ModelDimensions(80, 1500, state, heads, layers, 51865, 448, state, heads, layers))
    # openai-whisper leaves the positional embedding uninitialised, and initialises the token embedding, tied to the
    # output layer, far too large for an initial loss near log(vocabulary).
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    torch.nn.init.normal_(model.decoder.token_embedding.weight, std=0.02)
    # The audio must not be too weak beside the sinusoids added to it: with PyTorch's own scale the decoder memorises
    # the texts and distinguishes them by length alone (50 % WER instead of 0 %).
    with torch.no_grad():
        model.encoder.conv1.weight.mul_(3)
        model.encoder.conv2.weight.mul_(3)
    return model


def _make_reciters(data: Path, names: list[str]) -> None:
    make_folder(data / "metadata")
    with atomic_write(data / "metadata" / "ayah_text_clear.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sorah", "ayah", "text"])
        writer.writerows((*key, text) for key, text in _TEXT.items())
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        folder = make_folder(data / "audio" / name)
        pitch, tract, tempo = rng.uniform(85, 170), rng.uniform(0.95, 1.06), rng.uniform(0.85, 1.2)
        cycles = _glottal_cycles(pitch, tract)
        for (surah, ayah), text in _TEXT.items():
            samples = _recite(text, cycles, pitch, tempo, rng)
            with wave.open(str(folder / f"{surah:03}{ayah:03}.wav"), "wb") as file:
                file.setparams((1, 2, _SAMPLE_RATE, 0, "NONE", ""))  # one channel of 16 bits
                file.writeframes(np.rint(32768 * samples).astype("<i2").tobytes())


def _glottal_cycles(pitch: float, tract: float, size: int = 512) -> np.ndarray:
    """Make one cycle of each letter's sound in one voice: (letters + 1, size); the last row, for space, is silent.

    A cycle is a sum of the pitch's harmonics, weighted by two resonances from a 6 × 6 grid, one pair for each letter.
    """
    harmonics = np.arange(1, int(4500 / pitch) + 1)
    frequencies = harmonics * pitch
    spectra = np.zeros((len(_LETTERS) + 1, size // 2 + 1), dtype=complex)
    for index in range(len(_LETTERS)):
        first = tract * np.geomspace(250, 1000, 6)[index % 6]
        second = tract * np.geomspace(1200, 3600, 6)[index // 6]
        weight = sum(np.exp(-(((frequencies - f) / (0.12 * f + 60)) ** 2)) for f in (first, second))
        spectra[index, harmonics] = weight * np.exp(1j * harmonics**2)  # spread phases: no sharp peaks
    cycles = np.fft.irfft(spectra, axis=1)
    return cycles / np.maximum(np.abs(cycles).max(axis=1, keepdims=True), 1e-9)


def _recite(text: str, cycles: np.ndarray, pitch: float, tempo: float, rng: np.random.Generator) -> np.ndarray:
    """Synthesise ``text`` with ``cycles``: about 200 ms a letter, with some vibrato, uneven tempo and noise."""
    letters = np.array([_LETTERS.index(c) if c != " " else len(_LETTERS) for c in f" {text} "])
    seconds = np.where(letters == len(_LETTERS), 0.12, 0.2) / tempo * rng.uniform(0.85, 1.15, len(letters))
    lengths = (seconds * _SAMPLE_RATE).astype(int)
    letter_at = np.repeat(letters, lengths)
    time = np.arange(len(letter_at)) / _SAMPLE_RATE
    phase = np.cumsum(pitch * (1 + 0.02 * np.sin(2 * np.pi * 5 * time)) / _SAMPLE_RATE) % 1
    envelope = np.concatenate([np.hanning(length + 2)[1:-1] ** 0.3 for length in lengths])
    samples = cycles[letter_at, (phase * cycles.shape[1]).astype(int)] * envelope
    return (0.3 * samples + 0.005 * rng.standard_normal(len(samples))).astype(np.float32)
