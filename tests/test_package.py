"""Wheel and sdist: what they hold, and that the installed wheel works where there is no checkout."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from runs import environment

import gafx
from gafx.errors import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
# What no package may hold: sound, weights, data.
_NEVER = re.compile(r"\.(wav|flac|ogg|opus|mp3|au|npy|npz|safetensors|pt|pth|ckpt|onnx|parquet|pyc)$")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist), made from a copy of the tree: a build leaves things behind where it runs."""
    pytest.importorskip("build")
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("setuptools >= 77 reads the licence of pyproject.toml")
    tree = tmp_path_factory.mktemp("tree") / "gafx"
    leave = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
    for entry in ("gafx", "configs", "docs", "tests", "benchmarks"):
        shutil.copytree(ROOT / entry, tree / entry, ignore=leave)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    out = tree.parent / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    info = f"gafx-{gafx.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"gafx", info}
    # Templates, styles and scripts too: every file in the package's folder is part of it.
    sources = [path for path in (ROOT / "gafx").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(ROOT)) for path in sources}
    # The one copy of the configurations, what launchers read included.
    expected |= {f"gafx/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert {"gafx/configs/train.yaml", "gafx/configs/slurm/ddp.sbatch", "gafx/configs/accelerate/ddp.yaml"} < expected
    assert expected == {name for name in names if name.startswith("gafx/")}
    assert "gafx/py.typed" in names
    assert any(name.endswith(".j2") for name in names)
    assert f"{info}/licenses/LICENSE" in names
    assert not [name for name in names if _NEVER.search(name)]


def test_the_sdist_holds_what_readme_speaks_of(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt",
        "mkdocs.yml", "pyproject.toml", "setup.py", "train.py", "evaluate.py", "configs/train.yaml",
        "configs/slurm/ddp.sbatch", "configs/experiment/small.yaml",
        "docs/tutorial.md", "docs/hooks/pages.py", "docs/images/overview.png",
        "tests/test_package.py", "tests/conftest.py", "tests/runs.py", "benchmarks/input.py",
    } <= names  # fmt: skip
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text("utf-8"))
    assert set(linked) <= names
    assert not [name for name in names if _NEVER.search(name)]


def test_metadata(built):
    with zipfile.ZipFile(built[0]) as wheel:
        info = f"gafx-{gafx.__version__}.dist-info"
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode("utf-8"))
        points = wheel.read(f"{info}/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == ("gafx", gafx.__version__)
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    extras = {
        "all", "classical", "codec", "data", "demo", "dev", "docs", "export", "fit", "formats", "listen", "midi",
        "pandas", "pictures", "serve", "timm", "train", "u",
    }  # fmt: skip
    assert extras == set(metadata.get_all("Provides-Extra"))
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert any(line.startswith("torch>") for line in needed)
    names = {re.split(r"[^\w-]", line)[0] for line in needed}
    assert names == {
        "torch", "numpy", "einops", "soundfile", "soxr", "safetensors", "huggingface_hub", "filelock", "psutil",
        "pyyaml", "tqdm",
    }  # fmt: skip
    # Every optional package that a message names is in the extra that it names.
    for extra, name in EXTRAS.values():
        assert any(
            line.startswith(name) and f'extra == "{extra}"' in line for line in metadata.get_all("Requires-Dist")
        ), name
    assert metadata.get_payload().startswith("# gafx\n")
    assert "gafx = gafx.cli:main" in points
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2207.09145"]  # no public address yet


@pytest.mark.slow
def test_the_installed_wheel_works_outside_the_repository(built, tmp_path):
    """In a separate environment, with the packages that gafx depends on, but not gafx."""
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    site = next((place / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, str(built[0])], check=True)
    # A path in a .pth is searched, but the .pth files in it are not read: the checkout's own editable one among them.
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (tmp_path / "elsewhere").mkdir()

    def run(*command, status=0):
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=tmp_path / "elsewhere", check=False,
            env={**environment(), "PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout

    command = place / "bin" / "gafx"
    assert run(command, "--version") == f"gafx {gafx.__version__}\n"
    assert "gafx_u" in run(command, "list", "frontends")
    output = run(
        python, "-c",
        "import gafx, json, numpy, soundfile, torch\n"
        "front_end = gafx.create_frontend('gafx_r', width=16)\n"
        "shape = list(front_end(torch.zeros(1, 1, 22050)).shape)\n"
        "model = gafx.create_model('mel', {'name': 'ast', 'depth': 1}, classes=['dog', 'rain'], segment_seconds=1.0)\n"
        "model.eval().save('model')\n"
        "print(json.dumps([gafx.__file__, shape, gafx.load('model').info.classes]))\n"
        "soundfile.write('new.wav', numpy.sin(numpy.arange(33075) / 9) / 2, 22050)\n",
    )  # fmt: skip
    where, shape, classes = json.loads(output)
    assert Path(where).is_relative_to(site)
    assert (shape, classes) == ([1, 1, 128, 111], ["dog", "rain"])
    (found,) = json.loads(run(command, "predict", "new.wav", "--model", "model", "--json"))
    assert "new.wav" in json.dumps(found)
    assert {"dog", "rain"} <= set(re.findall(r"\w+", json.dumps(found)))
    # Training, evaluation and a table, with the configurations inside the wheel and a folder of one's own before them.
    elsewhere = tmp_path / "elsewhere"
    for label, period in (("dog", 9), ("rain", 4)):
        (elsewhere / "sounds" / label).mkdir(parents=True)
        for number in range(6):
            wave = np.sin(np.arange(22050) / (period + number / 10)) / 2
            soundfile.write(elsewhere / "sounds" / label / f"{number}.wav", wave, 22050)
    (elsewhere / "mine" / "experiment").mkdir(parents=True)
    (elsewhere / "mine" / "experiment" / "tiny.yaml").write_text(
        "# @package _global_\ndefaults:\n  - small\n  - _self_\nepochs: 1\nmax_steps: 2\nbatch_size: 4\nworkers: 0\n"
    )
    train = ("train", "--config-dir", "mine", "experiment=tiny", "data.root=sounds")
    folder = run(command, *train).strip()
    assert run(command, *train).strip() == folder
    assert "accuracy" in run(command, "evaluate", folder, "resamples=20", "workers=0").lower()
    listed = run(command, "ablate", "example", "--dry-run", "--seeds", "0")
    assert len(listed.splitlines()) == 4
    assert "new, outputs" in listed
    assert json.loads(run(command, "predict", "new.wav", "--model", folder, "--json"))
