"""Labels of one's own choice: fractions against the model's own probabilities, aliases, and "none of these"."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import run

import gafx
from gafx.deploy.labels import NONE_OF_THESE, Choice, parse_labels
from gafx.errors import UsageError

RATE = 22050
CLASSES = ["Speech", "Male speech, man speaking", "Hip_hop_music", "Rock_music", "Punk_rock", "C++", "a=b", "Jazz"]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
GENRES = {
    "blues": "Blues", "classical": "Classical music", "country": "Country", "disco": "Disco",
    "hiphop": "Hip hop music", "jazz": "Jazz", "metal": "Heavy metal", "pop": "Pop music", "reggae": "Reggae",
    "rock": "Rock music",
}  # fmt: skip


def build(objective):
    torch.manual_seed(3)
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=CLASSES, segment_seconds=0.5).eval()
    model.fit_statistics(torch.rand(4, 1, 11025) - 0.5)
    with torch.no_grad():  # a new head gives nearly equal probabilities
        model.classifier.output.weight.mul_(30 if objective == "classify" else 3)
    model.info.objective = objective
    return model


@pytest.fixture(scope="module", params=["classify", "tag"])
def model(request):
    return build(request.param)


@pytest.fixture
def file(rng, wav_factory):
    sweep = np.sin(np.cumsum(np.linspace(0.02, 1.0, round(2.2 * RATE))))
    return wav_factory("a.wav", 0.3 * sweep + 0.05 * rng.standard_normal(len(sweep)))


def test_fractions_are_the_models_probabilities_over_their_sum(model, file):
    (plain,) = gafx.predict(file, model, over_time=True)
    (found,) = gafx.predict(file, model, labels=["Jazz", "rock music", "Speech"], over_time=True)
    columns = [7, 3, 0]
    own = plain.window_probabilities[:, columns].mean(axis=0)
    assert found.classes == ("Jazz", "rock music", "Speech")
    np.testing.assert_allclose(found.model_probabilities, own, rtol=1e-6)
    np.testing.assert_allclose(found.probabilities, own / own.sum(), rtol=1e-6)
    for values, every in zip(found.window_probabilities, plain.window_probabilities, strict=True):
        np.testing.assert_allclose(values, every[columns] / every[columns].sum(), rtol=1e-6)
    assert found.label == found.classes[int(own.argmax())] == found.top(1)[0][0]


def test_joined_labels(model, file):
    """Exclusive probabilities add up; those of a tagger, whose labels may apply together, do not."""
    (plain,) = gafx.predict(file, model)
    (found,) = gafx.predict(file, model, labels={"rock": ["Rock music", "Punk rock"], "voice": "Speech"})
    joined = sum if model.info.objective == "classify" else max
    own = np.array([joined(plain.probabilities[[3, 4]]), plain.probabilities[0]])
    np.testing.assert_allclose(found.probabilities, own / own.sum(), rtol=1e-6)


def test_none_of_these_below_the_threshold(model, file):
    labels = ["Jazz", "Speech"]
    (plain,) = gafx.predict(file, model, labels=labels)
    most = float(plain.model_probabilities.max())
    for threshold, label in ((most * 0.99, plain.top(1)[0][0]), (min(1.0, most * 1.01), NONE_OF_THESE)):
        (found,) = gafx.predict(file, model, labels=labels, threshold=threshold)
        assert found.label == label
        np.testing.assert_array_equal(found.probabilities, plain.probabilities)
    (of_all,) = gafx.predict(file, model, threshold=1.0)
    assert of_all.label == NONE_OF_THESE
    (alone,) = gafx.predict(file, model, labels=["Jazz"], threshold=0.0)
    assert alone.top() == [("Jazz", 1.0)]


def test_labels_of_an_ensemble(file):
    models = [build("tag"), build("tag")]
    with torch.no_grad():
        models[1].classifier.output.bias.add_(torch.linspace(-2, 2, len(CLASSES)))
    columns = [7, 0]
    own = np.mean([next(gafx.predict(file, each)).probabilities[columns] for each in models], axis=0)
    (found,) = gafx.predict(file, models, labels=["Jazz", "Speech"])
    np.testing.assert_allclose(found.probabilities, own / own.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jazz,Speech", {"Jazz": ["Jazz"], "Speech": ["Speech"]}),
        (" hiphop = Hip hop music , Jazz", {"hiphop": ["Hip hop music"], "Jazz": ["Jazz"]}),
        (f'"{CLASSES[1]}",Jazz', {CLASSES[1]: [CLASSES[1]], "Jazz": ["Jazz"]}),
        ('man="Male speech, man speaking"', {"man": ["Male speech, man speaking"]}),
        ('"man=Male speech, man speaking"', {"man": ["Male speech, man speaking"]}),
        ("rock=Rock music+Punk rock", {"rock": ["Rock music", "Punk rock"]}),
        ("C++,a=b", {"C++": ["C++"], "a=b": ["a=b"]}),  # labels themselves, not to be taken apart
        ("code=C++,x=a=b", {"code": ["C++"], "x": ["a=b"]}),
        ('"6"" disc"=Jazz', {'6" disc': ["Jazz"]}),
    ],
)  # fmt: skip
def test_lists_of_the_command_line(text, expected):
    assert parse_labels(text, CLASSES) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "an empty label"), ("Jazz,,Speech", "an empty label"), ("x=,Jazz", "an empty label"), ("=Jazz", "an empty"),
     ('"Jazz', "a double quote has no end"), ("Jazz,Jazz", "names 'Jazz' twice"), ("x=Jazz,x=Speech", "'x' twice")],
)  # fmt: skip
def test_lists_that_cannot_be_read(text, message):
    with pytest.raises(UsageError, match=message):
        parse_labels(text, CLASSES)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["Jaz", "Speech"], "no label 'Jaz' among its 8; .*Jazz"),
        (["rock", "Speech"], "with these letters it has Rock_music, Punk_rock"),
        (["Spech", "Jazz"], "did you mean 'Speech'"),
        (["zzz", "Jazz"], "its first labels are Speech, "),
        (["Jazz", "Jazz"], "'Jazz' is given twice"),
        ({"a": "Jazz", "b": "jazz"}, "'Jazz' is given twice, for 'a' and 'b'"),
        (["Jazz"], "alone would have a fraction of 100 %"),
        ([], "no label is chosen"),
        ("Jazz,Speech", "is no list"),
        ({"a": [], "b": "Jazz"}, "'a' names no label"),
        ({"a": ["Jazz", "jazz"], "b": "Speech"}, "'Jazz' is given twice, in 'a'"),
        ({NONE_OF_THESE: ["Jazz"], "b": "Speech"}, "the name 'none of these' is that of files where"),
        (["Jazz", None], "None among the labels is no text"),
        (5, "labels=5 is no list: give a list"),
        ([1, 2], "1 among the labels is no text"),
        ({"a": None, "b": "Jazz"}, "None among the labels is no text"),
        ({"a": ["Speech", 3], "b": "Jazz"}, "3 among the labels is no text"),
    ],
)
def test_choices_that_cannot_be_made(model, labels, message):
    with pytest.raises(UsageError, match=message):
        gafx.predict("a.wav", model, labels=labels)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_thresholds_out_of_range(model, threshold):
    with pytest.raises(UsageError, match="threshold"):
        gafx.predict("a.wav", model, threshold=threshold)


def test_no_probability_at_all_gives_no_fraction():
    choice = Choice.of(["a", "b"], ["a", "b"], exclusive=False)
    found = choice.apply(gafx.deploy.predict.Prediction("a.wav", ("a", "b"), 1.0, np.zeros(2)))
    assert found.probabilities.tolist() == [0, 0]


def test_the_command(file, tmp_path, capsys):
    saved = build("tag").save(tmp_path / "model")
    chosen = ["--model", saved, "--labels", "jazz,rock=Rock music+Punk rock,Speech"]
    (expected,) = gafx.predict(
        file, saved, labels={"jazz": "Jazz", "rock": ["Rock_music", "Punk_rock"], "Speech": "Speech"}
    )
    assert run("predict", file, *chosen, "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["label"] == expected.label == next(iter(entry["probabilities"]))
    assert entry["probabilities"] == pytest.approx(dict(expected.top()), abs=1e-6)
    assert sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    own = dict(zip(expected.classes, expected.model_probabilities, strict=True))
    assert entry["model_probabilities"] == pytest.approx(own, abs=1e-6)
    assert run("predict", file, *chosen, "--csv", "--threshold", 1) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert list(row)[2:6] == ["label", "jazz", "rock", "Speech"]
    assert row["label"] == NONE_OF_THESE
    assert run("predict", file, *chosen, "--threshold", 1) == 0
    assert f"none of these (at most {max(own, key=own.get)} " in capsys.readouterr().out
    assert run("predict", file, *chosen[:2], "--labels", "Jazz,trombone") == 2
    assert "no label 'trombone'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="real audio and weights are not next to the checkout (../shared/data)")
def test_genres_of_real_music_without_training():
    """As the command labels whole files: what the network gives for their samples, compared among the ten genres."""
    from gafx.audio.read import read_segment
    from gafx.inference import Probabilities

    model = gafx.load(SHARED / "weights" / "audioset_crnn" / "teacher2.pth")
    files = sorted((SHARED / "gtzan_mini" / "genres").glob("*/*0000[0-2].wav"))
    found = list(gafx.predict(files, model, labels=list(GENRES.values()), window_seconds=20.0))
    columns = [model.info.classes.index(label.replace(" ", "_")) for label in GENRES.values()]
    for path, each in zip(files, found, strict=True):
        wave = torch.from_numpy(read_segment(path, 0, 10**9, sample_rate=22050))[None]
        own = Probabilities(model)(wave)[0, columns].detach().double()
        np.testing.assert_allclose(each.probabilities, own / own.sum(), atol=1e-5)
    correct = [each.label == GENRES[path.parent.name] for path, each in zip(files, found, strict=True)]
    assert np.mean(correct) > 0.4  # chance: 0.1
