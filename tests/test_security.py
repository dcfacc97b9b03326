"""Files from elsewhere: a pickle under every name that is read, configurations that point at code, names that lead out.

Each is refused with a message, and none of its code runs.
"""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import gafx
from gafx.compose import compose_train
from gafx.config import TrainConfig, build
from gafx.errors import UsageError
from gafx.evaluation.runs import open_run
from gafx.saving import weights
from gafx.training import checkpoint

CLASSES = ["blues", "jazz"]
SLIM = {"name": "gafx_r", "width": 16}
AST = {"name": "ast", "depth": 1}
PATHS = [
    "os.system", "builtins.eval", "gafx.frontends.mel", "../mel", "/etc/passwd", "mel.py", "__import__", "base", "", 7,
    None, ["mel"], {"name": "mel"},
]  # fmt: skip


class Planted:
    """Unpickling makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(autouse=True)
def marker(tmp_path):
    """File that a planted pickle would create; no test may leave one."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    model = gafx.create_model(SLIM, AST, classes=CLASSES, segment_seconds=0.5)
    return model.save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run" / "model")


def kinds(marker):
    """Pickles as they come: plain, of an old protocol, as torch writes them in both its formats."""
    yield pickle.dumps(Planted(marker))
    yield pickle.dumps({"frontend.weight": Planted(marker)}, protocol=0)
    for new in (True, False):
        path = marker.parent / "planted"
        torch.save({"step": 1, "weights": Planted(marker)}, path, _use_new_zipfile_serialization=new)
        yield path.read_bytes()
        path.unlink()


def test_a_planted_pickle_would_run(marker):
    pickle.loads(next(kinds(marker)))
    assert marker.is_dir()
    marker.rmdir()


# --- pickles under the names of other things --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_in_a_saved_model(folder, marker, name):
    for planted in kinds(marker):
        (folder / name).write_bytes(planted)
        for source in (folder, folder.parent):
            with pytest.raises(UsageError, match="cannot be read"):
                gafx.load(source)
        if name == "model.safetensors":
            with pytest.raises(UsageError, match="cannot be read"):
                gafx.load_weights(gafx.create_frontend(**SLIM), folder)


def start_from(part, source):
    """Build a part that starts from the weights in `source`."""
    if part == "ast":
        return gafx.create_model("mel", {**AST, "pretrained": source}, num_classes=2, segment_seconds=0.5)
    if part == "fused":
        return gafx.create_frontend(part, parts={"a": {**SLIM, "pretrained": source}})
    return gafx.create_frontend(part, width=16, pretrained=source)


@pytest.mark.parametrize("part", ["gafx_r", "gafx_a", "gafx_u", "fused", "ast"])
def test_as_pretrained_weights(tmp_path, marker, part):
    planted = list(kinds(marker))[1:3]
    for name in ("model.safetensors", "75fc33f5.safetensors", "other.safetensors", "w.pt", "w.th", "w.bin", "w.ckpt"):
        place = tmp_path / f"from {name}"
        place.mkdir()
        for content in planted if name != "w.bin" else planted[:1]:
            (place / name).write_bytes(content)
            for source in (place, place / name):
                with pytest.raises(UsageError):
                    start_from(part, str(source))


def test_as_the_bundle(tmp_path, marker):
    for planted in kinds(marker):
        (tmp_path / "bundle.pt").write_bytes(planted)
        with pytest.raises(UsageError, match="nothing in it was run"):
            weights.read_state_dict(tmp_path / "bundle.pt")
    torch.save({"a": torch.zeros(1), "b": "text"}, tmp_path / "bundle.pt")
    with pytest.raises(UsageError, match="no plain state dict"):
        weights.read_state_dict(tmp_path / "bundle.pt")


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors", "average.safetensors"])
def test_in_a_checkpoint(tmp_path, marker, name, caplog):
    for step in (1, 2):
        checkpoint.write(tmp_path, step, {"w": torch.full((1,), float(step))}, {}, {"step": step}, keep=2)
    for planted in kinds(marker):
        (tmp_path / "step-00000002" / name).write_bytes(planted)
        found = checkpoint.read_latest(tmp_path)
        assert found is not None
        assert found[2] == {"step": 1}
        assert "step-00000002 is damaged" in caplog.text
        caplog.clear()
    torch.save(["no", "state"], tmp_path / "step-00000002" / "state.pt")
    assert checkpoint.read_latest(tmp_path)[2] == {"step": 1}
    (tmp_path / "step-00000001" / name).write_bytes(planted)
    with pytest.raises(UsageError, match="every checkpoint"):
        checkpoint.read_latest(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_in_a_run(folder, marker, name):
    run = folder.parent
    (run / "config.yaml").write_text("seed: 1\n")
    (run / "run.json").write_text("{}")
    for planted in [*kinds(marker), b"!!python/object/apply:os.mkdir ['%s']" % os.fsencode(marker), b"[" * 100_000]:
        (run / name).write_bytes(planted)
        with pytest.raises(UsageError):
            open_run(run)


# --- configurations ---------------------------------------------------------------------------------------------------


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize("name", PATHS, ids=str)
def test_a_part_is_named_never_imported(folder, name):
    fused = {"name": "fused", "parts": {"a": {"name": name}}}
    wrong = [
        {"frontend": {"name": name}}, {"classifier": {"name": name}}, {"frontend": {"_target_": name, **SLIM}},
        {"frontend": name}, {"frontend": fused}, {"frontend": {**SLIM, "parts": {"a": {"name": name}}}},
    ]  # fmt: skip
    if isinstance(name, str):
        wrong.append({"objective": name})
    before = (folder / "config.json").read_text()
    for values in wrong:
        (folder / "config.json").write_text(before)
        with pytest.raises(UsageError):
            gafx.load(edit(folder, **values))
    for key in ("frontend", "classifier", "objective"):
        with pytest.raises(UsageError):
            build(TrainConfig, {key: {"name": name}})


@pytest.mark.parametrize("override", ["frontend=os.system", "+frontend._target_=os.system", "objective.name=os.system"])
def test_a_command_line_names_parts_too(override):
    from pathlib import Path

    with pytest.raises(UsageError):
        compose_train([override], Path(__file__).resolve().parents[1] / "configs")


def test_a_configuration_cannot_choose_files(folder, tmp_path, monkeypatch):
    """`pretrained` in a downloaded configuration, at any depth, is never followed."""
    asked = []
    monkeypatch.setattr(weights, "find", lambda *arguments, **more: asked.append(arguments))
    model = gafx.create_model(
        {"name": "fused", "parts": {"a": SLIM, "b": {"name": "mel"}}}, AST, classes=CLASSES, segment_seconds=0.5
    )
    saved = model.save(tmp_path / "fused")
    values = json.loads((saved / "config.json").read_text())
    values["frontend"]["pretrained"] = "../../secret"
    values["frontend"]["parts"]["a"]["pretrained"] = "someone/else"
    values["classifier"]["pretrained"] = True
    (saved / "config.json").write_text(json.dumps(values))
    loaded = gafx.load(saved)
    assert not asked
    assert loaded.info.frontend["parts"]["a"]["pretrained"] is False


@pytest.mark.parametrize(
    "values",
    [
        {"classes": []},
        {"classes": "blues"},
        {"classes": [1, 2]},
        {"classes": ["a", "a"]},
        {"segment_seconds": 1e12},
        {"segment_seconds": -1},
        {"segment_seconds": 0},
        {"segment_seconds": float("inf")},
        {"segment_seconds": float("nan")},
        {"frontend": {**SLIM, "width": 10**9}},
        {"frontend": {**SLIM, "width": 16 * 10**30}},
        {"frontend": {**SLIM, "sample_rate": -5}},
        {"frontend": {"name": "mel", "n_mels": 10**9}},
        {"classifier": {**AST, "depth": 10**9}},
        {"sample_rate": "fast"},
        {"map_shape": 3},
        {"provenance": ["x"]},
        {"provenance": {"frontend": {"name": ["x"]}}},
        {"scores": 5},
    ],
    ids=str,
)
def test_values_that_no_model_has(folder, values):
    with pytest.raises(UsageError):
        gafx.load(edit(folder, **values))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"classes": ' + "9" * 5000 + "}", "\udcff"])
def test_a_configuration_that_is_none(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=r"config\.json"):
        gafx.load(folder)


def test_tensors_that_are_not_what_they_seem(folder):
    """A tensor of another shape or number type, one too many, and a header that promises more than there is."""
    path = folder / "model.safetensors"
    state = load_file(path)
    name = "classifier.output.weight"
    for wrong in ({name: torch.zeros(0)}, {"__class__": torch.zeros(1)}, {name: torch.zeros(2, 192, 1)}):
        save_file({**state, **wrong}, path)
        with pytest.raises(UsageError, match="does not fit"):
            gafx.load(folder)
    for planted in (b"", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}", b"\2\0\0\0\0\0\0\0{}"):
        path.write_bytes(planted)
        with pytest.raises(UsageError):
            gafx.load(folder)


# --- names that lead out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "owner/../../x",
        "../x",
        "a/b/../c",
        "owner/na\0me",
        "owner/name\n",
        "\n",
        "",
        "..",
        "~no_such_user/x",
        "a//b",
        "x" * 5000,
    ],
)
def test_names_that_lead_out(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: pytest.fail("the network was asked"))
    for ask in (
        lambda: gafx.load(name),
        lambda: gafx.load_weights(torch.nn.Linear(1, 1), name),
        lambda: gafx.create_frontend("gafx_r", width=16, pretrained=name),
        lambda: weights.fetch(name, ["model.safetensors"]),
    ):
        with pytest.raises(UsageError):
            ask()
