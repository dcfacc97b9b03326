"""Behaviour where an optional package, or a module of Linux and macOS alone, is missing."""

import subprocess
import sys

import pytest
from runs import environment

from gafx.errors import EXTRAS, UsageError, missing_package, require

# Run before anything else: importing the named packages fails, as if they were not installed.
HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""


def python(code, hidden=(), *arguments):
    command = [sys.executable, "-c", f"hidden = {set(hidden)!r}\n{HIDE}\n{code}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=300)


def gafx(*arguments, hidden):
    return python("from gafx.cli import main; main()", hidden, *arguments)


def test_a_model_is_made_and_used_with_the_core_alone(tmp_path):
    code = """
import gafx, numpy, soundfile
model = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=["dog", "rain"], segment_seconds=0.5).eval()
model.save("model")
soundfile.write("new.wav", numpy.sin(numpy.arange(22050) / 9) / 2, 22050)
from gafx.cli import main
main(["list"])
main(["predict", "new.wav", "--model", "model", "--json"])
main(["features", "new.wav", "--frontend", "mel", "--output", "maps"])
main(["train", "--help"])
"""
    done = python(f"import os; os.chdir({str(tmp_path)!r})\n{code}", EXTRAS)
    assert done.returncode == 0, done.stderr
    assert '"dog"' in done.stdout
    assert "optim.lr = 5e-05" in done.stdout


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("hydra", ["train", "seed=1"]), ("accelerate", ["train", "frontend=mel"]), ("hydra", ["evaluate", "run"]),
        ("hydra", ["ablate", "example", "--dry-run"]), ("accelerate", ["pictures", "run"]),
        ("accelerate", ["evaluate", "run"]), ("pyarrow", ["pack", "folder", "sounds", "out", "--shards", "flac"]),
        ("sklearn", ["probe", "synthetic", "out", "--tracks", "2", "--seconds", "2", "--folds", "2"]),
    ],
)  # fmt: skip
def test_a_command_names_the_extra_that_it_needs(package, arguments, wav_factory, rng, tmp_path, monkeypatch):
    wav_factory("sounds/a/1.wav", 0.1 * rng.standard_normal(4000))
    monkeypatch.chdir(tmp_path)
    done = gafx(*arguments, hidden=[package])
    extra, name = EXTRAS[package]
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: gafx {arguments[0]} needs {name}: pip install 'gafx[{extra}]'\n")


@pytest.mark.parametrize(("package", "command"), [("onnx", "export"), ("gradio", "demo")])
def test_commands_with_messages_of_their_own(package, command, tmp_path):
    option = ["--model"] if command == "demo" else []
    done = gafx(command, *option, tmp_path / "run", hidden=[package])
    assert done.returncode == 2
    assert f"pip install 'gafx[{EXTRAS[package][0]}]'" in done.stderr or "run" in done.stderr


def test_a_part_names_the_extra_that_it_needs():
    code = """
import gafx
from gafx.errors import UsageError
try:
    gafx.create_model("mel", "timm", num_classes=2, segment_seconds=1.0)
except UsageError as error:
    print(error)
"""
    done = python(code, ["timm"])
    assert done.stdout == "classifier 'timm' needs timm: pip install 'gafx[timm]'\n", done.stderr
    code = code.replace('create_model("mel", "timm", num_classes=2, segment_seconds=1.0)', 'create_frontend("gafx_u")')
    done = python(code, ["demucs"])
    assert done.stdout == "frontend=gafx_u needs demucs: pip install 'gafx[u]'\n", done.stderr


def test_require():
    assert require("json", "this test").dumps([]) == "[]"
    with pytest.raises(ModuleNotFoundError):
        require("a_module_of_nobody", "this test")  # it is in no extra
    error = ModuleNotFoundError("No module named 'sklearn.svm'", name="sklearn.svm")
    assert isinstance(missing_package(error, "x"), UsageError)


# Modules and calls that Windows (fcntl, resource, pwd, grp, os.fork) or macOS (/proc) does not have.
ELSEWHERE = """
import builtins, importlib, io, os, pathlib, pkgutil, sys
there = builtins.__import__
def absent(name, globals=None, locals=None, fromlist=(), level=0):
    if name.partition(".")[0] in ("fcntl", "resource", "pwd", "grp", "termios") and ours(globals):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return there(name, globals, locals, fromlist, level)
def ours(globals):
    return str((globals or {}).get("__name__", "")).partition(".")[0] == "gafx"
builtins.__import__ = absent
import torch, numpy  # with what they read of this system
for name in ("fork", "sched_getaffinity", "getuid", "geteuid", "statvfs", "mkfifo", "getpgid", "killpg"):
    delattr(os, name)
plain = io.open
def opened(file, *rest, **more):
    if isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", os.fspath(file))
    return plain(file, *rest, **more)
io.open = builtins.open = opened
import gafx
failed = []
for module in pkgutil.walk_packages(gafx.__path__, "gafx."):
    if module.name == "gafx.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except Exception as error:
        failed.append(f"{module.name}: {error!r}")
print("\\n".join(failed))
"""


def test_every_module_imports_on_windows_and_macos():
    done = python(ELSEWHERE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["", ""], done.stdout
