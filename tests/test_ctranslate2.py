"""CTranslate2's folders, which faster-whisper opens: read as they are, written as CTranslate2 writes them."""

import json
import struct
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import make_whisper, talkative
from test_checkpoint import read_damaged, same_weights, small_whisper
from test_conversion import own_command_line, run  # noqa: F401 (a fixture)
from whisper.model import ModelDimensions

from whisper_quran import EvaluationConfig, evaluate, load_checkpoint
from whisper_quran.checkpoints import ctranslate2
from whisper_quran.checkpoints.checkpoint import read_checkpoint, save_checkpoint
from whisper_quran.checkpoints.convert import convert
from whisper_quran.checkpoints.dims import named_dims, tokenizer_for, whisper_shapes
from whisper_quran.runtime.errors import UserError

TYPES = [torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16]


@dataclass
class Variable:
    """One of model.bin's, as it is stored."""

    shape: tuple[int, ...]
    type: int
    data: bytes
    nbytes: int | None = None  # what the file says, where that is a lie

    @property
    def tensor(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(self.data), dtype=TYPES[self.type]).reshape(self.shape)


@dataclass
class ModelBin:
    """A model.bin, taken apart and put together by other code than the package's."""

    variables: dict[str, Variable]
    aliases: dict[str, str]
    head: tuple[int, str, int] = (6, "WhisperSpec", 3)

    @classmethod
    def read(cls, path: Path) -> "ModelBin":
        data, at = path.read_bytes(), 0

        def take(layout: str) -> tuple:
            nonlocal at
            values = struct.unpack_from("<" + layout, data, at)
            at += struct.calcsize("<" + layout)
            return values

        def text() -> str:
            (length,) = take("H")
            return take(f"{length}s")[0][:-1].decode()

        head = (*take("I"), text(), *take("I"))
        variables = {}
        for _ in range(*take("I")):
            name, (axes,) = text(), take("B")
            shape, (type, nbytes) = take(f"{axes}I"), take("BI")
            variables[name] = Variable(shape, type, *take(f"{nbytes}s"))
        aliases = {text(): text() for _ in range(*take("I"))}
        assert at == len(data)
        return cls(variables, aliases, head)

    def write(self, path: Path) -> Path:
        def text(value: str) -> bytes:
            return struct.pack("<H", len(value.encode()) + 1) + value.encode() + b"\0"

        version, spec, revision = self.head
        parts = [struct.pack("<I", version), text(spec), struct.pack("<II", revision, len(self.variables))]
        for name, variable in self.variables.items():
            nbytes = len(variable.data) if variable.nbytes is None else variable.nbytes
            axes = len(variable.shape)
            parts += [text(name), struct.pack(f"<B{axes}IBI", axes, *variable.shape, variable.type, nbytes)]
            parts += [variable.data]
        parts += [struct.pack("<I", len(self.aliases))]
        parts += [text(name) for pair in self.aliases.items() for name in pair]
        path.write_bytes(b"".join(parts))
        return path


@pytest.fixture
def folder(tmp_path: Path, no_tokenizer: None) -> Path:
    """`small_whisper()` as a CTranslate2 folder, in fp32."""
    save_checkpoint(tmp_path / "model.pt", small_whisper(), torch.float32)
    convert(tmp_path / "model.pt", tmp_path / "ct2", to="ct2", dtype="fp32")
    return tmp_path / "ct2"


def test_the_real_base_is_written_as_ctranslate2_wrote_it(base_weights: Path, tmp_path: Path) -> None:
    convert(base_weights / "base.pt", tmp_path / "ct2", to="ct2", dtype="fp16")
    ours, theirs = (ModelBin.read(path / "model.bin") for path in (tmp_path / "ct2", base_weights / "ct2"))
    assert list(ours.variables) == list(theirs.variables) and len(ours.variables) == 214
    for name, variable in theirs.variables.items():
        assert ours.variables[name] == variable, name
    assert (ours.head, ours.aliases) == (theirs.head, theirs.aliases)
    read = {
        path: {name: json.loads((path / f"{name}.json").read_text()) for name in ("config", "vocabulary", "tokenizer")}
        for path in (tmp_path / "ct2", base_weights / "ct2")
    }
    ours, theirs = read.values()
    assert ours["config"] == theirs["config"]
    assert ours["vocabulary"] == theirs["vocabulary"]
    for part in ("pre_tokenizer", "post_processor", "normalizer"):
        assert ours["tokenizer"][part] == theirs["tokenizer"][part]
    assert ours["tokenizer"]["model"]["vocab"] == theirs["tokenizer"]["model"]["vocab"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in theirs["tokenizer"]["model"]["merges"]]
    assert ours["tokenizer"]["model"]["merges"] == merges


def test_the_real_base_is_read_bit_for_bit(base_weights: Path, tmp_path: Path) -> None:
    expected = torch.load(base_weights / "base.pt", weights_only=True)["model_state_dict"]
    for source in (base_weights / "ct2", base_weights / "ct2" / "model.bin"):
        checkpoint = read_checkpoint(source)
        assert checkpoint.kind == "CTranslate2" and checkpoint.left_out == ()
        assert checkpoint.dims == named_dims()["base"]
        assert set(checkpoint.tensors) == set(expected)
        for name, tensor in checkpoint.tensors.items():
            assert tensor.dtype == torch.float16 and torch.equal(tensor.read(), expected[name]), name
    convert(base_weights / "ct2", tmp_path / "base.pt", to="openai", dtype="fp16")
    saved = torch.load(tmp_path / "base.pt", weights_only=True)["model_state_dict"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())


@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.parametrize("dtype, number", [("fp32", 0), ("fp16", 4), ("bf16", 5)])
def test_every_precision_that_is_written_is_read(dtype: str, number: int, tmp_path: Path) -> None:
    model = small_whisper()
    save_checkpoint(tmp_path / "model.pt", model, torch.float32)
    convert(tmp_path / "model.pt", tmp_path / "ct2", to="ct2", dtype=dtype)
    variables = ModelBin.read(tmp_path / "ct2" / "model.bin").variables
    assert {variable.type for variable in variables.values() if variable.shape} == {number}
    read = read_checkpoint(tmp_path / "ct2").tensors
    for name, tensor in model.state_dict().items():
        assert torch.equal(read[name].read(), tensor.to(TYPES[number])), name
    # A key has no bias, which where CTranslate2 keeps one is zero.
    stacked = variables["decoder/layer_0/attention/linear_1/bias"].tensor
    assert not stacked[:64].any() and stacked[64:].any()


def test_every_size_has_a_place_for_every_tensor() -> None:
    for dims in named_dims().values():
        stacks = ctranslate2.stacked_names(dims.n_audio_layer, dims.n_text_layer)
        names = [name for stacked in stacks.values() for name in stacked if not name.endswith("key.bias")]
        assert sorted(names) == sorted(whisper_shapes(dims))


@pytest.mark.parametrize("n_vocab, n_mels", [(51864, 80), (51865, 80), (51866, 128)])
def test_the_folder_says_what_faster_whisper_asks_for(n_vocab: int, n_mels: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", make_whisper(n_vocab=n_vocab, n_mels=n_mels, layers=3, state=128))
    convert(tmp_path / "model.pt", tmp_path / "ct2", to="ct2", dtype="fp16")
    assert {path.name for path in (tmp_path / "ct2").iterdir()} == ctranslate2.FILES
    read = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "ct2").glob("*.json")}
    tokenizer = tokenizer_for(ModelDimensions(n_mels, 1500, 128, 2, 3, n_vocab, 448, 128, 2, 3), "en")
    assert len(read["vocabulary"]) == n_vocab
    assert all(read["vocabulary"][index] == token for token, index in tokenizer.special_tokens.items())
    assert read["config"]["suppress_ids_begin"] == [220, tokenizer.eot]
    languages = 100 if n_vocab == 51866 else 99
    assert read["config"]["lang_ids"] == list(range(tokenizer.sot + 1, tokenizer.sot + 1 + languages))
    assert read["config"]["alignment_heads"] == [[1, 0], [1, 1], [2, 0], [2, 1]]  # of no named size: the upper half
    assert read["preprocessor_config"]["feature_size"] == n_mels


@pytest.mark.usefixtures("no_tokenizer")
def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    model = small_whisper()
    alive: list[weakref.ref] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in model.state_dict().items():
            copy = tensor.clone()
            alive.append(weakref.ref(copy))
            yield name, copy
            del copy
            # The loop that takes them still has the last.
            assert not [ref for ref in alive[:-1] if ref() is not None]

    ctranslate2.write(tmp_path, model.dims, tensors(), torch.float16)
    assert len(alive) == len(model.state_dict())


def test_a_folder_is_evaluated_and_its_file_left_alone(folder: Path, quran: Path, tmp_path: Path) -> None:
    before = (folder / "model.bin").read_bytes()
    loaded = load_checkpoint(folder)
    assert same_weights(loaded, small_whisper())
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    save_checkpoint(tmp_path / "multilingual.pt", talkative(make_whisper()))
    convert(tmp_path / "multilingual.pt", tmp_path / "ct2-multilingual", to="ct2", dtype="fp16")
    models = (str(tmp_path / "ct2-multilingual"), str(tmp_path / "multilingual.pt"))
    options = {"reciters": ("AbdulWadood_Haneef",), "surahs": "1:1", "max_duration": 5.0, "precision": "fp32"}
    config = EvaluationConfig(
        models=models, data=quran, out=tmp_path / "out", cache=tmp_path / "cache", device="cpu", no_fallback=True,
        quiet=True, **options,
    )  # fmt: skip
    ours, plain = evaluate(config)
    assert ours["ayat"] > 0 and (ours["wer"], ours["cer"]) == (plain["wer"], plain["cer"])
    assert (folder / "model.bin").read_bytes() == before


def refusal(path: Path) -> str:
    """The one line with which ``path`` is refused, by the command line too."""
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1 and message.isprintable() and str(path) in message
    assert run(path, path.parent / "never.pt") == message and not (path.parent / "never.pt").exists()
    return message


NAME = "encoder/layer_0/ffn/linear_0/weight"


def quantise(model: ModelBin) -> None:
    """As CTranslate2 does for int8: each row by its largest weight."""
    weights = model.variables[NAME].tensor
    scale = 127 / weights.abs().amax(1)
    rounded = (weights * scale[:, None]).round().to(torch.int8)
    model.variables[NAME] = Variable(tuple(rounded.shape), 1, rounded.numpy().tobytes())
    model.variables[NAME + "_scale"] = Variable(tuple(scale.shape), 0, scale.numpy().tobytes())


def test_quantised_weights_are_refused_with_the_reason(folder: Path) -> None:
    model = ModelBin.read(folder / "model.bin")
    quantise(model)
    model.write(folder / "model.bin")
    message = refusal(folder)
    assert f"is quantised ({NAME} is int8), and what was rounded away is lost" in message
    assert "--quantization float16" in message


@pytest.mark.parametrize(
    "head, message",
    [
        ((5, "WhisperSpec", 3), "has version 5 of CTranslate2's format, and 6 is read: convert the weights"),
        ((7, "WhisperSpec", 3), "has version 7 of CTranslate2's format, and 6 is read"),
        ((0, "WhisperSpec", 3), "is not CTranslate2's: give a Whisper .pt"),
        ((0x04034B50, "WhisperSpec", 3), "is not CTranslate2's: give a Whisper .pt"),
        ((6, "WhisperSpec", 2), "holds WhisperSpec, revision 2, and WhisperSpec, revision 3, is read"),
        ((6, "TransformerSpec", 7), "holds TransformerSpec, revision 7, and WhisperSpec, revision 3, is read"),
        ((6, "\x1b[2JSpec", 3), "truncated or damaged"),
    ],
)
def test_other_versions_and_models_are_refused(head: tuple[int, str, int], message: str, folder: Path) -> None:
    model = ModelBin.read(folder / "model.bin")
    model.head = head
    model.write(folder / "model.bin")
    assert message in refusal(folder)


def change(name: str, **fields: object) -> Callable[[ModelBin], None]:
    def changed(model: ModelBin) -> None:
        for field, value in fields.items():
            setattr(model.variables[name], field, value)

    return changed


def rename(name: str, other: str) -> Callable[[ModelBin], None]:
    def renamed(model: ModelBin) -> None:
        model.variables = {other if key == name else key: value for key, value in model.variables.items()}

    return renamed


def alias(name: str, target: str) -> Callable[[ModelBin], None]:
    def aliased(model: ModelBin) -> None:
        model.variables.pop(name, None)
        model.aliases[name] = target

    return aliased


def key_bias(model: ModelBin) -> None:
    variable = model.variables["decoder/layer_0/self_attention/linear_0/bias"]
    variable.data = struct.pack("<192f", *range(192))


def crowd(model: ModelBin) -> None:
    model.variables |= {f"decoder/{index}": Variable((), 1, b"\0") for index in range(2**14)}


def untied(model: ModelBin) -> None:
    del model.aliases["decoder/projection/weight"]
    embedding = model.variables["decoder/embeddings/weight"]
    model.variables["decoder/projection/weight"] = Variable(embedding.shape, 0, b"\1" * len(embedding.data))


@pytest.mark.parametrize(
    "lie, message",
    [
        (change(NAME, shape=(2**31, 2**31)), "is not as large as its shape says"),
        (change(NAME, shape=(2**32 - 1,) * 8), "is not as large as its shape says"),
        (change(NAME, shape=(1,) * 9), "has 9 axes"),
        (change(NAME, nbytes=2**32 - 1), "is not as large as its shape says"),
        (change(NAME, shape=(2**14, 2**14), nbytes=2**30), "goes past its end"),
        (change(NAME, type=9), f"is quantised ({NAME} is type 9)"),
        (change(NAME, shape=(64, 256)), "mlp.0.weight has the shape (64, 256), and this Whisper needs (256, 64)"),
        (change("decoder/layer_0/self_attention/linear_0/bias", shape=(2, 96)), "no stack of 3"),
        (change("decoder/embeddings/weight", shape=(51864 * 64,)), "has the shape"),
        (change("decoder/activation", data=b"\2"), "decoder/activation is 2, and every Whisper's is 3"),
        (change("decoder/activation", data=b"", shape=(0,)), "is quantised"),
        (change("encoder/num_heads", data=struct.pack("<h", 0)), "does not tell its number of heads"),
        (change("encoder/num_heads", data=struct.pack("<h", -1)), "does not tell its number of heads"),
        (change("encoder/num_heads", type=0, data=struct.pack("<f", 1)), "does not tell its number of heads"),
        (change("encoder/num_heads", type=0, data=struct.pack("<f", float("nan"))), "not finite"),
        (change("encoder/num_heads", type=7), "encoder/num_heads is no number"),
        (change(NAME, data=struct.pack("<f", float("nan")) * 64 * 256), f"{NAME} holds values that are not finite"),
        (rename(NAME, "encoder/layer_0/ffn/gate/weight"), "no place for encoder/layer_0/ffn/gate/weight"),
        (rename(NAME, "encoder/layer_9/ffn/linear_0/weight"), "no place for encoder/layer_9/"),
        (rename(NAME, "encoder/" + "x" * 300), "damaged (a tensor is called 'encoder/xxx"),
        (rename(NAME, "encoder\nlayer"), "damaged (a tensor is called"),
        (lambda model: model.variables.pop(NAME), "lacks encoder.blocks.0.mlp.0.weight"),
        (lambda model: model.variables.pop("decoder/embeddings/weight"), "decoder/projection/weight is said to be"),
        (lambda model: model.variables.clear(), "is said to be"),
        (alias(NAME, NAME), "is said to be"),
        (alias("decoder/layer_0/ffn/linear_0/weight", NAME), "are one matrix"),
        (alias("decoder/projection/weight", NAME), "is no copy of the token embedding"),
        (alias("decoder/embeddings/weight", "decoder/position_encodings/encodings"), "is said to be"),
        (key_bias, "decoder/layer_0/self_attention/linear_0/bias has a bias for keys"),
        (crowd, "says that it holds 16,"),
        (untied, "is no copy of the token embedding"),
    ],
)
def test_files_that_lie_are_refused(lie: Callable[[ModelBin], None], message: str, folder: Path) -> None:
    model = ModelBin.read(folder / "model.bin")
    lie(model)
    model.write(folder / "model.bin")
    assert message in refusal(folder)


def test_a_stored_copy_of_the_embedding_and_unknown_numbers_are_left_out(folder: Path) -> None:
    model = ModelBin.read(folder / "model.bin")
    model.aliases.clear()
    model.variables["decoder/projection/weight"] = model.variables["decoder/embeddings/weight"]
    model.variables["decoder/new_setting"] = Variable((), 1, b"\0")
    model.write(folder / "model.bin")
    assert same_weights(load_checkpoint(folder), small_whisper())
    assert read_checkpoint(folder).left_out == ("decoder/new_setting",)


@pytest.mark.usefixtures("no_tokenizer")
def test_vectors_that_are_stored_once_are_read_as_many(tmp_path: Path) -> None:
    """As CTranslate2 stores those of layers that have not been trained; the file is smaller than its tensors."""
    whisper = small_whisper(n_audio_state=256, n_text_state=256, n_audio_head=4, n_text_head=4, n_audio_layer=3)
    save_checkpoint(tmp_path / "model.pt", whisper, torch.float32)
    convert(tmp_path / "model.pt", tmp_path / "ct2", to="ct2", dtype="fp32")
    model = ModelBin.read(tmp_path / "ct2" / "model.bin")
    for part in ("gamma", "beta"):
        first, *others = [name for name in model.variables if name.endswith(f"layer_norm/{part}")]
        for name in others:
            assert model.variables.pop(name) == model.variables[first]
            model.aliases[name] = first
    model.write(tmp_path / "ct2" / "model.bin")
    nbytes = sum(tensor.nbytes for tensor in whisper.state_dict().values())
    assert (tmp_path / "ct2" / "model.bin").stat().st_size < nbytes
    assert same_weights(load_checkpoint(tmp_path / "ct2"), whisper)


@pytest.mark.parametrize("part", [0, 0.00001, 0.001, 0.1, 0.5, 0.99, 0.9999999])
def test_truncated_files_are_refused(part: float, folder: Path) -> None:
    whole = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(whole[: int(len(whole) * part)])
    assert "truncated or damaged" in refusal(folder)


def test_random_damage_is_refused_or_harmless_but_never_a_traceback(folder: Path) -> None:
    """Bytes changed, lost and added in all that is not weights."""
    data = (folder / "model.bin").read_bytes()
    model = ModelBin.read(folder / "model.bin")
    places, at = [], 0  # of all bytes but those of weights
    for variable in model.variables.values():
        if variable.shape:
            start = data.index(variable.data, at)
            places += range(at, start)
            at = start + len(variable.data)
    places += range(at, len(data))
    outcomes = read_damaged(data, places, 100, folder / "model.bin", folder)
    assert outcomes["refused"] > 50
