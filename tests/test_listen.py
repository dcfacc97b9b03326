"""Streams: the windows and probabilities of the same samples in a file, as early as possible, losses reported.

No test here has a microphone: a stand-in for the module sounddevice calls back with blocks, as PortAudio would.
"""

import io
import json
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import soundfile
import torch

import gafx
from gafx.cli import main
from gafx.deploy import microphone
from gafx.deploy import stream as stream_module
from gafx.deploy.predict import predict_files
from gafx.deploy.stream import stream
from gafx.errors import UsageError
from gafx.inference import Probabilities

CLASSES = ["blues", "hip-hop", "pop"]
RATE = 22050
WINDOW = 0.5


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=CLASSES, segment_seconds=WINDOW).eval()
    built.fit_statistics(torch.rand(4, 1, 11025) - 0.5)
    with torch.no_grad():  # a new head gives nearly equal probabilities
        built.classifier.output.weight.mul_(30)
    return built


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return str(model.save(tmp_path_factory.mktemp("model") / "model"))


def sound(rng, seconds, rate=RATE, channels=1):
    """A sweep and noise, as 16-bit integers `(samples, channels)`."""
    axis = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * axis) * axis)[:, None] + 0.05 * rng.standard_normal(
        (len(axis), channels)
    )
    return (32767 * wave).round().astype(np.int16)


def pieces(samples, *sizes):
    start, number = 0, 0
    while start < len(samples):
        yield samples[start : start + sizes[number % len(sizes)]]
        start, number = start + sizes[number % len(sizes)], number + 1


def of_file(model, samples, rate, path, **options):
    soundfile.write(path, samples, rate, format="WAV", subtype="PCM_16")
    (found,) = predict_files(Probabilities(model), [path], over_time=True, **options)
    return found


# --- the same as a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (44100, 2), (8000, 1)])
@pytest.mark.parametrize("seconds", [0.004, 0.3, 0.5, 0.52, 1.37, 2.6])
def test_a_stream_equals_its_file(seconds, rate, channels, model, rng, tmp_path):
    samples = sound(rng, seconds, rate, channels)
    expected = of_file(model, samples, rate, tmp_path / "a.wav", batch_size=1)
    for sizes in ([1 << 20], [1000], [7, 441, 0, 5000]):
        found = list(model.stream((part.T for part in pieces(samples, *sizes) if sizes != [0]), rate))
        assert [(window.start, window.end) for window in found] == [tuple(span) for span in expected.windows]
        np.testing.assert_array_equal([window.probabilities for window in found], expected.window_probabilities)
    batched = of_file(model, samples, rate, tmp_path / "a.wav", batch_size=16)
    np.testing.assert_allclose(
        [window.probabilities for window in found], batched.window_probabilities, rtol=0, atol=1e-6
    )
    assert found[0].top(1) == [(CLASSES[int(np.argmax(found[0].probabilities))], found[0].probabilities.max())]


FORMS = {
    "int16": lambda samples: samples.T,
    "one axis": lambda samples: samples[:, 0],
    "float32": lambda samples: samples.T / np.float32(32768),
    "float64": lambda samples: samples.T / 32768,
    "int32": lambda samples: samples.T.astype(np.int32) << 16,
    "tensor": lambda samples: torch.from_numpy(samples.T / np.float32(32768)),
    "bytes": lambda samples: samples.astype("<i2").tobytes(),
    "memoryview": lambda samples: memoryview(samples.astype("<i2").tobytes()),
}


@pytest.mark.parametrize("form", FORMS)
def test_chunks_of_every_form(form, model, rng):
    samples = sound(rng, 1.1)
    expected = list(model.stream([samples[:, 0]], RATE))
    found = list(model.stream(map(FORMS[form], pieces(samples, 1000)), RATE))
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_bytes_cut_anywhere(model, rng):
    """A pipe gives any number of bytes: also half a sample, or one channel of two."""
    samples = (sound(rng, 1.1, channels=2) / np.float32(32768)).astype("<f4")
    content = samples.tobytes()
    parts = [content[start : start + 999] for start in range(0, len(content), 999)]
    found = list(model.stream(parts, RATE, channels=2, dtype="float32"))
    expected = list(model.stream([samples.T], RATE))
    np.testing.assert_array_equal([w.probabilities for w in found], [w.probabilities for w in expected])


def test_bytes_that_are_no_whole_sample_are_reported(model, rng, caplog):
    content = sound(rng, 1.0, RATE, 1).tobytes()
    list(model.stream([content], RATE))
    assert not caplog.records
    list(model.stream([content, b"abc"], RATE, channels=2))
    assert "ended within a sample: 3 of its 4 bytes (2 channels, int16)" in caplog.text


def test_silent_windows_are_flagged_as_in_files(model, rng, tmp_path):
    samples = sound(rng, 2.0)
    samples[:20000] = samples[:20000] % 3 - 1  # one step of 16 bits
    of = of_file(model, samples, RATE, tmp_path / "x.wav")
    windows = list(stream(model, [samples[:, 0]], RATE))
    assert [window.silent for window in windows] == of.window_silent.tolist()
    assert [window.level for window in windows] == of.window_levels.tolist()
    assert 0 < sum(of.window_silent) < len(windows)
    entry = windows[0].to_dict()
    assert (entry["silent"], "probabilities" in entry) == (True, False)
    assert windows[0].probabilities is windows[0].label is None
    assert windows[0].top() == []
    assert windows[-1].label == windows[-1].to_dict()["label"] == windows[-1].top(1)[0][0]
    assert not any(window.silent for window in stream(model, [samples[:, 0]], RATE, silence=None))
    with pytest.raises(UsageError, match="silence=3 must be a level"):
        stream(model, [], RATE, silence=3)


def test_chosen_labels_as_in_files(model, rng, tmp_path):
    samples = sound(rng, 1.3)
    chosen = {"labels": {"x": list(CLASSES[:2]), "y": CLASSES[2]}, "threshold": 0.6}
    of = of_file(model, samples, RATE, tmp_path / "x.wav", **chosen)
    windows = list(model.stream([samples[:, 0]], RATE, **chosen))
    assert [window.label for window in windows] == [part.label for part in of.segments(overlap=True)]
    for window, values, own in zip(windows, of.window_probabilities, of.window_model_probabilities, strict=True):
        np.testing.assert_allclose(window.probabilities, values, atol=1e-6)
        np.testing.assert_allclose(window.model_probabilities, own, atol=1e-6)
    assert list(windows[0].to_dict()["model_probabilities"].values()) == pytest.approx(
        sorted(windows[0].model_probabilities, reverse=True), abs=1e-8
    )
    with pytest.raises(UsageError, match="no label 'trombone'"):
        model.stream([], RATE, labels=["trombone", CLASSES[0]])


def test_hop_and_overlap(model, rng):
    samples = sound(rng, 1.5)[:, 0]
    by_hop = [window.start for window in model.stream([samples], RATE, hop_seconds=0.125)]
    assert by_hop == pytest.approx(np.arange(9) * 0.125, abs=1e-4)
    assert by_hop == [window.start for window in model.stream([samples], RATE, overlap=0.75)]
    assert [window.end for window in model.stream([samples], RATE, window_seconds=0.8, overlap=0)] == [0.8, 1.5]


# --- as early as possible ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_an_answer_comes_with_the_chunk_that_completes_its_window(rate, model, rng):
    """The source notes how much it has given when each answer comes: no window waits for the next one, or for the end.

    The resampler looks ahead: soxr by 42 ms from this rate to this one.
    """
    given = 0

    def chunks():
        nonlocal given
        for part in pieces(sound(rng, 1.6, rate)[:, 0], rate // 100):
            given += len(part)
            yield part

    seen = [(window.end, given / rate) for window in model.stream(chunks(), rate)]
    assert len(seen) == 6
    for end, heard in seen[:-1]:
        assert end <= heard <= end + 0.0101 + (0 if rate == RATE else 0.05)


def test_latency_counts_from_the_chunk_with_the_last_sample(model, rng, monkeypatch):
    """A clock that only the source and the computation move."""
    now = 0.0
    monkeypatch.setattr(stream_module, "time", types.SimpleNamespace(perf_counter=lambda: now))

    def chunks():
        nonlocal now
        for part in pieces(sound(rng, 1.0)[:, 0], RATE // 10):
            now += 0.1
            yield part

    def slow(*_):
        nonlocal now
        now += 0.03

    hook = model.classifier.register_forward_pre_hook(slow)
    try:
        found = list(model.stream(chunks(), RATE))
        assert [window.latency for window in found] == pytest.approx([0.03] * 3)
        now = 0.0
        # All at once: the second window waits for the first, the third for both.
        found = list(model.stream([sound(rng, 1.0)[:, 0]], RATE))
    finally:
        hook.remove()
    assert [window.latency for window in found] == pytest.approx([0.03, 0.06, 0.09])
    assert [window.computing for window in found] == pytest.approx([0.03] * 3)


def test_memory_of_an_endless_stream_is_bounded(model, rng):
    """The chunks are given back: none but those of the latest windows is held."""
    import weakref

    alive = weakref.WeakSet()

    class Chunk(np.ndarray):
        __hash__ = object.__hash__

        def __eq__(self, other):
            return self is other

    def chunks():
        for _ in range(100):
            part = np.zeros(RATE // 10, np.float32).view(Chunk)
            alive.add(part)
            yield part

    most = 0
    for _ in model.stream(chunks(), RATE):
        most = max(most, len(alive))
    assert most < 15


# --- what is refused --------------------------------------------------------------------------------------------------

GOOD = np.zeros(100, np.float32)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([GOOD, np.full(10, np.nan, np.float32)], "chunk 1 of the stream holds NaN"),
        ([GOOD * 0 + 3000], "peaks at 3000 where full scale is 1"),
        ([np.zeros(10, np.int64)], r"holds int64: give floats in \[-1, 1\] \(chunk.astype"),
        ([np.zeros(10, complex)], "holds complex128: give floats"),
        ([GOOD, np.zeros((2, 100), np.float32)], r"has 2 channel\(s\) of float32, and those before have 1 of float32"),
        ([GOOD, np.zeros(100, np.int16)], "of int16, and those before have 1 of float32"),
        ([np.zeros((1024, 2), np.float32)], r"shape \(1024, 2\), .* transpose it to \(channels, samples\)"),
        ([np.zeros((1, 1, 50), np.float32)], r"shape \(1, 1, 50\): give \(samples,\)"),
        (["song.wav"], "is a str: give an array"),
        ([None], "is a NoneType"),
        (None, "the chunks are a NoneType: give a list or an iterator"),
        (GOOD, r"the chunks are a ndarray: .*\[samples\] for one"),
        (b"abc", "the chunks are a bytes"),
        ([np.ma.masked_equal(GOOD, 0)], "chunk 0 of the stream: a masked array"),
    ],
)
def test_bad_chunks(chunks, reason, model):
    with pytest.raises(UsageError, match=reason):
        list(model.stream(chunks, RATE))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sample_rate": 0}, "sample_rate=0 Hz must be"),
        ({"sample_rate": 44100.5}, "must be a whole number of Hz"),
        ({"overlap": 1.0}, "must be a fraction of a window"),
        ({"hop_seconds": 0.6}, "a hop of 0.6 s must be above 0 and at most a window, 0.5 s"),
        ({"hop_seconds": float("nan")}, "a hop of nan s"),
        ({"hop_seconds": 0.1, "overlap": 0.5}, "the same twice"),
        ({"window_seconds": 1e-3}, "a window of 0.001 s is out of range"),
        ({"channels": 0}, "channels=0"),
        ({"channels": "2"}, "channels='2' must be a whole number"),
        ({"readers": 2}, "stream has no option readers; it has channels, dtype"),
        ({"dtype": "int8"}, "dtype='int8' must be one of int16, int32, uint8, float32"),
        ({"device": "cuda:99"}, "cuda"),
    ],
)
def test_arguments_are_checked_before_the_first_chunk(options, reason, model):
    def untouched():
        pytest.fail("a chunk was taken")
        yield

    with pytest.raises(UsageError, match=reason):
        model.stream(untouched(), **{"sample_rate": RATE, **options})


def test_no_sample_and_no_ensemble(model):
    assert list(model.stream([], RATE)) == list(model.stream([GOOD[:0], b""], RATE)) == []
    with pytest.raises(UsageError, match="by one model"):
        stream([model, Probabilities(model)], [], RATE)


# --- the command ------------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    try:
        main(["listen", *map(str, arguments)])
        status = 0
    except SystemExit as ended:
        status = ended.code
    message = capsys.readouterr()
    return status, message.out, message.err


@pytest.fixture
def piped(monkeypatch):
    def give(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


@pytest.mark.parametrize("form", ["s16le", "f32le"])
def test_pcm_on_standard_input(form, saved, model, rng, piped, capsys, tmp_path):
    samples = sound(rng, 1.3, 44100, 2)
    piped((samples if form == "s16le" else (samples / 32768).astype("<f4")).tobytes())
    expected = of_file(model, samples, 44100, tmp_path / "a.wav", batch_size=1)
    status, out, err = run(capsys, "-", "--model", saved, "--rate", 44100, "--channels", 2, "--format", form, "--jsonl")
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    np.testing.assert_allclose([(line["start"], line["end"]) for line in lines], expected.windows, atol=5e-4)
    for line, values in zip(lines, expected.window_probabilities, strict=True):
        np.testing.assert_allclose([line["probabilities"][name] for name in CLASSES], values, atol=1e-8)
        assert line["latency"] >= 0
    assert "standard input: 44100 Hz, 2 channels; a window of 0.5 s every 0.25 s" in err
    assert "5 windows, 0:01.3 of sound; latency from a window's last sample to its answer: median" in err


def test_text_and_an_end_after_some_seconds(saved, rng, piped, capsys):
    piped(sound(rng, 5).tobytes())
    status, out, err = run(capsys, "-", "--model", saved, "--top", 2, "--seconds", 1, "--overlap", 0)
    assert status == 0
    first, second = out.splitlines()
    assert first.split("  ")[-1].count("%") == 2
    assert (first.strip()[:16], second.strip()[:16]) == ("0:00.0 to 0:00.5", "0:00.5 to 0:01.0")
    assert "2 windows, 0:01.0 of sound" in err
    piped(sound(rng, 1).tobytes())
    status, out, _ = run(capsys, "-", "--model", saved, "--labels", f"x={CLASSES[0]}", "--threshold", 1, "--hop", 0.03)
    assert status == 0
    assert out.splitlines()[1].strip() == "0:00.03 to 0:00.53   none of these"


def test_lines_come_while_the_input_goes_on(saved, rng):
    """A process with a pipe that stays open: a line is there as soon as its window is."""
    command = [sys.executable, "-m", "gafx", "listen", "-", "--model", saved, "--top", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(sound(rng, 0.5).tobytes())
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"  0:00.0 to 0:00.5")
        process.stdin.write(sound(rng, 0.25).tobytes())
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"  0:00.2 to 0:00.7")
        process.stdin.close()
        assert b"2 windows" in process.stderr.read()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("content", "arguments", "reason"),
    [
        (b"", [], "no window: standard input ended before its first sample"),
        (b"RIFF....WAVEfmt ", [], "begins like a file of sound, and raw PCM is wanted"),
        (b"\0\0\0\x20ftypM4A ", [], "begins like a file of sound"),
        (b"\0" * 100, ["--rate", "10"], "sample_rate=10 Hz must be"),
        (b"\0" * 100, ["--channels", "0"], "--channels 0 must be at least 1"),
        (b"\0" * 100, ["--seconds", "0"], "--seconds 0 must be above 0"),
        (b"\0" * 100, ["--hop", "9"], "a hop of 9 s"),
        (b"\0" * 100, ["--input-device", "3"], "--input-device chooses a microphone"),
        (np.full(20_000, np.nan, np.float32).tobytes(), ["--format", "f32le"], "holds NaN"),
    ],
)
def test_refusals(content, arguments, reason, saved, piped, capsys):
    piped(content)
    status, out, err = run(capsys, "-", "--model", saved, *arguments)
    assert (status, out) == (2, "")
    assert reason in err


# --- the microphone ---------------------------------------------------------------------------------------------------


class PortAudioError(Exception):
    pass


class FakeSounddevice(types.ModuleType):
    """Two devices, of which one is an input; a stream calls back with `blocks` from a thread.

    A block is bytes, a number of seconds to sleep, or an overflow (None).
    """

    PortAudioError = PortAudioError

    def __init__(self, blocks, then=None):
        super().__init__("sounddevice")
        self.blocks, self.then, self.opened = blocks, then, {}
        self.default = types.SimpleNamespace(device=[1, 0])

    def query_devices(self, device=None, kind=None):
        listed = [
            {"name": "Speaker", "max_input_channels": 0, "default_samplerate": 48000.0},
            {"name": "USB Mic", "max_input_channels": 2, "default_samplerate": 22050.0},
        ]
        if kind is None:
            return listed
        if device not in (None, 1, "USB"):
            raise ValueError(f"No input device matching {device!r}")
        return listed[1]

    def RawInputStream(self, **options):
        if options["channels"] > 2:
            raise PortAudioError("Invalid number of channels")
        self.opened = options
        return self

    def start(self):
        threading.Thread(target=self._call, daemon=True).start()

    def _call(self):
        overflow = False
        for block in self.blocks:
            if block is None:
                overflow = True
            elif isinstance(block, float):
                time.sleep(block)
            else:
                frames = len(block) // 2 // self.opened["channels"]
                status = types.SimpleNamespace(input_overflow=overflow)
                self.opened["callback"](block, frames, None, status)
                overflow = False
        if self.then:
            self.then()

    def stop(self):
        self.opened["stopped"] = True

    def close(self):
        self.opened["closed"] = True


@pytest.fixture
def plugged(monkeypatch):
    def plug(blocks, then=None):
        fake = FakeSounddevice(blocks, then)
        monkeypatch.setitem(sys.modules, "sounddevice", fake)
        return fake

    return plug


def test_a_microphone(saved, rng, plugged, capsys, piped, monkeypatch):
    samples = sound(rng, 1.5)
    fake = plugged([part.tobytes() for part in pieces(samples, 1102)])
    status, out, err = run(capsys, "--model", saved, "--seconds", 1.25, "--jsonl", "--input-device", "USB")
    assert status == 0
    assert "USB Mic: 22050 Hz, 1 channel" in err
    assert "lost" not in err
    assert (fake.opened["samplerate"], fake.opened["channels"], fake.opened["dtype"]) == (22050, 1, "int16")
    assert fake.opened["stopped"]
    assert fake.opened["closed"]
    piped(samples.tobytes())
    _, expected, _ = run(capsys, "-", "--model", saved, "--seconds", 1.25, "--jsonl")
    found, same = ([json.loads(line) for line in text.splitlines()] for text in (out, expected))
    assert [line["probabilities"] for line in found] == [line["probabilities"] for line in same]
    assert len(found) == 4


@pytest.fixture
def interruptible():
    """A process that a shell began in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_microphone_with_the_summary(saved, rng, plugged, capsys, interruptible):
    def interrupt():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    plugged([part.tobytes() for part in pieces(sound(rng, 0.8), 1102)] + [1.0], then=interrupt)
    status, out, err = run(capsys, "--model", saved)
    assert status == 0
    assert len(out.splitlines()) == 2
    assert "2 windows" in err


def test_a_pipe_that_has_to_wait_is_reported(saved, rng, piped, capsys, monkeypatch):
    """A clock on which every window takes a second to compute."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(stream_module, "time", types.SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    piped(sound(rng, 1.0).tobytes())
    status, _, err = run(capsys, "-", "--model", saved)
    assert status == 0
    assert "computing took 300.0 % of the sound's time\n" in err
    assert "computing did not keep up with the sound: the source had to wait" in err


def test_lost_blocks_are_reported_and_no_window_has_a_splice(saved, rng, plugged, capsys, monkeypatch):
    """A queue of 20 blocks that fills while the first window is slow; after the gap the time goes on."""
    monkeypatch.setattr(microphone, "_ROOM_SECONDS", 1.0)
    blocks = [part.tobytes() for part in pieces(sound(rng, 4.0), 1102)]
    # All blocks but the last 16 at once: the queue takes 20 of them.
    plugged([*blocks[:-16], 1.0, *blocks[-16:]])
    status, out, err = run(capsys, "--model", saved, "--jsonl", "--seconds", 1.75)
    assert status == 0
    spans = [(line["start"], line["end"]) for line in map(json.loads, out.splitlines())]
    dropped = len(blocks) - 16 - 20
    gap = (len(blocks) - 16) * 1102 / RATE
    assert f"sound was lost: {dropped} blocks ({dropped * 0.05:.1f} s) because computing did not keep up" in err
    assert all(end <= 1.01 or start >= gap - 1e-3 for start, end in spans)
    assert spans[0] == (0.0, 0.5)
    assert any(start >= gap - 1e-3 for start, _ in spans)


def test_an_overflow_of_the_sound_system_is_a_gap(saved, rng, plugged, capsys):
    blocks = [part.tobytes() for part in pieces(sound(rng, 1.2), 1102)]
    plugged([*blocks[:12], None, *blocks[12:]])
    status, out, err = run(capsys, "--model", saved, "--jsonl", "--seconds", 1.2, "--overlap", 0)
    assert status == 0
    assert "sound was lost: 1 time an unknown amount in the sound system;" in err
    spans = [(line["start"], line["end"]) for line in map(json.loads, out.splitlines())]
    assert spans == [(0.0, 0.5), (0.1, 0.6), (0.6, 1.1), (0.7, 1.2)]


def test_list_devices(plugged, capsys):
    plugged([])
    status, out, _ = run(capsys, "--list-devices")
    assert status == 0
    assert [line.split() for line in out.splitlines()[2:]] == [["1", "USB", "Mic", "2", "22050", "Hz", "default"]]


def test_a_microphone_that_cannot_be_used(saved, plugged, capsys, monkeypatch):
    plugged([])
    for arguments, reason in (
        (["--input-device", "webcam"], "No input device matching 'webcam'): gafx listen --list-devices"),
        (["--channels", 3], "cannot be opened (Invalid number of channels)"),
        (["--format", "f32le"], "--format f32le is of standard input"),
    ):
        status, _, err = run(capsys, "--model", saved, *arguments)
        assert status == 2
        assert reason in err
    monkeypatch.setattr(microphone, "_PATIENCE_SECONDS", 0.05)
    status, _, err = run(capsys, "--model", saved)
    assert status == 2
    assert "USB Mic has given no sound for 0.05 s" in err
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # as if it were not installed
    status, _, err = run(capsys, "--model", saved)
    assert status == 2
    assert "pip install 'gafx[listen]'" in err


def test_without_portaudio(monkeypatch):
    def missing(*_):
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(microphone, "require", missing)
    with pytest.raises(UsageError, match=r"needs PortAudio \(PortAudio library not found\): install it, e.g. `apt"):
        microphone.sounddevice()
