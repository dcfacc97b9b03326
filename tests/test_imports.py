"""The house: arrows only downwards, and nothing heavy before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gafx"
# Packages in ascending rank; those of one rank never import each other. A dotted name gives one module or folder a
# rank other than its package: formatting and page toolkit, weights files, the catalogue with its downloads, built-in
# music and pictures of maps are used by lower packages.
RANKS = [
    {"errors", "_version"},
    {"io", "log", "process", "registry", "memory", "report.format"},
    {"data.protocols", "midi"},
    {"audio", "config", "report", "studies.synth", "data.download"},
    {"stats", "outputs", "saving.weights", "saving.info"},
    {"saving.catalogue"},
    {"nn"},
    {"frontends", "classifiers", "data"},
    {"saving"},
    {"model"},
    {"loading"},
    {"objectives"},
    {"inference"},
    {"evaluation.maps"},
    {"training", "evaluation", "deploy"},
    {"report.evaluation", "hear"},
    {"maeb"},
    {"fitting"},
    {"studies"},
    {"compose"},
    {"cli"},
    {"commands", "__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}

# Methods that users look for on a model, though what they do is above it: module -> rooms above that it may import
# inside a function or for annotations, never when it is imported itself. One line per room, with its methods.
METHODS = {
    "model": {
        "deploy.predict",  # GAFX.predict
        "deploy.features",  # GAFX.embed_file
        "deploy.stream",  # GAFX.stream
        "loading",  # GAFX.from_pretrained
    },
}


def place(module):
    """Name in `RANKS` of a module below gafx: the longest dotted name that is listed."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in RANK:
            return ".".join(parts[:length])
    return parts[0]


def imports(path):
    """Modules of gafx that a module imports, at its top or inside functions, without the leading `gafx.`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        yield from imported(node)


def imported(node):
    """Modules of gafx that a node of the syntax tree imports itself."""
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gafx":
        base = node.module.removeprefix("gafx").lstrip(".")
        for alias in node.names:
            inner = f"{base}.{alias.name}".lstrip(".")
            is_module = (PACKAGE / Path(*inner.split("."))).with_suffix(".py").exists()
            yield inner if is_module or not base else base
    elif isinstance(node, ast.Import):
        yield from (a.name.removeprefix("gafx.") for a in node.names if a.name.split(".")[0] == "gafx")


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    room = place(module)
    assert room in RANK, f"{module} has no rank"
    for other in imports(path):
        assert place(other) in RANK, f"{module} imports {other}, which has no rank"
        if place(other) != room and other not in METHODS.get(module, ()):
            assert RANK[place(other)] < RANK[room], f"{module} imports {other}, which is not below it"


@pytest.mark.parametrize("module", METHODS)
def test_methods_import_what_is_above_when_they_are_called(module):
    path = (PACKAGE / Path(*module.split("."))).with_suffix(".py")
    at_the_top = {other for node in ast.parse(path.read_text("utf-8")).body for other in imported(node)}
    assert not at_the_top & METHODS[module]
    assert METHODS[module] <= set(imports(path)), "an exception that is no longer needed"


def test_only_compose_imports_hydra():
    for path in MODULES:
        if path.name != "compose.py":
            text = path.read_text(encoding="utf-8")
            assert "import hydra" not in text, path
            assert "from hydra" not in text, path


@pytest.mark.parametrize(
    "statement",
    [
        "import gafx; gafx.list_frontends(); gafx.list_classifiers()",
        "import gafx.config, gafx.registry",
        "import gafx.saving.hub, gafx.saving.weights",
        "import gafx.cli",
        "import gafx.deploy.predict, gafx.deploy.writers, gafx.deploy.stream",
        "from gafx.deploy.predict import probabilities; from contextlib import suppress\n"
        "with suppress(ValueError): probabilities('no/such/folder/model')\n"
        "pass",
    ],
)
def test_light_imports(statement):
    heavy = {"torch", "timm", "hydra", "wandb", "sklearn", "scipy"}
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Each takes as long to import as bare Python to start.
SCANS = ["importlib.metadata", "difflib", "numpy"]


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["--help"], [*SCANS, "inspect", "dataclasses", "gafx.commands", "gafx.config", "gafx.registry", "gafx.io"]),
        (["--version"], [*SCANS, "inspect", "dataclasses", "gafx.commands", "gafx.registry"]),
        (["predict", "--help"], [*SCANS, "gafx.config", "gafx.commands.train", "yaml", "hydra"]),
        (["train", "--help"], [*SCANS, "gafx.commands.predict", "yaml", "hydra"]),
        (["leaks", "--help"], ["numpy", "yaml", "hydra"]),  # lists the data sets, also those of other packages
    ],
    ids=lambda value: value[0] if "--" in value[-1] else "",
)
def test_what_the_help_does_without(arguments, missing):
    code = f"import sys; sys.modules |= dict.fromkeys({missing}); from gafx.cli import main; main({arguments})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_parts_of_gafx_are_found_without_a_look_at_other_packages():
    code = """
import sys
sys.modules["importlib.metadata"] = None
from gafx.registry import CLASSIFIERS, FRONTENDS
FRONTENDS.check_part({"name": "fused", "parts": {"a": {"name": "mel"}}}, "frontend")
assert CLASSIFIERS.keywords("ast")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'? choose one of: fit, train,"),
        ("train data=gtzan data.root=none", "data.root='none' does not exist. It must hold the ten genre folders"),
        ("fit none --model audioset-crnn", "FOLDER='none' does not exist"),
        ("features a.wav --output out --model none", "'none' does not exist; "),
        ("export none", "'none' does not exist; "),
        ("serve --model none", "'none' does not exist; "),
    ],
)
def test_a_mistake_is_reported_before_torch_is_imported(arguments, message, tmp_path):
    code = f"import sys; sys.modules['torch'] = None; from gafx.cli import main; main({arguments.split()})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_configuration_error_comes_before_torch():
    train = PACKAGE.parent / "train.py"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", train, "epohcs=3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra._internal.hydra" in imported
    assert not {"torch", "timm", "accelerate"} & imported
