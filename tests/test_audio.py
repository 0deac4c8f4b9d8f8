"""Whatever file a user has comes out as 16 kHz mono int16, or with the reasons why not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from whisper_quran.data import audio
from whisper_quran.data.audio import SAMPLE_RATE, AudioError, WorkerError, decode_file, decode_files, resample

REPOSITORY = Path(__file__).parents[1]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def chirp(rate: int, seconds: float = 1.5) -> np.ndarray:
    """A tone that rises from 200 Hz to 3 kHz, float64 (n,): the same sound at any rate."""
    t = np.arange(int(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * (200 * t + 1400 / seconds * t**2))


def noise_ratio(samples: np.ndarray, expected: np.ndarray) -> float:
    """The energy of the difference over that of ``expected``; a lag of one sample makes it large."""
    difference = samples.astype(np.float64) - expected
    return (difference**2).sum() / (expected.astype(np.float64) ** 2).sum()


def ffmpeg(*arguments: object) -> bytes:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def run_python(code: str, *arguments: object, path: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own that imports from ``path`` first, and from the repository."""
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "decoder", "seconds", "damaged"),
    [
        ("001000_basmala.mp3", "soundfile", 9.822, False),
        ("damaged_frames.mp3", "soundfile", 2.850, True),
        ("jfk_english_44kHz.flac", "soundfile", 11.0, False),
        ("mono_8kHz.mp3", "soundfile", 3.312, False),
        ("stereo_48kHz.mp3", "soundfile", 10.68, False),
        ("truncated.mp3", "soundfile", 1.047, True),
    ],
)
def test_odd_files_that_can_be_read(quran, name, decoder, seconds, damaged):
    decoded = decode_file(quran / "odd" / name)
    assert decoded.samples.dtype == np.int16
    assert decoded.samples.ndim == 1
    assert (decoded.decoder, decoded.damaged) == (decoder, damaged)
    assert len(decoded.samples) / SAMPLE_RATE == pytest.approx(seconds, abs=0.001)


@pytest.mark.parametrize("name", ["noise_bytes.mp3", "text_named.mp3"])
def test_what_is_no_audio_is_refused_with_each_decoders_reason_in_order(quran, name):
    with pytest.raises(AudioError) as refusal:
        decode_file(quran / "odd" / name)
    message = str(refusal.value)
    assert [part.split(":")[0] for part in message.split("; ")] == ["soundfile", "ffmpeg"]
    assert "\n" not in message
    assert refusal.value.final == (shutil.which("ffmpeg") is not None)


def test_a_file_that_is_empty_or_cannot_be_opened(quran, tmp_path):
    with pytest.raises(AudioError, match="empty"):
        decode_file(quran / "odd" / "empty.mp3")
    with pytest.raises(AudioError, match="No such file") as refusal:
        decode_file(tmp_path / "gone.mp3")
    assert not refusal.value.final


def test_no_ffmpeg_is_a_reason_that_may_not_last(quran, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match="ffmpeg: not installed") as refusal:
        decode_file(quran / "odd" / "noise_bytes.mp3")
    assert not refusal.value.final


def test_a_16_khz_mono_16_bit_file_is_kept_bit_by_bit(tmp_path):
    samples = np.concatenate(
        [np.arange(-32768, 32768), np.random.default_rng(0).integers(-32768, 32768, 100_000)]
    ).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE)
    np.testing.assert_array_equal(decode_file(tmp_path / "a.wav").samples, samples)


@pytest.mark.parametrize("file", ["a.wav", "b.flac", "c.ogg", "d.mp3"])
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_formats_and_rates(tmp_path, file, rate):
    soundfile.write(tmp_path / file, np.stack([chirp(rate)] * 2, axis=1), rate)
    decoded = decode_file(tmp_path / file)
    assert decoded.decoder == "soundfile"
    assert not decoded.damaged
    assert len(decoded.samples) == pytest.approx(1.5 * SAMPLE_RATE, abs=2)
    middle = slice(2000, 22000)
    assert noise_ratio(decoded.samples[middle], 32768 * chirp(SAMPLE_RATE)[middle]) < 0.02


@needs_ffmpeg
def test_m4a_falls_through_to_ffmpeg(tmp_path):
    soundfile.write(tmp_path / "a.wav", chirp(44100), 44100)
    ffmpeg("-i", tmp_path / "a.wav", tmp_path / "a.m4a")
    decoded = decode_file(tmp_path / "a.m4a")
    assert decoded.decoder == "ffmpeg"
    assert not decoded.damaged
    middle = slice(2000, 22000)
    assert noise_ratio(decoded.samples[middle], 32768 * chirp(SAMPLE_RATE)[middle]) < 0.02


@needs_ffmpeg
@pytest.mark.parametrize(
    "name", ["audio/AbdulWadood_Haneef/001001.mp3", "audio/Yasser_Salama_hadr/001001.mp3", "odd/stereo_48kHz.mp3"]
)
def test_real_recitations_are_what_ffmpeg_makes_of_them(quran, name):
    theirs = np.frombuffer(ffmpeg("-i", quran / name, "-ac", 1, "-ar", SAMPLE_RATE, "-f", "s16le", "-"), np.int16)
    ours = decode_file(quran / name).samples
    assert abs(len(ours) - len(theirs)) <= 1
    length = min(len(ours), len(theirs))
    assert noise_ratio(ours[:length], theirs[:length]) < 5e-3


def test_an_mp3_of_many_blocks_is_what_it_is_when_read_at_once(quran):
    """At 32 kbit/s most frames lean on those before them: none may be decoded without."""
    file = quran / "audio" / "Ibrahim_Al-Akhdar" / "067007.mp3"
    whole, rate = soundfile.read(file, dtype="float32")
    assert len(whole) > 4 * 2**16
    decoded = decode_file(file)
    assert not decoded.damaged
    assert np.array_equal(decoded.samples, resample(audio._to_int16(whole), rate))


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 22050, 24000, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("seconds", [0, 0.01, 9.99, 25.003])
def test_resampling_in_blocks_is_torchaudios(rate, seconds):
    samples = np.random.default_rng(rate).integers(-16000, 16000, 1 + int(rate * seconds)).astype(np.int16)
    theirs = torchaudio.transforms.Resample(rate, SAMPLE_RATE)(torch.from_numpy(samples.astype(np.float32))).numpy()
    ours = resample(samples, rate)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 0.51  # Half a step of rounding, and the float error of its sums.


@pytest.mark.parametrize("length", [426_108, 16_777_217])
def test_a_length_that_torchaudio_counts_wrong_in_float32(length):
    assert len(resample(np.zeros(length, np.int16), 44100)) == -(-length * SAMPLE_RATE // 44100)


@needs_ffmpeg
def test_a_rate_of_no_simple_ratio_goes_to_ffmpeg(tmp_path):
    soundfile.write(tmp_path / "a.wav", chirp(22254), 22254)
    decoded = decode_file(tmp_path / "a.wav")
    assert decoded.decoder == "ffmpeg"
    assert len(decoded.samples) == pytest.approx(1.5 * SAMPLE_RATE, abs=2)


def test_channels_are_averaged(tmp_path):
    left, middle, right = np.random.default_rng(0).integers(-10_000, 10_000, (3, 5000)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", np.stack([left, middle, right], axis=1), SAMPLE_RATE)
    mean = np.mean([left, middle, right], axis=0)
    assert np.abs(decode_file(tmp_path / "a.wav").samples - mean).max() <= 0.51


def test_a_few_loud_samples_are_clipped_and_do_not_wrap_around(tmp_path):
    sound = chirp(SAMPLE_RATE)
    sound[5000:5004] = 1.0, 3.0, -1.0, -3.0
    soundfile.write(tmp_path / "a.wav", sound, SAMPLE_RATE, subtype="FLOAT")
    decoded = decode_file(tmp_path / "a.wav")
    assert decoded.samples[5000:5004].tolist() == [32767, 32767, -32768, -32768]
    assert not decoded.mended


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44100])
def test_nan_and_infinity_stay_where_they_are(tmp_path, rate):
    sound = chirp(rate)
    sound[rate // 2], sound[rate // 2 + 1] = np.nan, np.inf
    soundfile.write(tmp_path / "a.wav", sound, rate, subtype="FLOAT")
    decoded = decode_file(tmp_path / "a.wav")
    assert decoded.damaged
    elsewhere = slice(SAMPLE_RATE // 2 + 100, SAMPLE_RATE)
    assert noise_ratio(decoded.samples[elsewhere], 32768 * chirp(SAMPLE_RATE)[elsewhere]) < 1e-4


def test_what_there_is_of_a_truncated_file_is_used(tmp_path):
    samples = (32768 * chirp(SAMPLE_RATE)).astype(np.int16)
    soundfile.write(tmp_path / "whole.wav", samples, SAMPLE_RATE)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:20_001])
    decoded = decode_file(tmp_path / "cut.wav").samples
    assert len(decoded) > 9_900
    np.testing.assert_array_equal(decoded, samples[: len(decoded)])


@needs_ffmpeg
def test_an_mp3_that_understates_its_length_is_read_to_its_end(tmp_path):
    """Without a Xing header the length is guessed from the beginning, and libsndfile stops at its guess."""
    loud = np.random.default_rng(0).uniform(-0.5, 0.5, 10 * 44100)
    soundfile.write(tmp_path / "a.wav", np.concatenate([loud, np.zeros(50 * 44100)]), 44100)
    ffmpeg("-i", tmp_path / "a.wav", "-q:a", 2, "-write_xing", 0, tmp_path / "a.mp3")
    assert soundfile.info(tmp_path / "a.mp3").duration < 30, "the file is no example of it"
    assert len(decode_file(tmp_path / "a.mp3").samples) / SAMPLE_RATE == pytest.approx(60, abs=0.2)


def test_any_file_name_will_do(quran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        b"a space.mp3",
        "الفاتحة.mp3".encode(),
        b"two\nlines.mp3",
        b"not utf-8 \xff\xfe.mp3",
        b"-y.raw",
        b"a:b'%d.mp3",
    ]
    paths = [os.fsdecode(name) for name in names]
    for path in paths:
        shutil.copy(quran / "odd" / "mono_8kHz.mp3", path)
    decoded = list(decode_files(paths, workers=1))
    assert [(d.decoder, len(d.samples)) for d in decoded] == [("soundfile", 52992)] * len(paths)
    if shutil.which("ffmpeg"):
        assert [len(audio._ffmpeg(path).samples) for path in paths] == [52992] * len(paths)


def test_damaged_frames_are_counted_and_not_a_word_reaches_the_terminal(quran):
    """Also: a script that guards nothing is not run a second time by the workers."""
    code = (
        "import sys; from whisper_quran.data.audio import decode_file, decode_files\n"
        "files = sys.argv[1:] * 3\n"
        "print([decode_file(files[0]).damaged, *(d.damaged for d in decode_files(files, workers=2))])"
    )
    run = run_python(code, quran / "odd" / "damaged_frames.mp3", quran / "odd" / "mono_8kHz.mp3")
    assert run.stderr == ""
    assert run.stdout == f"{[True] + [True, False] * 3}\n"


def test_many_files_come_in_their_order_and_as_they_do_one_by_one(quran):
    paths = sorted((quran / "odd").iterdir()) + sorted((quran / "audio" / "Yasser_Salama_hadr").glob("11*.mp3"))
    for path, result in zip(paths, decode_files(paths, workers=2), strict=True):
        try:
            expected = decode_file(path)
        except AudioError as error:
            assert (str(result), result.final) == (str(error), error.final)
        else:
            assert (result.decoder, result.damaged) == (expected.decoder, expected.damaged)
            assert np.abs(result.samples.astype(int) - expected.samples).max() <= 1  # BLAS on one thread or several.


@pytest.fixture
def dangerous(tmp_path, monkeypatch) -> Path:
    """A folder where the workers, and they alone, find a decoder that dies of files named ``signal-N-…``."""
    (tmp_path / "soundfile.py").write_text(
        "import os, re, sys\n"
        "del sys.modules['soundfile']; sys.path.remove(os.path.dirname(__file__))\n"
        "import soundfile\n"
        "real = soundfile.SoundFile\n"
        "def SoundFile(descriptor, **options):\n"
        "    name = os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))\n"
        "    if found := re.match(r'signal-(\\d+)', name): os.kill(os.getpid(), int(found[1]))\n"
        "    return real(descriptor, **options)\n"
        "soundfile.SoundFile = SoundFile\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_decoder_that_crashes_costs_that_file_alone(quran, dangerous):
    names = ["a.mp3", "signal-11-b.mp3", "c.mp3", "signal-9-d.mp3", "e.mp3"]
    for name in names:
        shutil.copy(quran / "odd" / "mono_8kHz.mp3", dangerous / name)
    a, b, c, d, e = decode_files([dangerous / name for name in names], workers=2)
    assert [len(r.samples) for r in (a, c, e)] == [52992] * 3
    assert (str(b), b.final) == ("the decoder crashed on it (signal 11)", True)
    assert (str(d), d.final) == ("the decoder crashed on it (signal 9)", False)


def test_workers_that_die_one_after_the_other_end_it(dangerous):
    paths = [dangerous / f"signal-9-{i}.mp3" for i in range(30)]
    for path in paths:
        path.write_bytes(b"x")
    results = []
    with pytest.raises(WorkerError, match=r"signal 9, at .*signal-9-"):
        results.extend(decode_files(paths, workers=2))
    assert len(results) < 10


def test_workers_that_cannot_start_say_why(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise ImportError('numpy is broken here')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"x")
    with pytest.raises(WorkerError, match="ImportError: numpy is broken here"):
        list(decode_files([tmp_path / "a.wav"] * 9, workers=1))


def processes_with(word: str) -> list[int]:
    """The processes that have ``word`` in their command line, this one aside."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes through /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, how):
    """They are told apart by ``tmp_path``, which is on the import path that their parent gives them."""
    code = (
        "import itertools, sys; from whisper_quran.data.audio import decode_files\n"
        "for _ in decode_files(sys.argv[1:] * 100_000, workers=2): print('decoded', flush=True)"
    )
    soundfile.write(tmp_path / "a.wav", chirp(SAMPLE_RATE), SAMPLE_RATE)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "a.wav"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    parent.stdout.readline()
    assert processes_with(str(tmp_path))
    os.killpg(parent.pid, how)  # As a terminal does.
    _, complaints = parent.communicate()
    assert complaints.count("Traceback") == (how == signal.SIGINT), complaints
    wait_for(lambda: not processes_with(str(tmp_path)))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes through /proc")
def test_leaving_early_leaves_no_worker_even_one_that_hangs(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", chirp(SAMPLE_RATE), SAMPLE_RATE)
    pids = fake_ffmpeg(tmp_path, monkeypatch, "sleep 600 & wait")
    code = (
        "import contextlib, sys, time; from whisper_quran.data.audio import decode_files\n"
        "with contextlib.closing(decode_files(sys.argv[1:], workers=2)) as results: \n"
        "    print(len(next(results).samples)); time.sleep(2)"
    )
    run = run_python(code, tmp_path / "a.wav", *[tmp_path / "a.m4a"] * 5, path=tmp_path)
    assert (run.stdout, run.stderr) == ("24000\n", "")
    assert not any(is_running(int(pid)) for pid in pids.read_text().split())
    assert not processes_with(str(tmp_path))


# Audio that cannot be what it is named for.


CASES = REPOSITORY.parent / "shared" / "cases" / "audio"


def refusal(path: Path) -> AudioError:
    with pytest.raises(AudioError) as refused:
        decode_file(path)
    return refused.value


@pytest.mark.parametrize(
    ("name", "sound", "reason"),
    [
        ("a.wav", np.zeros(48000), "no speech: silence"),
        ("b.flac", np.full(48000, 0.25), "no speech: silence"),  # a constant is no sound
        ("c.wav", np.random.default_rng(0).uniform(-0.0004, 0.0004, 48000), "no speech: silence"),
        ("d.ogg", np.zeros((48000, 2)), "no speech: silence"),
        ("e.wav", chirp(SAMPLE_RATE, 0.05), "no speech: shorter than 0.1 s"),
        ("f.wav", np.array([0.5]), "no speech: shorter than 0.1 s"),
        ("g.wav", np.sign(chirp(SAMPLE_RATE)), "no speech: 100 % of the samples are at full scale"),
        ("h.wav", np.clip(20 * chirp(SAMPLE_RATE), -1, 1), "of the samples are at full scale"),
    ],
)
def test_audio_without_speech_is_refused_with_its_reason(tmp_path, name, sound, reason):
    soundfile.write(tmp_path / name, sound, SAMPLE_RATE)
    refused = refusal(tmp_path / name)
    assert reason in str(refused) and "soundfile" not in str(refused)
    assert refused.final


def test_quiet_speech_is_no_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", chirp(SAMPLE_RATE) / 100, SAMPLE_RATE)
    assert len(decode_file(tmp_path / "a.wav").samples) == 24000


@pytest.mark.parametrize("factor", [3.0, 32767, 32768, 2**23, 2**31])
def test_floats_of_another_scale_are_scaled_back(tmp_path, factor):
    soundfile.write(tmp_path / "a.wav", 1.9 * chirp(SAMPLE_RATE) * factor, SAMPLE_RATE, subtype="FLOAT")
    decoded = decode_file(tmp_path / "a.wav")
    assert decoded.mended and not decoded.damaged
    expected = chirp(SAMPLE_RATE) / 0.5 if factor == 3.0 else 1.9 * chirp(SAMPLE_RATE)
    assert noise_ratio(decoded.samples, 32768 * expected) < 1e-3


@pytest.mark.parametrize("channels", [[1, -1], [0.1, 1, -1], [-1, 0.999]])
def test_channels_that_cancel_leave_the_loudest(tmp_path, channels):
    sound = np.outer(chirp(SAMPLE_RATE), channels)
    soundfile.write(tmp_path / "a.wav", sound, SAMPLE_RATE)
    decoded = decode_file(tmp_path / "a.wav")
    loudest = int(np.argmax(np.abs(channels)))
    assert noise_ratio(decoded.samples, 32768 * sound[:, loudest]) < 1e-6
    assert decoded.mended


@needs_ffmpeg
def test_channels_that_cancel_in_what_ffmpeg_reads(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.outer(chirp(44100), [1, -1]), 44100)
    ffmpeg("-i", tmp_path / "a.wav", "-c:a", "alac", tmp_path / "a.m4a")
    decoded = decode_file(tmp_path / "a.m4a")
    assert decoded.mended and decoded.decoder == "ffmpeg"
    middle = slice(2000, 22000)
    expected = 32768 * chirp(SAMPLE_RATE)[middle]
    assert min(noise_ratio(sign * decoded.samples[middle], expected) for sign in (1, -1)) < 0.02


# Limits.


@needs_ffmpeg
@pytest.mark.parametrize(
    "entry", ["other.wav", "file:other.wav", "http://127.0.0.1:9/a.mp3", "concat:other.wav|other.wav"]
)
@pytest.mark.parametrize("kind", ["hls", "live", "concat", "xspf", "sdp", "dash"])
def test_a_playlist_is_no_audio_and_opens_nothing(tmp_path, entry, kind):
    soundfile.write(tmp_path / "other.wav", chirp(SAMPLE_RATE), SAMPLE_RATE)
    content = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:3,\n{entry}\n#EXT-X-ENDLIST\n",
        "live": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{entry}\n",
        "concat": f"ffconcat version 1.0\nfile '{entry}'\n",
        "xspf": f"<playlist><trackList><track><location>{entry}</location></track></trackList></playlist>",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
        "dash": f"<?xml version='1.0'?><MPD type='static'><BaseURL>{entry}</BaseURL></MPD>",
    }[kind]
    (tmp_path / "a.mp3").write_text(content)
    started = time.monotonic()
    assert "ffmpeg" in str(refusal(tmp_path / "a.mp3"))
    assert time.monotonic() - started < 20


def test_lying_headers_decide_nothing(tmp_path):
    if not CASES.is_dir():
        pytest.skip("the cases are not beside the repository (../shared/cases)")
    assert str(refusal(CASES / "wav_says_1Hz.wav")) == "no speech: sampled at 1 Hz"
    if shutil.which("ffmpeg"):
        assert len(decode_file(CASES / "flac_says_49_days.flac").samples) == SAMPLE_RATE


def test_a_recording_longer_than_the_limit_is_refused_in_little_memory(tmp_path):
    """12 hours of silence are 400 kB of FLAC."""
    with soundfile.SoundFile(tmp_path / "a.flac", "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for _ in range(12):
            file.write(np.zeros(3600 * SAMPLE_RATE, np.int16))
    code = (
        "import resource, sys; from whisper_quran.data.audio import decode_files\n"
        "(result,) = decode_files(sys.argv[1:], workers=1)\n"
        "print(result, result.final, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2_000_000)"
    )
    assert run_python(code, tmp_path / "a.flac").stdout == "longer than 3 h True True\n"


FAKE_FFMPEG = """#!/bin/sh
echo $$ >> {pids}
head -c 100000 /dev/zero
{then}
"""


def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> Path:
    """Put an ffmpeg on the PATH that writes something, and then does ``then``; return the list of its processes."""
    (folder / "bin").mkdir()
    (folder / "bin" / "ffmpeg").write_text(FAKE_FFMPEG.format(pids=folder / "pids", then=then))
    (folder / "bin" / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (folder / "a.m4a").write_bytes(b"not for soundfile")
    return folder / "pids"


@pytest.mark.parametrize("then", ["kill -9 $$", "kill -15 $$", "echo 'Cannot allocate memory' >&2; exit 1"])
def test_half_of_what_a_killed_ffmpeg_wrote_is_nothing_and_no_verdict(tmp_path, monkeypatch, then):
    fake_ffmpeg(tmp_path, monkeypatch, then)
    assert not refusal(tmp_path / "a.m4a").final


def test_a_decoder_that_takes_too_long_is_ended_and_costs_that_file_alone(tmp_path, monkeypatch):
    pids = fake_ffmpeg(tmp_path, monkeypatch, "sleep 600 & wait")
    monkeypatch.setattr(audio, "DEADLINE", 2.0)
    soundfile.write(tmp_path / "b.wav", chirp(SAMPLE_RATE), SAMPLE_RATE)
    a, b = decode_files([tmp_path / "a.m4a", tmp_path / "b.wav"], workers=1)
    assert (str(a), a.final) == ("decoding it took too long", False)
    assert len(b.samples) == 24000
    wait_for(lambda: not is_running(int(pids.read_text())))


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes through /proc")
@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_ffmpeg_ends_with_its_parent(tmp_path, monkeypatch, victim):
    pids = fake_ffmpeg(tmp_path, monkeypatch, "sleep 600 & wait")
    code = "import sys; from whisper_quran.data.audio import decode_files; list(decode_files(sys.argv[1:], workers=1))"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "a.m4a"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: pids.exists() and pids.read_text().endswith("\n"))
    first = int(pids.read_text().split()[0])
    workers = [pid for pid in processes_with(str(tmp_path)) if pid not in (parent.pid, first)]
    os.kill(parent.pid if victim == "parent" else min(workers), signal.SIGKILL)
    wait_for(lambda: not is_running(first))
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(is_running(int(pid)) for pid in pids.read_text().split()))


@pytest.mark.skipif(sys.platform != "linux", reason="only there is the limit kept")
def test_memory_that_runs_out_is_no_verdict(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.tile(chirp(SAMPLE_RATE, 60), 40), SAMPLE_RATE, subtype="FLOAT")
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / "soundfile.py").write_text(
        "class LibsndfileError(Exception): pass\ndef SoundFile(*_, **__): bytearray(16 << 30)"
    )
    monkeypatch.syspath_prepend(tmp_path / "stubs")
    monkeypatch.setenv("PATH", str(tmp_path))
    (result,) = decode_files([tmp_path / "a.wav"], workers=1)
    assert isinstance(result, AudioError) and not result.final
