"""Batched decoding says what ``whisper.decode`` says of each clip alone, whatever else is in the batch."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import whisper
from conftest import make_whisper
from conftest import talkative as make_talkative
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.model import ModelDimensions, Whisper
from whisper.utils import compression_ratio

from whisper_quran.data.ayat import read_text
from whisper_quran.data.features import (
    AudioFeatures,
    FrozenEncoder,
    audio_mask,
    collate,
    context_of,
    encode,
    log_mel,
)
from whisper_quran.decoding import long_audio
from whisper_quran.decoding.batch_decoder import BatchDecoder, decode_batch, is_looping
from whisper_quran.decoding.long_audio import cut_at_pauses, decode_clips, is_silent, needs_fallback, transcribe_clips
from whisper_quran.decoding.sampling import gumbel
from whisper_quran.runtime.errors import UserError

RATE = 16_000


def read(file) -> np.ndarray:
    """A recording, near enough at 16 kHz."""
    sound, rate = soundfile.read(file, dtype="int16", always_2d=True)
    return sound[np.arange(0, len(sound), rate / RATE).astype(int), 0]


def talkative(model: Whisper, eot_gain: float = 2.4) -> Whisper:
    """Give random weights something to say, and to a slot whose clip has ended something else to say next."""
    make_talkative(model, eot_gain)
    with torch.no_grad():
        model.decoder.positional_embedding[0] *= 10
    return model


def whispers_own(model: Whisper, mel: torch.Tensor, **options) -> list[DecodingResult]:
    """``whisper.decode`` of every clip alone, with the text that ``whisper.transcribe`` makes of its tokens."""
    options = DecodingOptions(language="ar", without_timestamps=True, fp16=False, **options)
    return [as_transcribed(model, whisper.decode(model, clip, options)) for clip in mel]


def as_transcribed(model: Whisper, result: DecodingResult) -> DecodingResult:
    """Whisper's transcripts have no special tokens; a random model samples many."""
    tokenizer = whisper.tokenizer.get_tokenizer(model.is_multilingual, num_languages=model.num_languages)
    text = tokenizer.decode([token for token in result.tokens if token < tokenizer.eot]).strip()
    return replace(result, text=text, compression_ratio=compression_ratio(text))


def assert_same(ours: Sequence[DecodingResult], theirs: Sequence[DecodingResult]) -> None:
    assert [result.tokens for result in ours] == [result.tokens for result in theirs]
    assert [result.text for result in ours] == [result.text for result in theirs]
    for name in ("avg_logprob", "no_speech_prob", "compression_ratio", "temperature"):
        expected = [getattr(result, name) for result in theirs]
        assert [getattr(result, name) for result in ours] == pytest.approx(expected, rel=1e-3), name
    assert [result.language for result in ours] == [result.language for result in theirs]


def whole(features: torch.Tensor) -> AudioFeatures:
    """Features without padding."""
    return AudioFeatures(features, [features.shape[1]] * len(features))


def decode(decoder: BatchDecoder, features: torch.Tensor, batch: int = 2) -> list[DecodingResult]:
    """The results of all clips, in order."""
    results = {clip.index: clip.result for clip in decoder.decode(map(whole, features.split(batch)))}
    return [results[index] for index in range(len(features))]


@pytest.fixture(scope="module")
def clips(quran) -> list[np.ndarray]:
    """Twenty real ayat of 1 to 15 s."""
    files = sorted((quran / "audio" / "Yasser_Salama_hadr").glob("*.mp3"))
    found = [clip for clip in map(read, files[::30]) if len(clip) <= 15 * RATE]
    return found[:20]


@pytest.fixture(scope="module")
def model() -> Whisper:
    return talkative(make_whisper(seed=1))


@pytest.fixture(scope="module")
def mel(clips) -> torch.Tensor:
    return log_mel(collate(clips), 80)


@pytest.fixture(scope="module")
def features(model, mel) -> torch.Tensor:
    return encode(model.encoder, mel)


@pytest.fixture(scope="module")
def expected(model, mel) -> list[DecodingResult]:
    results = whispers_own(model, mel)
    lengths = [len(result.tokens) for result in results]
    # Worth comparing with: texts that differ, some short, some long.
    assert len({result.text for result in results}) > 15
    assert min(lengths) < 10
    assert max(lengths) == 224  # sample_len: it does not end by itself
    return results


def test_a_batch_says_what_whisper_says_of_each_clip(model, mel, features, expected):
    from_mel = decode_batch(model, mel)
    assert_same(from_mel, expected)
    assert all(torch.equal(result.audio_features, own) for result, own in zip(from_mel, features, strict=True))
    assert_same(decode_batch(model, features), expected)
    assert_same(decode_batch(model, mel[3:4]), expected[3:4])


@pytest.mark.parametrize(("slots", "batch", "stride"), [(16, 4, 1), (5, 2, 8)])
def test_the_text_does_not_depend_on_slots_and_neighbours(model, features, expected, slots, batch, stride):
    """A stride of 8, as on a GPU: ended clips go on for some steps before anyone looks. Nor on what was left."""
    decoder = BatchDecoder(model, slots, sample_len=224)
    decoder.stride = stride
    next(decoder.decode(map(whole, features.split(batch))))
    assert_same(decode(decoder, features, batch), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": list(range(1000, 1300)), "suppress_tokens": [50257]},  # the context ends before sample_len
        {"prefix": "بسم", "suppress_blank": False, "task": "translate", "sample_len": 20},
    ],
    ids=["context", "prefix and filters"],
)
def test_whispers_options_mean_what_they_mean_to_whisper(model, mel, features, options):
    expected = whispers_own(model, mel[:4], **options)
    assert_same(decode_batch(model, features[:4], **options), expected)


def test_a_model_that_says_nothing_gives_an_empty_text(mel):
    """``whisper.decode`` divides by zero there."""
    silent = talkative(make_whisper(seed=1), eot_gain=100)
    results = decode_batch(silent, mel[:8], suppress_blank=False)
    assert "" in [result.text for result in results]
    assert all(result.avg_logprob <= 0 for result in results)


@pytest.mark.parametrize(
    "dims",
    [
        ModelDimensions(80, 1500, 64, 1, 1, 51864, 448, 64, 1, 1),  # an .en model
        ModelDimensions(128, 1500, 128, 2, 2, 51866, 448, 128, 2, 1),  # turbo: fewer layers in the decoder
    ],
    ids=["en", "turbo"],
)
def test_every_kind_of_whisper_decodes(clips, dims):
    torch.manual_seed(2)
    model = talkative(Whisper(dims).eval())
    mel = log_mel(collate(clips[:6]), dims.n_mels)
    expected = whispers_own(model, mel, sample_len=30)
    assert len({result.text for result in expected}) > 3
    assert_same(decode_batch(model, mel, sample_len=30), expected)


def test_an_ended_clip_costs_nothing_beside_one_that_rambles_on(model, features, expected, monkeypatch):
    """Most rows that were computed belonged to clips that were still being decoded."""
    rows = []
    step = BatchDecoder._step
    monkeypatch.setattr(BatchDecoder, "_step", lambda self, n, *lengths: rows.append(n) or step(self, n, *lengths))
    decode_batch(model, features)
    tokens = sum(len(result.tokens) for result in expected)
    longest = max(len(result.tokens) for result in expected)
    assert tokens < sum(rows) < 1.6 * tokens < len(features) * longest


@pytest.mark.parametrize("slots", [3, 16])
def test_at_natural_length_the_text_does_not_depend_on_the_neighbours(model, clips, slots):
    """Encoded clip by clip, as on a CPU, or padded to the longest, as on a GPU; of contexts from 8 to 16 s."""
    contexts = [context_of(len(clip)) for clip in clips]
    assert len(set(contexts)) > 2
    alone = [
        decode_batch(model, log_mel(collate([clip]), 80, [context]), [context])[0]
        for clip, context in zip(clips, contexts, strict=True)
    ]
    assert [len(result.audio_features) for result in alone] == contexts
    assert_same(decode_batch(model, log_mel(collate(clips), 80, contexts), contexts), alone)
    batches = []
    for first in range(0, len(clips), 3):
        its = contexts[first : first + 3]
        mel = log_mel(collate(clips[first : first + 3]), 80, its)
        with torch.no_grad():
            batches.append(AudioFeatures(encode(model.encoder, mel, audio_mask(its, mel.device)), its))
    results = {clip.index: clip.result for clip in BatchDecoder(model, slots, sample_len=224).decode(batches)}
    assert_same([results[index] for index in range(len(clips))], alone)
    texts = dict(decode_clips(model, clips, batch_size=4, sample_len=224))
    assert [texts[index] for index in range(len(clips))] == [result.text for result in alone]


def test_a_lower_precision_is_that_of_weights_cast_once(model, mel, features):
    ours = decode_batch(model, mel, dtype=torch.bfloat16, sample_len=20)
    assert ours[0].audio_features.dtype == torch.bfloat16
    encoded = torch.stack([result.audio_features for result in ours])
    cast = decode_batch(copy.deepcopy(model).bfloat16(), encoded, sample_len=20)
    assert [result.tokens for result in ours] == [result.tokens for result in cast]
    assert model.decoder.token_embedding.weight.dtype == torch.float32


def test_an_autocast_around_it_changes_nothing(model, features, expected):
    """Training validates under one."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = decode_batch(model, features)
    assert_same(results, expected)


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"beam_size": 1}, {"language": None}, {"task": "lang_id"}])
def test_options_that_would_be_ignored_are_refused(model, options):
    with pytest.raises(ValueError, match="give a language"):
        BatchDecoder(model, 1, **options)


def test_recordings_of_any_length_give_their_pieces_texts_in_order(model, clips, mel, expected, quran):
    long = [read(quran / "audio" / reciter / "002255.mp3") for reciter in ("AbdulWadood_Haneef", "Yasser_Salama_hadr")]
    recordings = [long[0], *clips[:6], long[1]]
    texts = dict(decode_clips(model, recordings, batch_size=4, sample_len=224, context="full"))
    assert sorted(texts) == list(range(8))
    assert [texts[index + 1] for index in range(6)] == [result.text for result in expected[:6]]
    for index in (0, 7):
        parts = [recordings[index][start:end] for start, end in cut_at_pauses(recordings[index])]
        assert len(parts) > 1
        spoken = whispers_own(model, log_mel(collate(parts), 80))
        assert texts[index] == " ".join(result.text for result in spoken)


def test_out_of_memory_halves_the_batch_and_loses_nothing(model, clips, expected, monkeypatch):
    """The GPU's error, raised where encoding would: for more than one, once in the midst of it all; for any."""
    calls, fits = [], True

    def encode_in_little_memory(self, mel, contexts):
        calls.append(len(mel))
        if len(mel) > 1 or len(calls) == 8 or not fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode_mel(self, mel, contexts)

    encode_mel = FrozenEncoder.encode
    monkeypatch.setattr(FrozenEncoder, "encode", encode_in_little_memory)
    logged = []
    texts = dict(decode_clips(model, clips[:10], batch_size=10, log=logged.append, sample_len=224, context="full"))
    assert [texts[index] for index in range(10)] == [result.text for result in expected[:10]]
    assert len(logged) == 2
    assert "--batch-size 5" in logged[0]
    assert "--batch-size 2" in logged[1]
    fits = False
    with pytest.raises(UserError, match="smaller model"):
        list(decode_clips(model, clips[:3], batch_size=8, log=lambda line: None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_cuda_graph_says_what_the_step_says(model, features, expected):
    on_gpu = talkative(make_whisper(seed=1)).cuda()
    decoder = BatchDecoder(on_gpu, 8, sample_len=224)
    for _ in range(2):  # the first pass captures, the second replays
        results = decode(decoder, features.cuda())
        assert [result.text for result in results] == [result.text for result in expected]
    assert decoder.graphs


def let_say(decoder: BatchDecoder, token: Callable[[int, int], int]) -> None:
    """Let each clip sample ``token(clip, n)`` as its n-th token, from 1; its seed, the clip's index, moves with it."""
    hypotheses, sample = decoder.hypotheses, decoder.hypotheses.sample

    def sample_that(logits: torch.Tensor, slots: torch.Tensor, temperature: torch.Tensor | None) -> None:
        numbers = hypotheses.positions[slots] + 2 - decoder.begin
        said = [token(clip, n) for clip, n in zip(hypotheses.seeds[slots].tolist(), numbers.tolist(), strict=True)]
        sample(logits.fill_(-torch.inf).scatter_(1, torch.tensor(said)[:, None], 0.0), slots, temperature)

    hypotheses.sample = sample_that


def length_of(clip: int) -> int:
    return 3 + clip * 17 % 50


def test_each_clip_keeps_its_own_text_in_whichever_slot(model, features):
    """Its state moves with it when clips are gathered, and begins anew with each."""
    decoder = BatchDecoder(model, 5)
    let_say(decoder, lambda clip, n: 1000 + n if n <= length_of(clip) else decoder.eot)
    decoder.stride = 8
    results = decode(decoder, features)
    for clip in range(len(features)):
        assert results[clip].tokens == list(range(1001, 1001 + length_of(clip)))


def test_a_loop_is_stopped_soon_and_every_clip_still_gets_its_own_text(model, features):
    decoder = BatchDecoder(model, 5, stop_loops=True)
    # Five tokens, and then one pattern, of 1 to 4 tokens, without end.
    let_say(decoder, lambda clip, n: 1000 + n if n <= 5 else 2000 + n % (length_of(clip) % 4 + 1))
    decoder.stride = 8
    results = decode(decoder, features)
    for clip in range(len(features)):
        tokens = results[clip].tokens
        assert tokens[:5] == list(range(1001, 1006))
        assert set(tokens[5:]) == {2000 + n for n in range(length_of(clip) % 4 + 1)}
        assert 24 + 5 <= len(tokens) <= 24 + 5 + 2 * 8


def test_loops_are_recognised_and_no_ayah_is_one(quran):
    """Wherever it is looked at, and with the ayat that follow it: refrains are far from loops."""
    tokenizer = whisper.tokenizer.get_tokenizer(True, language="ar", task="transcribe")
    for text in (" قل هو الله" + " أم" * 40, " نار" + "ا" * 80, " قال ربنا اغفر لنا" * 12):
        tokens = tokenizer.encode(text)
        assert is_looping(tokens) and not is_looping(tokens[:12])
    texts = read_text(quran / "metadata" / "ayah_text_diacritics.csv")[0].values()
    everything = [token for text in texts for token in tokenizer.encode(" " + text)]
    assert not [end for end in range(8, len(everything), 8) if is_looping(everything[max(0, end - 448) : end])]


def test_tokens_are_sampled_as_the_softmax_says():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf, 0.5])
    seeds = torch.arange(40_000) * 16 + 2
    chosen = (logits / 0.5 + gumbel(seeds, torch.full_like(seeds, 7), 6)).argmax(dim=-1)
    found = chosen.bincount(minlength=6) / len(seeds)
    assert torch.allclose(found, (logits / 0.5).softmax(dim=0), atol=0.01)


def test_a_sampled_text_depends_on_its_seed_alone(model, features):
    seeds = [17 * index + 3 for index in range(len(features))]

    def sample(slots: int, stride: int, seeds: list[int]) -> list[list[int]]:
        decoder = BatchDecoder(model, slots, sample_len=30)
        decoder.stride = stride
        batches = [replace(whole(features[i : i + 2]), seeds=seeds[i : i + 2]) for i in range(0, len(features), 2)]
        results = {clip.index: clip.result for clip in decoder.decode(batches, 0.8)}
        assert {result.temperature for result in results.values()} == {0.8}
        return [results[index].tokens for index in range(len(features))]

    by_index = BatchDecoder(model, 4, sample_len=30).decode(map(whole, features.split(2)), temperature=0.8)
    numbered = dict(enumerate(sample(16, 1, [*range(len(features))])))
    assert {clip.index: clip.result.tokens for clip in by_index} == numbered
    once = sample(16, 1, seeds)
    assert sample(5, 8, seeds) == once
    others = sample(5, 8, [seed + 1 for seed in seeds])
    assert sum(a != b for a, b in zip(once, others, strict=True)) > len(seeds) / 2


def test_only_texts_that_fail_are_decoded_again_at_rising_temperatures(model, clips, expected, monkeypatch):
    """Every third clip fails until 0.4, by its length; the others keep their greedy texts."""
    failing = {result.text for result in expected[:9:3]}
    tried = []

    def fails(result: DecodingResult) -> bool:
        tried.append(result.temperature)
        return result.text in failing or result.temperature == 0.2

    monkeypatch.setattr(long_audio, "needs_fallback", fails)
    options = {"sample_len": 224, "context": "full"}
    found = {t.clip: t for t in transcribe_clips(model, clips[:9], batch_size=4, **options)}
    assert sorted(found) == list(range(9))
    for index in range(9):
        if index % 3:
            assert (found[index].text, found[index].temperature) == (expected[index].text, 0.0)
        else:
            assert found[index].temperature == 0.4
    assert sorted(tried) == [0.0] * 9 + [0.2] * 3 + [0.4] * 3
    again = {t.clip: t for t in transcribe_clips(model, clips[:9], batch_size=9, **options)}
    assert again == found


@pytest.mark.parametrize(
    ("values", "fails"),
    [
        ({}, False),
        ({"compression_ratio": 2.5, "no_speech_prob": 0.7}, True),
        ({"avg_logprob": -1.1}, True),
        ({"avg_logprob": -1.1, "no_speech_prob": 0.7, "compression_ratio": 2.5}, False),
        ({"tokens": [1, 2, *[3] * 24]}, True),
    ],
)
def test_what_fails_is_what_fails_in_whisper(values, fails):
    result = {"avg_logprob": -0.3, "compression_ratio": 1.2, "no_speech_prob": 0.1, "tokens": [1, 2, 3]} | values
    assert needs_fallback(DecodingResult(audio_features=None, language="ar", **result)) == fails


def test_of_silence_there_is_no_text_as_in_whisper_transcribe(model, clips, monkeypatch):
    """The greedy text of the second clip comes with a high probability of no speech."""
    make_result = BatchDecoder._result

    def silent(self, features, sampled, sum_logprob, no_speech):
        result = make_result(self, features, sampled, sum_logprob, no_speech)
        values = (0.7, -1.1) if result.text == greedy[1] else (0.1, -0.3)
        result = replace(result, no_speech_prob=values[0], avg_logprob=values[1], compression_ratio=1.0)
        assert is_silent(result) == (result.text == greedy[1])
        return result

    greedy = dict(decode_clips(model, clips[:3], batch_size=3, sample_len=12))
    assert all(greedy.values())
    monkeypatch.setattr(BatchDecoder, "_result", silent)
    found = {t.clip: (t.text, t.temperature) for t in transcribe_clips(model, clips[:3], batch_size=3, sample_len=12)}
    assert found == {0: (greedy[0], 0.0), 1: ("", 0.0), 2: (greedy[2], 0.0)}
    assert dict(decode_clips(model, clips[:3], batch_size=3, sample_len=12)) == greedy
