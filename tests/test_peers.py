"""With the real ones: Lightning's and transformers' checkpoints in, transformers and faster-whisper on what comes out.

The dependency group ``peers``; each test is skipped where its library is missing.
"""

import csv
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
import whisper
from conftest import make_whisper
from test_checkpoint import same_weights, small_whisper
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

from whisper_quran.checkpoints.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from whisper_quran.convert import convert

pytestmark = pytest.mark.peers


NOTEBOOK = """
import dataclasses, enum, pathlib

@dataclasses.dataclass
class Config:
    lr: float
    folder: pathlib.Path

    class Inner:
        pass

class Split(enum.Enum):
    TRAIN = 1
    VALID = 2
"""


@pytest.fixture
def notebook() -> types.ModuleType:
    """A module whose classes are pickled as hyper-parameters, and which is gone when the checkpoint is opened."""
    module = types.ModuleType("notebook")
    exec(NOTEBOOK, module.__dict__)
    sys.modules["notebook"] = module
    yield module
    sys.modules.pop("notebook", None)


def fit(module: object, folder: Path, **trainer: object) -> object:
    """Train ``module`` for two real steps with Lightning and return the trainer."""
    lightning = pytest.importorskip("pytorch_lightning")
    clips = [{"mel": torch.randn(80, 3000), "tokens": torch.randint(0, 50, (5,))} for _ in range(4)]
    trainer = lightning.Trainer(
        **{"max_steps": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, **trainer},
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module, torch.utils.data.DataLoader(clips, batch_size=2))
    return trainer


def lightning_module(model: torch.nn.Module, hyper_parameters: dict[str, object]) -> object:
    """A fine-tuning notebook's LightningModule, around ``model``."""
    lightning = pytest.importorskip("pytorch_lightning")

    class FineTuning(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.loss = torch.nn.CrossEntropyLoss(weight=torch.ones(51864))
            self.save_hyperparameters(hyper_parameters)

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            logits = self.model(batch["mel"], batch["tokens"])
            return self.loss(logits.transpose(1, 2), batch["tokens"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return FineTuning()


@pytest.mark.parametrize("precision, weights_only", [("32-true", False), ("bf16-mixed", True)])
def test_a_lightning_checkpoint_whose_notebook_is_gone(
    precision: str, weights_only: bool, notebook: types.ModuleType, tmp_path: Path
) -> None:
    model = small_whisper()
    hyper_parameters = {
        "config": notebook.Config(5e-4, Path("/kaggle/input")),
        "split": notebook.Split.VALID,
        "inner": notebook.Config.Inner(),
        "durations": np.arange(3.0),
    }
    trainer = fit(lightning_module(model, hyper_parameters), tmp_path, precision=precision)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path, weights_only=weights_only)
    del sys.modules["notebook"]
    for safe in (True, False):
        with pytest.raises(Exception, match=r"weights_only|notebook"):
            torch.load(path, weights_only=safe)
    loaded = load_checkpoint(path)
    assert same_weights(loaded, model)
    assert not same_weights(loaded, small_whisper()), "two steps have trained it"
    assert read_checkpoint(path).left_out == ("loss.weight",)
    convert(path, tmp_path / "model.pt", to="openai", dtype="fp32")
    assert same_weights(whisper.load_model(str(tmp_path / "model.pt"), device="cpu"), loaded)


@pytest.fixture(scope="session")
def transformers() -> types.ModuleType:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    return transformers


def their_whisper(transformers: types.ModuleType, **config: int) -> torch.nn.Module:
    """transformers' own Whisper, with random weights."""
    torch.manual_seed(0)
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    sizes |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**{**sizes, **config}))
    torch.nn.init.normal_(model.model.decoder.embed_positions.weight, std=0.1)
    return model.eval()


def same_logits(theirs: torch.nn.Module, ours: Whisper) -> bool:
    torch.manual_seed(1)
    mel = torch.randn(2, ours.dims.n_mels, 2 * ours.dims.n_audio_ctx)
    tokens = torch.randint(0, ours.dims.n_vocab, (2, 9))
    with torch.no_grad():
        expected = ours(mel, tokens)
        logits = theirs(input_features=mel, decoder_input_ids=tokens).logits
    return bool(expected.std() > 0.1) and torch.allclose(logits.float(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["model.safetensors", "sharded", "pytorch_model.bin", "lightning"])
def test_a_whisper_of_transformers_is_read(layout: str, transformers: types.ModuleType, tmp_path: Path) -> None:
    theirs = their_whisper(transformers, encoder_attention_heads=2)
    if layout == "pytorch_model.bin":
        theirs.config.save_pretrained(tmp_path)
        torch.save(theirs.state_dict(), tmp_path / layout)
    elif layout == "lightning":
        theirs = their_whisper(transformers)
        state = {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()}
        torch.save({"state_dict": state, "pytorch-lightning_version": "2.5"}, tmp_path / "last.ckpt")
    else:
        theirs.save_pretrained(tmp_path, max_shard_size="1MB" if layout == "sharded" else "5GB")
        assert (tmp_path / "model.safetensors.index.json").exists() == (layout == "sharded")
    source = tmp_path / "last.ckpt" if layout == "lightning" else tmp_path
    assert same_logits(theirs, load_checkpoint(source))
    assert read_checkpoint(source).left_out == ()


@pytest.mark.parametrize(
    "size",
    [
        pytest.param({"n_mels": 80, "n_vocab": 51865, "layers": 2}, id="multilingual"),
        pytest.param({"n_mels": 80, "n_vocab": 51864}, id="English"),
        pytest.param({"n_mels": 128, "n_vocab": 51866}, id="large-v3's"),
    ],
)
def test_transformers_loads_and_runs_what_is_written(
    size: dict[str, int], transformers: types.ModuleType, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "model.pt", make_whisper(**size), torch.float32)
    ours = load_checkpoint(tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "hf", to="hf", dtype="fp32")
    theirs, loading = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert theirs.dtype == torch.float32 and same_logits(theirs, ours)
    processor = transformers.WhisperProcessor.from_pretrained(tmp_path / "hf")
    audio = 0.1 * torch.randn(32_000)
    features = processor(audio.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(audio), n_mels=ours.dims.n_mels)
    assert torch.allclose(features[0], mel, atol=1e-3)
    for timestamps in (False, True):
        tokens = theirs.generate(features, max_new_tokens=6, return_timestamps=timestamps)
        assert 0 < tokens.shape[1] <= 12 and tokens.max() < ours.dims.n_vocab
    # And back again, through transformers' own writer.
    theirs.save_pretrained(tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "back.pt", to="openai", dtype="fp32")
    assert (tmp_path / "back.pt").read_bytes() == (tmp_path / "model.pt").read_bytes()


@pytest.mark.parametrize("n_vocab", [51864, 51865, 51866])
def test_the_tokenizer_is_whispers(n_vocab: int, transformers: types.ModuleType, quran: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", make_whisper(n_vocab=n_vocab, n_mels=128 if n_vocab == 51866 else 80))
    convert(tmp_path / "model.pt", tmp_path / "hf", to="hf", dtype="fp16")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = get_tokenizer(n_vocab > 51864, num_languages=100 if n_vocab == 51866 else 99)
    assert len(theirs) == n_vocab
    for token, index in ours.special_tokens.items():
        assert (theirs.convert_tokens_to_ids(token), theirs.convert_ids_to_tokens(index)) == (index, token)
    prompt = "<|startoftranscript|><|ar|><|transcribe|><|notimestamps|> نص<|endoftext|>"
    assert theirs(prompt, add_special_tokens=False).input_ids == ours.encode(prompt, allowed_special="all")
    texts = [
        "Hello, world!  two   spaces\n\n\ttab ",
        "don't we'll I'M 12345 ١٢٣ ½",
        "日本語 한국어 🎉👩‍👩‍👧 e\u0301\u200f\ufeff",
        " a\u00a0b",
    ]
    for name in ("ayah_text_clear.csv", "ayah_text_diacritics.csv"):
        with open(quran / "metadata" / name, encoding="utf-8-sig", newline="") as file:
            texts += [row["text"] for row in csv.DictReader(file)]
    assert len(texts) > 12_000
    encoded = theirs(texts, add_special_tokens=False).input_ids
    for text, tokens in zip(texts, encoded, strict=True):
        assert tokens == ours.encode(text)
        assert theirs.decode(tokens) == ours.decode(tokens)


def test_transformers_transcribes_a_real_recitation(
    base_weights: Path, transformers: types.ModuleType, quran: Path, tmp_path: Path
) -> None:
    convert(base_weights / "base.pt", tmp_path / "hf", to="hf", dtype="fp16")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    samples, rate = soundfile.read(sorted((quran / "audio").glob("*/001002.mp3"))[0], dtype="float32", always_2d=True)
    audio = torchaudio.functional.resample(torch.from_numpy(samples.mean(1)), rate, 16_000)
    features = processor(audio.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    # Neither language nor task is asked for: the generation config says them.
    text = processor.batch_decode(model.generate(features), skip_special_tokens=True)[0]
    assert "الحمد لله" in text


@pytest.fixture
def open_faster_whisper() -> Iterator[Callable[[Path], Any]]:
    """Open a CTranslate2 folder with faster-whisper, on the CPU in fp32."""
    pytest.importorskip("ctranslate2")
    model = pytest.importorskip("faster_whisper").WhisperModel
    options = {"device": "cpu", "compute_type": "float32", "local_files_only": True}
    yield lambda folder: model(str(folder), **options)
    torch.set_num_threads(1)  # CTranslate2 changes the number for the whole process, see conftest.py


def test_faster_whisper_transcribes_as_with_the_real_folder(
    base_weights: Path, open_faster_whisper: Callable[[Path], Any], quran: Path, tmp_path: Path
) -> None:
    convert(base_weights / "base.pt", tmp_path / "ct2", to="ct2", dtype="fp16")
    mp3 = sorted((quran / "audio").glob("*/001002.mp3"))[0]
    texts = []
    for folder in (tmp_path / "ct2", base_weights / "ct2"):
        model = open_faster_whisper(folder)
        for timestamps in (False, True):
            options = {"language": "ar", "without_timestamps": not timestamps, "word_timestamps": timestamps}
            segments, _ = model.transcribe(str(mp3), **options)
            texts.append([(s.text, s.start, s.end, s.words and [w.word for w in s.words]) for s in segments])
    assert texts[:2] == texts[2:] and "الحمد لله" in texts[0][0][0]
