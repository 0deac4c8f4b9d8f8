"""Checkpoints are opened whatever wrote them, and saved so that Whisper opens them."""

import errno
import io
import math
import re
import subprocess
import sys
import urllib.error
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import whisper
from conftest import make_whisper
from safetensors.torch import save_file
from whisper.model import ModelDimensions, Whisper

from whisper_quran.checkpoints import checkpoint
from whisper_quran.checkpoints.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from whisper_quran.checkpoints.dims import (
    alignment_head_pairs,
    infer_dims,
    named_dims,
    size_name,
    tokenizer_for,
    whisper_shapes,
)
from whisper_quran.checkpoints.names import WHISPER_NAMES, check_model_source
from whisper_quran.runtime.errors import UserError


def small_whisper(seed: int = 0, **dims: int) -> Whisper:
    """An English-only Whisper of one layer."""
    torch.manual_seed(seed)
    sizes = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1}
    sizes |= {"n_vocab": 51864, "n_text_ctx": 8, "n_text_state": 64, "n_text_head": 1, "n_text_layer": 1}
    model = Whisper(ModelDimensions(**{**sizes, **dims}))
    torch.nn.init.normal_(model.decoder.positional_embedding)
    return model.eval()


@pytest.fixture
def model() -> Whisper:
    return small_whisper()


def same_weights(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    left, right = left.state_dict(), right.state_dict()
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def test_whisper_opens_what_is_saved(tmp_path: Path) -> None:
    model = make_whisper()
    path = tmp_path / "model.pt"
    save_checkpoint(path, model)
    saved = torch.load(path, weights_only=True)
    assert list(saved) == ["dims", "model_state_dict"]
    assert list(saved["model_state_dict"]) == list(model.state_dict())
    assert {tensor.dtype for tensor in saved["model_state_dict"].values()} == {torch.float16}
    assert same_weights(whisper.load_model(str(path), device="cpu"), model.half().float())


def test_loading_gives_fp32_weights_ready_to_evaluate(tmp_path: Path, model: Whisper) -> None:
    save_checkpoint(tmp_path / "model.pt", model)
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for name, parameter in loaded.decoder.named_parameters())
    assert not loaded.training
    assert same_weights(loaded, model.half().float())


def test_training_a_loaded_model_leaves_its_file_alone(tmp_path: Path, model: Whisper) -> None:
    save_checkpoint(tmp_path / "model.pt", model, torch.float32)
    before = (tmp_path / "model.pt").read_bytes()
    with torch.no_grad():
        for parameter in load_checkpoint(tmp_path / "model.pt").parameters():
            parameter.zero_()
    for tensor in read_checkpoint(tmp_path / "model.pt").tensors.values():
        tensor.zero_()
    assert (tmp_path / "model.pt").read_bytes() == before


@pytest.mark.parametrize("name, dims", named_dims().items())
def test_every_size_is_known_by_its_tensors(name: str, dims: ModelDimensions, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whisper's one sparse buffer is all that keeps it from being made without memory.
    monkeypatch.setattr(torch.Tensor, "to_sparse", lambda tensor: tensor)
    with torch.device("meta"):
        real = {key: tuple(tensor.shape) for key, tensor in Whisper(dims).state_dict().items()}
    assert list(whisper_shapes(dims).items()) == list(real.items())
    assert infer_dims(real, {}, "it") == dims
    assert size_name(infer_dims(real, {}, "it")) == name


def test_a_named_size_gets_its_alignment_heads(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "mine.pt", make_whisper(state=384, layers=4))
    tiny = [[2, 2], [3, 0], [3, 2], [3, 3], [3, 4], [3, 5]]
    loaded = load_checkpoint(tmp_path / "mine.pt")
    assert loaded.alignment_heads.to_dense().nonzero().tolist() == tiny
    assert alignment_head_pairs(loaded.dims) == tiny
    # No size, or one of two: Whisper's default, all heads of the upper half.
    save_checkpoint(tmp_path / "odd.pt", make_whisper(state=128, layers=3))
    odd = load_checkpoint(tmp_path / "odd.pt")
    assert alignment_head_pairs(odd.dims) == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert odd.alignment_heads.to_dense().nonzero().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    large = alignment_head_pairs(named_dims()["large-v1 or large-v2"])
    assert large == [[layer, head] for layer in range(16, 32) for head in range(20)]


@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.module.net.whisper."])
def test_any_single_prefix_is_stripped_and_what_is_not_whispers_is_named(
    prefix: str, tmp_path: Path, model: Whisper
) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"loss_fn.weight": torch.ones(50), "wer.errors": torch.zeros(1)}
    state = {name.replace("decoder.", "decoder._orig_mod."): tensor for name, tensor in state.items()}  # compiled
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "any.ckpt")
    assert same_weights(load_checkpoint(tmp_path / "any.ckpt"), model)
    assert set(read_checkpoint(tmp_path / "any.ckpt").left_out) == {"loss_fn.weight", "wer.errors"}


def test_a_module_under_two_names_is_one_module(tmp_path: Path, model: Whisper) -> None:
    """`self.model = whisper`, `self.net = compile(self.model)`, `self.decoder = self.model.decoder`."""
    state = {f"{name}.{key}": tensor for name in ("model", "net") for key, tensor in model.state_dict().items()}
    state |= {key: tensor for key, tensor in model.state_dict().items() if key.startswith("decoder.")}
    torch.save(state, tmp_path / "twice.pt")
    assert same_weights(load_checkpoint(tmp_path / "twice.pt"), model)
    assert read_checkpoint(tmp_path / "twice.pt").left_out == ()


def test_another_whisper_in_the_file_is_named(tmp_path: Path, model: Whisper) -> None:
    other = small_whisper(seed=1)
    torch.save({"state_dict": model.state_dict(), "ema": other.state_dict()}, tmp_path / "ema.pt")
    assert same_weights(load_checkpoint(tmp_path / "ema.pt"), model)
    assert read_checkpoint(tmp_path / "ema.pt").left_out == ("ema.* (another Whisper)",)
    distilled = {f"student.{name}": tensor for name, tensor in model.state_dict().items()}
    distilled |= {f"teacher.{name}": tensor for name, tensor in other.state_dict().items()}
    torch.save(distilled, tmp_path / "distilled.pt")
    with pytest.raises(UserError, match=r"several Whispers \(student., teacher.\)"):
        read_checkpoint(tmp_path / "distilled.pt")


def test_tensors_that_share_or_reorder_their_storage_come_out_right(tmp_path: Path, model: Whisper) -> None:
    state = model.state_dict()
    name = "decoder.blocks.0.mlp.0.weight"
    packed = torch.zeros(4, *state[name].shape)
    packed[1] = state[name]
    state[name] = packed[1]  # in the middle of a larger storage
    other = "decoder.blocks.0.mlp.2.weight"
    state[other] = state[other].T.contiguous().T  # column by column
    torch.save(state, tmp_path / "views.pt")
    assert same_weights(load_checkpoint(tmp_path / "views.pt"), model)
    model.get_parameter(name).data = packed[1]
    save_checkpoint(tmp_path / "plain.pt", model, torch.float32)
    assert (tmp_path / "plain.pt").stat().st_size < (tmp_path / "views.pt").stat().st_size - 2 * packed[1].nbytes


def refusal(path: str | Path) -> str:
    """The one line with which reading ``path`` is refused."""
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_partial_checkpoint_is_refused_with_what_it_lacks(tmp_path: Path, model: Whisper) -> None:
    state = model.state_dict()
    torch.save({name: tensor for name, tensor in state.items() if name.startswith("decoder.")}, tmp_path / "decoder.pt")
    assert "encoder.conv1.weight is missing" in refusal(tmp_path / "decoder.pt")
    del state["decoder.blocks.0.cross_attn.key.weight"], state["decoder.ln.bias"]
    torch.save(state, tmp_path / "holes.pt")
    assert "of its 50 tensors it lacks decoder.blocks.0.cross_attn.key.weight, decoder.ln.bias;" in refusal(
        tmp_path / "holes.pt"
    )


def test_more_than_a_whisper_is_refused(tmp_path: Path, model: Whisper) -> None:
    state = model.state_dict()
    state["decoder.blocks.0.attn.query.lora_A"] = torch.zeros(64, 8)
    torch.save(state, tmp_path / "adapter.pt")
    assert "an adapter (LoRA: decoder.blocks.0.attn.query.lora_A)" in refusal(tmp_path / "adapter.pt")
    state["decoder.blocks.0.attn.gate"] = state.pop("decoder.blocks.0.attn.query.lora_A")
    torch.save(state, tmp_path / "gate.pt")
    assert "holds decoder.blocks.0.attn.gate (64, 8), for which a Whisper has no place" in refusal(tmp_path / "gate.pt")
    taller = small_whisper(n_text_layer=2)
    torch.save({"dims": vars(model.dims), "model_state_dict": taller.state_dict()}, tmp_path / "extra_layer.pt")
    assert "its tensors have n_text_layer 2" in refusal(tmp_path / "extra_layer.pt")


def test_wrong_shapes_and_types_are_refused(tmp_path: Path, model: Whisper) -> None:
    state = model.state_dict()
    torch.save({**state, "encoder.conv2.weight": torch.zeros(64, 64, 5)}, tmp_path / "shape.pt")
    assert "holds encoder.conv2.weight (64, 64, 5), for which a Whisper has no place" in refusal(tmp_path / "shape.pt")
    torch.save({**state, "encoder.conv1.weight": torch.zeros(64, 80)}, tmp_path / "axes.pt")
    assert "another number of axes" in refusal(tmp_path / "axes.pt")
    torch.save({**state, "decoder.ln.bias": torch.zeros(64, dtype=torch.int8)}, tmp_path / "int8.pt")
    assert "quantised (decoder.ln.bias is torch.int8)" in refusal(tmp_path / "int8.pt")
    embedding = state["decoder.token_embedding.weight"].to(torch.float8_e4m3fn)
    tied = {**state, "decoder.token_embedding.weight": embedding, "proj_out.weight": embedding.clone()}
    save_file(tied, tmp_path / "float8.safetensors")
    assert "(decoder.token_embedding.weight is torch.float8_e4m3fn)" in refusal(tmp_path / "float8.safetensors")
    torch.save(
        {**state, **small_whisper(n_audio_state=128).encoder.state_dict(prefix="encoder.")}, tmp_path / "wide.pt"
    )
    assert "its encoder is 128 wide and its decoder 64" in refusal(tmp_path / "wide.pt")
    narrow = small_whisper(n_audio_state=40, n_audio_head=2, n_text_state=40, n_text_head=2)
    torch.save(narrow.state_dict(), tmp_path / "narrow.pt")
    assert "does not tell its number of heads" in refusal(tmp_path / "narrow.pt")
    save_checkpoint(tmp_path / "narrow_with_dims.pt", narrow)
    assert load_checkpoint(tmp_path / "narrow_with_dims.pt").dims == narrow.dims


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "no file or folder" in refusal(tmp_path / "nothing.pt")
    assert "tiny.en, tiny, base.en" in refusal(tmp_path / "nothing.pt")
    (tmp_path / "empty.pt").touch()
    assert "is empty" in refusal(tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("بسم الله الرحمن الرحيم", encoding="utf-8")
    assert "is no checkpoint" in refusal(tmp_path / "text.pt")
    assert "holds neither model.safetensors nor pytorch_model.bin" in refusal(tmp_path)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    assert "holds no Whisper" in refusal(tmp_path / "linear.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "holds no dict" in refusal(tmp_path / "list.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "holds a whole Linear" in refusal(tmp_path / "module.pt")
    torch.save({}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "before 2020" in refusal(tmp_path / "old.pt")


def test_large_v3s_vocabulary_is_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", small_whisper(n_vocab=51866, n_mels=128))
    assert tokenizer_for(load_checkpoint(tmp_path / "model.pt").dims, "yue").to_language_token("yue") == 50358
    with pytest.raises(UserError, match="--language yue came with large-v3"):
        tokenizer_for(small_whisper(n_vocab=51865).dims, "yue")


@pytest.mark.parametrize(
    "size, message",
    [
        ({"n_mels": 64}, "n_mels is 64"),
        ({"n_audio_ctx": 750}, "n_audio_ctx is 750"),
        ({"n_text_layer": 0}, "n_text_layer is 0"),
        ({"n_text_ctx": 4}, "n_text_ctx is 4"),
        # A token added to `base` makes it as large as large-v3's, whose special tokens are elsewhere.
        ({"n_vocab": 51866}, "has 51866 tokens and 80 mel bins, as no Whisper has"),
        ({"n_vocab": 51872, "n_mels": 128}, "has 51872 tokens and 128 mel bins, as no Whisper has"),
    ],
)
def test_a_size_that_whisper_cannot_have_is_refused(size: dict[str, int], message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", small_whisper(**size))
    assert message in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("value, dtype", [(math.nan, torch.float16), (-math.inf, torch.bfloat16)])
def test_weights_that_are_no_numbers_are_refused_by_name(
    value: float, dtype: torch.dtype, tmp_path: Path, model: Whisper
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    state["decoder.blocks.0.mlp.0.weight"][7, 5] = value
    save_file(state, tmp_path / "model.safetensors")
    assert "decoder.blocks.0.mlp.0.weight holds values that are not finite" in refusal(tmp_path / "model.safetensors")


def test_a_runs_folder_is_its_best_checkpoint(tmp_path: Path, model: Whisper) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "config.json").write_text('{"model": "small"}')
    assert "without best.pt, which validation chooses: let an epoch end first" in refusal(tmp_path)
    save_checkpoint(tmp_path / "epoch-000.pt", small_whisper(seed=1))
    assert f"give one of its checkpoints, such as {tmp_path / 'epoch-000.pt'}" in refusal(tmp_path)
    save_checkpoint(tmp_path / "best.pt", model, torch.float32)
    assert same_weights(load_checkpoint(tmp_path), model)
    assert read_checkpoint(tmp_path).source == tmp_path / "best.pt"


def test_an_adapter_is_named_as_one(tmp_path: Path) -> None:
    """As PEFT saves it: a folder, or the file in it."""
    lora = {
        f"base_model.model.model.encoder.layers.0.self_attn.q_proj.lora_{part}.weight": torch.zeros(8, 8)
        for part in "AB"
    }
    save_file(lora, tmp_path / "adapter_model.safetensors")
    save_file(lora, tmp_path / "renamed.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for source in (tmp_path, tmp_path / "adapter_model.safetensors", tmp_path / "renamed.safetensors"):
        assert "an adapter (LoRA" in refusal(source) and "merge_and_unload()" in refusal(source)


@pytest.mark.parametrize(
    "source, answer",
    [
        ("bse", "did you mean base?"),
        ("whisper-small", "did you mean small?"),
        ("large-v4", "did you mean large-v"),
        ("openai/whisper-large-v3-turbo", "did you mean large-v3-turbo?"),
        ("someone/whisper-base-quran", "hf download someone/whisper-base-quran --local-dir whisper-base-quran"),
        ("runs/mine/best.pt", "give one, or a Whisper's name: tiny.en"),
        (
            "https://example.org/model.pt",
            "folder https://example.org/model.pt: that is a URL; download",
        ),
        ("base\0", "name: tiny.en"),
        ("m" * 5000, "check the path"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(source: str, answer: str) -> None:
    assert answer in refusal(source)
    with pytest.raises(UserError, match=re.escape(answer)):
        check_model_source(source)


def test_names_are_checked_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from whisper_quran.checkpoints.names import *; check_model_source('base'); "
        f"check_model_source({str(tmp_path)!r}); assert not {{'torch', 'whisper', 'numpy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
    assert whisper.available_models() == WHISPER_NAMES


def test_a_name_that_cannot_be_downloaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **keywords: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(whisper, "load_model", no_network)
    with pytest.raises(UserError, match=r"cannot download the Whisper 'small' .*Name or service not known"):
        load_checkpoint("small")


def test_a_weight_beyond_half_precision_is_refused_not_made_infinite(tmp_path: Path, model: Whisper) -> None:
    with torch.no_grad():
        model.decoder.ln.weight[3] = 70_000
    with pytest.raises(UserError, match=r"decoder.ln.weight holds 7e\+04"):
        save_checkpoint(tmp_path / "model.pt", model)
    assert not list(tmp_path.iterdir())
    save_checkpoint(tmp_path / "model.pt", model, torch.float32)
    assert load_checkpoint(tmp_path / "model.pt").decoder.ln.weight[3] == 70_000


def test_a_full_disk_is_reported_as_one(monkeypatch: pytest.MonkeyPatch, model: Whisper) -> None:
    """torch's zip writer hides it behind an error of its own."""

    class FullDisk(io.BytesIO):
        def write(self, data: bytes) -> int:
            if self.tell() + len(data) > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(checkpoint, "atomic_write", contextmanager(lambda path, mode: (yield FullDisk())))
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint("model.pt", model)
