"""The files of docs/examples: the notebook's cells run, the Space shows the demo, the Dockerfile fits the checkout."""

import ast
import json
import re
import runpy
import shlex
import tomllib

import pytest
import yaml
from pages import ROOT, Shell
from test_serve import ask

import gafx
from gafx.cli import read_command

EXAMPLES = ROOT / "docs" / "examples"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture
def saved(tmp_path):
    """A tiny model in a folder."""
    model = gafx.create_model(
        {"name": "gafx_r", "width": 16}, {"name": "ast", "depth": 1}, classes=["a", "b"], segment_seconds=1.0
    )
    return model.save(tmp_path / "tiny")


# --- the notebook -----------------------------------------------------------------------------------------------------

NOTEBOOK = json.loads((EXAMPLES / "gafx.ipynb").read_text("utf-8"))


def test_the_notebook_is_valid_and_has_no_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        expected = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            expected |= {"execution_count", "outputs"}
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        else:
            assert cell["cell_type"] == "markdown"
        assert set(cell) == expected
        assert all(line.endswith("\n") for line in cell["source"][:-1])


def extras(requirement):
    return re.search(r"\[(.*?)\]", requirement)[1].split(",")


@pytest.mark.slow
def test_the_notebooks_cells_run(saved, tmp_path, monkeypatch, capsys):
    """Without the installation, which needs the network, with a tiny model, little music and two training steps."""
    monkeypatch.chdir(tmp_path)
    shell, scope, installed = Shell(capsys), {}, []
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] != "code":
            continue
        code = "".join(cell["source"])
        if "%pip" in code:
            installed += extras(code[code.index("%pip") :])
            continue
        code = code.replace("audioset-crnn", str(saved)).replace("--tracks 8 --seconds 8", "--tracks 5 --seconds 1.2")
        python = re.sub(r"^!(.*)$", lambda line: f"_shell(f{line[1]!r})", code, flags=re.MULTILINE)
        scope["_shell"] = shell.run
        exec(compile(ast.parse(python), "gafx.ipynb", "exec"), scope)
    assert installed
    assert set(installed) <= set(PROJECT["optional-dependencies"])
    assert scope["array"].is_file()
    assert (scope["run"] / "result.json").is_file()


# --- the Space --------------------------------------------------------------------------------------------------------


def test_the_space_shows_the_demo(saved, monkeypatch):
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    monkeypatch.setenv("GAFX_MODEL", str(saved))
    scope = runpy.run_path(str(EXAMPLES / "space" / "app.py"), run_name="app")
    assert isinstance(scope["blocks"], gradio.Blocks)
    assert scope["blocks"].title == "tiny – gafx"


def test_the_files_of_the_space_fit_together():
    assert sorted(path.name for path in (EXAMPLES / "space").iterdir() if path.is_file()) == [
        "README.md", "app.py", "requirements.txt",
    ]  # fmt: skip
    _, header, text = (EXAMPLES / "space" / "README.md").read_text("utf-8").split("---\n", 2)
    found = yaml.safe_load(header)
    assert (found["sdk"], found["app_file"], found["license"]) == ("gradio", "app.py", "mit")
    (oldest,) = re.findall(r"gradio>=([\d.]+)", " ".join(PROJECT["optional-dependencies"]["demo"]))
    versions = [tuple(map(int, version.split("."))) for version in (found["sdk_version"], oldest)]
    assert versions[0] >= versions[1]
    assert len(found["short_description"]) <= 60  # the hub's limit
    (name,) = [line for line in (EXAMPLES / "space" / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert name.startswith("gafx[demo] @ ")
    assert f"gafx-{gafx.__version__}-py3-none-any.whl" in name
    assert "GAFX_MODEL" in text


# --- the container ----------------------------------------------------------------------------------------------------


def instructions():
    text = re.sub(r"^#.*\n", "", (EXAMPLES / "serve" / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    return [tuple(line.split(None, 1)) for line in text.replace("\\\n", " ").splitlines() if line]


def test_the_dockerfile_copies_what_a_build_needs():
    copied = [source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]]
    for source in copied:
        assert (ROOT / source).exists(), source
    # What setuptools reads: the package, the configurations that setup.py adds to it, and the files that are named.
    build = (ROOT / "pyproject.toml").read_text("utf-8") + (ROOT / "setup.py").read_text("utf-8")
    needed = {"pyproject.toml", "setup.py", "gafx", "configs", PROJECT["readme"], *PROJECT["license-files"]}
    assert "configs" in build
    assert set(copied) == needed
    (install,) = [rest for name, rest in instructions() if name == "RUN" and "/src[" in rest]
    assert set(extras(install)) <= set(PROJECT["optional-dependencies"])


def test_the_dockerfile_starts_the_service(monkeypatch):
    found = {name: rest for name, rest in instructions() if name in ("ENTRYPOINT", "CMD", "USER", "HEALTHCHECK")}
    assert found["USER"] == "gafx"
    for more in (json.loads(found["CMD"]), ["--model", "audioset-crnn"]):
        command = [*json.loads(found["ENTRYPOINT"]), *more]
        assert command[0] == "gafx"
        parsed = read_command(command[1:])
        assert (parsed.command, parsed.host, parsed.port, parsed.model) == ("serve", "0.0.0.0", 8000, more[1])
    for line in re.findall(r"^#\s+(docker .*)$", (EXAMPLES / "serve" / "Dockerfile").read_text("utf-8"), re.MULTILINE):
        if "run" in shlex.split(line):
            assert "127.0.0.1:8000:8000" in line


def test_the_health_check_tells_a_service_from_none(saved):
    from gafx.deploy import serve

    (check,) = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    program = json.loads(check[check.index("[") :])[2]
    with serve.opened(gafx.load(saved), device="cpu") as address:
        exec(program.replace("http://127.0.0.1:8000/", address))
        assert ask(address, "GET", "/health")[0] == 200
    with pytest.raises(OSError):  # noqa: PT011
        exec(program.replace("http://127.0.0.1:8000/", address))
