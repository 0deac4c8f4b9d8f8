"""Whatever file a user has comes out as 16 kHz mono int16, or with the reason why not."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from whisper_quran.data import audio
from whisper_quran.data.audio import SAMPLE_RATE, AudioError, decode_file, decode_files, resample

REPOSITORY = Path(__file__).parents[1]
CASES = REPOSITORY.parent / "shared" / "cases" / "audio"
needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes through /proc")


def chirp(rate: int, seconds: float = 1.5) -> np.ndarray:
    """A tone that rises from 200 Hz to 3 kHz, float64 (n,): the same sound at any rate."""
    t = np.arange(int(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * (200 * t + 1400 / seconds * t**2))


def noise_ratio(samples: np.ndarray, expected: np.ndarray) -> float:
    """The energy of the difference over that of ``expected``; a lag of one sample makes it large."""
    difference = samples.astype(np.float64) - expected
    return (difference**2).sum() / (expected.astype(np.float64) ** 2).sum()


def assert_chirp(samples: np.ndarray) -> None:
    middle = slice(2000, 22000)
    assert noise_ratio(samples[middle], 32768 * chirp(SAMPLE_RATE)[middle]) < 0.02


def encode(path: Path, codec: str, rate: int) -> None:
    """Write the chirp in stereo as phones and browsers do."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        sound = np.float32([chirp(rate)] * 2)
        packed = np.int16(32767 * sound.T).reshape(1, -1)
        format, content = ("fltp", sound) if codec == "aac" else ("s16", packed)
        frame = av.AudioFrame.from_ndarray(content, format=format, layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in itertools.chain(stream.encode(frame), stream.encode(None)):
            container.mux(packet)


def run_python(code: str, *arguments: object, path: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own that imports from ``path`` first, and from the repository."""
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def refusal(path: Path) -> AudioError:
    with pytest.raises(AudioError) as refused:
        decode_file(path)
    return refused.value


@pytest.mark.parametrize(
    ("name", "seconds", "damaged"),
    [
        ("001000_basmala.mp3", 9.822, False),
        ("jfk_english_44kHz.flac", 11.0, False),
        ("mono_8kHz.mp3", 3.312, False),
        ("stereo_48kHz.mp3", 10.68, False),
        ("truncated.mp3", 1.073, True),
    ],
)
def test_odd_files_that_can_be_read(quran, name, seconds, damaged):
    decoded = decode_file(quran / "odd" / name)
    assert decoded.samples.dtype == np.int16
    assert decoded.samples.ndim == 1
    assert decoded.damaged == damaged
    assert len(decoded.samples) / SAMPLE_RATE == pytest.approx(seconds, abs=0.001)


def test_what_is_no_audio_is_refused_in_one_line(quran, tmp_path):
    for name in ("noise_bytes.mp3", "text_named.mp3"):
        refused = refusal(quran / "odd" / name)
        assert refused.final and str(refused).startswith("not audio, or a playlist of other files (Invalid data")
    assert "empty" in str(refusal(quran / "odd" / "empty.mp3"))
    gone = refusal(tmp_path / "gone.mp3")
    assert "No such file" in str(gone) and not gone.final


def test_a_16_khz_mono_16_bit_file_is_kept_bit_by_bit(tmp_path):
    samples = np.concatenate(
        [np.arange(-32768, 32768), np.random.default_rng(0).integers(-32768, 32768, 100_000)]
    ).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE)
    np.testing.assert_array_equal(decode_file(tmp_path / "a.wav").samples, samples)


@pytest.mark.parametrize("file", ["a.wav", "b.flac", "c.ogg", "d.mp3"])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_formats_and_rates(tmp_path, file, rate):
    """Also: what an MP3's encoder adds before the sound is taken away again, as players do."""
    soundfile.write(tmp_path / file, np.stack([chirp(rate)] * 2, axis=1), rate)
    decoded = decode_file(tmp_path / file)
    assert not decoded.damaged
    assert len(decoded.samples) == pytest.approx(1.5 * SAMPLE_RATE, abs=200 if file == "c.ogg" else 2)
    assert_chirp(decoded.samples)


@pytest.mark.parametrize(
    ("file", "codec", "rate"),
    [("a.m4a", "aac", 44100), ("voice.mp4", "aac", 48000), ("b.opus", "libopus", 48000), ("c.webm", "libopus", 48000)],
)
def test_voice_notes_need_no_ffmpeg(tmp_path, monkeypatch, file, codec, rate):
    encode(tmp_path / file, codec, rate)
    monkeypatch.setenv("PATH", str(tmp_path))
    decoded = decode_file(tmp_path / file)
    assert not decoded.damaged
    assert len(decoded.samples) == pytest.approx(1.5 * SAMPLE_RATE, abs=SAMPLE_RATE / 20)
    assert_chirp(decoded.samples)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("seconds", [0, 9.99, 25.003])
def test_resampling_in_blocks_is_torchaudios(rate, seconds):
    samples = np.random.default_rng(rate).integers(-16000, 16000, 1 + int(rate * seconds)).astype(np.int16)
    theirs = torchaudio.transforms.Resample(rate, SAMPLE_RATE)(torch.from_numpy(samples.astype(np.float32))).numpy()
    ours = resample(samples, rate)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 0.51  # Half a step of rounding, and the float error of its sums.


@pytest.mark.parametrize("length", [426_108, 16_777_217])
def test_a_length_that_torchaudio_counts_wrong_in_float32(length):
    assert len(resample(np.zeros(length, np.int16), 44100)) == -(-length * SAMPLE_RATE // 44100)


def test_a_rate_of_no_simple_ratio(tmp_path):
    soundfile.write(tmp_path / "a.wav", chirp(22254), 22254)
    decoded = decode_file(tmp_path / "a.wav")
    assert len(decoded.samples) == pytest.approx(1.5 * SAMPLE_RATE, abs=2)
    assert_chirp(decoded.samples)


def test_a_torchaudio_that_does_not_load_is_one_line_with_the_command_that_mends_it(quran, tmp_path):
    """And at 16 kHz nothing imports it."""
    (tmp_path / "torchaudio.py").write_text("raise OSError('libtorchaudio.so: undefined symbol: _ZN')")
    soundfile.write(tmp_path / "a.wav", chirp(SAMPLE_RATE), SAMPLE_RATE)
    code = (
        "import sys; from whisper_quran.data.audio import decode_files\n"
        "from whisper_quran.runtime.errors import run_command\n"
        "run_command(lambda: [print(len(each.samples)) for each in decode_files(sys.argv[1:], workers=1)])"
    )
    run = run_python(code, tmp_path / "a.wav", quran / "odd" / "mono_8kHz.mp3", path=tmp_path)
    assert (run.returncode, run.stdout) == (2, "24000\n"), run.stderr
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: a recording at 8000 Hz must be resampled, and torchaudio ")
    assert "undefined symbol" in line and f"beside torch {torch.__version__}" in line
    assert "pip install --force-reinstall torch==" in line


def test_commands_do_without_torchaudio(tmp_path):
    """Whatever they import; resampling alone needs it."""
    (tmp_path / "torchaudio.py").write_text("raise OSError('it does not load')")
    code = (
        "import pkgutil, whisper_quran\n"
        "for module in pkgutil.walk_packages(whisper_quran.__path__, 'whisper_quran.'):\n"
        "    if not module.name.endswith('__main__'): __import__(module.name)\n"
        "import train, evaluate, convert"
    )
    run = run_python(code, path=tmp_path)
    assert run.returncode == 0, run.stderr


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


def test_an_mp3_that_understates_its_length_is_read_to_its_end(tmp_path):
    """Without a Xing header its length is estimated from its bit rate at the beginning."""
    loud = np.random.default_rng(0).uniform(-0.5, 0.5, 10 * 44100)
    sound = np.concatenate([loud, np.zeros(50 * 44100)])
    soundfile.write(tmp_path / "a.mp3", sound, 44100, bitrate_mode="VARIABLE", compression_level=0)
    with av.open(str(tmp_path / "a.mp3")) as container:
        frames = b"".join(bytes(packet) for packet in container.demux(audio=0))
    (tmp_path / "a.mp3").write_bytes(frames)
    assert audio.header_seconds(tmp_path / "a.mp3") < 40, "the file is no example of it"
    decoded = decode_file(tmp_path / "a.mp3")
    assert len(decoded.samples) / SAMPLE_RATE == pytest.approx(60, abs=0.2) and not decoded.damaged


def test_damage_in_the_middle_is_marked_and_the_rest_is_used(quran, tmp_path):
    content = bytearray((quran / "odd" / "stereo_48kHz.mp3").read_bytes())
    content[20_000:22_000] = np.random.default_rng(0).bytes(2000)
    (tmp_path / "a.mp3").write_bytes(content)
    decoded = decode_file(tmp_path / "a.mp3")
    assert decoded.damaged
    assert len(decoded.samples) / SAMPLE_RATE == pytest.approx(10.68, abs=0.5)


def test_recordings_that_were_joined_byte_by_byte_are_read_to_the_end(tmp_path):
    """Of other rates and channels, too."""
    for name, rate, channels in (("1.mp3", 44100, 2), ("2.mp3", 22050, 1)):
        soundfile.write(tmp_path / name, np.stack([chirp(rate)] * channels, axis=1), rate)
    (tmp_path / "a.mp3").write_bytes((tmp_path / "1.mp3").read_bytes() + (tmp_path / "2.mp3").read_bytes())
    assert len(decode_file(tmp_path / "a.mp3").samples) / SAMPLE_RATE == pytest.approx(3, abs=0.15)


def test_a_title_in_another_alphabet_is_no_obstacle(tmp_path):
    soundfile.write(tmp_path / "a.wav", chirp(SAMPLE_RATE), SAMPLE_RATE)
    content = (tmp_path / "a.wav").read_bytes()
    title = "سورة".encode("cp1256")  # 4 bytes, no UTF-8
    tag = b"LIST\x10\0\0\0INFOINAM\x04\0\0\0" + title
    content = content[:36] + tag + content[36:]  # between the chunks fmt and data
    (tmp_path / "a.wav").write_bytes(content)
    assert len(decode_file(tmp_path / "a.wav").samples) == 24000
    assert audio.header_seconds(tmp_path / "a.wav") == 1.5


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
    assert [len(each.samples) for each in decode_files(paths, workers=1)] == [52992] * len(paths)


def test_nothing_is_printed_and_a_script_without_a_guard_is_not_run_again_by_the_workers(quran, tmp_path):
    (tmp_path / "script.py").write_text(
        "import sys; from whisper_quran.data.audio import decode_files\n"
        "print([each.damaged for each in decode_files(sys.argv[1:] * 3, workers=2)])"
    )
    files = [quran / "odd" / name for name in ("truncated.mp3", "damaged_frames.mp3", "mono_8kHz.mp3")]
    for start in ([tmp_path / "script.py"], ["-m", "script"]):
        run = subprocess.run(
            [sys.executable, *start, *files],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (run.stdout, run.stderr) == (f"{[True, False, False] * 3}\n", "")
    decode_file(files[0])
    assert av.logging.get_level() is None, "FFmpeg's messages stay on"


def test_many_files_come_in_their_order_and_as_they_do_one_by_one(quran):
    paths = sorted((quran / "odd").iterdir()) + sorted((quran / "audio" / "Yasser_Salama_hadr").glob("11*.mp3"))
    for path, result in zip(paths, decode_files(paths, workers=2), strict=True):
        try:
            expected = decode_file(path)
        except AudioError as error:
            assert (str(result), result.final) == (str(error), error.final)
        else:
            assert result.damaged == expected.damaged
            assert np.abs(result.samples.astype(int) - expected.samples).max() <= 1  # BLAS on one thread or several.


@pytest.fixture
def dangerous(tmp_path, monkeypatch) -> Path:
    """A folder where the workers, and they alone, find a decoder that dies of files named ``signal-N-…`` or hangs."""
    (tmp_path / "av.py").write_text(
        "import os, re, sys, time\n"
        "del sys.modules['av']; sys.path.remove(os.path.dirname(__file__))\n"
        "import av\n"
        "real = av.open\n"
        "def open(file, mode, **options):\n"
        "    name = os.path.basename(file.name)\n"
        "    if found := re.match(r'signal-(\\d+)', name): os.kill(os.getpid(), int(found[1]))\n"
        "    if name.startswith('hang'): time.sleep(600)\n"
        "    return real(file, mode, **options)\n"
        "av.open = open\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_decoders_that_crash_or_hang_cost_their_files_alone_many_in_a_row_too(quran, dangerous, monkeypatch):
    monkeypatch.setattr(audio, "DEADLINE", 2)
    bad = ["signal-11-b.mp3", "signal-9-c.mp3", "hang.mp3", *(f"signal-9-{i}.mp3" for i in range(5))]
    names = ["a.mp3", *bad, "z.mp3"]
    for name in names:
        shutil.copy(quran / "odd" / "mono_8kHz.mp3", dangerous / name)
    first, *results, last = decode_files([dangerous / name for name in names], workers=2)
    assert [len(each.samples) for each in (first, last)] == [52992] * 2
    assert [(str(each), each.final) for each in results] == [
        ("the decoder crashed on it (signal 11)", True),
        ("the decoder crashed on it (signal 9)", False),
        ("decoding it took too long", False),
        *[("the decoder crashed on it (signal 9)", False)] * 5,
    ]


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (1 << 30, 4)])
def test_long_files_are_not_decoded_far_ahead(quran, monkeypatch, limit, most):
    asked = []
    decode = audio._Worker.decode
    monkeypatch.setattr(audio, "AHEAD", limit)
    monkeypatch.setattr(audio._Worker, "decode", lambda *each: asked.append(each) or decode(*each))
    results = decode_files([quran / "odd" / "mono_8kHz.mp3"] * 9, workers=1)
    next(results)
    time.sleep(1)
    assert len(asked) <= most + 1
    results.close()


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


@needs_proc
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


@needs_proc
def test_leaving_early_leaves_no_worker_even_one_that_hangs(dangerous):
    soundfile.write(dangerous / "a.wav", chirp(SAMPLE_RATE), SAMPLE_RATE)
    (dangerous / "hang.mp3").write_bytes(b"x")
    code = (
        "import contextlib, sys, time; from whisper_quran.data.audio import decode_files\n"
        "with contextlib.closing(decode_files(sys.argv[1:], workers=2)) as results: \n"
        "    print(len(next(results).samples)); time.sleep(2)"
    )
    run = run_python(code, dangerous / "a.wav", *[dangerous / "hang.mp3"] * 5, path=dangerous)
    assert (run.stdout, run.stderr) == ("24000\n", "")
    assert not processes_with(str(dangerous))


# Audio that cannot be what it is named for.


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
    assert reason in str(refused) and refused.final


def test_quiet_speech_is_no_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", chirp(SAMPLE_RATE) / 100, SAMPLE_RATE)
    assert len(decode_file(tmp_path / "a.wav").samples) == 24000


@pytest.mark.parametrize("factor", [3.0, 32768, 2**31])
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


# Limits.


@pytest.mark.parametrize("entry", ["other.wav", "concat:other.wav|other.wav"])
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
    assert "playlist" in str(refusal(tmp_path / "a.mp3"))
    assert time.monotonic() - started < 20


def test_lying_headers_decide_nothing(tmp_path):
    if not CASES.is_dir():
        pytest.skip("the cases are not beside the repository (../shared/cases)")
    assert str(refusal(CASES / "wav_says_1Hz.wav")) == "no speech: sampled at 1 Hz"
    decoded = decode_file(CASES / "flac_says_49_days.flac")
    assert len(decoded.samples) == SAMPLE_RATE and decoded.damaged


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
