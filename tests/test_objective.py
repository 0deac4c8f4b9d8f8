"""The loss, its normalisation over a step, and what is trained."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_whisper
from whisper.model import Whisper

from whisper_quran.checkpoints.checkpoint import load_checkpoint
from whisper_quran.config import TrainingConfig
from whisper_quran.data.ayat import Ayah
from whisper_quran.data.batches import Batch, Clip
from whisper_quran.data.features import audio_mask, encode, log_mel
from whisper_quran.data.prepare import Example, TrainingData
from whisper_quran.runtime.device import Precision
from whisper_quran.runtime.errors import UserError
from whisper_quran.training.loss import Objective, attend_to_audio
from whisper_quran.training.optimizer import parameter_groups, schedule
from whisper_quran.training.trainer import Trainer

CPU = torch.device("cpu")
PROMPT = 4


def make_batch(texts: list[list[int]], seed: int) -> Batch:
    """Clips of noise whose texts are ``texts`` (token ids), as the dataset would collate them."""
    length = max(map(len, texts)) + PROMPT
    tokens = torch.full((len(texts), length), 50257)
    positions, targets = [], []
    for row, text in enumerate(texts):
        whole = [50258, 50272, 50359, 50363, *text, 50257]
        tokens[row, : len(whole) - 1] = torch.tensor(whole[:-1])
        positions += [row * length + i for i in range(PROMPT - 1, len(whole) - 1)]
        targets += whole[PROMPT:]
    # One noise a text, so that a clip is the same in whatever batch it stands.
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(texts))]
    audio = torch.stack([torch.randint(-9000, 9000, (8000,), generator=each) for each in generators]).to(torch.int16)
    clips = [Clip(seed + i, 8000) for i in range(len(texts))]
    return Batch(audio, tokens, torch.tensor(positions), torch.tensor(targets), clips)


def trainer_of(model: Whisper, train_encoder: bool = False) -> Trainer:
    """A trainer of ``model`` in fp32, in one process, at its full learning rate, whose data no test here reads."""
    config = TrainingConfig(lr=1e-3, warmup_steps=0, train_encoder=train_encoder)
    return Trainer(config, TrainingData([None], {}, None, []), model, CPU, Precision("fp32", ""))


def step(trainer: Trainer, batches: list[Batch]) -> tuple[float, float]:
    """A training step of ``batches`` and no other clips."""
    return trainer.training_step(batches, sum(batch.target_tokens for batch in batches))


def test_the_loss_is_the_cross_entropy_of_whispers_own_logits_over_text_and_eot():
    model = make_whisper()
    batch = make_batch([[10, 11, 12], [20], [30, 31, 32, 33, 34]], seed=0)
    mel = torch.randn(3, 80, 3000)
    loss = Objective(model, train_encoder=False)(model.encoder(mel), batch.tokens, batch.positions, batch.targets)
    logits = model(mel, batch.tokens).flatten(0, 1)
    labels = torch.full((len(logits),), -100)
    labels[batch.positions] = batch.targets
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
    assert batch.target_tokens == 3 + 1 + 5 + 3


@pytest.mark.parametrize("train_encoder", [False, True])
def test_accumulating_4_by_4_is_the_update_of_a_batch_of_16(train_encoder):
    """Texts of 1 to 16 tokens: a mean of micro-batch means would differ in the second digit."""
    texts = [list(range(100, 101 + n)) for n in range(16)]
    gradients, weights = [], []
    for size in (16, 4):
        model = make_whisper()
        trainer = trainer_of(model, train_encoder)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        start = torch.cat([parameter.detach().flatten() for parameter in trained])
        trainer.optimizer.register_step_pre_hook(
            lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in trained]))  # noqa: B023
        )
        step(trainer, [make_batch(texts[at : at + size], seed=at) for at in range(0, 16, size)])
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trained]) - start)
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-5
    # Adam's first step is a gradient's sign: in a random encoder a few gradients are rounding noise, of either sign.
    assert (weights[0] - weights[1]).norm() / weights[0].norm() < (1e-4 if train_encoder else 1e-5)


def test_a_frozen_encoder_has_no_gradient_no_state_and_does_not_move():
    model = make_whisper()
    before = copy.deepcopy(model.state_dict())
    trainer = trainer_of(model)
    batch = make_batch([[10, 11], [12]], seed=0)
    step(trainer, [batch])
    assert not trainer.audio(batch)[0].requires_grad
    held = {id(parameter) for parameter in trainer.optimizer.state}
    for name, parameter in model.named_parameters():
        frozen = name.startswith("encoder.")
        assert torch.equal(parameter, before[name]) == frozen, name
        assert (id(parameter) in held) != frozen
        assert parameter.requires_grad != frozen


def test_no_decay_on_biases_and_layernorm_and_every_parameter_once():
    model = make_whisper(layers=2)
    objective = Objective(model, train_encoder=True)
    decayed, spared = (group["params"] for group in parameter_groups(objective, 0.01))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(decayed) + len(spared) == len(names)
    for parameter in spared:
        name = names[id(parameter)]
        assert name.endswith("bias") or "_ln." in name or ".ln" in name, name
    assert all(not names[id(p)].endswith("bias") and "ln" not in names[id(p)] for p in decayed)


def test_a_step_that_is_not_finite_changes_nothing():
    model = make_whisper()
    trainer = trainer_of(model, train_encoder=True)
    before = copy.deepcopy(model.state_dict())
    batch = make_batch([[10, 11]], seed=0)
    hook = model.decoder.ln.register_forward_hook(lambda *args: args[-1] * float("nan"))
    loss, norm = step(trainer, [batch])
    hook.remove()
    assert loss != loss and norm != norm
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    step(trainer, [batch])
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_checkpointed_activations_give_the_same_gradients():
    batch = make_batch([[10, 11, 12], [13]], seed=0)
    mel = torch.randn(2, 80, 3000)
    gradients = []
    for recompute in (False, True):
        model = make_whisper(layers=2)
        objective = Objective(model, train_encoder=True, grad_checkpoint=recompute)
        objective(mel, batch.tokens, batch.positions, batch.targets).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("encoder", ["frozen", "trained", "trained under a mask, as on a GPU"])
def test_padding_to_the_longest_clip_changes_neither_loss_nor_gradients(encoder):
    """Contexts of 8, 12 and 30 s in one batch, against one by one; texts below and above a head's 64 dimensions."""
    texts, contexts = [[10, 11], [*range(70)], [12]], [400, 600, 1500]
    batch = make_batch(texts, seed=0)
    gradients, losses = [], []
    for together in (True, False):
        model = make_whisper(layers=2)
        objective = Objective(model, train_encoder=encoder != "frozen")
        mels = log_mel(batch.audio, 80, contexts)
        groups = [[0, 1, 2]] if together else [[0], [1], [2]]
        loss = torch.zeros(())
        for rows in groups:
            part = make_batch([texts[row] for row in rows], seed=0)
            its = [contexts[row] for row in rows]
            audio, mask = mels[rows, :, : 2 * max(its)], audio_mask(its, CPU)
            assert (mask is not None) == together
            if encoder == "trained":
                loss = loss + objective(audio, part.tokens, part.positions, part.targets, mask)
            else:
                features = encode(model.encoder, audio, mask)
                loss = loss + objective.loss(features, part.tokens, part.positions, part.targets, mask)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*losses)
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-5


@pytest.mark.parametrize("length", [1, 20, 64, 65])
def test_attention_to_the_audio_is_whispers_own_in_values_and_gradients(length):
    attention = make_whisper().decoder.blocks[0].cross_attn
    state = attention.query.in_features
    results = []
    for attend in (lambda _, x, audio: attention(x, audio)[0], attend_to_audio):
        torch.manual_seed(0)
        x, audio = torch.randn(2, length, state, requires_grad=True), torch.randn(2, 1500, state, requires_grad=True)
        attention.zero_grad()
        attended = attend(attention, x, audio)
        (attended * torch.randn_like(attended)).sum().backward()
        results.append([attended, x.grad, audio.grad, *(parameter.grad for parameter in attention.parameters())])
    for own, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


def test_attention_to_the_audio_is_about_as_near_fp32_in_bf16_as_whispers_own(base_weights):
    """On real weights, whose audio features have a few large dimensions."""
    model = load_checkpoint(base_weights / "base.pt", CPU)
    audio = model.encoder(torch.randn(2, 80, 3000)).detach()
    x = torch.randn(2, 20, 512)
    for block in model.decoder.blocks:
        exact = block.cross_attn(x, audio)[0]
        with Precision("bf16", "").autocast(CPU):
            own = block.cross_attn(x, audio.bfloat16())[0]
            ours = attend_to_audio(block.cross_attn, x, audio.bfloat16())
        assert (ours - exact).norm() < 1.5 * (own - exact).norm()


def test_a_steps_micro_batches_have_clips_of_one_length(tmp_path):
    lengths = [16_000 * (8 + (7 * n) % 16) for n in range(16)]
    examples = [Example(Ayah("r", tmp_path / f"{n}.mp3", ""), n, (1, 2, 3), 1) for n in lengths]

    class Silence:
        def read(self, audio):
            return np.zeros(next(e.samples for e in examples if e.ayah.audio == audio), np.int16)

    model = make_whisper()
    config = TrainingConfig(batch_size=8, accumulate=2, lr=1e-3, warmup_steps=0, train_encoder=True)
    trainer = Trainer(config, TrainingData(examples, {}, Silence(), []), model, CPU, Precision("fp32", ""))
    (taken,) = trainer.steps()
    assert [batch.audio.shape[1] // 16_000 for batch in taken.batches] == [9, 11, 13, 15, 17, 19, 21, 23]
    assert taken.clips == 16


def test_the_schedule_warms_up_then_falls_to_nothing():
    rates = [schedule(step, warmup_steps=2, total_steps=10) for step in range(11)]
    assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])
    assert schedule(0, warmup_steps=0, total_steps=1) == 1.0
    assert schedule(5, warmup_steps=20, total_steps=10) > 0


def test_with_a_gradient_scaler_an_overflow_is_skipped_and_an_empty_share_is_none():
    """The whole of the fp16 path, which runs on a CPU as well, but for the precision itself."""
    model = make_whisper()
    trainer = trainer_of(model)
    trainer.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = copy.deepcopy(model.state_dict())
    batch = make_batch([[10, 11, 12], [13]], seed=0)

    assert not math.isfinite(step(trainer, [batch])[1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scaler.get_scale() == 2.0**126
    scaler.load_state_dict(scaler.state_dict() | {"scale": 1024.0})
    for parameter in model.decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert trainer.training_step([], batch.target_tokens)[0] == 0  # a process without clips, on resuming
    scaled = step(trainer, [batch])
    expected = step(trainer_of(make_whisper()), [batch])
    assert scaled[0] == pytest.approx(expected[0], rel=0.1) and math.isfinite(scaled[1])


def test_memory_that_runs_out_once_gradients_are_summed_is_no_reason_to_begin_the_step_again(monkeypatch):
    """Other processes have summed them too: this one alone would wait for ever."""
    trainer = trainer_of(make_whisper())

    def out_of_memory() -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trainer.optimizer, "step", out_of_memory)
    with pytest.raises(UserError, match="no memory for the optimiser"):
        step(trainer, [make_batch([[10, 11]], seed=0)])
