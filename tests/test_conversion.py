"""`convert.py` carries every tensor over as it is, bit for bit, and replaces nothing that it should not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import whisper
from conftest import make_whisper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_checkpoint import small_whisper
from whisper.model import ModelDimensions, Whisper

import convert as command_module
from whisper_quran.checkpoints import checkpoint, huggingface
from whisper_quran.checkpoints.checkpoint import (
    huggingface_name,
    load_checkpoint,
    save_checkpoint,
)
from whisper_quran.checkpoints.dims import tokenizer_for
from whisper_quran.checkpoints.huggingface import byte_characters, merged_pairs
from whisper_quran.convert import convert
from whisper_quran.runtime.errors import UserError
from whisper_quran.runtime.files import lock_folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small Whisper's checkpoint in fp32."""
    save_checkpoint(tmp_path / "model.pt", small_whisper(), torch.float32)
    return tmp_path / "model.pt"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model_state_dict"]


@pytest.mark.usefixtures("no_tokenizer")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    heads=st.integers(1, 3),
    width=st.integers(1, 4),
    n_audio_layer=st.integers(1, 12),
    n_text_layer=st.integers(1, 12),
    n_vocab=st.sampled_from([51864, 51865]),
    seed=st.integers(0, 2**32),
)
def test_from_openai_to_hugging_face_and_back_is_the_identity(
    heads: int, width: int, seed: int, tmp_path_factory: pytest.TempPathFactory, **dims: int
) -> None:
    state = 4 * heads * width
    dims |= {"n_audio_state": state, "n_text_state": state, "n_audio_head": heads, "n_text_head": 2 * heads}
    folder = tmp_path_factory.mktemp("identity")
    save_checkpoint(folder / "model.pt", small_whisper(seed, **dims), torch.float32)
    convert(folder / "model.pt", folder / "hf", to="hf", dtype="fp32")
    convert(folder / "hf", folder / "back.pt", to="openai", dtype="fp32")
    assert (folder / "back.pt").read_bytes() == (folder / "model.pt").read_bytes()


@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("to", ["openai", "hf"])
def test_tensors_are_the_sources_at_the_asked_precision(dtype: torch.dtype, to: str, tmp_path: Path) -> None:
    source = {f"model.{name}": tensor.to(dtype) for name, tensor in small_whisper().state_dict().items()}
    torch.save({"state_dict": source}, tmp_path / "source.ckpt")
    for asked, precision in (("fp16", torch.float16), ("fp32", torch.float32)):
        dest = tmp_path / f"{to}-{asked}"
        convert(tmp_path / "source.ckpt", dest, to=to, dtype=asked)
        read = weights(dest) if to == "openai" else load_file(dest / "model.safetensors")
        for name, tensor in source.items():
            name = name.removeprefix("model.")
            got = read[name if to == "openai" else huggingface_name(name)]
            assert got.dtype == precision and torch.equal(got, tensor.to(precision))


def test_safetensors_of_the_library_are_read_whole_and_sharded(saved: Path, tmp_path: Path) -> None:
    state = {huggingface_name(name): tensor for name, tensor in weights(saved).items()}
    tied = {**state, "proj_out.weight": state["model.decoder.embed_tokens.weight"].clone()}
    save_file(tied, tmp_path / "model.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "model.safetensors", tmp_path / "whole.pt", to="openai", dtype="fp32")
    folder = tmp_path / "sharded"
    folder.mkdir()
    shards = {f"model-0000{part}-of-00003.safetensors": list(state)[part - 1 :: 3] for part in (1, 2, 3)}
    for file, names in shards.items():
        save_file({name: state[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    convert(folder, tmp_path / "sharded.pt", to="openai", dtype="fp32")
    for name in ("whole.pt", "sharded.pt"):
        assert (tmp_path / name).read_bytes() == saved.read_bytes()
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"no file or folder .*model-00002-of-00003.safetensors"):
        load_checkpoint(folder)


def test_an_untied_output_layer_is_refused(saved: Path, tmp_path: Path) -> None:
    state = {huggingface_name(name): tensor for name, tensor in weights(saved).items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"] + 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"proj_out.weight is no copy of the token embedding"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_heads_come_from_config_json(tmp_path: Path) -> None:
    model = small_whisper(n_audio_head=4, n_text_head=2)
    save_checkpoint(tmp_path / "model.pt", model)
    convert(tmp_path / "model.pt", tmp_path / "hf", to="hf", dtype="fp16")
    assert load_checkpoint(tmp_path / "hf").dims == model.dims
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "num_mel_bins": 128}))
    with pytest.raises(UserError, match="contradicts itself: its tensors have n_mels 80"):
        load_checkpoint(tmp_path / "hf")


def test_the_written_folder_says_what_openai_whisper_keeps_in_code(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "tiny.pt", make_whisper(state=384, layers=4))
    convert(tmp_path / "tiny.pt", tmp_path / "hf", to="hf", dtype="fp16")
    names = {"config", "generation_config", "preprocessor_config", "tokenizer", "tokenizer_config"}
    files = {"model.safetensors", "README.md", *(f"{name}.json" for name in names)}
    assert {path.name for path in (tmp_path / "hf").iterdir()} == files
    read = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "hf").glob("*.json")}
    config, generation, features = (read[name] for name in ("config", "generation_config", "preprocessor_config"))
    # As Hugging Face publishes them for openai/whisper-tiny.
    assert (config["d_model"], config["encoder_attention_heads"], config["decoder_ffn_dim"]) == (384, 6, 1536)
    assert (config["eos_token_id"], config["decoder_start_token_id"], config["torch_dtype"]) == (
        50257,
        50258,
        "float16",
    )
    assert generation["alignment_heads"] == [[2, 2], [3, 0], [3, 2], [3, 3], [3, 4], [3, 5]]
    assert generation["begin_suppress_tokens"] == [220, 50257]
    assert generation["suppress_tokens"][:5] == [1, 2, 7, 8, 9]
    assert generation["suppress_tokens"][-8:] == [49870, 50254, 50258, 50358, 50359, 50360, 50361, 50362]
    assert len(generation["suppress_tokens"]) == 88
    assert (generation["language"], generation["task"]) == ("ar", "transcribe")
    assert generation["lang_to_id"]["<|ar|>"] == 50272 and len(generation["lang_to_id"]) == 99
    assert (generation["no_timestamps_token_id"], generation["prev_sot_token_id"]) == (50363, 50361)
    assert (features["feature_size"], features["n_samples"], features["chunk_length"]) == (80, 480_000, 30)
    assert read["tokenizer"]["model"]["vocab"]["Ġthe"] == 264
    assert read["tokenizer"]["added_tokens"][-1]["content"] == "<|30.00|>"


@pytest.mark.parametrize("n_vocab", [51864, 51865, 51866])
def test_merges_give_back_the_vocabulary(n_vocab: int) -> None:
    tokenizer = tokenizer_for(ModelDimensions(80, 1500, 64, 1, 1, n_vocab, 448, 64, 1, 1), "en")
    tokens = [tokenizer.encoding.decode_single_token_bytes(token) for token in range(tokenizer.eot)]
    pairs = merged_pairs(tokens)
    assert len(pairs) == 50_000
    assert [tokens[left] + tokens[right] for left, right in pairs] == [token for token in tokens if len(token) > 1]
    assert len(set(byte_characters())) == 256 and all(character.isprintable() for character in byte_characters())


def test_an_english_whisper_has_no_language(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "en.pt", make_whisper(n_vocab=51864))
    convert(tmp_path / "en.pt", tmp_path / "hf", to="hf", dtype="fp16")
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation["is_multilingual"] is False and "language" not in generation and "lang_to_id" not in generation


def run(*arguments: object) -> str | None:
    """Run the command line and return its refusal, or None."""
    sys.argv = ["convert.py", *map(str, arguments)]
    try:
        command_module.main()
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_the_command_converts_and_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model: Whisper = make_whisper()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"loss.weight": torch.ones(3)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.5"}, tmp_path / "last.ckpt")
    assert run(tmp_path / "last.ckpt", tmp_path / "new" / "model.pt") is None
    printed = capsys.readouterr().out
    assert "left out 1 that are not Whisper's: loss.weight" in printed
    opened = whisper.load_model(str(tmp_path / "new" / "model.pt"), device="cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor.half().float())


def test_dest_is_replaced_only_with_force(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "there.pt").write_text("as it was")
    assert "is there already: give another DEST, or --force" in run(saved, tmp_path / "there.pt")
    assert (tmp_path / "there.pt").read_text() == "as it was"
    assert run(saved, tmp_path / "there.pt", "--force", "--dtype", "fp32") is None
    assert (tmp_path / "there.pt").read_bytes() == saved.read_bytes()
    assert run(saved, tmp_path / "hf", "--to", "hf") is None
    assert "is there already" in run(saved, tmp_path / "hf", "--to", "hf")
    before = (tmp_path / "hf" / "model.safetensors").stat().st_size
    assert run(saved, tmp_path / "hf", "--to", "hf", "--force", "--dtype", "fp32") is None
    assert (tmp_path / "hf" / "model.safetensors").stat().st_size > 1.8 * before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "model.pt", "there.pt"]


def test_force_never_loses_what_a_conversion_did_not_write(saved: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    assert "holds more than a conversion ('thesis.tex')" in run(saved, mine, "--to", "hf", "--force")
    assert "is a folder" in run(saved, mine, "--force")
    assert f"is, or holds, {saved}, which is read" in run(saved, tmp_path, "--to", "hf", "--force")
    assert "is no folder" in run(saved, mine / "thesis.tex", "--to", "hf", "--force")
    assert (mine / "thesis.tex").read_text() == "years of work" and saved.exists()


@pytest.mark.parametrize("to", ["openai", "hf"])
def test_a_conversion_that_fails_half_way_leaves_dest_alone(
    to: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "dest"
    assert run(saved, dest, "--to", to) is None
    before = snapshot(dest)

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint if to == "openai" else huggingface, "at_precision", fail)
    with pytest.raises(KeyboardInterrupt):
        run(saved, dest, "--to", to, "--force", "--dtype", "fp32")
    assert snapshot(dest) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "model.pt"]


KILLED = """
import os, signal, sys
import convert
from whisper_quran import convert as module

moment, *arguments = sys.argv[1:]
replace, calls = module._replace, []

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "before":
    module._replace = kill
elif moment == "after":
    module._replace = lambda *paths: (replace(*paths), kill())
else:  # between the two renames
    rename = module.Path.rename
    module.Path.rename = lambda path, to: kill() if calls else (calls.append(rename(path, to)))
sys.argv = ["convert.py", *arguments]
convert.main()
"""


@pytest.mark.parametrize("to, moment", [("openai", "before"), ("hf", "before"), ("hf", "after"), ("hf", "between")])
def test_a_killed_conversion_leaves_the_old_or_the_new_one(to: str, moment: str, saved: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    assert run(saved, dest, "--to", to) is None
    old = snapshot(dest)
    command = [sys.executable, "-c", KILLED, moment, str(saved), str(dest), "--to", to, "--force", "--dtype", "fp32"]
    killed = subprocess.run(command, cwd=Path(command_module.__file__).parent, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert dest.exists() == (moment != "between")
    if moment != "between":
        assert (snapshot(dest) == old) == (moment == "before")
    # The next conversion puts the old folder back before it looks at DEST, and leaves nothing of the killed one.
    assert "is there already" in run(saved, dest, "--to", to)
    assert (snapshot(dest) == old) == (moment != "after")
    assert run(saved, dest, "--to", to, "--force", "--dtype", "fp32") is None
    assert snapshot(dest) != old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "model.pt"]


def test_of_two_conversions_to_one_dest_the_second_is_refused(saved: Path, tmp_path: Path) -> None:
    with lock_folder(tmp_path / ".new.pt.tmp", "conversion"):
        line = run(saved, tmp_path / "new.pt")
    assert "another conversion is writing" in line and "choose another DEST" in line


def test_what_is_read_is_never_written_over(saved: Path, tmp_path: Path) -> None:
    before = saved.read_bytes()
    (tmp_path / "link.pt").symlink_to(saved)
    os.link(saved, tmp_path / "hard.pt")
    for dest in ("link.pt", "hard.pt", "model.pt", "../" + tmp_path.name + "/model.pt"):
        assert "which is read" in run(saved, tmp_path / dest, "--force")
        assert "which is read" in run(saved, tmp_path / dest, "--to", "hf", "--force")
    assert saved.read_bytes() == before and (tmp_path / "link.pt").is_symlink()


def test_ct2_without_its_libraries_is_one_line(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2.converters", None)
    assert "pip install ctranslate2 transformers" in run(saved, tmp_path / "ct2", "--to", "ct2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def snapshot(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in ([path] if path.is_file() else path.iterdir())}


def test_what_hugging_face_cannot_hold_is_refused(saved: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model80.pt", make_whisper())
    assert "--language xx: not one of Whisper's languages" in run(
        tmp_path / "model80.pt", tmp_path / "hf", "--to", "hf", "--language", "xx"
    )
    assert not (tmp_path / "hf").exists()
    assert "a Whisper .pt has none" in run(saved, tmp_path / "new.pt", "--language", "ar")
