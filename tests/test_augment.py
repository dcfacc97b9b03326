"""Augmentation of waves: each effect against a number computed another way, each draw a function of its key."""

import multiprocessing
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from gafx import cli
from gafx.config import AugmentConfig, TrainConfig, build, run_id
from gafx.data.augment import (
    add_noise,
    draw_between_class,
    draw_gain,
    draw_roll,
    draw_speed,
    mix_between_classes,
    sound_level,
)
from gafx.data.batches import TrainingOrder, evaluation_loader, training_loader
from gafx.data.dataset import ClipDataset
from gafx.data.manifest import make_manifest
from gafx.data.readers import FileReader
from gafx.data.segments import Segments
from gafx.errors import UsageError
from gafx.training.build import training_clips

RATE = 16000
EVERYTHING = AugmentConfig(
    between_class_probability=0.5, speed=1.3, roll=True, gain_db=6.0, noise_probability=0.5, avoid_silence=True,
    time_masks=1,
)  # fmt: skip


def sine(hz, seconds=1.0, amplitude=0.5, rate=RATE):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def clips(wav_factory, tmp_path):
    """`clips(waves, labels, augment, length)`: random crops of `length` samples of WAV files of the waves."""

    def make(waves, augment, length, *, labels=None, random_crop=True):
        paths = [f"{number}.wav" for number in range(len(waves))]
        for path, wave in zip(paths, waves, strict=True):
            wav_factory(path, wave, RATE, subtype="FLOAT")
        labels = [[number % 2] for number in range(len(waves))] if labels is None else labels
        seconds = [len(wave) / RATE for wave in waves]
        manifest = make_manifest(tmp_path, ["a", "b", "c"], paths, labels, seconds, [RATE] * len(waves))
        rows = np.arange(len(waves))
        segments = Segments(rows, np.zeros(len(rows), np.int64), np.full(len(rows), length))
        return ClipDataset(
            manifest, segments, FileReader(manifest, RATE, 1), seed=3, random_crop=random_crop, fixed_length=length,
            augment=augment, numbers=True,
        )  # fmt: skip

    return make


def test_samples_are_functions_of_seed_epoch_and_index(clips, rng):
    """Whatever the workers, the batches and the order, and in a run that is resumed at some step."""
    data = clips([0.1 * rng.standard_normal(1500 + 100 * n).astype(np.float32) for n in range(12)], EVERYTHING, 1200)

    def samples(workers, batch_size, start_step=0):
        order = TrainingOrder(12, batch_size=batch_size, epochs=2, seed=3, start_step=start_step)
        found, steps = {}, order.steps_per_epoch
        for step, batch in enumerate(training_loader(data, order, workers=workers), start_step):
            for place, index in enumerate(batch.index.tolist()):
                parts = (batch.wave, batch.target, batch.masks, batch.numbers)
                found[step // steps, index] = [part[place] for part in parts]
        return found

    reference = samples(0, 4)
    assert len(reference) == 24
    for other in (samples(2, 4), samples(0, 6), samples(0, 4, start_step=4)):
        for key, parts in other.items():
            assert all(torch.equal(*pair) for pair in zip(parts, reference[key], strict=True)), key
    alone = data[1, 7]
    assert torch.equal(alone.wave, reference[1, 7][0])
    assert not torch.equal(alone.wave, reference[0, 7][0])
    assert not torch.equal(alone.wave, replace(data, seed=4)[1, 7].wave)


@pytest.mark.parametrize("memory", ["shared", "none"])
def test_batches_of_a_worker_stay_as_they_are(clips, rng, monkeypatch, memory):
    """More batches than slots, all kept; without shared memory they come through a pipe."""
    if memory == "none":
        monkeypatch.setattr("gafx.data.batches.mmap.mmap", Mock(side_effect=OSError))
    data = clips([0.1 * rng.standard_normal(1500).astype(np.float32) for _ in range(31)], EVERYTHING, 1200)
    Path(os.fsdecode(data.manifest.file(4))).write_bytes(b"no audio")
    order = TrainingOrder(31, batch_size=3, epochs=2, seed=3)
    expected, found = (list(training_loader(data, order, workers=workers)) for workers in (0, 1))
    assert len(expected) == len(found) == 22
    for a, b in zip(expected, found, strict=True):
        for name in ("wave", "target", "masks", "weight", "index", "numbers"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
            assert getattr(a, name).dtype == getattr(b, name).dtype
        assert a.errors == b.errors
    assert sum(len(batch.errors) for batch in found) >= 2


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_readers_of_other_types_give_the_same_with_workers(clips, rng, monkeypatch, dtype):
    data = clips([0.1 * rng.standard_normal(1500).astype(np.float32) for _ in range(4)], None, 1200)
    read = data.reader.read
    monkeypatch.setattr(data.reader, "read", lambda *where: (1000 * read(*where)).astype(dtype))
    alone, sent = (next(iter(evaluation_loader(data, batch_size=4, workers=workers))) for workers in (0, 1))
    assert alone.wave.dtype == sent.wave.dtype == torch.from_numpy(np.zeros(1, dtype)).dtype
    assert torch.equal(alone.wave, sent.wave)


def test_a_killed_worker_ends_the_command_with_one_sentence(clips, rng, monkeypatch, capsys):
    data = clips([rng.standard_normal(1500).astype(np.float32) for _ in range(4)], None, 1200)

    def train(_):
        for _ in training_loader(data, TrainingOrder(4, batch_size=2, epochs=10_000, seed=3), workers=1):
            [worker] = multiprocessing.active_children()
            worker.kill()

    monkeypatch.setattr(cli, "read_command", lambda _: SimpleNamespace(run=train))
    with pytest.raises(SystemExit, match="1"):
        cli.main(["train"])
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(r"error: a process that reads the data has ended \(.*\); .* workers=0", line)


def test_by_default_nothing_changes(clips, rng):
    waves = [rng.standard_normal(2000).astype(np.float32) for _ in range(4)]
    for random_crop in (True, False):
        data = clips(waves, AugmentConfig(), 1200, random_crop=random_crop)
        plain = replace(data, augment=None)
        assert all(torch.equal(data[e, i].wave, plain[e, i].wave) for e in range(3) for i in range(4))

    def id_of(**augment):
        return run_id(build(TrainConfig, {"augment": augment}))

    assert id_of() == id_of(roll=False, noise_snr_db=[10, 30], speed=1, gain_db=0)
    assert id_of() != id_of(roll=True)
    assert id_of(noise_snr_db=[12, 24]) == id_of(noise_snr_db=[12.0, 24.0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"augment": {"mixup_probability": 0.5, "between_class_probability": 0.3}},
            r"augment.mixup_probability=0.5 .*between_class_probability=0.3 .*set one of them to 0",
        ),
        (
            {"augment": {"avoid_silence": True}, "data": {"crop": "segments"}},
            r"avoid_silence=true with data.crop=segments.*data.crop=random",
        ),
    ],
)
def test_settings_that_exclude_each_other(values, message):
    with pytest.raises(UsageError, match=message):
        build(TrainConfig, values)


def test_an_augmentation_moves_no_draw_of_another(clips, rng):
    waves = [rng.standard_normal(4000).astype(np.float32) for _ in range(4)]
    data = clips(waves, AugmentConfig(roll=True), 1200)
    plain = clips(waves, None, 1200)
    for epoch in range(4):
        shift = draw_roll(data.augment, 1200, 3, epoch, 1)
        assert torch.equal(data[epoch, 1].wave, plain[epoch, 1].wave.roll(shift, dims=1))
        assert not torch.equal(data[epoch, 1].wave, plain[epoch, 1].wave)


def test_rolls_are_uniform():
    shifts = [draw_roll(AugmentConfig(roll=True), 1000, 0, epoch, 0) for epoch in range(2000)]
    assert min(shifts) >= 0
    assert max(shifts) < 1000
    assert np.histogram(shifts, 4, (0, 1000))[0] == pytest.approx([500] * 4, abs=80)


def test_gains_are_uniform_in_decibels(clips, rng):
    config = AugmentConfig(gain_db=6.0)
    decibels = 20 * np.log10([draw_gain(config, 0, epoch, 0) for epoch in range(2000)])
    assert np.abs(decibels).max() <= 6
    assert np.histogram(decibels, 4, (-6, 6))[0] == pytest.approx([500] * 4, abs=80)
    loud = np.sign(rng.standard_normal(1200)).astype(np.float32)
    data = clips([loud, loud], config, 1200)
    peaks = [float(data[epoch, 0].wave.abs().max()) for epoch in range(8)]
    assert peaks == pytest.approx([draw_gain(config, 3, epoch, 0) for epoch in range(8)])
    assert max(peaks) > 1  # nothing is clipped


def test_noise_has_the_drawn_ratio():
    config = AugmentConfig(noise_probability=0.5, noise_snr_db=(5.0, 15.0))
    wave = np.stack([sine(440), 0.1 * sine(300)])
    ratios, unchanged = [], 0
    for epoch in range(200):
        noisy = add_noise(config, wave, 0, epoch, 0)
        assert noisy.dtype == np.float32
        if noisy is wave:
            unchanged += 1
            continue
        noise = noisy - wave
        ratios.append(10 * np.log10(np.mean(wave.astype(float) ** 2) / np.mean(noise.astype(float) ** 2)))
        assert abs(np.corrcoef(noise)[0, 1]) < 0.05
        assert abs(np.corrcoef(noise[0, 1:], noise[0, :-1])[0, 1]) < 0.05  # white
    assert unchanged == pytest.approx(100, abs=25)
    assert min(ratios) > 4.8
    assert max(ratios) < 15.2
    assert np.mean(ratios) == pytest.approx(10, abs=1)
    silent = np.zeros((1, 1000), np.float32)
    assert not add_noise(replace(config, noise_probability=1.0), silent, 0, 0, 0).any()


def test_sound_levels_are_a_weighted():
    # Table of IEC 61672-1 for 100 Hz, 1 kHz and 4 kHz; a sine of amplitude a has a mean square of a^2 / 2.
    for hz, weighting in ((100, -19.1), (1000, 0.0), (4000, 1.0)):
        expected = 20 * np.log10(0.5) - 3.01 + weighting
        assert sound_level(sine(hz)[None], RATE) == pytest.approx(expected, abs=0.2), hz
    burst = np.concatenate([np.zeros(2 * RATE, np.float32), sine(1000), np.zeros(2 * RATE, np.float32)])
    assert sound_level(burst[None], RATE) == pytest.approx(sound_level(sine(1000)[None], RATE), abs=0.1)
    assert sound_level(np.zeros((1, RATE), np.float32), RATE) == -np.inf
    assert np.isfinite(sound_level(sine(1000, seconds=0.01)[None], RATE))


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.9])
def test_between_class_weights_are_the_papers(weight):
    loud, quiet = sine(1000, amplitude=0.5)[None], sine(1500, amplitude=0.05)[None]
    mixed = mix_between_classes(loud, quiet, weight, RATE)
    assert mixed.dtype == np.float32
    difference = sound_level(loud, RATE) - sound_level(quiet, RATE)
    p = 0.0 if weight == 0 else 1 / (1 + 10 ** (difference / 20) * (1 - weight) / weight)
    expected = (p * loud + (1 - p) * quiet) / np.sqrt(p**2 + (1 - p) ** 2)
    assert mixed == pytest.approx(expected, abs=1e-6)
    # The amplitudes heard are as weight to 1 - weight, though one clip is 20 dB louder (0.1 dB and A-weighting aside).
    if 0 < weight < 1:
        bins = np.abs(np.fft.rfft(mixed[0]))
        assert bins[1000] / bins[1500] == pytest.approx(weight / (1 - weight), rel=0.15)


def test_a_silent_partner_does_not_erase_a_clip():
    tone, silence = sine(1000)[None], np.zeros((1, RATE), np.float32)
    expected = 0.5 / np.sqrt(0.5) * tone
    assert mix_between_classes(tone, silence, 0.5, RATE) == pytest.approx(expected, abs=1e-6)
    assert mix_between_classes(silence, tone, 0.5, RATE) == pytest.approx(expected, abs=1e-6)
    faint = sine(700, amplitude=1e-5)[None]  # 94 dB below: compensated, the tone would become as quiet
    assert mix_between_classes(tone, faint, 0.5, RATE) == pytest.approx(expected, abs=1e-4)


def test_partners_have_other_labels(clips, rng):
    config = AugmentConfig(between_class_probability=0.5)
    labels, drawn = np.array([0] * 90 + [1] * 10), {}
    for epoch in range(20):
        for index, own in enumerate(labels):
            others = (labels != own).tolist()
            drawn[epoch, index] = draw_between_class(config, 100, others.__getitem__, 0, epoch, index)
    mixed = {key: mix for key, mix in drawn.items() if mix}
    assert len(mixed) / len(drawn) == pytest.approx(0.5, abs=0.04)
    assert all(labels[index] != labels[mix.partner] for (_, index), mix in mixed.items())
    assert np.histogram([mix.weight for mix in mixed.values()], 4, (0, 1))[0] == pytest.approx([250] * 4, abs=70)
    assert {mix.partner for (_, index), mix in mixed.items() if index < 90} == set(range(90, 100))
    assert all(draw_between_class(config, 5, lambda other: False, 0, epoch, 0) is None for epoch in range(5))
    # The sample: targets r and 1 - r, of clips with several labels too, in whichever order they are.
    waves = [sine(500), sine(1000), sine(1500)]
    data = clips(waves, replace(config, between_class_probability=1.0), RATE, labels=[[0, 1], [1, 0], [2]])
    for epoch in range(6):
        sample, mix = data[epoch, 0], data._draw_mix(data.augment, epoch, 0)
        assert mix.partner == 2
        assert sample.target.tolist() == pytest.approx([mix.weight, mix.weight, 1 - mix.weight])
        expected = mix_between_classes(waves[0][None], waves[2][None], mix.weight, RATE)
        assert sample.wave.numpy() == pytest.approx(expected, abs=1e-6)


def test_one_class_cannot_be_mixed_between_classes(clips):
    data = clips([sine(500)] * 3, None, RATE, labels=[[0, 1]] * 3)
    config = build(TrainConfig, {"augment": {"between_class_probability": 0.5}})
    with pytest.raises(UsageError, match="all have the same labels"):
        training_clips(config, data.manifest, np.arange(3), data.reader, None)


def test_speeds_move_the_frequency(clips):
    config = AugmentConfig(speed=1.25)
    speeds = [draw_speed(config, 0, epoch, 0) for epoch in range(2000)]
    assert min(speeds) >= 1 / 1.25
    assert max(speeds) <= 1.25
    edges = 1.25 ** np.linspace(-1, 1, 5)
    assert np.histogram(speeds, edges)[0] == pytest.approx([500] * 4, abs=80)
    for random_crop in (True, False):
        data = clips([sine(1000, seconds=3.0)], config, 2 * RATE, random_crop=random_crop)
        for epoch in range(6):
            wave = data[epoch, 0].wave.numpy()
            assert wave.shape == (1, 2 * RATE)
            peak = np.abs(np.fft.rfft(wave[0] * np.hanning(2 * RATE))).argmax() / 2
            assert peak == pytest.approx(1000 * draw_speed(config, 3, epoch, 0), abs=0.6)
            assert np.abs(wave[0, 200:-200]).max() == pytest.approx(0.5, abs=0.01)  # where the resampler sees no end


def test_a_faster_clip_that_ends_too_soon_is_repeated(clips):
    data = clips([sine(1000)], AugmentConfig(speed=2.0), RATE)
    epoch = next(epoch for epoch in range(50) if draw_speed(data.augment, 3, epoch, 0) > 1.5)
    length = round(RATE / (round(RATE * draw_speed(data.augment, 3, epoch, 0)) / RATE))
    wave = data[epoch, 0].wave[0]
    assert torch.equal(wave[length : 2 * length], wave[: RATE - length])


def test_a_faster_segment_at_the_end_of_a_track_is_moved_back(clips, rng):
    ramp = np.linspace(0, 1, 3 * RATE, dtype=np.float32)
    data = clips([ramp], AugmentConfig(speed=1.5), RATE, random_crop=False)
    data.segments.start[:] = 2 * RATE
    for epoch in range(6):
        factor = draw_speed(data.augment, 3, epoch, 0)
        wave = data[epoch, 0].wave[0, 200:-200].numpy()  # without the ends, where the resampler sees zeros outside
        assert np.diff(wave) == pytest.approx(factor / (3 * RATE), rel=0.05)
        assert wave[0] == pytest.approx((min(2.0, 3 - factor) + 200 * factor / RATE) / 3, abs=1e-3)


def test_crops_avoid_silence(clips, rng):
    """A clip of which the middle fifth sounds: two in nine crops are silent for at most half of their length."""
    wave = np.zeros(10 * RATE, np.float32)
    wave[4 * RATE : 6 * RATE] = 0.1 * rng.standard_normal(2 * RATE)
    plain = clips([wave], AugmentConfig(), RATE)
    data = replace(plain, augment=AugmentConfig(avoid_silence=True))
    fractions = {True: [], False: []}
    for epoch in range(300):
        first, taken = plain[epoch, 0].wave, data[epoch, 0].wave
        for avoided, crop in ((False, first), (True, taken)):
            fractions[avoided].append(float((crop == 0).float().mean()))
        if fractions[False][-1] <= 0.5:
            assert torch.equal(first, taken)  # the first draw is that without the option
        assert fractions[True][-1] <= fractions[False][-1]
    expected = 2 / 9  # the starts from 3.5 to 5.5 s, of those from 0 to 9 s
    assert np.mean(np.array(fractions[False]) <= 0.5) == pytest.approx(expected, abs=0.07)
    assert np.mean(np.array(fractions[True]) <= 0.5) == pytest.approx(1 - (1 - expected) ** 8, abs=0.06)


def test_silence_is_read_no_more_than_eight_times(clips, monkeypatch):
    silent, short = np.full(3 * RATE, 1e-5, np.float32), np.zeros(RATE // 2, np.float32)
    data = clips([silent, short, sine(500, seconds=3.0)], AugmentConfig(avoid_silence=True), RATE)
    reads = []
    read = FileReader.read
    monkeypatch.setattr(FileReader, "read", lambda self, *wanted: reads.append(wanted[0]) or read(self, *wanted))
    waves = [data[0, index].wave for index in range(3)]
    assert [reads.count(row) for row in range(3)] == [8, 1, 1]
    assert all(wave.shape == (1, RATE) for wave in waves)
    plain = replace(data, augment=None)
    assert torch.equal(waves[0], plain[0, 0].wave)


def test_an_unreadable_clip_is_not_augmented(clips, tmp_path):
    data = clips([sine(500), sine(1000)], replace(EVERYTHING, between_class_probability=1.0), RATE)
    (tmp_path / "1.wav").write_bytes(b"nothing")
    for index in range(2):  # its partner neither
        sample = data[0, index]
        assert sample.weight == 0
        assert sample.error.path == "1.wav"
        assert not sample.wave.any()
