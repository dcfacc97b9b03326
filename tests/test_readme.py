"""README's Python runs as it stands; its shell commands are checked against the files, scripts and keys they name."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from runs import environment

from gafx.cli import read_command
from gafx.compose import compose_train
from gafx.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("frontends", "pretraining", "audioset", "shards", "ablation", "protocols", "probes", "leaks")
    ),
]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
MORE_SHELL = [
    line
    for page in PAGES[1:]
    for code in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    for line in code.splitlines()
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_snippets_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_snippets():
    assert PYTHON
    assert SHELL


def train_commands():
    for line in [*SHELL, *MORE_SHELL]:
        found = re.search(r"train\.py\s+([^)#]*)", line)
        if found:
            words = shlex.split(found[1].replace("$fold", "1"))
            yield [word for word in words if word != "..."]


@pytest.mark.parametrize("overrides", list(train_commands()), ids=" ".join)
def test_train_commands_compose(overrides):
    compose_train(overrides, ROOT / "configs")


def gafx_commands():
    return sorted({line.split("#")[0].strip() for line in [*SHELL, *MORE_SHELL] if re.match(r"gafx \w", line)})


@pytest.mark.parametrize("line", gafx_commands())
def test_gafx_commands_parse(line):
    read_command(shlex.split(line)[1:])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"`?make (\w+)`?", README)
    assert {"quickstart", "test", "lint"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda path: path.name
)
def test_linked_files_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


FRONTENDS = sorted(path.stem for path in (ROOT / "configs" / "frontend").glob("*.yaml"))


def composes(overrides):
    try:
        compose_train(overrides, ROOT / "configs")
    except UsageError as error:
        return "what was chosen leaves it to you" in str(error)  # a run that only the reader has
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_keys_in_the_text_exist(page):
    """Every `key=value` in backticks composes, with one of the front-ends at least."""
    for code in re.findall(r"`([\w.]+=[^`]*)`", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)):
        overrides = [word.replace("\\|", "|").split("|")[0] for word in shlex.split(code)]
        overrides = [
            word for word in overrides
            if "=" in word and not word.endswith("=") and not word.startswith("ACCELERATE") and "<" not in word
        ]  # fmt: skip
        if page.name != "README.md" and overrides and "." not in overrides[0].partition("=")[0]:
            continue  # keywords in code, not configuration
        data = ["data=folder"] if "data.options" in code else []
        named = any(word.startswith("frontend=") for word in overrides) or "frontend." not in code
        assert any(
            composes([*data, *([] if named else [f"frontend={front}"]), *overrides])
            for front in ([""] if named else FRONTENDS)
        ), code


def test_packing_as_the_readme_says(synthetic_root, tmp_path):
    """Its `gafx pack` of a folder, on class folders."""
    (line,) = [line for line in SHELL if line.startswith("gafx pack folder my_music")]
    words = shlex.split(line.replace("my_music", str(synthetic_root), 1).replace("cache/my_music", str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "gafx.cli", *words[1:]], capture_output=True, text=True, cwd=ROOT, env=environment(),
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / '16000x2'}\n"


def test_own_audio_as_the_readme_says(synthetic_root, tmp_path):
    """The three lines of "Your own audio", on class folders, cut down to two steps."""
    lines = next(code for language, code in BLOCKS if "data.root=my_music" in code).splitlines()[1:]
    lines[0] = lines[0].replace("my_music", str(synthetic_root)).rstrip(")") + (
        f" max_steps=2 batch_size=8 data.segment_seconds=0.8 workers=0 classifier.depth=1 output_dir={tmp_path})"
    )
    lines[1] += " resamples=20 workers=0"
    shell = "\n".join(["set -e", *lines]).replace("python ", f"{sys.executable} ")
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "folder, protocol paper" in done.stdout
