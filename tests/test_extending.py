"""The pages on adding a part: their code, as a package found by entry points, keeps the contracts and trains."""

import csv
import inspect
import re
import sys

import numpy as np
import pytest
import soundfile
import test_contracts as contracts
import torch
from pages import ROOT, blocks

import gafx
from gafx.cli import main
from gafx.compose import compose_train
from gafx.data.sources.base import load_manifest
from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, SOURCES, installed, signature_in_source

PARTS = {
    "frontend": ("filter_bank", FRONTENDS), "classifier": ("stats_mlp", CLASSIFIERS),
    "objective": ("focal", OBJECTIVES), "dataset": ("urbansound", SOURCES),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", PARTS)


def page(kind):
    return ROOT / "docs" / f"new_{kind}.md"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The code of all pages as an installed package, and their YAML files in a folder of the user."""
    folder, metadata = tmp_path / "my_package", tmp_path / "my_package-1.0.dist-info"
    folder.mkdir()
    metadata.mkdir()
    (folder / "__init__.py").write_text("")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    points = []
    for kind, (name, _) in PARTS.items():
        (code,), (toml,), (text,) = (blocks(page(kind), language) for language in ("python", "toml", "yaml"))
        (folder / f"{name}.py").write_text(code)
        group, rest = re.fullmatch(r"\[project\.entry-points\.\"([\w.]+)\"\]\n(.*)\n", toml).groups()
        points.append(f"[{group}]\n{rest.replace(chr(34), '')}\n")
        yaml = tmp_path / "my_configs" / ("data" if kind == "dataset" else kind) / f"{name}.yaml"
        yaml.parent.mkdir(parents=True)
        yaml.write_text(text)
    (metadata / "entry_points.txt").write_text("\n".join(points))
    monkeypatch.syspath_prepend(tmp_path)
    installed.cache_clear()
    yield folder
    for name, registry in PARTS.values():
        registry._parts.pop(name, None)
        sys.modules.pop(f"my_package.{name}", None)
    sys.modules.pop("my_package", None)
    installed.cache_clear()


@pytest.fixture
def urbansound(tmp_path):
    """Three clips of 0.3 s in each of two folds, in the layout of UrbanSound8K."""
    root, rows = tmp_path / "UrbanSound8K", []
    noise = np.random.default_rng(0)
    for fold in (1, 2):
        (root / "audio" / f"fold{fold}").mkdir(parents=True)
        for number, label in enumerate(("dog_bark", "siren", "siren")):
            name = f"{fold}00{number}-{number}.wav"
            soundfile.write(root / "audio" / f"fold{fold}" / name, noise.normal(size=6615) * 0.1, 22050)
            rows.append({"slice_file_name": name, "fsID": f"{fold}00{number // 2}", "fold": fold, "class": label,
                         "salience": 1 + number % 2})  # fmt: skip
    (root / "metadata").mkdir()
    with (root / "metadata" / "UrbanSound8K.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return root


@kinds
def test_registered_by_an_entry_point_and_composed_from_its_yaml(kind, package, tmp_path):
    name, registry = PARTS[kind]
    assert name in registry.names()
    assert signature_in_source(package / f"{name}.py") == registry.signature(name)
    (line,) = [
        line for code in blocks(page(kind), "text") for line in code.splitlines() if line.startswith("gafx train")
    ]
    command = line.split()[2:]
    assert command[:2] == ["--config-dir", "my_configs"]
    config = compose_train(command[2:], tmp_path / "my_configs")
    assert name in (config.frontend["name"], config.classifier["name"], config.objective["name"], config.data.name)


def contract_checks(argument):
    """Contract tests that take `argument`, with the values of their other parameters."""
    for key, check in vars(contracts).items():
        takes = set(inspect.signature(check).parameters) if key.startswith("test_") else set()
        is_slow = any(mark.name == "slow" for mark in getattr(check, "pytestmark", ()))
        if argument in takes and not is_slow:
            marks = {
                mark.args[0]: mark.args[1] for mark in getattr(check, "pytestmark", ()) if mark.name == "parametrize"
            }
            for name in ("shape", "map_shape"):
                if name in takes:
                    yield from ((check, takes, {name: value}) for value in marks[name])
                    break
            else:
                yield check, takes, {}


@pytest.mark.parametrize(
    ("kind", "argument", "other"),
    [
        ("frontend", "frontend_name", {"classifier_name": "ast"}),
        ("classifier", "classifier_name", {"frontend_name": "mel"}),
    ],
)
def test_the_contract(kind, argument, other, package, tmp_path):
    name, called = PARTS[kind][0], 0
    for check, takes, values in contract_checks(argument):
        values = {argument: name, **values, **{key: value for key, value in other.items() if key in takes}}
        if "tmp_path" in takes:
            values["tmp_path"] = tmp_path / str(called)
            values["tmp_path"].mkdir()
        check(**values)
        called += 1
    assert called >= 14


def test_the_front_end(package):
    with pytest.raises(UsageError, match="filters=8 must be at least 16"):
        gafx.create_frontend("filter_bank", filters=8)
    assert gafx.create_frontend("filter_bank", taps=51).first_filters().shape == (64, 1, 51)


def test_the_classifier(package):
    planes = {"name": "gafx_u", "width": 16}  # four planes, which this classifier reads as one map
    model = gafx.create_model(planes, "stats_mlp", num_classes=2, segment_seconds=0.5)
    assert model(torch.zeros(1, 2, 8000)).shape == (1, 2)
    with pytest.raises(UsageError, match="8 frequency bins is too small"):
        gafx.create_model({"name": "mel", "n_mels": 8}, "stats_mlp", num_classes=2, segment_seconds=0.5)
    with pytest.raises(UsageError, match="hidden=0 must be at least 1"):
        gafx.create_model("mel", {"name": "stats_mlp", "hidden": 0}, num_classes=2, segment_seconds=0.5)
    features = torch.randn(2, 1, 16, 9)
    swapped = features[..., torch.randperm(9)]  # the order in time does not count
    classifier = CLASSIFIERS.create("stats_mlp", (1, 16, 9), 3)
    torch.testing.assert_close(classifier(swapped), classifier(features))


def test_the_objective(package):
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, num_classes=2, segment_seconds=0.5)
    wave, target, weight = torch.randn(3, 1, 11025) * 0.1, torch.eye(2)[[0, 1, 1]], torch.tensor([1.0, 1.0, 0.0])
    arguments = (wave, target, weight, torch.zeros(3, 0, 2), 0)
    plain = OBJECTIVES.create("focal", model, np.ones(2), gamma=0.0).eval()(*arguments)
    expected = torch.nn.functional.cross_entropy(plain["logits"][:2], target[:2], reduction="sum")
    torch.testing.assert_close(plain["loss"], expected)
    assert OBJECTIVES.create("focal", model, np.ones(2)).eval()(*arguments)["loss"] < plain["loss"]
    with pytest.raises(UsageError, match="gamma=-1"):
        OBJECTIVES.create("focal", model, np.ones(2), gamma=-1.0)


def test_the_data_set(package, urbansound):
    manifest = load_manifest("urbansound", urbansound)
    assert manifest.classes == ("dog_bark", "siren")
    assert manifest.fold.tolist() == [1, 1, 1, 2, 2, 2]
    assert len(np.unique(manifest.group)) == 4
    assert len(load_manifest("urbansound", urbansound, foreground_only=True)) == 4
    with pytest.raises(UsageError, match="lacks metadata"):
        load_manifest("urbansound", urbansound / "audio")


def test_all_four_train_together(package, urbansound, tmp_path, capsys):
    code = main([
        "train", "--config-dir", str(tmp_path / "my_configs"), "frontend=filter_bank", "frontend.filters=16",
        "classifier=stats_mlp", "objective=focal", "data=urbansound", f"data.root={urbansound}", "data.folds=2",
        "data.segment_seconds=0.3", "data.leak_check=false", "max_steps=2", "batch_size=2", "workers=0",
        "precision=fp32", "device=cpu", f"output_dir={tmp_path / 'outputs'}",
    ])  # fmt: skip
    assert not code
    model = gafx.load(capsys.readouterr().out.strip().splitlines()[-1])
    assert (model.info.frontend["name"], model.info.classifier["name"]) == ("filter_bank", "stats_mlp")
