"""Saving, loading and sharing models: what travels, what does not fit, and a hub on this machine."""

import json
import os
import re
import socket
import warnings
from pathlib import Path

import hub_server
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import gafx
from gafx.classifiers.ast import AST as ASTClassifier
from gafx.errors import UsageError
from gafx.frontends.gafx_u import GAFXU
from gafx.frontends.mel import MelFrontEnd
from gafx.inference import Probabilities
from gafx.saving import hub, weights
from gafx.saving.info import Provenance, WeightSource, file_digest
from gafx.training import checkpoint

CLASSES = ["blues", "jazz", "rock"]
SLIM = {"name": "gafx_r", "width": 16}
AST = {"name": "ast", "depth": 1}
ON = {
    "data": "gtzan", "protocol": "kfold", "part": "test", "tracks": 20, "recordings": 19, "fold": 2, "folds": 5,
    "split_seed": 0, "segment_seconds": 1.0, "precision": "fp32",
}  # fmt: skip
SCORES = {"accuracy": {"value": 0.65, "low": 0.43, "high": 0.82, "interval": "Wilson 95 %"}}


def build(frontend="mel", classifier=None, **more):
    torch.manual_seed(0)
    return gafx.create_model(frontend, classifier or AST, **{"classes": CLASSES, "segment_seconds": 0.5, **more}).eval()


def wave(seconds=0.5):
    return 0.1 * torch.randn(2, 1, round(seconds * 22050), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def saved(model, tmp_path):
    return model.save(tmp_path / "model")


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


# --- metadata of a model ----------------------------------------------------------------------------------------------


def test_a_model_knows_how_it_was_built(model):
    info = model.info
    assert info.frontend["name"] == "mel"
    assert info.frontend["hop_length"] == 200  # a default, written down
    assert info.classifier["depth"] == 1
    assert info.classifier["pretrained"] is False
    assert (info.classes, info.sample_rate, info.channels, info.map_shape) == (CLASSES, 22050, 1, [1, 128, 56])
    assert info.provenance == Provenance(WeightSource("fixed"), WeightSource("random"))
    assert build(num_classes=3, classes=None).info.classes == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"classes": None}, "num_classes"),
        ({"classes": None, "num_classes": 0}, "at least 1"),
        ({"num_classes": 4}, "classes has 3"),
        ({"classes": []}, "at least one"),
        ({"classes": ["a", "a"]}, "distinct labels"),
        ({"classes": [1, 2]}, "each a string"),
        ({"segment_seconds": 1e12}, "segment_seconds"),
        ({"segment_seconds": float("nan")}, "segment_seconds"),
        ({"frontend": {"width": 3}}, "names no part"),
        ({"classifier": {"name": 7}}, "names no part"),
    ],
)
def test_labels_and_lengths_that_no_model_has(more, message):
    with pytest.raises(UsageError, match=message):
        build(**more)


def test_a_part_built_by_its_class_trains_but_cannot_be_saved(tmp_path, model):
    other = build(MelFrontEnd())
    assert other(wave()).shape == (2, 3)
    assert other.info.frontend == {}
    with pytest.raises(UsageError, match="create_frontend"):
        other.save(tmp_path / "model")
    with pytest.raises(UsageError, match="create_model"):
        gafx.GAFX(model.frontend, model.classifier).save(tmp_path / "model")
    assert not any(tmp_path.iterdir())
    built = build(gafx.create_frontend("mel", n_mels=64))
    assert gafx.load(built.save(tmp_path / "model")).info.frontend["n_mels"] == 64


def test_what_the_parts_started_from(tmp_path):
    start = build(SLIM).save(tmp_path / "first" / "model")
    second = build({**SLIM, "pretrained": str(start)})
    assert second.info.provenance.frontend == WeightSource(
        "saved", "first", digest=file_digest(start / "model.safetensors")
    )
    assert second.info.frontend["pretrained"] is False
    assert str(tmp_path) not in json.dumps(second.info.as_dict())
    fused = build({"name": "fused", "parts": {"a": {"name": "mel"}, "b": {**SLIM, "pretrained": str(start)}}})
    assert fused.info.provenance.frontend == WeightSource("mixed", "a: fixed, b: first")
    assert fused.info.frontend["parts"]["b"]["pretrained"] is False
    assert fused.info.provenance.describe() == "front-end from a: fixed, b: first"
    loaded = gafx.load(fused.save(tmp_path / "fused"))
    assert torch.equal(loaded(wave()), fused(wave()))
    assert loaded.info == fused.info


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (False, "random"),
        (True, "ImageNet"),
        ("audioset", "AudioSet"),
        ("/data/me/runs/gafx_r-1a2b/model/model.safetensors", "gafx_r-1a2b"),
        ("owner/name", "name"),
        ("/data/me/deit.safetensors", "deit.safetensors"),
    ],
)
def test_text_of_a_start(source, text):
    assert ASTClassifier.source_of({"pretrained": source}).describe() == text


def test_words_for_both_starts():
    assert Provenance(WeightSource("fixed")).describe() == "random"
    both = Provenance(GAFXU.source_of({"pretrained": True}), ASTClassifier.source_of({"pretrained": "audioset"}))
    assert both.describe() == "AudioSet, front-end from hdemucs_mmi"
    assert not both.is_random
    assert not both.uses_imagenet
    assert Provenance.from_dict({"provenance": both.as_dict()}) == both
    hub_model = WeightSource("hub", "me/mine", revision="0123456789abcdef")
    assert Provenance(classifier=hub_model).describe() == "me/mine@0123456"


# --- save -------------------------------------------------------------------------------------------------------------


def test_saving_replaces_a_model_and_nothing_else(model, tmp_path):
    folder = model.save(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    before = (folder / "model.safetensors").read_bytes()
    assert model.save(str(folder)) == folder
    assert (folder / "model.safetensors").read_bytes() == before
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds other things"):
        model.save(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        model.save(tmp_path / "letter.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter.txt", "model"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o027])
def test_files_have_the_permissions_of_the_umask(model, tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = model.save(tmp_path / "model")
        checkpoint.write(tmp_path / "checkpoints", 1, {"x": torch.zeros(1)}, None, {}, keep=1)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_weights_that_may_not_be_read_are_not_said_to_be_missing(saved, monkeypatch):
    monkeypatch.setattr("safetensors.torch.load_file", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be read \(Permission denied\)"):
        weights.read(saved / "model.safetensors")


def test_a_failed_save_leaves_the_old_model(saved, model, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "_write_texts", full)
    with pytest.raises(UsageError, match="No space left"):
        model.save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_tied_tensors_and_labels_of_any_bytes(tmp_path):
    model = build(classes=["caf\udce9", "ü|`<b>", "-"])
    model.classifier.dist_token = model.classifier.cls_token
    model.classifier.norm.weight.data = model.classifier.norm.bias.data
    loaded = gafx.load(model.save(tmp_path / "model"))
    assert torch.equal(loaded(wave()), model(wave()))
    assert loaded.info.classes == ["caf\udce9", "ü|`<b>", "-"]


def test_the_card(saved, model):
    text = (saved / "README.md").read_text()
    matter = yaml.safe_load(text.split("---\n")[1])
    assert (matter["library_name"], matter["pipeline_tag"]) == ("gafx", "audio-classification")
    assert "model-index" not in matter
    for part in ("Not evaluated yet", "22050 Hz", "`blues`, `jazz`, `rock`", "gafx.load(", "1 x 128 x 56", "inherit"):
        assert part in text
    hub.write_scores(saved, SCORES, ON)
    text = (saved / "README.md").read_text()
    (entry,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
    (result,) = entry["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.65, "name": "accuracy"}]
    assert "fold 2 of 5" in result["dataset"]["name"]
    assert "| accuracy | 65.0 % | 43.0 to 82.0 | Wilson 95 % |" in text
    assert "On 20 tracks (19 recordings) of the test part of gtzan, protocol `kfold`, fold 2 of 5" in text
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.metrics) == ("other", "terms-of-the-training-data", ["accuracy"])
    (score,) = data.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_type) == ("accuracy", 0.65, "gtzan")


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_travel_with_the_weights_they_are_of(saved, tmp_path):
    weights_before = (saved / "model.safetensors").stat().st_mtime_ns
    hub.write_scores(saved, SCORES, ON)
    once = {path.name: path.read_bytes() for path in saved.iterdir()}
    hub.write_scores(saved, SCORES, ON)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == once
    assert (saved / "model.safetensors").stat().st_mtime_ns == weights_before
    model = gafx.load(saved)
    assert model.info.scores == SCORES
    assert gafx.load(model.save(tmp_path / "again")).info == model.info
    with torch.no_grad():
        model.classifier.norm.weight += 1
    with pytest.warns(UserWarning, match="other weights"):
        model.save(tmp_path / "other")
    assert gafx.load(tmp_path / "other").info.scores == {}


# --- load -------------------------------------------------------------------------------------------------------------


def test_a_configuration_of_an_earlier_version(saved):
    values = json.loads((saved / "config.json").read_text())
    for key in ("provenance", "scores", "evaluated_on"):
        del values[key]
    (saved / "config.json").write_text(json.dumps({**values, "imagenet": True}))
    provenance = gafx.load(saved).info.provenance
    assert provenance.describe() == "ImageNet"
    assert provenance.uses_imagenet
    started_from = {"frontend": "hdemucs_mmi", "classifier": "random"}
    (saved / "config.json").write_text(json.dumps({**values, "started_from": started_from, "imagenet": False}))
    assert gafx.load(saved).info.provenance.describe() == "front-end from hdemucs_mmi"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"thing": 1, "gafx_version": "99.1"}, "'thing'.*written by gafx 99.1"),
        ({"clases": [], "gafx_version": "0.0.1"}, "'clases'.*did you mean 'classes'"),
        ({"frontend": {"name": "mel", "newer": 1}, "gafx_version": "99.1"}, "newer.*written by gafx 99.1"),
        ({"gafx_version": "x" * 50, "thing": 1}, "thing"),
    ],
)
def test_a_configuration_of_a_later_version(saved, values, message):
    with pytest.raises(UsageError, match=message):
        gafx.load(edit(saved, **values))


def test_other_labels(saved, model):
    loaded = gafx.load(saved, classes=["yes", "no"])
    assert loaded.info.classes == ["yes", "no"]
    name = saved.parent.name
    assert loaded.info.provenance.describe() == f"{name}, front-end from {name}"
    assert torch.equal(loaded.embed(wave()), model.embed(wave()))
    assert loaded(wave()).shape == (2, 2)
    assert loaded.classifier.num_classes == 2
    assert not loaded.training


def rows(model):
    return model.classifier.output.weight.detach()


def test_a_pretrained_output_layer_follows_its_labels(saved, model, caplog):
    """By name, not by their number: the same labels in another order are reordered, others start at random."""

    def start(classes):
        return build(classifier={**AST, "pretrained": str(saved)}, classes=classes)

    assert torch.equal(rows(start(CLASSES)), rows(model))
    turned = CLASSES[::-1]
    assert torch.equal(rows(start(turned)), rows(model).flip(0))
    assert "left out" not in caplog.text
    others = [f"{label}!" for label in CLASSES]
    other = start(others)
    assert not torch.isclose(rows(other), rows(model)).any(dim=1).all()
    assert "left out and starts at random" in caplog.text
    body = {key: value for key, value in model.classifier.state_dict().items() if not key.startswith("output.")}
    assert all(torch.equal(other.classifier.state_dict()[key], value) for key, value in body.items())
    caplog.clear()
    numbered = gafx.create_model(model.frontend, {**AST, "pretrained": str(saved)}, num_classes=len(CLASSES))
    assert torch.equal(rows(numbered), rows(model))
    # The same for weights that are loaded into a model.
    into = build(classes=turned)
    gafx.load_weights(into, saved)
    assert torch.equal(rows(into), rows(model).flip(0))
    into = build(classes=others)
    with pytest.raises(UsageError, match="output layer of .* is of other labels"):
        gafx.load_weights(into, saved)
    before = rows(into).clone()
    assert gafx.load_weights(into, saved, partial=True) == ["classifier.output.weight", "classifier.output.bias"]
    assert torch.equal(rows(into), before)


def test_what_does_not_fit(saved, model):
    state = load_file(saved / "model.safetensors")
    state["classifier.output.weight"] = torch.zeros(9, 192)
    del state["classifier.pos_embed"]
    save_file({**state, "classifier.extra": torch.zeros(1)}, saved / "model.safetensors")
    with pytest.raises(UsageError) as caught:
        gafx.load(saved)
    for part in ("classifier.output.weight: (9, 192) in the file, (3, 192) here", "pos_embed: nothing in the file",
                  "classes=", "partial=True"):  # fmt: skip
        assert part in str(caught.value)
    with pytest.warns(UserWarning, match=r"random now: classifier\.pos_embed, classifier\.output\.weight"):
        loaded = gafx.load(saved, partial=True)
    assert torch.equal(loaded.classifier.norm.weight, model.classifier.norm.weight)


def test_weights_into_modules(tmp_path):
    source = build(SLIM)
    folder = source.save(tmp_path / "slim")
    torch.manual_seed(7)
    other = gafx.create_model(SLIM, AST, num_classes=5, segment_seconds=0.5).eval()
    assert gafx.load_weights(other.frontend, folder) == []
    assert torch.equal(other.frontend(wave()), source.frontend(wave()))
    with pytest.raises(UsageError, match=r"\(3, 192\) in the file, \(5, 192\) here"):
        gafx.load_weights(other.classifier, folder)
    assert gafx.load_weights(other.classifier, folder / "model.safetensors", partial=True) == [
        "output.weight", "output.bias",
    ]  # fmt: skip
    assert torch.equal(other.embed(wave()), source.embed(wave()))
    assert gafx.load_weights(other, folder, partial=True) == ["classifier.output.weight", "classifier.output.bias"]
    assert other.info.provenance.frontend.name == "slim"
    state = {name: tensor.contiguous() for name, tensor in source.frontend.state_dict().items()}
    save_file(state, tmp_path / "alone.safetensors")
    assert gafx.load_weights(gafx.create_frontend(**SLIM), tmp_path / "alone.safetensors") == []
    with pytest.raises(UsageError, match="not one tensor"):
        gafx.load_weights(torch.nn.Linear(2, 2), folder, partial=True)


def test_longer_and_shorter_clips_than_it_was_built_for(saved):
    loaded = gafx.load(saved)
    for seconds in (0.3, 1.2):
        assert loaded(wave(seconds)).isfinite().all()


# --- paths that do not exist, and statistics that were never set ------------------------------------------------------


@pytest.fixture
def folder_of_runs(model, tmp_path, monkeypatch):
    """A working directory with a finished and an unfinished run; asking the hub is an error."""
    monkeypatch.chdir(tmp_path)
    model.save("outputs/mel-1a2b/model")
    (tmp_path / "outputs" / "cnn-3c4d").mkdir()
    (tmp_path / "outputs" / "cnn-3c4d" / "run.json").write_text("{}")
    (tmp_path / "outputs" / "notes").mkdir()

    def fetch(*_, **__):
        raise AssertionError("asked the hub")

    monkeypatch.setattr(weights, "fetch", fetch)
    return tmp_path


@pytest.mark.parametrize(
    "source",
    ["outputs/mel-1a2", "outputs/mel-1a2/model", "./outputs/mel-1a2", "mel-1a2", "outputs/mel-1a2.safetensors"],
)
@pytest.mark.parametrize(
    "use",
    [
        gafx.load,
        lambda source: gafx.load_weights(torch.nn.Linear(2, 2), source),
        lambda source: gafx.create_frontend("gafx_r", width=16, pretrained=source),
        lambda source: gafx.create_model("mel", {**AST, "pretrained": source}, num_classes=2),
        lambda source: next(gafx.predict(".", source)),
    ],
    ids=["load", "load_weights", "front-end", "classifier", "predict"],
)
def test_a_missing_path_is_not_asked_of_the_hub(folder_of_runs, use, source):
    (folder_of_runs / "sound.wav").write_bytes(b"")
    with pytest.raises(
        UsageError, match="does not exist; did you mean 'mel-1a2b', in .*outputs there are: cnn-3c4d, mel-1a2b"
    ):
        use(source)


def test_other_missing_names(folder_of_runs):
    with pytest.raises(UsageError, match="did you mean 'audioset-crnn'"):
        gafx.load("audioset-cnn")
    with pytest.raises(UsageError, match="there is no run or model in .*notes"):
        gafx.load("outputs/notes/x")
    with pytest.raises(UsageError, match="does not exist"):
        gafx.load("x" * 5000)
    with pytest.raises(AssertionError, match="asked the hub"):  # no folder of that name is here
        gafx.load("owner/name")


@pytest.mark.parametrize("source", ["outputs/paper", "runs/paper"])
def test_the_names_of_our_own_folders_are_no_owners(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where neither folder is
    monkeypatch.setattr(weights, "fetch", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UsageError, match=f"'{source}' does not exist; there is no run or model in {tmp_path};"):
        gafx.load(source)


def test_statistics_that_were_never_set(saved, model, tmp_path):
    with pytest.warns(UserWarning, match="mean 0 and std 1, which nothing has set"):
        loaded = gafx.load(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Probabilities(loaded)  # said once
        build(SLIM).check_statistics()  # learned
        build(SLIM | {"map_norm": "scalar"}).check_statistics()
        build({"name": "mel", "map_norm": "clip"}).check_statistics()
        loaded.fit_statistics(wave())
        gafx.load(loaded.save(tmp_path / "set"))
    with pytest.warns(UserWarning, match="fit_statistics"):
        Probabilities(build({"name": "fused", "parts": {"a": {"name": "mel"}, "b": SLIM}}))


# --- a hub on this machine --------------------------------------------------------------------------------------------

CHILD = """
import json, sys, torch, gafx
from gafx.errors import UsageError
from gafx.saving.weights import fetch
torch.set_num_threads(1)
outcomes = {}

def attempt(name, function, *arguments, **more):
    try:
        outcomes[name] = function(*arguments, **more)
    except UsageError as error:
        outcomes[name] = str(error)

folder = sys.argv[1]
model = gafx.load(folder)
wave = 0.1 * torch.randn(2, 1, 11025, generator=torch.Generator().manual_seed(5))
attempt("nobody", model.push_to_hub, "me/mine")
attempt("wrong token", model.push_to_hub, "me/mine", token="hf_wrong")
attempt("pushed", model.push_to_hub, "me/mine", token="hf_right", private=True, commit_message="a first one")
attempt("pushed again", model.push_to_hub, "me/mine", token="hf_right")
again = gafx.load("me/mine")
outcomes["same"] = torch.equal(again(wave), model(wave)) and again.info == model.info
pretrained = gafx.GAFX.from_pretrained("me/mine", cache_dir=sys.argv[2])
outcomes["from_pretrained"] = torch.equal(pretrained(wave), model(wave)) and not pretrained.training
commit = pretrained.loaded_from[0].parent.name
outcomes["cached"] = sys.argv[2] in str(pretrained.loaded_from[0])
by_commit = gafx.load("me/mine", revision=commit, local_files_only=True)
outcomes["by commit"] = by_commit.loaded_from[0].parent.name == commit
attempt("not cached", gafx.GAFX.from_pretrained, "me/slim", cache_dir=sys.argv[2], local_files_only=True)
outcomes["saved"] = model.save_pretrained(sys.argv[2] + "/saved")
outcomes["own"] = model.save_pretrained(sys.argv[2] + "/own", push_to_hub=True, token="hf_right", license="cc-by-4.0")
again.reset_classifier(classes=["sea", "wind"])
again.save(sys.argv[2] + "/again")
outcomes["base"] = open(sys.argv[2] + "/again/README.md").read()
outcomes["left"] = gafx.load_weights(gafx.create_frontend("gafx_r", width=16), "me/slim")
outcomes["by config"] = gafx.create_model(
    {"name": "gafx_r", "width": 16, "pretrained": "me/slim"}, {"name": "ast", "depth": 1}, num_classes=2,
    segment_seconds=0.5,
).info.provenance.frontend.describe()
for repo in ("me/nothing", "me/empty", "me/pickled", "me/pickled-config", "me/path", "me/elsewhere"):
    attempt(repo, gafx.load, repo)
    outcomes[repo] = str(outcomes[repo])
print(json.dumps(outcomes))
"""
UNREACHABLE = """
import os, sys, time, gafx
try:
    gafx.load(sys.argv[1]).push_to_hub("me/mine", token="hf_right")
except ValueError as error:
    print(error)
for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_OFFLINE"):  # the second forbids the network
    os.environ[name] = "1"
    begin = time.perf_counter()
    try:
        gafx.load("me/mine")
    except ValueError as error:
        print(error)
    assert time.perf_counter() - begin < 10, "it was tried again and again"
"""


@pytest.fixture(scope="module", autouse=True)
def started(tmp_path_factory):
    """Two processes: one that talks to the hub, one that finds none; they run while the tests before them do."""
    folder = tmp_path_factory.mktemp("hub")
    slim, mel = build(SLIM).save(folder / "slim"), build().save(folder / "mel")
    files = {path.name: path.read_bytes() for path in slim.iterdir()}
    elsewhere = json.loads(files["config.json"])
    elsewhere["frontend"]["pretrained"] = "me/other"
    elsewhere["classifier"]["pretrained"] = True
    path = {**json.loads(files["config.json"]), "frontend": {"name": "os.system"}}
    pickled = f"cos\nsystem\n(S'touch {folder / 'ran'}'\ntR.".encode()
    repos = {
        "me/slim": files,
        "me/empty": {"README.md": b"nothing here"},
        "me/pickled": {**files, "model.safetensors": pickled},
        "me/pickled-config": {**files, "config.json": pickled},
        "me/path": {**files, "config.json": json.dumps(path).encode()},
        "me/elsewhere": {**files, "config.json": json.dumps(elsewhere).encode()},
    }
    closed = socket.socket()  # bound but not listening: connections are refused
    closed.bind(("127.0.0.1", 0))
    with hub_server.serve(repos) as server:
        up = hub_server.start(CHILD, server.url, folder / "home", mel, folder / "own")
        down = hub_server.start(UNREACHABLE, f"http://127.0.0.1:{closed.getsockname()[1]}", folder / "none", mel)
        yield up, down, server, folder
        for process in (up, down):
            process.kill()
            process.communicate()
        closed.close()


@pytest.fixture(scope="module")
def conversation(started):
    """Outcomes of the uploading process, the hub, outcomes of the downloading process, and their folder."""
    up, down, server, folder = started
    out, errors = up.communicate(timeout=120)
    assert up.returncode == 0, errors
    return json.loads(out.splitlines()[-1]), server, down.communicate(timeout=120), folder


def test_push_and_load(conversation):
    outcomes, server, _, _ = conversation
    assert outcomes["pushed"] == outcomes["pushed again"] == f"{server.url}/me/mine"
    assert outcomes["same"] is True
    assert [asked.get("visibility") for asked in server.created[:2]] == [
        "private",
        None,
    ]  # the second is not made again
    assert server.messages[0] == "a first one"
    assert set(server.repos["me/mine"]) == {"README.md", "config.json", "model.safetensors"}
    assert 'gafx.load("me/mine")'.replace('"', "'") in server.repos["me/mine"]["README.md"].decode()


def test_the_methods_of_the_hub_s_libraries(conversation):
    outcomes, server, _, folder = conversation
    assert outcomes["from_pretrained"] is outcomes["cached"] is outcomes["by commit"] is True
    assert "me/slim could not be fetched" in outcomes["not cached"]
    assert outcomes["saved"] is None
    assert {path.name for path in (folder / "own" / "saved").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert outcomes["own"] == f"{server.url}/somebody/own"
    card = ModelCard(server.repos["somebody/own"]["README.md"].decode())
    assert (card.data.license, card.data.license_name, card.data.base_model) == ("cc-by-4.0", None, None)
    assert json.loads(server.repos["somebody/own"]["config.json"])["license"] == "cc-by-4.0"
    derived = ModelCard(outcomes["base"]).data
    assert (derived.license, derived.base_model) == ("other", ["me/mine"])


def test_a_licence_belongs_to_its_weights(tmp_path, model):
    first, other = build(SLIM), build(SLIM).save(tmp_path / "other")
    first.save_pretrained(tmp_path / "a", license="cc0-1.0")
    assert gafx.load(tmp_path / "a").info.license == first.info.license == "cc0-1.0"
    gafx.load_weights(first.frontend, other)
    with pytest.warns(UserWarning, match="'cc0-1.0' was stated for other weights"):
        first.save(tmp_path / "b")
    assert "license: other" in (tmp_path / "b" / "README.md").read_text()
    first.save_pretrained(tmp_path / "c", license="mit")
    assert gafx.load(tmp_path / "c").info.license == "mit"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.from_pretrained("x", torch_dtype="auto"), r"takes no torch_dtype.*\.to\("),
        (lambda m: m.push_to_hub("me/x", message="x"), "called commit_message"),
        (lambda m: m.push_to_hub("me/x", model_card_kwargs={}), "license="),
        (lambda m: m.save_pretrained("x", safe_serialization=False), "always written as safetensors"),
        (lambda m: m.save_pretrained("x", allow_patterns="*"), "allow_patterns: it takes commit_message, private"),
    ],
)
def test_arguments_of_the_hub_that_are_refused(model, call, message):
    with pytest.raises(UsageError, match=message):
        call(model)


def test_pretrained_parts_from_the_hub(conversation):
    outcomes, _, _, _ = conversation
    assert outcomes["left"] == []
    assert re.fullmatch(r"me/slim@[0-9a-f]{7}", outcomes["by config"])


def test_who_may_not_push(conversation):
    outcomes, _, (out, errors), _ = conversation
    assert "not logged in" in outcomes["nobody"]
    assert "me/mine could not be pushed" in outcomes["wrong token"]
    assert "me/mine could not be pushed" in out, errors


def test_a_hub_that_cannot_be_reached(conversation):
    _, _, (out, errors), _ = conversation
    unreachable, offline = out.splitlines()[-2:]
    nowhere = f"there is no folder {Path('me/mine').absolute()}, and me/mine could not be fetched from the hub: "
    assert unreachable.startswith(f"{nowhere}the hub cannot be reached (")
    assert offline == f"{nowhere}not in the cache, and HF_HUB_OFFLINE forbids the network"
    assert "Retrying" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "../x", "owner/../x", "me/x\n", "me/\0", "/me/x", "me/..", "a/b.."])
def test_names_that_no_repository_has(repo, model):
    assert not weights.is_repo(repo)
    with pytest.raises(UsageError, match="no name of a hub repository"):
        model.push_to_hub(repo, token="hf_right")
    with pytest.raises(UsageError):
        gafx.load(repo)
    with pytest.raises(UsageError, match="no hub repository"):
        weights.fetch(repo, ["config.json"])


def test_what_a_repository_may_not_hold(conversation):
    outcomes, server, _, folder = conversation
    nowhere = f"there is no folder {Path('me/nothing').absolute()}, and me/nothing could not be fetched from the hub: "
    assert outcomes["me/nothing"].startswith(f"{nowhere}the hub has no such repository")
    assert outcomes["me/empty"].endswith("me/empty could not be fetched from the hub: it has no config.json")
    assert "cannot be read as safetensors" in outcomes["me/pickled"]
    assert "config.json cannot be read" in outcomes["me/pickled-config"]
    assert "unknown front-end 'os.system'" in outcomes["me/path"]
    assert outcomes["me/elsewhere"].startswith("GAFX(")  # it loads, and what it points at was never asked for
    assert not [path for _, path in server.asked if "other" in path or "timm" in path]
    assert not (folder / "ran").exists()
