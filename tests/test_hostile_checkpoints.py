"""A checkpoint is untrusted: nothing in it is run, it is refused in one line, and DEST stays as it was."""

import argparse
import collections
import datetime
import enum
import functools
import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_checkpoint import same_weights, small_whisper

import convert
from whisper_quran.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from whisper_quran.checkpoints.torch_file import read_torch_file
from whisper_quran.runtime.errors import UserError, run_command


class Call:
    """Pickled, an instruction to call ``function`` with ``args``."""

    def __init__(self, function: Callable, *args: object):
        self.reduced = (function, args)

    def __reduce__(self) -> tuple:
        return self.reduced


def torch_zip(path: Path, program: bytes, method: int = zipfile.ZIP_STORED, **storages: bytes) -> Path:
    """A file laid out as `torch.save` does, around any pickle."""
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/version", "3\n")
        for key, data in storages.items():
            file.writestr(f"archive/data/{key.removeprefix('_')}", data)
    return path


def refused(source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which ``convert.py`` refuses ``source``, leaving the DEST that is there as it was."""
    dest = source.parent / "dest"
    dest.mkdir(exist_ok=True)
    (dest / "model.pt").write_text("as it was")
    sys.argv = ["convert.py", str(source), str(dest / "model.pt"), "--force"]
    with pytest.raises(SystemExit) as exit:
        run_command(convert.main)
    assert exit.value.code == 2
    assert [path.name for path in dest.iterdir()] == ["model.pt"]
    assert (dest / "model.pt").read_text() == "as it was"
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1 and line.startswith("error: ") and str(source.parent) in line
    assert line[:-1].isprintable()
    return line


@pytest.fixture(autouse=True)
def own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def attacks(proof: Path) -> dict[str, object]:
    """Values that, unpickled, leave the file ``proof``."""
    code, touch = f"open({str(proof)!r}, 'w').close()", f"touch {proof}"
    return {
        "os.system": Call(os.system, touch),
        "exec": Call(exec, code),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", str(proof)]),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        "deep": [1, {"deep": [Call(os.mkdir, str(proof))]}],
        "a library": Call(np.save, str(proof) + ".npy", [1]),
        "a key": {Call(os.system, touch): 1},
    }


@pytest.mark.parametrize("name", attacks(Path("proof")))
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_whisper_is_read_past_calls_that_are_never_made(name: str, protocol: int, tmp_path: Path) -> None:
    proof, model = tmp_path / "proof" / "made", small_whisper()
    proof.parent.mkdir()
    attack = attacks(proof)[name]
    pickle.loads(pickle.dumps(attack, protocol))
    assert list(proof.parent.iterdir()), "the attack does not work"
    for path in proof.parent.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    state = {**model.state_dict(), "callbacks": attack}
    torch.save({"callbacks": attack, "state_dict": state}, tmp_path / "model.ckpt", pickle_protocol=protocol)
    assert same_weights(load_checkpoint(tmp_path / "model.ckpt"), model)
    assert not list(proof.parent.iterdir())


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"(S'touch %s'\nios\nsystem\n.", id="INST"),
        pytest.param(b"(cos\nsystem\nS'touch %s'\no.", id="OBJ"),
        pytest.param(b"\x80\x04\x8c\x05posix\x8c\x06system\x93V" + b"touch %s\n\x85R.", id="STACK_GLOBAL"),
        pytest.param(b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93Vtouch %s\n\x85R.", id="through a harmless module"),
        pytest.param(b"c__builtin__\neval\n(S'open(\"%s\",\"w\")'\ntR.", id="Python 2's name"),
        pytest.param(b"c__builtin__\ngetattr\np0\n(g0\n(cos\npath\nVos\ntRVsystem\ntR(Vtouch %s\ntR.", id="getattr"),
        pytest.param(b"ctypes\nSimpleNamespace\n)R}S'__setstate__'\ncos\nsystem\nsbS'touch %s'\nb.", id="BUILD"),
        pytest.param(b"csubprocess\nPopen\n((S'touch'\nS'%s'\nlt\x81}b.", id="NEWOBJ"),
        pytest.param(b"cfunctools\npartial\n(cposix\nsystem\nVtouch %s\ntR(tR.", id="what a call returned"),
    ],
)  # fmt: skip
def test_no_instruction_of_a_pickle_calls_anything(program: bytes, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    program = program.replace(b"%s", str(proof).encode())
    try:
        read_torch_file(torch_zip(tmp_path / "m.pt", program))
    except UserError as error:
        assert "it cannot be read" in str(error)  # by the unpickler: the file around it is whole
    assert not proof.exists()
    if b"Popen" not in program:  # which is made by NEWOBJ, and not initialised
        pickle.loads(program)
        for _ in range(100):
            if not proof.exists():
                time.sleep(0.01)
        assert proof.exists(), "the attack does not work"


def test_instructions_that_fill_a_name_change_nothing(tmp_path: Path) -> None:
    """BUILD, APPENDS and SETITEMS on the names themselves, and on the functions that stand behind them."""
    model = small_whisper()
    torch.save(model.state_dict(), tmp_path / "good.pt")
    before = torch._utils._rebuild_tensor_v2.__dict__.copy(), torch._utils._rebuild_tensor_v2.__defaults__
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cbuiltins\ngetattr\n"):
        for filled in (b"}(S'__call__'\nNub", b"N}(S'__defaults__'\nNu\x86b", b"(S'x'\nNu", b"(NNe", b"(N\x90"):
            read_torch_file(torch_zip(tmp_path / "fill.pt", b"\x80\x04" + target + filled + b"."))
    assert (torch._utils._rebuild_tensor_v2.__dict__, torch._utils._rebuild_tensor_v2.__defaults__) == before
    assert same_weights(load_checkpoint(tmp_path / "good.pt"), model)


def test_no_module_that_a_pickle_names_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "booby_trap.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    torch_zip(tmp_path / "trap.pt", b"cbooby_trap\nConfig\n)\x81}S'lr'\nF0.1\nsb.")
    with pytest.raises(UserError, match=r"holds a whole Config"):
        load_checkpoint(tmp_path / "trap.pt")
    assert "booby_trap" not in sys.modules and not (tmp_path / "proof").exists()


def test_torchscript_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    assert "is a TorchScript program" in refused(tmp_path / "script.pt", capsys)


class Config:
    """Hyper-parameters; gone before the checkpoint is read."""

    def __init__(self, **values: object):
        self.__dict__.update(values)


class Names(dict):
    pass


class Layers(list):
    pass


class Precision(enum.Enum):
    HALF = 16


def hyper_parameters() -> dict[str, object]:
    """Of every kind that real ones are: what `torch.load(weights_only=True)` refuses among them."""
    counts: collections.defaultdict = collections.defaultdict(list, a=[1])
    return {
        "config": Config(lr=1e-4, nested=Config(path=Path("/data"))),
        "dicts": [Names(a=1), counts, collections.OrderedDict(a=1), collections.Counter("aab"), {(1, ("a", 2)): 3}],
        "lists": [Layers([1, 2]), collections.deque([1], maxlen=3), {1, 2}, frozenset({(1, 2)}), (1, (2, (3,)))],
        "values": [Precision.HALF, np.float64(0.1), np.arange(3), torch.float16, torch.device("cpu"), 1j, b"x", 2**100],
        "times": [datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(1), slice(1, 2), range(3)],
        "others": [argparse.Namespace(a=1), functools.partial(torch.nn.functional.gelu, approximate="tanh")],
        "types": [Config, torch.optim.AdamW, torch.nn.functional.gelu, len],
        "tensors": [torch.nn.Parameter(torch.ones(2)), torch.ones(3).to_sparse(), torch.Size([1]), torch.Generator()],
        "storages": [torch.ones(2).untyped_storage(), torch.ones(2).to(torch.float8_e4m3fn), torch.empty(0)],
    }


@pytest.mark.parametrize("protocol", [2, 5])
def test_hyper_parameters_of_every_kind_open_without_their_classes(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_whisper()
    contents = {"hyper_parameters": hyper_parameters(), "state_dict": model.state_dict()}
    torch.save(contents, tmp_path / "notebook.ckpt", pickle_protocol=protocol)
    for name in ("Config", "Names", "Layers", "Precision"):
        monkeypatch.delattr(sys.modules[__name__], name)
    assert same_weights(load_checkpoint(tmp_path / "notebook.ckpt"), model)


MEMORY_EATERS = {
    "a memo of 4 billion places": b"\x80\x02]r\xff\xff\xff\xff.",
    "a string of 2**60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "a bytearray of 2**40 bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a frame of 2**60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "a number of a gigabyte": b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b"\1.",
    "a key that takes for ever": b"\x80\x02}()" + b"2\x86" * 500 + b"K\x01u.",
    "a storage whose name takes for ever": b"\x80\x02(Vstorage\nctorch\nFloatStorage\n)"
    + b"2\x86" * 500
    + b"VcpuK\1tQ.",
    "a million sets": b"\x80\x04(" + b"\x8f" * 1_000_001 + b"l.",
}


@pytest.mark.parametrize("eater", MEMORY_EATERS)
def test_a_pickle_that_eats_memory_is_refused(eater: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch_zip(tmp_path / "eater.pt", MEMORY_EATERS[eater])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "eater.pt", capsys)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


LONG_KEY = "decoder." * 20_000
REPEATERS = {
    "one dict under many names": lambda weights: dict.fromkeys(map(str, range(4000)), weights),
    "a long key in many dicts": lambda weights: {str(i): {LONG_KEY: weights["decoder.ln.7"]} for i in range(4000)},
}


@pytest.mark.parametrize("repeater", REPEATERS)
def test_a_small_file_that_repeats_itself_is_refused_at_once(
    repeater: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = torch.zeros(1)
    torch.save(REPEATERS[repeater]({f"decoder.ln.{i}": one for i in range(4000)}), tmp_path / "repeats.pt")
    assert (tmp_path / "repeats.pt").stat().st_size < 2e6
    started = time.process_time()
    assert "holds no Whisper" in refused(tmp_path / "repeats.pt", capsys)
    assert time.process_time() - started < 3


def test_zip_bombs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = b"\x80\x02]" + b"N" * 200_000_000 + b"."
    torch_zip(tmp_path / "bomb.pt", program, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 1e6
    assert "not as torch.save writes" in refused(tmp_path / "bomb.pt", capsys)
    torch_zip(tmp_path / "fat.pt", program)
    assert "not as torch.save writes" in refused(tmp_path / "fat.pt", capsys)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("word/document.xml", b"<x/>")
    assert "not as torch.save writes" in refused(tmp_path / "other.pt", capsys)


DIMS = {
    "of other types": {"n_mels": "80", "n_audio_head": [1]},
    "tensors": {"n_mels": torch.ones(3), "n_audio_head": torch.ones(2)},
    "without bounds": {"n_audio_head": 10**400, "n_text_layer": -(10**400)},
    "huge": {"n_audio_layer": 2**31, "n_vocab": 2**63},
    "zero": {"n_audio_head": 0},
}


@pytest.mark.parametrize("kind", DIMS)
def test_absurd_dims_are_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_whisper()
    torch.save({"dims": {**vars(model.dims), **DIMS[kind]}, "model_state_dict": model.state_dict()}, tmp_path / "m.pt")
    line = refused(tmp_path / "m.pt", capsys)
    assert "contradicts itself" in line or "number of heads" in line


def tensor(storage: str, elements: int, offset: int, size: tuple, stride: tuple) -> Call:
    """Pickled, a float32 tensor as torch writes it, on a GPU that is not here."""

    class Place:
        persistent_id = ("storage", torch.FloatStorage, storage, "cuda:7", elements)

    return Call(torch._utils._rebuild_tensor_v2, Place(), offset, size, stride, False, {})


class TorchPickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        return getattr(value, "persistent_id", None)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param((10**9, 0, (10**9, 64), (0, 0)), id="a billion rows of one number"),
        pytest.param((16, 0, (16, 16), (1, 1)), id="rows that overlap"),
        pytest.param((16, 0, (17,), (1,)), id="past the end"),
        pytest.param((16, -4, (4,), (1,)), id="before the beginning"),
        pytest.param((16, 15, (4,), (-1,)), id="backwards"),
        pytest.param((16, 0, (4,) * 500, (0,) * 500), id="500 axes"),
        pytest.param((16, 0, ("4",), (1,)), id="a size that is no number"),
    ],
)
def test_tensors_that_lie_about_their_place_are_refused(
    place: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = io.BytesIO()
    TorchPickler(program, 2).dump({"decoder.token_embedding.weight": tensor("0", *place)})
    torch_zip(tmp_path / "liar.pt", program.getvalue(), _0=bytes(64))
    assert "damaged" in refused(tmp_path / "liar.pt", capsys)


def test_a_tensor_of_a_gpu_is_read_on_a_machine_without(tmp_path: Path) -> None:
    program, numbers = io.BytesIO(), np.arange(16, dtype=np.float32)
    TorchPickler(program, 2).dump({"x": tensor("0", 16, 4, (2, 3), (6, 1))})
    torch_zip(tmp_path / "cuda.pt", program.getvalue(), _0=numbers.tobytes())
    assert read_torch_file(tmp_path / "cuda.pt")["x"].tolist() == [[4, 5, 6], [10, 11, 12]]


def safetensors_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        pytest.param({"x": {"dtype": "F32", "shape": [10**9, 64], "data_offsets": [0, 64]}}, id="a large shape"),
        pytest.param({"x": {"dtype": "F32", "shape": [16], "data_offsets": [8, 72]}}, id="past the end"),
        pytest.param({"x": {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]}}, id="negative sizes"),
        pytest.param({"\x1b[2J": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}, id="a terminal's command"),
        pytest.param(b'{"x": ' + b"[" * 100_000, id="brackets without end"),
        pytest.param(b"{" + b" " * 100, id="no JSON"),
    ],
)
def test_safetensors_that_lie_are_refused(header: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "damaged" in refused(safetensors_file(tmp_path / "liar.safetensors", header, bytes(64)), capsys)


def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    for elsewhere in ("../secret.safetensors", "/etc/passwd", [], None):
        index = {"weight_map": {"model.encoder.conv1.weight": elsewhere}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "does not name files beside it" in refused(folder, capsys)


def test_one_stored_number_cannot_grow_into_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every tensor of a Whisper, all on the same few bytes."""
    state = small_whisper().state_dict()
    largest = max(tensor.numel() for tensor in state.values())
    one = torch.zeros(largest)
    torch.save({name: one[: tensor.numel()].view(tensor.shape) for name, tensor in state.items()}, tmp_path / "one.pt")
    assert "larger than the file" in refused(tmp_path / "one.pt", capsys)
    # A decoder's mask is the square of its context.
    torch.save({**state, "decoder.positional_embedding": torch.zeros(100_000, 64)}, tmp_path / "long.pt")
    assert "n_text_ctx is 100000" in refused(tmp_path / "long.pt", capsys)


@pytest.mark.parametrize("part", [0.001, 0.5, 0.9999])
def test_truncated_files_are_refused(part: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path / "whole.pt", small_whisper())
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * part)])
    assert "truncated or damaged" in refused(tmp_path / "cut.pt", capsys)
    tensors = {"x": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}
    whole = safetensors_file(tmp_path / "whole.safetensors", tensors, bytes(4000)).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(len(whole) * part)])
    if len(whole) * part >= 9:
        assert "truncated or damaged" in refused(tmp_path / "cut.safetensors", capsys)


def test_a_text_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bart has a decoder of Whisper's names, and no ears."""
    names = ["encoder.embed_tokens", "decoder.embed_tokens", "encoder.layers.0.fc1", "decoder.layers.0.fc1"]
    torch.save({f"model.{name}.weight": torch.zeros(64, 64) for name in names}, tmp_path / "pytorch_model.bin")
    assert "encoder.conv1.weight is missing" in refused(tmp_path / "pytorch_model.bin", capsys)
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    assert "another model ('bart')" in refused(tmp_path, capsys)


def test_random_damage_is_refused_or_harmless_but_never_a_traceback(tmp_path: Path) -> None:
    """Bytes changed, lost and added in all that is not weights: the pickle, the zip's directory, the JSON."""
    state = {f"model.{name}": tensor for name, tensor in small_whisper().half().state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"path": Path("/x"), "set": {1}}}, tmp_path / "a.ckpt")
    data = (tmp_path / "a.ckpt").read_bytes()
    start = data.index(b"\x80\x02")
    places = [*range(start, data.index(b"PK", start)), *range(data.index(b"PK\1\2"), len(data))]
    generator = random.Random(0)
    refusals = 0
    for _ in range(150):
        damaged = bytearray(data)
        for place in generator.sample(places, generator.choice([1, 1, 2, 5])):
            replacement = [generator.randbytes(1), b"", generator.randbytes(2)][generator.choice([0, 0, 0, 1, 2])]
            damaged[place : place + 1] = replacement
        (tmp_path / "b.ckpt").write_bytes(damaged)
        try:
            load_checkpoint(tmp_path / "b.ckpt")
        except UserError as error:
            assert str(error).isprintable()
            refusals += 1
    assert refusals > 75
