"""Low-rank adapters: what is trained, what is saved, and going on."""

import pytest
import torch
from conftest import RUN, make_whisper, results_of

from whisper_quran.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from whisper_quran.config import TrainingConfig
from whisper_quran.data.prepare import TrainingData
from whisper_quran.runtime.device import Precision
from whisper_quran.runtime.errors import UserError
from whisper_quran.training.loss import add_adapters
from whisper_quran.training.trainer import Trainer

CPU = torch.device("cpu")
TOKENS = torch.arange(10, 26).view(2, 8)


def trained(encoder: bool = False):
    """A model with adapters that are no longer zero, and its weights as they were before."""
    model = make_whisper(layers=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_adapters(model, 4, encoder, seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):
            torch.nn.init.normal_(parameter, std=0.05)
    return model, before


def test_a_rank_above_the_width_is_refused_before_memory_is_taken():
    for rank in (65, 10**9):  # the latter would take terabytes
        with pytest.raises(UserError, match=f"--lora {rank}: the rank is at most 64"):
            add_adapters(make_whisper(), rank, encoder=False, seed=0)
    add_adapters(make_whisper(), 64, encoder=False, seed=0)


@pytest.mark.parametrize("encoder", [False, True])
def test_the_saved_model_computes_what_the_adapted_one_does(encoder, tmp_path):
    mel = torch.randn(2, 80, 3000)
    untouched = make_whisper(layers=2)
    plain = untouched(mel, TOKENS)
    add_adapters(untouched, 4, encoder, seed=0)
    assert torch.equal(untouched(mel, TOKENS), plain)  # zero at first
    model, before = trained(encoder)
    expected = model(mel, TOKENS)
    save_checkpoint(tmp_path / "adapted.pt", model, torch.float32)
    saved = load_checkpoint(tmp_path / "adapted.pt", CPU)
    torch.testing.assert_close(saved(mel, TOKENS), expected, rtol=1e-5, atol=1e-5)
    changed = {name for name, tensor in saved.state_dict().items() if not torch.equal(tensor, before[name])}
    matrices = {name for name, tensor in before.items() if ".blocks." in name and tensor.ndim == 2}
    assert changed == {name for name in matrices if encoder or name.startswith("decoder.")}


def test_nothing_but_the_adapters_is_trained():
    model = make_whisper(layers=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainingConfig(lora=4, lr=1e-2, warmup_steps=0)
    trainer = Trainer(config, TrainingData([None], {}, None, []), model, CPU, Precision("fp32", ""))
    optimised = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in optimised}
    # 2 blocks of the decoder, 10 matrices each, two factors each
    assert len(names) == 40 and all(name.endswith((".0.a", ".0.b")) for name in names)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) < 0.1 * 2**20
    for name, tensor in model.state_dict().items():
        plain = name.replace("parametrizations.weight.original", "weight")
        if plain in before:
            assert torch.equal(tensor, before[plain])


def test_a_run_with_adapters_goes_on_to_the_same_weights_and_saves_an_ordinary_whisper(run, tmp_path):
    options = (*RUN, "--lora", 2, "--lr", 1e-3)
    assert run("--out", tmp_path / "whole", *options)[0] == 0
    assert run("--out", tmp_path / "cut", *options, "--max-time", 1e-9)[0] == 0
    code, out, err = run("--out", tmp_path / "cut", *options, "--resume")
    assert code == 0, err
    assert results_of(tmp_path / "cut") == results_of(tmp_path / "whole")
    model = load_checkpoint(tmp_path / "whole" / "best.pt", CPU)
    assert not any("parametrizations" in name for name in model.state_dict())
    assert "adapters of rank 2 in the decoder" in out
