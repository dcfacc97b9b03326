"""The documentation: generated parts are complete, snippets run, and the site builds without a warning."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import yaml
from pages import ROOT, blocks, commands, name, pages, run_python
from test_imports import RANKS

import gafx
from gafx.compose import compose_train
from gafx.config import DataConfig, EvaluateConfig, OptimConfig, TrainConfig, nested_keys

DOCS = ROOT / "docs"
# Their code is run by other tests.
APART = (
    *(f"docs/new_{kind}.md" for kind in ("frontend", "classifier", "objective", "dataset")),
    "docs/tutorial.md",
    "docs/export.md",
    "docs/demo.md",
    "docs/fit.md",
    "docs/predict.md",
    "README.md",
)


def hook(stem):
    spec = importlib.util.spec_from_file_location(f"docs_{stem}", DOCS / "hooks" / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE, PAGES = hook("reference"), hook("pages")


# --- the configuration reference --------------------------------------------------------------------------------------


def rows(markdown):
    """Return the first four cells of each row of each table, by the first."""
    cells = (re.split(r"(?<!\\) \| ", line.strip("| ")) for line in markdown.splitlines() if line.startswith("| `"))
    return {row[0].strip("`"): [*row[1:], "", ""] for row in cells}


@pytest.mark.parametrize("cls", [TrainConfig, EvaluateConfig])
def test_every_key_is_in_the_reference(cls):
    inner = {key.rpartition(".")[0] for key in nested_keys(cls)}
    found = rows(REFERENCE.keys_page(cls))
    assert set(found) == {key for key in nested_keys(cls) if key not in inner}


def test_keys_have_types_defaults_and_descriptions():
    found = rows(REFERENCE.keys_page(TrainConfig))
    assert found["optim.lr"][:2] == ["float", "`5e-05`"]
    assert found["optim.name"][:2] == ["one of 'adam', 'adamw'", "`adam`"]
    assert found["max_steps"][:2] == ["int or null", "`null`"]
    assert found["optim.milestones"][1] == "`[12, 24, 50, 65]`"
    assert found["optim.weight_decay"][2].startswith("applied to weight matrices")  # behind the field
    assert found["data.group_by"][2].startswith("segment: a split may put segments")  # on the line above it
    assert found["optim.classifier.frozen_epochs"][2].startswith("epochs at the start")  # of a field that is inherited
    assert found["workers"][2] == "at least 0; not part of `run_id`"
    assert "not part" not in found["data.protocol"][2]
    assert "only whether it is set" in found["data.cache"][2]


def test_comments_after_and_above_fields(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "class A:\n    # above\n    # and above\n    x: int = 1\n    y: tuple = (  # begin\n        1,\n    )  # end\n"
        "    z: int = 3\n\nclass B:\n    x: str = '#'\n"
    )
    found = REFERENCE.field_comments(module)
    assert found == {"A": {"x": "above and above", "y": "end", "z": ""}, "B": {"x": ""}}


@pytest.mark.parametrize("kind", sorted(REFERENCE.KINDS))
def test_every_argument_of_every_part_is_explained(kind):
    registry, group = REFERENCE.KINDS[kind]
    sections = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^### |\Z)", REFERENCE.parts_page(kind), re.S | re.M))
    assert list(sections) == registry.names()
    for part, section in sections.items():
        found = rows(section)
        assert list(found) == [f"{group}.{keyword}" for keyword in registry.keywords(part)]
        assert all(row[2].strip() for row in found.values()), part


def test_arguments_of_a_docstring():
    text = "Do.\n\nArgs:\n    a: one\n        more: of it.\n    b, c: both.\n    **d: rest.\n\nRaises:\n    E: no.\n"
    assert REFERENCE.arguments(text) == {"a": "one more: of it.", "b": "both.", "c": "both.", "d": "rest."}


def test_choices_are_the_files():
    found = rows(REFERENCE.choices_page(ROOT / "configs"))
    assert "`small`" in found["experiment="][0]
    assert set(found) == {"budget=", "classifier=", "data=", "experiment=", "frontend=", "objective="}


def test_the_page_has_all_generated_parts():
    asked = re.findall(r"^<!-- generated: ([\w-]+) -->$", (DOCS / "configuration.md").read_text(), re.MULTILINE)
    assert asked == ["choices", "train-keys", "evaluate-keys", "frontends", "classifiers", "objectives", "sources"]
    for marker in ("readme", "changelog"):
        assert PAGES.generate(marker).startswith("# ")
    with pytest.raises(KeyError):
        PAGES.generate("nonsense")


# --- links, navigation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "link", "becomes"),
    [
        ("scale.md", "[a run](protocols.md#intervals)", "[a run](protocols.md#intervals)"),
        ("scale.md", "[pretraining.md](pretraining.md)", "[Pretraining](pretraining.md)"),
        ("scale.md", "[file](../configs/train.yaml)", "file (`configs/train.yaml`)"),
        ("scale.md", "[train.yaml](../configs/train.yaml)", "`configs/train.yaml`"),
        ("api/data.md", "[begin](../../README.md#parts)", "[begin](../index.md)"),
        ("api/data.md", "[changes](../../CHANGELOG.md)", "[changes](../changelog.md)"),
        ("api/data.md", "[keys](../scale.md)", "[keys](../scale.md)"),
        ("api/data.md", "[pretraining.md](../pretraining.md)", "[Pretraining](../pretraining.md)"),
        ("scale.md", "[elsewhere](https://example.org/a.md)", "[elsewhere](https://example.org/a.md)"),
        ("scale.md", "[gone](../configs/nothing.yaml)", "[gone](../configs/nothing.yaml)"),
        ("scale.md", "`[code](../train.py)`", "`[code](../train.py)`"),
    ],
)
def test_links_out_of_the_site_become_code(page, link, becomes):
    known = {"scale.md", "protocols.md", "pretraining.md", "api/data.md", "index.md", "changelog.md"}
    assert PAGES.inside(f"See {link}.", page, known) == f"See {becomes}."


def test_the_beginning_of_readme_is_moved():
    text = PAGES.readme_beginning()
    assert "(images/overview.png)" in text
    assert "(synthetic.md)" in text
    assert "## Two commands" in text
    assert "## Train on your own folder" not in text


def listed(items):
    for item in items:
        for target in item.values() if isinstance(item, dict) else [item]:
            yield from listed(target) if isinstance(target, list) else [target]


def test_every_page_is_in_the_navigation_once():
    nav = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == sorted(name(page).removeprefix("docs/") for page in pages() if page.name != "README.md")


def test_the_api_pages_name_existing_objects():
    named = [
        word for page in (DOCS / "api").glob("*.md") for word in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    ]
    assert len(named) > 20
    for path in named:
        parent, _, attribute = path.rpartition(".")
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError:
            found = getattr(importlib.import_module(parent), attribute)
        assert inspect.getdoc(found), path


def test_the_ranks_of_the_architecture_page_are_those_that_are_checked():
    (ranks,) = blocks(DOCS / "architecture.md", "text")
    assert [set(line.split()) for line in ranks.splitlines()] == RANKS


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//", text), page
        assert not re.findall(r"<link[^>]* href=\"?(?:https?:)?//", text), page
        assert "generated:" not in text, page
    assert "optim.lr" in (site / "configuration.html").read_text()
    assert "load_pretrained" in (site / "api" / "seams.html").read_text()
    assert not list(site.rglob("*.py"))
    assert not (site / "examples").exists()


@pytest.mark.slow
def test_pages_opened_as_files_have_a_search(site, browser):
    page = browser.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for start in ("index.html", "api/models.html"):
        page.goto((site / start).as_uri())
        page.wait_for_selector("iframe", state="attached")
        page.click("input[name=query]")
        page.keyboard.type("temperature")
        page.wait_for_function("() => document.querySelector('.md-search-result__meta').innerText.includes('matching')")
        found = page.eval_on_selector_all(".md-search-result__item a", "links => links.map(link => link.href)")
        named = {Path(url2pathname(urlsplit(address).path)) for address in found}
        assert site / "predict.html" in named
        assert all("emperature" in path.read_text("utf-8") for path in named)
    page.close()
    assert not wrong


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it."""
    tmp_path = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return tmp_path / "site"


# --- snippets run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in pages() if name(page) not in APART for number in range(len(blocks(page, "python")))],
    ids=lambda value: name(value) if hasattr(value, "parts") else str(value),
)
def test_snippets_run(page, number):
    run_python(blocks(page, "python")[number], page)


def test_trainings_on_own_recordings_name_their_data_set():
    found = [
        (name(page), line)
        for page in pages()
        for block in blocks(page, "sh")
        for line in commands(block)
        if line.startswith("gafx train ") and "data.root=my_" in line and "--config-dir" not in line
    ]
    assert len(found) > 3
    for page, line in found:
        assert compose_train(line.split()[2:]).data.name != "synthetic", (page, line)


# --- files next to docs/ ----------------------------------------------------------------------------------------------


def test_citation_file():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert found["cff-version"] == "1.2.0"
    assert found["version"] == gafx.__version__
    assert found["license"] == "MIT"
    assert found["authors"] == [{"name": "the gafx developers"}]
    assert {"message", "title", "type"} <= set(found)
    for reference in found["references"]:
        assert {"type", "title", "authors"} <= set(reference)  # year and address where they are known
        assert all(set(author) in ({"name"}, {"family-names", "given-names"}) for author in reference["authors"])
        if "url" in reference:
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", reference["url"])


def test_the_changelog_has_this_version():
    assert f"\n## [{gafx.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_defaults_that_the_pages_speak_of():
    """Defaults that are quoted in the text; change both together."""
    assert (DataConfig().max_unreadable, DataConfig().test_fraction) == (0.05, 0.2)
    assert OptimConfig().milestones == (12, 24, 50, 65)
    small = compose_train(["experiment=small"], ROOT / "configs")
    assert (small.max_steps, small.batch_size, small.data.segment_seconds) == (400, 16, 4.0)
    assert (small.data.protocol, small.data.val_fraction, small.classifier["name"]) == ("paper_val", 0.2, "cnn")
