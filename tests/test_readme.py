"""README and docs: commands and options exist, links resolve, and README's commands run unchanged."""

import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
import soundfile
from markdown.extensions.toc import slugify
from pages import README, ROOT, Shell, blocks, commands, name, pages, run_python
from test_catalogue import site  # noqa: F401 - a fixture

from gafx.cli import read_command
from gafx.compose import compose_train
from gafx.errors import EXTRAS, UsageError
from gafx.studies.synth import compose, render

# Keyword arguments in code, which look like keys of the configuration.
NO_KEYS = (
    "docs/export.md",
    "docs/demo.md",
    "docs/predict.md",
    "docs/new_frontend.md",
    "docs/new_classifier.md",
    "docs/new_objective.md",
    "docs/new_dataset.md",
)
FRONTENDS = sorted(path.stem for path in (ROOT / "configs" / "frontend").glob("*.yaml"))


def shell_lines():
    return [line for page in pages() for code in blocks(page, "sh") for line in commands(code)]


def without_assignment(line):
    return re.sub(r"^\w+=\$\((.*)\)$", r"\1", line)


def train_commands():
    for line in shell_lines():
        found = re.search(r"(?:(?<![\w/])train\.py|\bgafx train)\s+([^)]*)", line)
        if found:
            words = shlex.split(re.sub(r"\$fold", "1", found[1]))
            yield [word for word in words if word != "..."]


@pytest.mark.parametrize("overrides", list(train_commands()), ids=" ".join)
def test_train_commands_compose(overrides):
    compose_train(overrides, ROOT / "configs")


def gafx_commands():
    lines = {without_assignment(line) for line in shell_lines()}
    return sorted(line for line in lines if re.match(r"gafx \w", line))


@pytest.mark.parametrize("line", gafx_commands())
def test_gafx_commands_parse(line):
    if "--help" not in line:
        read_command(shlex.split(line.split("|")[0].split(">")[0])[1:])


def test_there_are_commands():
    assert len(list(train_commands())) > 20
    assert len(gafx_commands()) > 15


def test_readme_names_every_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = README.read_text("utf-8").split("\nExtras: ")[1].split(". A command")[0]
    own = set(project["optional-dependencies"]) - {"docs", "dev"}
    assert set(re.findall(r"`(\w+)`", extras)) == own
    assert {extra for extra, _ in EXTRAS.values()} <= own


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(page.read_text("utf-8") for page in [*pages(), ROOT / "CONTRIBUTING.md"])
    targets = re.findall(r"(?:`|^)make ([\w-]+)", text, flags=re.MULTILINE)
    assert {"quickstart", "test", "lint", "docs", "build"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(page):
    """Of the headings, as both the site and code hosts call them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.M))
    return {slugify(title, "-") for title in plain}


@pytest.mark.parametrize("page", [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./~%#?=&-]*)?", link), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


# --- keys -------------------------------------------------------------------------------------------------------------


@cache
def composes(*overrides):
    try:
        compose_train(list(overrides), ROOT / "configs")
    except UsageError as error:
        return "is missing and has no default" in str(error)  # a run that only the reader has
    return True


@pytest.mark.parametrize("page", [page for page in pages() if name(page) not in NO_KEYS], ids=name)
def test_keys_in_the_text_exist(page):
    """Every `key=value` in backticks composes, with one of the front-ends at least."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([\w.]+=[^`]*)`", text):
        overrides = [word.replace("\\|", "|").split("|")[0] for word in shlex.split(code)]
        overrides = [
            word for word in overrides
            if re.match(r"[a-z][\w.]*=.", word) and "<" not in word
        ]  # fmt: skip
        if page.parent.name == "api" or (page != README and overrides and "." not in overrides[0].partition("=")[0]):
            continue  # keywords in code, not configuration
        data = ["data=folder"] if "data.options" in code else []
        own = re.search(r"\bclassifier\.(backbone|frozen|hidden|image_std|in_channels|top)=", code)
        data += ["classifier=timm"] if own and "classifier=" not in code else []  # the part that has these
        named = any(word.startswith("frontend=") for word in overrides) or "frontend." not in code
        assert any(
            composes(*data, *([] if named else [f"frontend={front}"]), *overrides)
            for front in ([""] if named else FRONTENDS)
        ), code


# --- README runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code in blocks(README, "python") if "outputs/RUN" not in code])
def test_python_snippets_run(code):
    run_python(code, README)


@pytest.fixture(scope="module")
def at_home(tmp_path_factory):
    """A working directory with class folders, a new song and an album, as README's reader has them."""
    home = tmp_path_factory.mktemp("home")
    for genre in ("ambient", "funk", "swing"):
        for index in range(8):
            path = home / "my_music" / genre / f"{index}.wav" if index < 7 else home / "album" / f"{genre}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, render(compose(genre, index, seconds=1.5), 22050), 22050)
    (home / "new_song.wav").write_bytes((home / "album" / "funk.wav").read_bytes())
    return home


def test_own_folder_and_labels_as_the_readme_says(at_home, monkeypatch, capsys):
    """The lines of "Your own folder", then those of "Label files" with its run."""
    monkeypatch.chdir(at_home)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own = list(commands(next(code for code in blocks(README, "sh") if "data.root=my_music" in code)))
    assert len(own) == 5
    shell = Shell(capsys)
    output = [shell.run(line) for line in own]
    assert "clips per step" in output[0]
    assert "folder, protocol paper_val" in output[2]
    assert re.search(r"\d %", output[3])
    assert (Path(shell.variables["run"]) / "report.html").is_file()

    Path(shell.variables["run"]).rename("outputs/RUN")
    label = list(commands(next(code for code in blocks(README, "sh") if "gafx export" in code)))
    assert [line.split()[1] for line in label] == ["predict", "features", "export", "demo"]
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    for line in label:
        shell.run(line)
    (code,) = [code for code in blocks(README, "python") if "outputs/RUN" in code]
    run_python(code, README)
    output = capsys.readouterr().out
    assert all(genre in output for genre in ("ambient", "funk", "swing"))


def test_the_first_minute(at_home, site, monkeypatch, capsys):  # noqa: F811
    """The lines of "The first minute"; a server of the test has random weights in the place of the published ones."""
    monkeypatch.chdir(at_home)
    (at_home / "song.mp3").write_bytes((at_home / "new_song.wav").read_bytes())
    lines = list(commands(next(code for code in blocks(README, "sh") if "gafx fit" in code and "album/" in code)))
    assert [line.split()[1] for line in lines] == ["predict", "predict", "fit", "predict"]
    shell = Shell(capsys)
    first, among, fitted, last = (shell.run(line) for line in lines)
    assert first.startswith("song.mp3  ")
    assert all(re.search(r"\b(Blues|Classical music|Jazz|Rock music) \d", line) for line in among.splitlines())
    assert "accuracy" in fitted
    assert re.search(r"new_song.wav .*(ambient|funk|swing) \d", last)


def test_packing_as_the_docs_say(at_home, monkeypatch, capsys):
    """`gafx pack` of a folder, on class folders."""
    monkeypatch.chdir(at_home)
    (code,) = [code for code in blocks(ROOT / "docs" / "data.md", "sh") if "gafx pack" in code]
    (line,) = [line for line in code.splitlines() if "folder my_music" in line]
    assert Shell(capsys).run(line) == "cache/my_music/16000x2\n"
