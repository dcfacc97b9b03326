"""Checks of files and arguments before a model is built, and the messages of refused ones."""

import json
import resource
import shutil

import pytest
import torch

import gafx
from gafx.errors import UsageError
from gafx.frontends.mel import MelFrontEnd
from gafx.registry import FRONTENDS
from gafx.saving import hub, weights

CLASSES = ["blues", "jazz", "rock"]
SLIM = {"name": "gafx_r", "width": 16}
AST = {"name": "ast", "depth": 1}


def build(frontend="mel", **more):
    torch.manual_seed(0)
    arguments = {"classifier": AST, "classes": CLASSES, "segment_seconds": 0.5, **more}
    return gafx.create_model(frontend, **arguments).eval()


def wave(seconds=0.5):
    return 0.1 * torch.randn(2, 1, round(seconds * 22050), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return build(SLIM).save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def saved(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


# --- files that torch wrote -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse invariant:UserWarning")
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({3: torch.zeros(1)}, "name of type int"),
        ({"a": [1]}, "'a' is a list"),
        ([torch.zeros(1)], "tensors by name"),
        ({"a": torch.eye(2).to_sparse()}, "'a' holds no plain values"),
        ({"a": torch.zeros(2, device="meta")}, "'a' holds no plain values"),
        ({"a": object()}, "more than tensors"),
    ],
)
def test_a_state_dict_holds_plain_tensors_by_name(state, message, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=message) as caught:
        weights.read_state_dict(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "a.pt")
    with pytest.raises(UsageError, match="more than tensors") as caught:
        weights.read_state_dict(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("partial", [False, True])
def test_a_module_that_refuses_its_weights(partial):
    layer = torch.nn.Linear(2, 1)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["weight"] = state["weight"].to_sparse()
    with pytest.raises(UsageError, match=r"a\.pt cannot be loaded into Linear"):
        weights.fit(layer, state, "a.pt", partial=partial)


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_name_is_no_folder(source):
    with pytest.raises(UsageError, match="is empty"):
        gafx.create_frontend("gafx_r", pretrained=source)


@pytest.mark.parametrize("source", ["", " ", None, 3])
def test_what_names_no_model(source, tmp_path, monkeypatch):
    build().save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)  # the folder of a run: an empty name is not this one
    for use in (gafx.load, lambda name: gafx.load_weights(torch.nn.Linear(1, 1), name)):
        with pytest.raises(UsageError, match=f"^{source!r} names no model: give the path of a run"):
            use(source)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"classes": "abc"}, "'abc' is no list of labels"),
        ({"classes": 3}, "3 is no list of labels"),
        ({"classes": None, "num_classes": 2.5}, "num_classes=2.5 must be an integer"),
        ({"classes": None, "num_classes": "2"}, "num_classes='2' must be an integer"),
        ({"segment_seconds": "1"}, "segment_seconds='1' must be a number"),
        ({"frontend": ["mel"]}, r"\['mel'\] names no part"),
        ({"classifier": 7}, "7 names no part"),
    ],
)
def test_arguments_of_the_wrong_kind(more, message):
    with pytest.raises(UsageError, match=message):
        build(**more)


# --- false configurations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "real"), [("sample_rate", 44100, "22050"), ("channels", 2, "1"), ("map_shape", [1, 128, 57], "56")]
)
def test_what_the_front_end_knows_better(saved, key, value, real):
    with pytest.raises(UsageError) as caught:
        gafx.load(edit(saved, **{key: value}))
    assert f"{key} is {value}" in str(caught.value)
    assert real in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"segment_seconds": 80_000.0},
        {"frontend": {**SLIM, "width": 16_384}},
        {"frontend": {"name": "gafx_a", "depth": 2**20}},
        {"frontend": {"name": "gafx_u", "width": 2**14}},
        {"frontend": {"name": "mel", "n_mels": 10**6}},
        {"frontend": {"name": "mel", "form": "kaldi", "n_mels": 10**6}},
        {"frontend": {"name": "leaf", "n_filters": 10**6}},
        {"frontend": {"name": "fused", "parts": {"a": {"name": "mel"}, "b": {**SLIM, "width": 16_384}}}},
        {
            "frontend": {
                "name": "fused",
                "parts": {"a": {"name": "fused", "parts": {"a": {"name": "mel", "n_mels": 10**6}}}},
            }
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"partial": True}, {"classes": ["a", "b"]}], ids=str)
def test_a_small_configuration_cannot_ask_for_all_memory(saved, values, more):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match="far more than|of that size|only .* tensors"):
        gafx.load(edit(saved, **values), **more)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("frontend", [name for name in gafx.list_frontends() if name != "tokens"])
def test_every_front_end_is_within_the_bounds(frontend, tmp_path):
    more = {"gafx_u": {"width": 16}, "handcrafted": {"window_seconds": 0.03}, "mfcc": {"n_mfcc": 20}}.get(frontend, {})
    model = build({"name": frontend, **more})
    folder = model.save(tmp_path / "model")
    loaded, theirs = gafx.load(folder).state_dict(), model.state_dict()
    assert all(torch.equal(loaded[name], theirs[name]) for name in theirs)
    assert not any(tensor.is_meta for tensor in gafx.load(folder, classes=["a"]).state_dict().values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scores": {"accuracy": 5}}, "scores.accuracy=5"),
        ({"scores": {"accuracy": {}}}, "scores.accuracy="),
        ({"scores": {"accuracy": {"value": "high"}}}, "scores.accuracy.value='high'"),
        ({"scores": {"accuracy": {"value": 1, "interval": 5}}}, "interval was read as the number 5, and it is text"),
        ({"scores": {"accuracy": {"value": 1, "low": 0}}}, "both low and high"),
        ({"scores": {"accuracy": {"value": 1}}}, "evaluated_on.data=None"),
        ({"scores": {"accuracy": {"value": 1}}, "evaluated_on": {"data": ["x"]}}, "evaluated_on.data="),
        ({"provenance": {"classifier": {"kind": 5}}}, "provenance.classifier.kind=5"),
    ],
)
def test_records_of_another_form(saved, values, message):
    with pytest.raises(UsageError, match=message):
        gafx.load(edit(saved, **values))


def test_nothing_is_left_beside_a_save_that_failed(tmp_path):
    model = build(SLIM)
    model.info.scores, model.info.evaluated_on = {"accuracy": 5}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "_write_texts", lambda *_: {}["missing"])
        with pytest.raises(KeyError), pytest.warns(UserWarning, match="other weights"):
            model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# --- where weights come from ------------------------------------------------------------------------------------------


def test_a_part_remembers_what_it_was_loaded_from(original, tmp_path):
    first = build(SLIM).save(tmp_path / "first")
    front_end = gafx.create_frontend(**SLIM)
    gafx.load_weights(front_end, first)
    assert build(front_end).info.provenance.describe() == "front-end from first"
    model = build(SLIM)
    model.info.training = {"data": "gtzan"}
    gafx.load_weights(model.classifier, first)
    info = gafx.load(model.save(tmp_path / "second")).info
    assert info.provenance.describe() == "first"
    assert info.training == {}
    gafx.load_weights(model, tmp_path / "second")
    assert gafx.load(model.save(tmp_path / "third")).info.provenance.describe() == "second, front-end from second"


# --- statistics of fixed front-ends -----------------------------------------------------------------------------------


def test_statistics_of_a_fixed_front_end():
    torch.manual_seed(1)
    model = build("mel")
    assert abs(float(model.features(wave()).mean())) > 0.5
    model.fit_statistics(wave())
    features = model.features(wave())
    assert float(features.mean()) == pytest.approx(0, abs=1e-4)
    assert float(features.std()) == pytest.approx(0.5, abs=1e-4)
    again = build("mel")
    again.fit_statistics(iter(wave().split(1)))
    assert torch.allclose(again.map_norm.mean, model.map_norm.mean)
    assert torch.allclose(again.map_norm.std, model.map_norm.std)
    with pytest.raises(ValueError, match="does not fit"):
        model.fit_statistics(wave()[:, 0])


def test_statistics_of_the_fixed_part_alone():
    model = build("fused").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.fit_statistics(wave())
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["map_norm.norms.0.mean", "map_norm.norms.0.std"]
    assert all(module.training for module in model.modules())


def test_parts_of_other_packages_are_initialised(monkeypatch, tmp_path):
    class Other(MelFrontEnd):
        """With a network that is in no file: its values follow from its seed."""

        def __init__(self, *, n_mels: int = 128):
            super().__init__(n_mels=n_mels)
            with torch.random.fork_rng():
                torch.manual_seed(4)
                self.hidden = (torch.nn.Linear(n_mels, n_mels),)

        def forward(self, wave):
            return super().forward(wave).transpose(2, 3).matmul(self.hidden[0].weight).transpose(2, 3)

    monkeypatch.setitem(FRONTENDS._parts, "other", Other)
    model = build({"name": "other", "n_mels": 32})
    model.fit_statistics(wave())
    assert torch.equal(gafx.load(model.save(tmp_path / "model"))(wave()), model(wave()))


def test_loading_sets_every_weight(saved):
    written = weights.read(saved / "model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in gafx.load(saved).state_dict().items())
    head = gafx.load(saved, classes=["a", "b"]).classifier.output.weight
    assert 0 < head.std() < 1
