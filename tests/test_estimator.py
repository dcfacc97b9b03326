"""Fitted estimators of scikit-learn as classifiers: round trips, pooling, refusals, and files that are not ours."""

import io
import json
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from sklearn.svm import SVC
from xgboost import XGBClassifier

import gafx
from gafx.classifiers import estimator as room
from gafx.classifiers.estimator import LEAST, Estimator
from gafx.cli import main
from gafx.errors import UsageError
from gafx.inference import Probabilities

CLASSES = ["noise", "tone", "chord"]
WIDTH = 7


def table(seed=0, rows=60, width=WIDTH, classes=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    return rng.normal(size=(rows, width)) + labels[:, None] * np.linspace(0, 1, width), labels


SVM = CalibratedClassifierCV(SVC(), ensemble=False, cv=3)
SOME = [("lr", LogisticRegression()), ("xgb", XGBClassifier(n_estimators=3)), ("knn", KNeighborsClassifier())]
ESTIMATORS = {
    "svm": SVM,
    "knn": KNeighborsClassifier(),
    "forest": RandomForestClassifier(5, random_state=0),
    "logistic": LogisticRegression(),
    "bayes": GaussianNB(),
    "xgboost": XGBClassifier(n_estimators=3),
    "voting": VotingClassifier([*SOME, ("svm", SVM)], voting="soft"),
    "stacking": StackingClassifier([*SOME, ("svm", SVM)], final_estimator=LogisticRegression(), cv=3),
}


def classifier(fitted=None, width=WIDTH, classes=3, labels=None):
    made = Estimator((1, width, 1), classes)
    if fitted is not None:
        made.set_estimator(fitted, labels)
    return made


def doubled(values):
    return 2 * values


def logistic(seed=0, **options):
    return make_pipeline(MinMaxScaler(), LogisticRegression()).fit(*table(seed, **options))


@pytest.mark.parametrize("name", ESTIMATORS)
@torch.no_grad()
def test_a_saved_estimator_equals_the_fitted_one(name, tmp_path):
    values, labels = table()
    pipeline = make_pipeline(MinMaxScaler(), ESTIMATORS[name]).fit(values, labels)
    one = classifier(pipeline)
    two = classifier()
    two.load_state_dict(one.state_dict())
    others, _ = table(1)
    expected = pipeline.predict_proba(others)
    assert np.ptp(expected, axis=0).min() > 0.1
    for each in (one, two):
        assert np.array_equal(each.probabilities(others), expected)
        logits = each(torch.from_numpy(others)[:, None, :, None])
        np.testing.assert_allclose(logits.softmax(dim=1), expected, atol=3 * LEAST)


def test_the_same_fit_gives_the_same_bytes():
    """So that the digest of a model's weights says whether it is the same model."""
    values, labels = table()
    for name in ("knn", "forest", "xgboost"):
        files = [classifier(make_pipeline(MinMaxScaler(), ESTIMATORS[name]).fit(values, labels)).file for _ in range(2)]
        assert torch.equal(*files), name


def sounds(folder, number=6, seconds=1.0, rate=22050):
    """Files of noise, tones and chords, and their labels."""
    rng, time = np.random.default_rng(0), np.arange(round(seconds * rate)) / rate
    made = []
    for index in range(number):
        pitch = 200 * 2 ** rng.uniform(0, 2)
        kinds = (
            rng.standard_normal(len(time)),
            np.sin(2 * np.pi * pitch * time),
            sum(np.sin(2 * np.pi * pitch * ratio * time) / 3 for ratio in (1, 1.25, 1.5)),
        )
        path = folder / f"{index:02}.wav"
        soundfile.write(path, 0.2 * kinds[index % 3], rate)
        made.append((path, index % 3))
    return made


def test_a_whole_model_is_used_like_any_other(tmp_path, capsys):
    """Files -> features -> estimator -> saved model -> gafx.load, gafx predict and gafx features."""
    made = sounds(tmp_path, 9)
    front_end = {"name": "handcrafted", "window_seconds": 0.5}
    model = gafx.create_model(front_end, "estimator", classes=CLASSES, segment_seconds=1.0)
    waves = torch.stack([torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path, _ in made])[:, None]
    assert torch.equal(model.features(waves), model.frontend(waves))  # not normalised
    columns = model.features(waves)[:, 0].transpose(1, 2).double().numpy()  # (files, windows, features)
    rows, labels = columns.reshape(-1, 63), np.repeat([label for _, label in made], 2)
    pipeline = make_pipeline(MinMaxScaler(), RandomForestClassifier(20, random_state=0)).fit(rows, labels)
    model.classifier.set_estimator(pipeline)
    expected = pipeline.predict_proba(rows).reshape(len(made), 2, -1).mean(axis=1)
    folder = model.save(tmp_path / "model")
    loaded = gafx.load(folder)
    assert torch.equal(loaded(waves), model.eval()(waves))
    np.testing.assert_allclose(Probabilities(loaded)(waves), expected, atol=3 * LEAST)
    again = loaded.save(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    found = [item.label for item in loaded.predict([path for path, _ in made])]
    assert found == [CLASSES[label] for _, label in made]
    main(["predict", str(made[1][0]), "--model", str(folder), "--json"])
    assert "tone" in capsys.readouterr().out
    np.testing.assert_allclose(loaded.embed_file(made[0][0]), columns[0].mean(axis=0), rtol=1e-4, atol=1e-6)
    main(["features", str(made[1][0]), "--model", str(folder), "--output", str(tmp_path / "rows")])
    assert [path.name for path in (tmp_path / "rows").glob("*.npy")] == ["01.npy"]
    with pytest.raises(SystemExit):
        main(["export", str(folder), "--format", "torch_export"])
    assert "cannot be exported, since librosa computes" in capsys.readouterr().err


@torch.no_grad()
def test_columns_are_pooled_by_the_mean_of_their_probabilities():
    pipeline = logistic()
    values, _ = table(2, rows=6)
    feature_map = torch.from_numpy(values.reshape(2, 3, WIDTH)).transpose(1, 2)[:, None]  # 2 clips of 3 columns
    expected = pipeline.predict_proba(values).reshape(2, 3, 3).mean(axis=1)
    one = classifier(pipeline)
    np.testing.assert_allclose(one(feature_map).exp(), expected, rtol=1e-12)
    assert one(feature_map.float()).dtype == torch.float32
    embedding = one.embed(feature_map)
    np.testing.assert_allclose(embedding, values.reshape(2, 3, WIDTH).mean(axis=1))
    np.testing.assert_allclose(one.head(embedding).exp(), pipeline.predict_proba(embedding.numpy()), rtol=1e-12)
    two = Estimator((2, WIDTH, 5), 3)  # rows of several channels follow one another
    two.set_estimator(make_pipeline(LogisticRegression()).fit(*table(width=2 * WIDTH)))
    assert two(torch.randn(4, 2, WIDTH, 5)).shape == (4, 3)


@torch.no_grad()
def test_classes_that_the_estimator_never_saw():
    values, labels = table(classes=2)
    one = classifier(LogisticRegression().fit(values, np.array([0, 2])[labels]))
    two = classifier(XGBClassifier(n_estimators=3).fit(values, labels), labels=[0, 2])  # it wants labels from 0 on
    for each in (one, two):
        found = each(torch.from_numpy(values)[:, None, :, None]).softmax(dim=1).numpy()
        np.testing.assert_allclose(found[:, 1], LEAST, rtol=1e-3)
        assert ((found[:, 2] > 0.5) == labels).mean() > 0.7


def test_another_output_layer():
    model = gafx.create_model({"name": "handcrafted", "window_seconds": 0.5}, "estimator", classes=CLASSES)
    model.classifier.set_estimator(logistic(width=63))
    model.reset_classifier(classes=["a", "b"])
    assert (model.classifier.estimator, model.classifier.num_classes) == (None, 2)
    with pytest.raises(UsageError, match="holds no fitted estimator: fit one with gafx classical"):
        model(torch.zeros(1, 1, 22050))


def test_weights_of_other_labels(tmp_path):
    model = gafx.create_model({"name": "handcrafted", "window_seconds": 0.5}, "estimator", classes=CLASSES)
    model.classifier.set_estimator(logistic(width=63))
    folder = model.save(tmp_path / "model")
    assert gafx.load(folder, classes=["a", "b"]).classifier.estimator is None
    other = gafx.create_model({"name": "handcrafted", "window_seconds": 0.5}, "estimator", classes=CLASSES[::-1])
    with pytest.raises(UsageError, match="the output layer of .* is of other labels"):
        gafx.load_weights(other, folder)  # the same in another order
    same = gafx.create_model({"name": "handcrafted", "window_seconds": 0.5}, "estimator", classes=CLASSES)
    gafx.load_weights(same, folder)
    assert same.classifier.labels == [0, 1, 2]


@pytest.mark.parametrize(
    ("fitted", "labels", "message"),
    [
        (lambda: SVC().fit(*table()), None, "SVC has no predict_proba: wrap it in CalibratedClassifierCV"),
        (lambda: logistic(width=4), None, "fitted on 4 columns, and the map has 7 rows"),
        (lambda: logistic(classes=4, rows=80), None, "must be 4 different numbers from 0 to 2"),
        (logistic, [0, 1, 1], "must be 3 different numbers from 0 to 2"),
        (lambda: make_pipeline(FunctionTransformer(doubled), GaussianNB()).fit(*table()), None, "contains .*doubled"),
    ],
)
def test_what_cannot_be_taken(fitted, labels, message):
    with pytest.raises(UsageError, match=message):
        classifier(fitted(), labels=labels)


# --- files of others --------------------------------------------------------------------------------------------------


def parts(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def pack(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


@pytest.fixture(scope="module")
def honest():
    return classifier(logistic()).file.numpy().tobytes()


class Planted:
    """Runs when it is built from its state."""

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        open(state["path"], "w").close()
        self.__dict__ |= state


def test_another_type_is_refused_and_not_built(tmp_path, honest, monkeypatch):
    """A type that writes a file when it is built; then a function and a type that the file names alone."""
    import skops.io

    trap = tmp_path / "trap"
    pipeline = make_pipeline(MinMaxScaler(), LogisticRegression()).fit(*table())
    pipeline.planted = Planted(str(trap))
    with pytest.raises(UsageError, match=r"contains .*Planted, and only classifiers .*; nothing of it was run"):
        classifier(pipeline)
    assert not trap.exists()
    data = skops.io.dumps(pipeline)
    skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
    assert trap.exists()  # it would have run
    trap.unlink()
    about = parts(honest)[room._ABOUT]
    folder = gafx.create_model("handcrafted", "estimator", classes=CLASSES)
    state = pack({**parts(data), room._ABOUT: about})
    with pytest.raises(UsageError, match="Planted"):
        folder.classifier.set_extra_state(state)
    assert not trap.exists()
    schema = json.loads(parts(honest)["schema.json"])
    for module, name, loader in (("os", "system", "FunctionNode"), (__name__, "Planted", "ObjectNode")):
        schema["content"]["content"]["planted"] = {
            "__class__": name, "__module__": module, "__loader__": loader, "__id__": 10**9,
            "content": {"module_path": module, "function": name},
        }  # fmt: skip
        with pytest.raises(UsageError, match=f"{name}|damaged"):
            classifier().set_extra_state(pack({**parts(honest), "schema.json": json.dumps(schema)}))


def test_damaged_files(honest):
    members = parts(honest)
    with pytest.raises(UsageError, match="bytes that unpack to 10,0"):
        classifier().set_extra_state(pack({**members, "zeros.npy": bytes(10**7)}, zipfile.ZIP_DEFLATED))
    without = {name: content for name, content in members.items() if name != room._ABOUT}
    for state in (torch.arange(9, dtype=torch.uint8), pack(without), pack({**members, room._ABOUT: b"[]"})):
        with pytest.raises(UsageError, match="damaged, or of another format"):
            classifier().set_extra_state(state)
    for wrong in ([0, 1, 5], [0, 1]):
        about = json.dumps({"labels": wrong, "versions": {}})
        with pytest.raises(UsageError, match="must be 3 different numbers"):
            classifier().set_extra_state(pack({**members, room._ABOUT: about}))
    schema = json.dumps({"protocol": 2, "content": 3})
    with pytest.raises(UsageError, match="damaged, or of another format"):
        classifier().set_extra_state(pack({**members, "schema.json": schema}))


def test_another_version_of_scikit_learn(honest):
    about = json.loads(parts(honest)[room._ABOUT])
    about["versions"]["scikit-learn"] = "0.99"
    with pytest.warns(UserWarning, match=r"fitted with scikit-learn 0\.99 \(here is .*its probabilities may differ"):
        classifier().set_extra_state(pack({**parts(honest), room._ABOUT: json.dumps(about)}))
