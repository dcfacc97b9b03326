"""`gafx.Embedder` in the machinery of scikit-learn."""

import pickle

import numpy as np
import pytest
import soundfile
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

import gafx
from gafx.errors import UsageError
from tests.test_fit import SECONDS, embedded, frozen, tones  # noqa: F401 - fixtures


@pytest.fixture
def clips(tones):  # noqa: F811
    root = tones({"low": 6, "high": 6})
    files = sorted(map(str, root.glob("*/*.wav")))
    return root, files, np.array(["low" in file for file in files])


def test_rows_are_the_models_logits_and_embedding(clips, frozen):  # noqa: F811
    root, files, _ = clips
    expected, manifest = embedded(frozen, root)
    order = [files.index(str(root / manifest.relative_path(row))) for row in range(len(manifest))]
    for what, columns in (("outputs", slice(0, 5)), ("embedding", slice(5, None)), ("both", slice(None))):
        embedder = gafx.Embedder(frozen, what, batch_size=5)
        rows = embedder.fit_transform(files)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows[order], expected[:, columns], atol=1e-4)
        names = embedder.get_feature_names_out()
        assert len(names) == embedder.n_features_out_ == rows.shape[1]
    assert list(names[:6]) == ["a", "b", "c", "d", "e", "embedding0"]


def test_a_long_file_is_the_mean_of_its_windows(wav_factory, rng, frozen):  # noqa: F811
    wave = 0.1 * rng.normal(size=3 * 11025)
    whole = wav_factory("whole.wav", wave)
    parts = [wav_factory(f"{number}.wav", wave[number * 11025 :][:11025]) for number in range(3)]
    embedder = gafx.Embedder(frozen)
    assert gafx.load(frozen).info.segment_seconds == SECONDS
    np.testing.assert_allclose(
        embedder.transform([whole])[0], embedder.transform(parts).mean(axis=0), rtol=1e-4, atol=1e-4
    )


def test_arrays_and_repeated_files(clips, frozen, rng):  # noqa: F811
    root, files, _ = clips
    embedder = gafx.Embedder(frozen)
    twice = embedder.transform([files[0], files[1], files[0]])
    assert twice.shape == (3, 261)
    np.testing.assert_allclose(twice[2], twice[0], atol=1e-5)
    waves = [soundfile.read(file, dtype="float32")[0] for file in files[:2]]
    rows = gafx.Embedder(frozen, sample_rate=22050).transform(waves)
    np.testing.assert_allclose(rows, twice[:2], atol=1e-5)
    np.testing.assert_array_equal(
        embedder.transform(np.array(files[:2], object)[:, None]), embedder.transform(files[:2])
    )
    several = root / "low"
    for given, message in (
        ([several], "may be several files"), ([str(several / "*.wav")], "may be several files"), ([], "no sounds"),
        (None, "no sounds"), (np.array([files[:2]], object), "2 columns"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            embedder.transform(given)


def test_in_a_pipeline_and_a_search(clips, frozen):  # noqa: F811
    _, files, label = clips
    pipeline = make_pipeline(gafx.Embedder(frozen), StandardScaler(), LogisticRegression())
    assert (pipeline.fit(files, label).predict(files) == label).all()
    assert pipeline.score(files, label) == 1.0
    assert cross_val_score(pipeline, files, label, cv=2).shape == (2,)
    steps = Pipeline([("embed", gafx.Embedder(frozen)), ("head", LogisticRegression())])
    search = GridSearchCV(steps, {"embed__what": ["outputs", "both"], "head__C": [0.1, 1.0]}, cv=2)
    assert set(search.fit(files, label).best_params_) == {"embed__what", "head__C"}
    assert pipeline[:-1].get_feature_names_out()[0] == "a"


def test_parameters_clones_and_pickles(clips, frozen):  # noqa: F811
    _, files, _ = clips
    embedder = gafx.Embedder(frozen, "outputs", batch_size=3)
    before = embedder.fit_transform(files[:2])
    copy = clone(embedder)
    assert copy is not embedder
    assert copy.get_params() == embedder.get_params() == {
        "model": frozen, "what": "outputs", "sample_rate": None, "overlap": 0.0, "batch_size": 3, "device": "auto",
    }  # fmt: skip
    assert embedder.set_params(what="embedding").transform(files[:2]).shape == (2, 256)
    restored = pickle.loads(pickle.dumps(copy.fit(files)))
    np.testing.assert_array_equal(restored.transform(files[:2]), before)
    assert len(pickle.dumps(copy)) < 10_000  # without the weights
    check_is_fitted(copy)
    assert gafx.Embedder(gafx.load(frozen)).fit_transform(files[:1]).shape == (1, 261)
    assert "Embedder(" in repr(copy)


def test_an_unreadable_file_is_named(clips, frozen, tmp_path):  # noqa: F811
    _, files, _ = clips
    with pytest.raises(UsageError, match=r"1 of the sounds .*missing.wav.*leave them out together"):
        gafx.Embedder(frozen).fit_transform([*files[:2], str(tmp_path / "missing.wav")])
    with pytest.raises(UsageError, match="is one file"):
        gafx.Embedder(frozen).transform(files[0])
    with pytest.raises(UsageError, match="what='outptus'"):
        gafx.Embedder(frozen, "outptus").fit(files)
