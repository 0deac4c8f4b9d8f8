"""The cache of a frozen encoder's outputs: the same run with and without it, and whatever happens to its files."""

import os

import numpy as np
import pytest
import torch
from conftest import make_whisper, results_of

from whisper_quran.config import TrainingConfig
from whisper_quran.data.encoder_cache import FrozenEncoder, encoder_digest, open_encoder_cache
from whisper_quran.data.features import collate
from whisper_quran.runtime.device import Precision
from whisper_quran.training import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Six clips of noise, 0.5 to 3 s."""
    noise = np.random.default_rng(0)
    return [noise.integers(-9000, 9000, 8000 * n).astype(np.int16) for n in range(1, 7)]


def open_cache(folder, model, dtype="fp32") -> FrozenEncoder:
    encoder = FrozenEncoder(model, Precision(dtype, "").dtype)
    config = TrainingConfig(cache=folder)
    encoder.cache = open_encoder_cache(config, model, Precision(dtype, ""), CPU)
    return encoder


def entries(folder) -> list:
    return sorted(path for path in folder.glob("encoder-*/*") if not path.name.startswith("."))


def encode(encoder: FrozenEncoder, clips: list[np.ndarray]) -> torch.Tensor:
    """As a batch would be, and all that is to be written on disk."""
    features = encoder(collate(clips), encoder.find(clips))
    while encoder.cache and encoder.cache._writing:
        encoder.cache._writing.popleft().result()
    return features


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_each_clip_is_encoded_once_and_is_then_the_same_to_the_last_bit(tmp_path, clips, dtype):
    model = make_whisper()
    alone = torch.cat([encode(FrozenEncoder(model, Precision(dtype, "").dtype), [clip]) for clip in clips])
    encoder = open_cache(tmp_path, model, dtype=dtype)
    assert torch.equal(encode(encoder, clips[:3]), alone[:3])
    assert torch.equal(encode(encoder, clips[1:5]), alone[1:5])  # two known, two not
    assert torch.equal(encode(encoder, clips[4:0:-1]), alone[1:5].flip(0))
    assert encoder.encoded == 5
    encoder.close()
    again = open_cache(tmp_path, model, dtype=dtype)
    assert torch.equal(encode(again, [clips[5], *clips[:5]]), alone[[5, 0, 1, 2, 3, 4]])
    assert again.encoded == 1


def test_the_encoder_leaves_memory_when_all_is_known(tmp_path, clips):
    model = make_whisper()
    encoder = open_cache(tmp_path, model, dtype="bf16")
    encode(encoder, clips)
    encoder.free_memory()
    assert encoder._encoder is not None  # it was needed in this epoch
    encode(encoder, clips)
    encoder.free_memory()
    assert encoder._encoder is None


@pytest.mark.parametrize("damage", ["bit", "cut", "grown", "folder"])
def test_damaged_entries_are_made_again(tmp_path, clips, damage):
    model = make_whisper()
    encoder = open_cache(tmp_path, model)
    whole = encode(encoder, clips)
    victim = encoder.cache.folder / encoder.find([clips[2]]).keys[0]
    content = bytearray(victim.read_bytes())
    victim.unlink()
    if damage == "bit":
        content[1000] ^= 4
    if damage == "cut":
        del content[-5:]
    if damage == "grown":
        content += b"0"
    if damage == "folder":
        victim.mkdir()
    else:
        victim.write_bytes(content)
    again = open_cache(tmp_path, model)
    assert torch.equal(encode(again, clips), whole)
    assert again.encoded == 1
    if damage == "folder":  # it cannot be replaced, and that stops nothing else
        assert again.cache.space > 0
    else:
        healed = open_cache(tmp_path, model)
        encode(healed, clips)
        assert healed.encoded == 0


def test_other_weights_heads_and_precisions_have_other_entries(tmp_path, clips):
    model, other = make_whisper(), make_whisper(seed=1)
    encode(open_cache(tmp_path, model), clips)
    for encoder in (open_cache(tmp_path, other), open_cache(tmp_path, model, dtype="bf16")):
        encode(encoder, clips)
        assert encoder.encoded == len(clips)
    assert len(entries(tmp_path)) == 3 * len(clips)
    halves = make_whisper().half()
    assert encoder_digest(halves) == encoder_digest(halves.float()) != encoder_digest(model)
    heads = encoder_digest(model)
    model.dims.n_audio_head = 2
    assert encoder_digest(model) != heads


def test_a_cache_that_cannot_be_written_is_read(tmp_path, clips, monkeypatch):
    model = make_whisper()
    whole = encode(open_cache(tmp_path / "full", model), clips[:3])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a read-only disk
    for folder, encoded in (("full", 3), ("empty", 6)):
        encoder = open_cache(tmp_path / folder, model)
        assert torch.equal(encode(encoder, clips)[:3], whole)
        assert encoder.encoded == encoded
    assert len(entries(tmp_path / "full")) == 3 and not (tmp_path / "empty").exists()


def test_no_more_is_kept_than_there_is_room_for(tmp_path, clips):
    encoder = open_cache(tmp_path, make_whisper())
    encoder.cache.space = 4
    whole = encode(encoder, clips)
    assert len(entries(tmp_path)) == 4
    assert torch.equal(encode(encoder, clips), whole)
    assert encoder.encoded == 6 + 2


def test_a_disk_that_fills_up_is_one_line(tmp_path, clips, monkeypatch):
    encoder = open_cache(tmp_path, make_whisper())
    lines: list[str] = []
    encoder.cache.log = lines.append

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    whole = encode(encoder, clips)
    monkeypatch.undo()
    assert len(lines) == 1 and "takes no more (No space left on device)" in lines[0]
    assert not list(encoder.cache.folder.iterdir())
    assert torch.equal(encode(encoder, clips), whole)


def test_a_run_is_the_same_with_it_and_without(run, tmp_path, encoded, monkeypatch):
    """Without space beyond the run's own; filled by this run; found there, but for two damaged entries: one result."""
    results = []
    for number, (needed, expected) in enumerate([(10**15, 35), (0, 14), (0, 2)]):
        encoded.clear()
        for path in entries(tmp_path / "cache")[:2]:
            path.write_bytes(b"damaged")
        monkeypatch.setattr(train, "space_needed", lambda *_, needed=needed: needed)
        out = tmp_path / str(number)
        code, _, err = run("--out", out, "--cache", tmp_path / "cache")
        assert code == 0, err
        assert sum(encoded) == expected  # 7 clips, in training and in validation: twice, and 3 times
        results.append(results_of(out))
    assert all(result == results[0] for result in results)
