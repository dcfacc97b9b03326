"""Music written by a model: draws, seeds, continuations, walks, files, page, and what a classifier hears."""

import json
import math

import mido
import numpy as np
import pretty_midi
import pytest
import soundfile
import torch

import gafx
from gafx.cli import main
from gafx.deploy.generate import Composer, between, edit_distance
from gafx.deploy.render import SAMPLE_RATE, instrument_of, render
from gafx.errors import UsageError
from gafx.midi.read import read_midi
from gafx.midi.song import Song, make_notes
from gafx.midi.tokens import BEGIN, END, PAD, UNKNOWN
from gafx.midi.write import midi_bytes, write_midi
from gafx.model import create_model
from gafx.studies.synth.instruments import INSTRUMENTS
from tests.music_models import make_song, make_writer

KINDS = ("decoder", "vae_lstm", "vae_transformer")


@pytest.fixture(scope="module")
def writers():
    return {kind: Composer(make_writer(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writers")
    for kind in KINDS:
        make_writer(kind).save(folder / kind)
    for seed in range(2):
        write_midi(make_song(seed), folder / f"tune-{seed}.mid")
    return folder


def barred(logits, place):
    logits = logits.clone()
    logits[..., [PAD, BEGIN, UNKNOWN, *([END] if place == 0 else [])]] = -math.inf
    return logits


# -- draws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_song_depends_on_seed_and_place_alone(kind, writers):
    few = writers[kind].pieces(2, seed=5, length=12)
    many = writers[kind].pieces(10, seed=5, length=12)
    for one, other in zip(few, many, strict=False):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert midi_bytes(one.song) == midi_bytes(other.song)
    assert len({tuple(piece.tokens.tolist()) for piece in many}) == 10
    other = writers[kind].pieces(2, seed=6, length=12)
    assert other[0].tokens.tolist() != few[0].tokens.tolist()


def test_a_longer_song_begins_like_a_shorter_one(writers):
    (short,), (long,) = (writers["decoder"].pieces(1, seed=2, length=length) for length in (9, 30))
    assert long.tokens[: len(short.tokens)].tolist() == short.tokens.tolist()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_temperature_0_takes_the_most_likely_token(kind, writers):
    """Against the logits of whole sequences, which are computed another way than those of single steps."""
    writer = writers[kind]
    (piece,) = writer.pieces(1, temperature=0, length=15, seed=3)
    if writer.generator.latent:  # the greedy song of the mean of the prior
        piece = writer.between(make_song(0), make_song(0), 2, length=15).pieces[0]
        latent = torch.from_numpy(writer._mean(writer.encode(make_song(0))))[None].float()
    else:
        latent = None
    logits = writer.generator.logits(torch.from_numpy(piece.tokens)[None], latent)[0]
    expected = [int(barred(logits[place], place).argmax()) for place in range(len(piece.tokens))]
    assert piece.tokens.tolist() == expected


@torch.no_grad()
def test_draws_follow_the_nucleus(writers):
    """First tokens of many songs against the renormalised probabilities of the nucleus, by chi-square."""
    writer, temperature, top_p = writers["decoder"], 0.8, 0.9
    drawn = [int(piece.tokens[0]) for piece in writer.pieces(2400, temperature=temperature, top_p=top_p, length=1)]
    logits = writer.generator.logits(torch.zeros(1, 1, dtype=torch.long))[0, 0].double()
    chances = (barred(logits, 0) / temperature).softmax(dim=0).numpy()
    order = np.argsort(-chances)
    kept = order[: int(np.searchsorted(np.cumsum(chances[order]), top_p)) + 1]
    assert 1 < len(kept) < len(chances) - 4
    assert set(drawn) <= set(kept.tolist())
    expected = len(drawn) * chances[kept] / chances[kept].sum()
    common = expected >= 5
    counts = np.bincount(drawn, minlength=len(chances))[kept]
    pairs = [(counts[common], expected[common]), (counts[~common].sum(), expected[~common].sum())]
    statistic = sum(float(((seen - mean) ** 2 / np.maximum(mean, 1e-9)).sum()) for seen, mean in pairs)
    freedom = int(common.sum())
    assert statistic < freedom + 4.5 * math.sqrt(2 * freedom) + 6  # beyond the 99.99 % quantile


@pytest.mark.parametrize("kind", ["decoder", "vae_lstm"])
@torch.no_grad()
def test_the_log_likelihood_is_the_models(kind, writers):
    writer, songs = writers[kind], [make_song(0), make_song(1)]
    (piece,) = writer.between(*songs, 2, length=15, temperature=1.0, seed=4).pieces[:1] if kind == "vae_lstm" else (
        writer.pieces(1, length=15, seed=4)
    )  # fmt: skip
    latent = torch.from_numpy(writer._mean(writer.encode(songs[0])))[None].float() if kind == "vae_lstm" else None
    ended = piece.drawn > len(piece.tokens)
    codes = torch.tensor([[*piece.tokens.tolist(), *([END] if ended else [])]])
    losses = writer.generator.token_losses(codes, latent=latent)
    assert piece.log_likelihood == pytest.approx(-float(losses.nll.sum()), rel=1e-4)


@torch.no_grad()
def test_a_song_ends_where_the_model_ends_it():
    model = make_writer()
    model.classifier.output.bias[END] += 100
    for piece in Composer(model).pieces(3, length=20):
        assert (piece.drawn, len(piece.tokens)) == (2, 1)  # the first token is never the end


def test_generate_gives_songs(saved):
    songs = gafx.generate(saved / "decoder", 3, seed=1, length=20)
    assert [type(song) for song in songs] == [Song] * 3
    assert midi_bytes(songs[2]) == midi_bytes(gafx.generate(gafx.load(saved / "decoder"), 3, seed=1, length=20)[2])


# -- continuations and walks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_continuation_follows_the_song(kind, writers):
    writer, song = writers[kind], make_song(3)
    given = writer.encode(song)
    assert len(given) > writer.context
    first, second = writer.pieces(2, prompt=song, length=10, seed=1)
    for piece in (first, second):
        assert piece.tokens[: piece.given].tolist() == given.tolist()
        assert 0 < piece.given_beats <= piece.song.length
    assert first.tokens.tolist() != second.tokens.tolist()
    if kind == "decoder":
        (greedy,) = writer.pieces(1, prompt=song, length=1, temperature=0)
        read = torch.from_numpy(np.append(given[-writer.context :], 0))[None]
        last = writer.generator.logits(read)[0, -1]
        assert int(greedy.tokens[-1]) == int(barred(last, 0).argmax())


@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_points_between_two_vectors(path):
    first, second = np.array([3.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])
    points = between(first, second, 5, path)
    np.testing.assert_allclose(points[[0, -1]], [first, second], atol=1e-12)
    lengths = np.linalg.norm(points, axis=1)
    if path == "spherical":
        np.testing.assert_allclose(lengths, np.linspace(3, 1, 5))
        turned = np.arccos(points[:-1, :] @ first / lengths[:-1] / 3)
        np.testing.assert_allclose(np.diff(turned), np.pi / 8)
    else:
        np.testing.assert_allclose(points[2], (first + second) / 2)
    np.testing.assert_allclose(between(first, -first, 3, path)[1], 0, atol=1e-9)  # no way is the shortest


def test_a_walk(writers):
    writer, songs = writers["vae_lstm"], (make_song(0), make_song(9))
    walk = writer.between(*songs, steps=5, length=12)
    np.testing.assert_allclose(walk.points[0], writer._mean(writer.encode(songs[0])))
    np.testing.assert_allclose(walk.points[-1], writer._mean(writer.encode(songs[1])))
    assert len(walk.pieces) == 5
    assert max(walk.latent_distances) < walk.latent_ends
    assert walk.token_ends == edit_distance(walk.pieces[0].tokens, walk.pieces[-1].tokens)
    back = writer.between(*reversed(songs), steps=5, length=12)
    assert [piece.tokens.tolist() for piece in back.pieces[::-1]] == [piece.tokens.tolist() for piece in walk.pieces]


def test_edit_distance(rng):
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    for _ in range(20):
        a, b = (rng.integers(0, 3, rng.integers(1, 6)) for _ in range(2))
        assert edit_distance(a, b) == pytest.approx(slow(a.tolist(), b.tolist()) / max(len(a), len(b)))


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0}, "top_p=0 must be above 0"),
        ({"temperature": -0.1}, "temperature=-0.1 must be from 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"length": 0}, "length=0 must be a whole number of tokens"),
        ({"seed": -1}, "seed=-1"),
        ({"number": 0}, "number=0"),
        ({"tempo": 0}, "tempo=0"),
    ],
    ids=str,
)
def test_options_out_of_range(options, message, writers):
    with pytest.raises(UsageError, match=message):
        writers["decoder"].pieces(**options)


def test_songs_that_cannot_be_continued(writers, tmp_path):
    broken = tmp_path / "broken.mid"
    broken.write_bytes(b"a list of songs")
    for source, message in ((broken, "is no MIDI file"), (tmp_path / "none.mid", "cannot be opened"),
                            (Song(make_notes([])), "no notes")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            writers["decoder"].pieces(1, prompt=source)
    with pytest.raises(UsageError, match="no latent space"):
        writers["decoder"].between(make_song(), make_song())
    with pytest.raises(UsageError, match="steps=1 must be at least 2"):
        writers["vae_lstm"].between(make_song(), make_song(), 1)


def test_a_model_of_audio_writes_nothing():
    model = create_model("mel", {"name": "cnn"}, classes=["a", "b"], segment_seconds=1.0)
    with pytest.raises(UsageError, match="not trained on tokens of MIDI"):
        Composer(model)


# -- sound -------------------------------------------------------------------------------------------------------------


def test_a_note_sounds_at_its_pitch_and_time():
    song = Song(make_notes([(2.0, 2.0, 69, 100, 73, False, 0)]), tempos=np.array([[0.0, 60.0]]))
    wave = render(song)
    assert wave.dtype == np.float32
    assert len(wave) == round(4.6 * SAMPLE_RATE)
    assert abs(wave[: round(1.98 * SAMPLE_RATE)]).max() < 1e-3
    spectrum = abs(np.fft.rfft(wave[2 * SAMPLE_RATE : 4 * SAMPLE_RATE]))
    assert spectrum.argmax() / 2 == pytest.approx(440, abs=4)
    assert 20 * np.log10(np.sqrt(np.mean(wave.astype(float) ** 2))) == pytest.approx(-18, abs=0.1)
    np.testing.assert_array_equal(wave, render(song))


def test_every_program_and_drum_can_be_played():
    assert {instrument_of(program) for program in range(128)} <= set(INSTRUMENTS)
    rows = [(0.1 * key, 0.1, key, 90, key, False, 0) for key in range(0, 128, 5)]
    rows += [(0.1 * key, 0.1, key, 90, 0, True, 1) for key in range(0, 128, 5)]
    wave = render(Song(make_notes(rows)), 8000)
    assert np.isfinite(wave).all()
    assert abs(wave).max() <= 1
    assert not render(Song(make_notes([]))).any()
    assert len(render(make_song(), 8000, seconds=1.5)) == 12000
    with pytest.raises(UsageError, match="at most 20 min"):
        render(Song(make_notes([(0, 5000, 60, 80, 0, False, 0)])))


def test_fluidsynth_plays_where_it_is_named(tmp_path, monkeypatch):
    """A stand-in for the program: it writes the wav that it is asked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs the program fluidsynth"):
        render(make_song(), soundfont="piano.sf2")
    source = tmp_path / "played.wav"
    soundfile.write(source, 0.2 * np.sin(np.arange(22050) * 0.1), 22050)
    program, font = tmp_path / "fluidsynth", tmp_path / "piano.sf2"
    program.write_text(f'#!/bin/sh\n[ -f "${{9}}" ] && /bin/cp {source} "${{7}}"\n')
    program.chmod(0o755)
    with pytest.raises(UsageError, match="no soundfont"):
        render(make_song(), soundfont=str(font))
    font.write_bytes(b"font")
    wave = render(make_song(), soundfont=str(font))
    assert abs(wave - wave.mean()).max() > 0.1
    program.write_text("#!/bin/sh\necho cannot load the font >&2\nexit 1\n")
    with pytest.raises(UsageError, match="cannot load the font"):
        render(make_song(), soundfont=str(font))


# -- the command -------------------------------------------------------------------------------------------------------


def test_files_of_the_command(saved, tmp_path, capsys):
    folder = tmp_path / "songs"
    call = ["generate", str(saved / "decoder"), "--length", "40", "--seed", "3", "--output", str(folder)]
    main([*call, "--number", "3", "--wav"])
    assert "song-003.mid" in capsys.readouterr().out
    record = json.loads((folder / "index.json").read_text())
    assert record["settings"] == {
        "number": 3, "temperature": 0.9, "top_p": 0.95, "seed": 3, "length": 40, "tempo": 120.0,
        "instruments": "built-in",
    }  # fmt: skip
    before = {}
    for entry in record["songs"]:
        path = folder / entry["file"]
        before[entry["file"]] = path.read_bytes()
        parsed = pretty_midi.PrettyMIDI(str(path))
        other = mido.MidiFile(path)
        assert sum(len(part.notes) for part in parsed.instruments) == entry["notes"]
        assert sum(message.type == "note_on" for track in other.tracks for message in track) == entry["notes"]
        assert len(read_midi(path)) == entry["notes"]
        assert soundfile.info(folder / entry["wav"]).duration == pytest.approx(entry["seconds"] + 0.6, abs=0.01)
        assert entry["nll_per_token"] == pytest.approx(-entry["log_likelihood"] / entry["tokens_drawn"])
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 3
    assert page.count("data:audio/mpeg") == 3
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    main([*call, "--number", "2"])  # in place of the first call's files
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.html",
        "index.json",
        "song-001.mid",
        "song-002.mid",
    ]
    for name in ("song-001.mid", "song-002.mid"):
        assert (folder / name).read_bytes() == before[name]


def test_a_walk_and_a_continuation_of_the_command(saved, tmp_path, capsys):
    ends = [str(saved / f"tune-{seed}.mid") for seed in range(2)]
    walk, more = tmp_path / "walk", tmp_path / "more"
    main(
        [
            "generate",
            str(saved / "vae_lstm"),
            "--between",
            *ends,
            "--steps",
            "4",
            "--length",
            "12",
            "--output",
            str(walk),
        ]
    )
    assert "of the ends" in capsys.readouterr().out
    record = json.loads((walk / "index.json").read_text())
    assert len(record["songs"]) == 4
    assert len(record["walk"]["latent_distances"]) == 3
    assert record["settings"]["temperature"] == 0
    main(
        [
            "generate",
            str(saved / "vae_lstm"),
            "--continue",
            ends[0],
            "--number",
            "2",
            "--length",
            "9",
            "--output",
            str(more),
        ]
    )
    record = json.loads((more / "index.json").read_text())
    assert [entry["tokens_given"] > 24 for entry in record["songs"]] == [True, True]


def test_what_a_classifier_hears(saved, tmp_path, capsys):
    torch.manual_seed(0)
    model = create_model("mel", {"name": "cnn"}, classes=["blues", "jazz"], segment_seconds=1.0)
    model.fit_statistics(0.1 * torch.randn(2, 1, model.frontend.sample_rate))
    model.info.objective = "classify"
    model.save(tmp_path / "genre")
    folder = tmp_path / "songs"
    main([
        "generate", str(saved / "decoder"), "--number", "2", "--length", "30", "--output", str(folder),
        "--predict", str(tmp_path / "genre"), "--compare", str(saved),
    ])  # fmt: skip
    assert "real (2 songs)" in capsys.readouterr().out
    record = json.loads((folder / "index.json").read_text())
    for kind in ("generated", "real"):
        means = [entry[kind]["value"] for entry in record["heard"]["mean_probability"].values()]
        assert sum(means) == pytest.approx(1, abs=1e-5)
    mean = np.mean([entry["heard"]["jazz"] for entry in record["songs"]])
    assert record["heard"]["mean_probability"]["jazz"]["generated"]["value"] == pytest.approx(mean, abs=1e-5)
    assert not list(folder.glob("*.wav"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", "0"], "--top-p 0 must be above 0"),
        (["--steps", "3"], "--steps is of a walk"),
        (["--compare", "x"], "--compare is of what a model hears"),
        (["--soundfont", "x"], "needs --wav or --predict"),
        (["--between", "x", "y", "--number", "3"], "--number is of new songs"),
        (["--output", "."], "has files that gafx generate did not write"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_on_the_command_line(options, message, saved, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(saved / "decoder"), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
