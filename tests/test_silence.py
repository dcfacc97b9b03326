"""Silence is flagged and not labelled: levels, windows, files, ensembles, and every form of output."""

import csv
import json

import numpy as np
import pytest
import torch

import gafx
from gafx.audio.level import SILENCE, level
from gafx.cli import main
from gafx.errors import UsageError

RATE = 22050
CLASSES = ["blues", "hip-hop", "pop"]


def build(sample_rate=RATE, seed=0):
    torch.manual_seed(seed)
    model = gafx.create_model(
        {"name": "mel", "sample_rate": sample_rate}, {"name": "ast", "depth": 1}, classes=CLASSES, segment_seconds=0.5
    ).eval()
    model.fit_statistics(torch.rand(4, 1, sample_rate // 2) - 0.5)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


def noise(rng, seconds, db):
    return 10 ** (db / 20) * rng.standard_normal(round(seconds * RATE))


def sine(seconds, db):
    return 2**0.5 * 10 ** (db / 20) * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wave", "expected"),
    [
        (np.zeros(RATE), -np.inf),
        (np.full(RATE, 0.25), -np.inf),  # a constant offset is no sound
        (np.full(7, 1e-3), -np.inf),
        (sine(1.0, -20), -20),
        (0.1 + sine(1.0, -60), -60),
        (np.sign(sine(1.0, -3)), 0),
        (np.concatenate([np.zeros(RATE), sine(0.05, -30), np.zeros(7 * RATE)]), -30),  # a short sound in silence
        (np.concatenate([np.zeros(RATE + 3), sine(0.05, -30)]), -30),  # at the very end
    ],
)
def test_levels(wave, expected):
    # A short sound may lie across two blocks of 50 ms: 3 dB less.
    assert level(wave.astype(np.float32)[None], RATE) == pytest.approx(expected, abs=3.1 if len(wave) > RATE else 0.1)


def test_the_level_is_that_of_the_louder_channel():
    stereo = np.stack([np.zeros(RATE), sine(1.0, -40)]).astype(np.float32)
    assert level(stereo, RATE) == pytest.approx(-40, abs=0.1)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "silent"),
    [("zeros", True), ("dither", True), ("noise at -90 dBFS", True), ("offset", True), ("noise at -60 dBFS", False),
     ("a quiet tone", False), ("a click in silence", False)],
)  # fmt: skip
def test_what_is_silent(name, silent, model, rng, wav_factory):
    wave = {
        "zeros": np.zeros(2 * RATE),
        "dither": np.round(rng.triangular(-1, 0, 1, 2 * RATE)) / 32768,
        "noise at -90 dBFS": noise(rng, 2, -90),
        "offset": np.full(2 * RATE, 0.01) + noise(rng, 2, -95),
        "noise at -60 dBFS": noise(rng, 2, -60),
        "a quiet tone": sine(2.0, -65),
        "a click in silence": np.concatenate([np.zeros(RATE), [0.5, -0.5], np.zeros(RATE)]),
    }[name]
    file = wav_factory("a.wav", wave, subtype="PCM_24")
    (found,) = gafx.predict(file, model)
    assert found.silent == silent
    assert (found.probabilities is None) == (found.label is None) == silent
    assert (found.level < SILENCE) == silent
    assert found.error is None
    assert found.seconds == pytest.approx(len(wave) / RATE)
    (off,) = gafx.predict(file, model, silence=None)
    assert not off.silent
    assert off.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert off.level == found.level
    assert found.top() == ([] if silent else off.top()) or found.silent_windows


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_constant_is_silent_at_any_rate(rate, model):
    """The resampler rings where it begins and ends; a sound at the very beginning is heard beside a small offset."""
    offset = np.full(round(1.3 * rate), 0.5, np.float32)
    (found,) = gafx.predict(offset, model, sample_rate=rate)
    assert found.silent
    (window, *_) = model.stream([offset], rate)
    assert window.silent
    offset[:] = 0.01
    offset[: rate // 200] = -0.2
    assert not next(gafx.predict(offset, model, sample_rate=rate)).silent


def test_channels_that_cancel_out_are_named(model, rng, wav_factory):
    sound = noise(rng, 1, -20)
    opposite = wav_factory("opposite.wav", np.stack([sound, -sound], axis=1))
    end = np.zeros((1, 2, RATE + 500))
    end[..., -400:] = 0.1 * sound[:400]  # in a remainder that no window covers
    found, silent = gafx.predict([opposite, end], model, sample_rate=RATE)
    assert found.silent
    assert found.note.startswith("its channels cancel out where they are mixed (-1")
    assert (silent.silent, silent.note) == (True, None)


def test_silent_windows_do_not_count(model, rng, wav_factory):
    """A second of sound, one and a half of silence, and sound: the mean is that over the windows with sound."""
    parts = [noise(rng, 0.99, -20), np.zeros(round(1.52 * RATE)), noise(rng, 0.49, -30)]
    file = wav_factory("a.wav", np.concatenate(parts), subtype="FLOAT")
    (found,) = gafx.predict(file, model, over_time=True)
    (off,) = gafx.predict(file, model, over_time=True, silence=None)
    inside = [bool(start >= 0.99 and end <= 2.51) for start, end in found.windows]
    assert found.window_silent.tolist() == inside
    assert found.window_count == len(inside)
    assert found.silent_windows == sum(inside) == 5
    np.testing.assert_array_equal(found.window_probabilities, off.window_probabilities)
    heard = ~np.array(inside)
    np.testing.assert_allclose(found.probabilities, off.window_probabilities[heard].mean(axis=0), atol=1e-12)
    assert np.abs(found.probabilities - off.probabilities).max() > 1e-4
    assert np.isneginf(found.window_levels[inside]).all()
    assert found.level == found.window_levels.max() == pytest.approx(-20, abs=0.5)


def test_another_limit(model, rng, wav_factory):
    file = wav_factory("a.wav", noise(rng, 1, -50))
    assert not next(gafx.predict(file, model)).silent
    assert next(gafx.predict(file, model, silence=-40)).silent
    for limit in (3.0, float("nan")):
        with pytest.raises(UsageError, match="silence"):
            gafx.predict(file, model, silence=limit)


def test_ensembles(model, rng, wav_factory):
    """Models of other rates have other windows; a silent file is silent for all, and a partly silent one is not."""
    members = [model, build(16000, seed=1)]
    zeros = wav_factory("zeros.wav", np.zeros(RATE))
    half = wav_factory("half.wav", np.concatenate([np.zeros(RATE), noise(rng, 1, -20)]))
    silent, heard = gafx.predict([zeros, half], members, over_time=True, labels=["pop", "blues"])
    assert silent.silent
    assert silent.probabilities is None
    alone = [next(gafx.predict(half, each)) for each in members]
    expected = np.mean([each.probabilities for each in alone], axis=0)[[2, 0]]
    np.testing.assert_allclose(heard.probabilities, expected / expected.sum(), atol=1e-6)
    assert 0 < heard.silent_windows < heard.window_count


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def album(rng, wav_factory):
    wav_factory("album/half.wav", np.concatenate([noise(rng, 0.99, -20), np.zeros(RATE)]))
    return wav_factory("album/zeros.wav", np.zeros(RATE)).parent


def run(capsys, *arguments):
    try:
        main([str(item) for item in arguments])
        status = 0
    except SystemExit as ended:
        status = ended.code
    message = capsys.readouterr()
    return status, message.out, message.err


def test_every_output(model, album, tmp_path, capsys):
    saved = model.save(tmp_path / "model")
    status, out, err = run(capsys, "predict", album, "--model", saved, "--over-time", "--plot", tmp_path / "plots")
    assert status == 0
    assert "1 of them silent (below -70 dBFS)" in err
    assert "zeros.wav is not plotted: it is silent" in err
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["half.png"]
    lines = out.splitlines()
    assert lines[0].endswith("; 3 of 7 windows silent")
    assert sum("silent (-inf dBFS)" in line for line in lines) == 3 + 1 + 3
    assert "zeros.wav" in lines[8]
    assert "silent (-inf dBFS)" in lines[8]

    _, out, _ = run(capsys, "predict", album, "--model", saved, "--json", "--over-time")
    half, zeros = json.loads(out)
    assert (half["windows"], half["silent_windows"]) == (7, 3)
    assert [window.get("silent", False) for window in half["over_time"]] == [False] * 4 + [True] * 3
    assert all("probabilities" not in window for window in half["over_time"] if window.get("silent"))
    assert zeros.items() >= {"silent": True, "level_db": None, "windows": 3, "silent_windows": 3}.items()
    assert not {"label", "probabilities"} & set(zeros)

    _, out, _ = run(capsys, "predict", album, "--model", saved, "--csv")
    half, zeros = csv.DictReader(out.splitlines())
    assert float(half["silent"]) == pytest.approx(3 / 7, abs=1e-4)
    assert (zeros["label"], zeros["pop"], zeros["level_db"], zeros["error"]) == ("", "", "-inf", "")
    assert float(zeros["silent"]) == 1
    _, out, _ = run(capsys, "predict", album, "--model", saved, "--csv", "--over-time")
    assert [float(row["silent"]) for row in csv.DictReader(out.splitlines())] == [0] * 4 + [1] * 6

    _, out, err = run(capsys, "predict", album, "--model", saved, "--jsonl", "--silence", "off")
    assert "silent" not in out + err
    status, out, _ = run(capsys, "predict", album, "--model", saved, "--jsonl", "--silence", "-10")
    assert all(json.loads(line)["silent"] for line in out.splitlines())
    assert status == 0
    for value in ("3", "quiet"):
        assert run(capsys, "predict", album, "--model", saved, "--silence", value)[0] == 2
