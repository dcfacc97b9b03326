"""The synthetic music: a pure function of its arguments, whose samples agree with the stored truth."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest

from gafx.errors import UsageError
from gafx.studies.synth import FACTORS, GENRES, VARY, compose, render
from gafx.studies.synth.accompaniment import ACCOMPANIMENTS
from gafx.studies.synth.bass import BASS_STYLES
from gafx.studies.synth.drums import DRUMS, KITS
from gafx.studies.synth.genres import PROFILES
from gafx.studies.synth.harmony import MODES, PITCH_CLASSES, PROGRESSIONS, QUALITIES
from gafx.studies.synth.instruments import INSTRUMENTS, tone
from gafx.studies.synth.melody import MELODY_STYLES
from gafx.studies.synth.mix import impulse_response
from gafx.studies.synth.rhythm import DRUM_PATTERNS

RATE = 22050


@cache
def track(genre: str, index: int):
    score = compose(genre, index)
    wave = render(score, RATE)
    wave.setflags(write=False)
    return score, wave


def digest(genre: str, index: int, **arguments) -> str:
    score = compose(genre, index, seconds=3.0, **arguments)
    return hashlib.sha256(render(score, RATE).tobytes() + json.dumps(score.truth()).encode()).hexdigest()


def power(wave: np.ndarray, size: int, hop: int) -> np.ndarray:
    """(frames, bins) power spectrum under a Hann window."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[::hop] * np.hanning(size).astype(np.float32)
    return np.abs(np.fft.rfft(frames, axis=1)) ** 2


# --- The same track, whatever else is made ---------------------------------------------------------------------------


def test_same_arguments_same_bytes_in_another_process_and_order():
    jobs = [("rock", 4), ("ambient", 0), ("swing", 2), ("rock", 0)]
    here = [digest(*job) for job in jobs]
    assert here == [digest(*job) for job in jobs]
    # The other process starts with another salt for hash() and makes the tracks backwards.
    code = (
        "import hashlib, json\n"
        "from gafx.studies.synth import compose, render\n"
        f"for job in {jobs[::-1]!r}:\n"
        "    score = compose(*job, seconds=3.0)\n"
        f"    data = render(score, {RATE}).tobytes() + json.dumps(score.truth()).encode()\n"
        "    print(hashlib.sha256(data).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == here[::-1]


def test_seed_index_and_genre_each_change_the_track():
    digests = {digest("funk", 0), digest("funk", 1), digest("folk", 0), digest("funk", 0, seed=1)}
    assert len(digests) == 4


@pytest.mark.parametrize("genre", GENRES)
def test_samples_are_sound(genre):
    score, wave = track(genre, 0)
    assert wave.dtype == np.float32
    assert wave.shape == (round(score.seconds * RATE),)
    assert np.isfinite(wave).all()
    assert np.abs(wave).max() < 1.0
    # Not beeps: energy is spread over the spectrum and moves.
    spectrum = power(wave, 1024, 512)
    octaves = [spectrum[:, 2**k : 2 ** (k + 1)].sum() / spectrum.sum() for k in range(9)]
    assert max(octaves) < 0.95
    assert np.std(np.log10(spectrum.sum(axis=1) + 1e-9)) > 0.02


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_other_sample_rates(rate):
    score = compose("disco", 1, seconds=2.5)
    wave = render(score, rate)
    assert wave.shape == (round(2.5 * rate),)
    assert np.abs(wave).max() < 1.0
    assert 20 * np.log10(np.sqrt(np.mean(wave.astype(float) ** 2))) == pytest.approx(score.loudness, abs=0.05)


# --- The truth, measured another way ---------------------------------------------------------------------------------


def test_loudness_is_the_rms():
    for genre in GENRES:
        for index in range(2):
            score, wave = track(genre, index)
            measured = 20 * np.log10(np.sqrt(np.mean(wave.astype(np.float64) ** 2)))
            assert measured == pytest.approx(score.loudness, abs=0.05), (genre, index)


def estimated_tempo(wave: np.ndarray) -> float:
    """Peak of the autocorrelation of the spectral flux, 55 to 200 BPM."""
    hop = 220
    flux = np.maximum(np.diff(np.log1p(100 * np.sqrt(power(wave, 1024, hop))), axis=0), 0).mean(axis=1)
    flux = flux - np.convolve(flux, np.ones(101) / 101, mode="same")
    both = np.abs(np.fft.rfft(flux, n=2 * flux.size)) ** 2
    correlation = np.fft.irfft(both)[: flux.size] / np.arange(flux.size, 0, -1)
    frames = np.arange(int(60 / 200 * RATE / hop), int(60 / 55 * RATE / hop) + 1)
    return 60 * RATE / hop / frames[np.argmax(correlation[frames])]


def test_tempo_is_audible_up_to_the_octave():
    jobs = [(genre, index) for genre in GENRES for index in range(3) if track(genre, index)[0].drums]
    right = 0
    for job in jobs:
        score, wave = track(*job)
        ratio = estimated_tempo(wave) / score.tempo
        right += any(abs(ratio / octave - 1) < 0.04 for octave in (0.5, 1.0, 2.0))
    assert len(jobs) >= 20
    assert right >= 0.7 * len(jobs), f"{right} of {len(jobs)}"


def test_chord_tones_are_louder_than_the_rest_of_the_octave():
    right = total = 0
    hertz = np.fft.rfftfreq(4096, 1 / RATE)
    band = (hertz > 150) & (hertz < 1200)
    classes = np.round(12 * np.log2(hertz[band] / 440) + 69).astype(int) % 12
    for genre in GENRES:
        score, wave = track(genre, 0)
        spectrum = np.sqrt(power(wave, 4096, 1024)[:, band])
        times = (np.arange(len(spectrum)) * 1024 + 2048) / RATE
        for start, end, name in score.chords:
            inside = (times > start + 0.1) & (times < end - 0.05)
            if inside.sum() < 3:
                continue
            chroma = np.array([spectrum[inside][:, classes == c].mean() for c in range(12)])
            root, quality = name.split(":")
            tones = [(PITCH_CLASSES.index(root) + t) % 12 for t in QUALITIES[quality]]
            others = [c for c in range(12) if c not in tones]
            right += chroma[tones].mean() > chroma[others].mean()
            total += 1
    assert total >= 30
    assert right >= 0.9 * total, f"{right} of {total}"


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_instruments_are_in_tune(instrument):
    wave = tone(instrument, 221.3, 1.0, RATE, np.random.default_rng(0))
    assert wave.dtype == np.float32
    assert np.isfinite(wave).all()
    spectrum = np.abs(np.fft.rfft(wave[:RATE] * np.hanning(RATE), n=8 * RATE))
    harmonic = np.argmax(spectrum) / 8 / 221.3
    assert 1 <= round(harmonic) <= 8
    assert 1200 * abs(np.log2(harmonic / round(harmonic))) < 15  # cents


@pytest.mark.parametrize("room", [0.3, 1.0, 2.5])
def test_room_decays_by_60_db_in_its_time(room):
    response = impulse_response(room, RATE, np.random.default_rng(0)).astype(np.float64)
    left = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] + 1e-30)
    left -= left[0]
    first, last = np.argmax(left < -5), np.argmax(left < -25)
    slope = (left[last] - left[first]) / ((last - first) / RATE)
    assert -60 / slope == pytest.approx(room, rel=0.2)


def test_truth_is_json_and_consistent():
    for genre in GENRES:
        score = compose(genre, 5, seconds=7.3)
        truth = json.loads(json.dumps(score.truth()))
        assert truth["genre"] == genre
        assert truth["seconds"] == 7.3
        assert truth["key"] == f"{PITCH_CLASSES[truth['tonic']]} {truth['mode']}" == score.key
        assert truth["instrument"] == truth["instruments"]["melody"] == score.instrument
        assert set(truth["sources"]) == set(FACTORS)
        chords = truth["chords"]
        assert chords[0][0] == 0.0
        assert chords[-1][1] == 7.3
        assert all(a[1] == b[0] for a, b in itertools.pairwise(chords))
        assert all(start < end for start, end, _ in chords)
        assert any(note.part == "melody" for note in score.notes)
        assert all(0 <= note.start < 7.3 and note.start + note.duration <= 7.3001 for note in score.notes)
        assert all(0 < note.velocity <= 1 and 20 < note.pitch < 110 for note in score.notes)
        assert all(0 <= hit.start < 7.3 and 0 < hit.velocity <= 1 for hit in score.drums)


# --- Varying one factor alone ----------------------------------------------------------------------------------------


def decisions(score) -> dict[str, object]:
    """Values that each factor determines, apart from notes that follow from several factors."""
    return {
        "tempo": score.tempo,
        "drums": (score.drum_pattern, score.swing, score.levels["drums"]),
        "bass": (score.bass_style, score.levels["bass"]),
        "harmony": (score.key, score.progression),
        "accompaniment": score.accompaniment,
        "melody": (score.melody_style, score.levels["melody"]),
        "timbre": (tuple(score.instruments.items()), score.tilt, score.cutoff),
        "loudness": score.loudness,
        "room": (score.room, score.wet),
    }


def test_decisions_of_a_factor_depend_on_no_other_factor():
    for genre in GENRES:
        for index in range(4):
            everything = decisions(compose(genre, index, seconds=1.0))
            alone = {factor: decisions(compose(genre, index, seconds=1.0, vary=factor)) for factor in FACTORS}
            for factor in FACTORS:
                assert alone[factor][factor] == everything[factor]
                frozen = [alone[other][factor] for other in FACTORS if other != factor]
                assert all(value == frozen[0] for value in frozen)


def test_frozen_factors_do_not_know_the_genre():
    scores = {genre: [compose(genre, i, seconds=1.0, vary="rhythm") for i in range(60)] for genre in GENRES}
    for factor in FACTORS:
        own = np.mean([score.sources[factor] == genre for genre in GENRES for score in scores[genre]])
        if factor in VARY["rhythm"]:
            assert own > 0.85
        else:
            assert own == pytest.approx(0.1, abs=0.04)

    def spread(read) -> float:
        """Fraction of the variance between the genres: about 1/60 where the genre has no effect."""
        values = np.array([[read(score) for score in scores[genre]] for genre in GENRES])
        return float(values.mean(axis=1).var() / values.var())

    assert spread(lambda score: score.tempo) > 0.2
    for read in (
        lambda score: score.loudness,
        lambda score: np.log(score.room),
        lambda score: score.tilt,
        lambda score: score.mode == "minor",
        lambda score: score.tonic,
        lambda score: score.instruments["bass"] == "finger_bass",
        lambda score: score.bass_style == "walking",
        lambda score: score.accompaniment == "strum",
        lambda score: score.melody_style == "lyrical",
    ):
        assert spread(read) < 0.05
    patterns = [{score.drum_pattern for score in scores[genre]} for genre in ("bossa", "house")]
    assert "bossa" in patterns[0]
    assert "four_floor" in patterns[1]


def test_genres_overlap():
    for table in ("patterns", "bass", "modes", "accompaniment", "melody", "lead", "chord", "low", "kit"):
        uses = Counter(name for profile in PROFILES.values() for name in getattr(profile, table))
        lonely = {name for name, count in uses.items() if count < 2}
        for genre in GENRES:
            weights = getattr(PROFILES[genre], table)
            shared = sum(weight for name, weight in weights.items() if name not in lonely)
            assert shared > 0.5 * sum(weights.values()), f"{genre} keeps its {table} to itself: {lonely & set(weights)}"
            assert len(weights) >= 2, f"{genre} has but one of {table}"


# --- Tables and arguments --------------------------------------------------------------------------------------------


def test_tables_name_only_what_exists():
    assert len(GENRES) == 10
    assert tuple(sorted(GENRES)) == GENRES
    for profile in PROFILES.values():
        assert set(profile.patterns) <= set(DRUM_PATTERNS)
        assert set(profile.bass) <= set(BASS_STYLES)
        assert set(profile.modes) <= set(MODES)
        assert profile.favourites <= {p for cycle in PROGRESSIONS.values() for p in cycle}
        assert set(profile.accompaniment) <= set(ACCOMPANIMENTS)
        assert set(profile.melody) <= set(MELODY_STYLES)
        assert {*profile.lead, *profile.chord, *profile.low} <= set(INSTRUMENTS)
        assert set(profile.kit) <= set(KITS)
    lines = [line for pattern in DRUM_PATTERNS.values() for line in pattern.items()]
    assert all(drum in DRUMS and len(line) == 16 for drum, line in lines)
    for styles in (BASS_STYLES, ACCOMPANIMENTS, MELODY_STYLES):
        assert all(len(bar) == 16 for bars in styles.values() for bar in bars)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(genre="bosa", index=0), "did you mean 'bossa'"),
        (dict(genre="polka", index=0), "choose one of: ambient, ballad"),
        (dict(genre="funk", index=-1), "index is -1; it must be a whole number"),
        (dict(genre="funk", index=1.5), "index is 1.5"),
        (dict(genre="funk", index=0, seed=-3), "seed is -3"),
        (dict(genre="funk", index=0, seconds=0.2), "choose a length from 1 to 600"),
        (dict(genre="funk", index=0, seconds=float("nan")), "choose a length"),
        (dict(genre="funk", index=0, seconds="10"), "seconds is '10'"),
        (dict(genre="funk", index=0, vary="rythm"), "did you mean 'rhythm'"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(UsageError, match=sentence):
        compose(**arguments)


@pytest.mark.parametrize("rate", [4000, 200000, 22050.5])
def test_bad_sample_rates_are_named(rate):
    with pytest.raises(UsageError, match="sample_rate is"):
        render(compose("funk", 0, seconds=1.0), rate)
