"""The house: arrows only downwards, and nothing heavy before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gafx"
# Rooms from the ground up; rooms of one rank never import each other.
RANKS = [
    {"errors"},
    {"registry", "integrity", "chatter", "files", "memory"},
    {"decoding"},
    {"config", "audio", "metrics", "weights", "nn"},
    {"frontends", "classifiers", "data", "card", "calibration"},
    {"hub"},
    {"model"},
    {"loading"},
    {"objectives"},
    {"inference"},
    {"training", "evaluation", "deploy"},
    {"compose"},
    {"commands"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}


def imports(path):
    """Rooms of gafx that a module imports, at its top or inside functions, but for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gafx":
            names = [node.module] if "." in node.module else [f"gafx.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "gafx"]
        else:
            continue
        yield from (([*name.split("."), ""])[1] for name in names)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in RANK, f"{room} has no place in the house"
    for other in imports(path):
        if other in RANK and other != room:
            assert RANK[other] < RANK[room], f"{room} imports {other}, which is not below it"


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
        "import gafx.hub, gafx.weights",
        "import gafx.cli",
    ],
)
def test_light_imports(statement):
    heavy = {"torch", "timm", "hydra", "wandb", "sklearn", "scipy"}
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_configuration_error_comes_before_torch():
    train = PACKAGE.parent / "train.py"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", train, "epohcs=3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert not {"torch", "timm", "accelerate"} & imported
