"""The report page: one file that holds every number, whatever the names, classes and scores are."""

import base64
import hashlib
import io
import itertools
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gafx.data.manifest import Manifest, Skipped, make_manifest
from gafx.evaluation.misjudged import Excerpt, LabelError, Misjudged, MisjudgedTrack, misjudged, within
from gafx.evaluation.result import ClassScores, Cost, FoldScores, Result, Section
from gafx.inference import Predictions
from gafx.report import format as fmt
from gafx.report import html as html_module
from gafx.report import svg
from gafx.report.evaluation import write_report
from gafx.report.figures import MapPicture, PlotRow, score_plot, validation_curves
from gafx.report.format import printable
from gafx.report.svg import colour_range
from gafx.saving.info import Provenance
from gafx.stats.scores import CalibrationBin, Score, class_scores

IMAGENET = Provenance.from_dict({"started_from": {"classifier": "ImageNet"}})
_VOID = {"meta", "br", "img", "hr", "input", "link"}
_ODD = '<b>x</b> & "y"'


class _Page(HTMLParser):
    """Checks that tags close in order, and gathers the text, the attributes and the text of table cells."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.cells: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.source = path.read_bytes().decode("utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.cells = [re.sub(r"\s+", " ", cell).strip() for cell in self.cells]
        self.text = re.sub(r"\s+", " ", "".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def drawn(self, kind: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if kind in (attrs.get("class") or "").split()]


def _result(name: str, classes: list[str], random: int = 0, **more: Any) -> Result:
    matrix = np.random.default_rng(random).integers(0, 9, (len(classes), len(classes)))
    matrix[:, -1] = 0  # the last class is never predicted: its precision is undefined
    columns = [[None if np.isnan(v) else float(v) for v in column] for column in class_scores(matrix)]
    groups = "bootstrap over 213 groups, 1000 resamples, 95 %"
    values = {
        "name": name,
        "runs": ["outputs/a-1a2b3c4d", "outputs/a-5e6f7a8b"],
        "run_ids": ["1a2b3c4d", "5e6f7a8b"],
        "frontend": {"name": "gafx_r", "width": 16, "norm": "batch"},
        "classifier": {"name": "ast", "size": "tiny", "depth": 4},
        "data": "esc",
        "protocol": "official",
        "folds": [1, 2],
        "seed": 7,
        "classes": classes,
        "tracks": 1234,
        "segments": 2468,
        "groups": 213,
        "segment_seconds": 4.0,
        "scores": {
            "track": {
                "accuracy": Score(0.7123, 0.6634, 0.7547, "Wilson 95 %"),
                "macro_f1": Score(0.7012, 0.6512, 0.7423, groups),
                "calibration_error": Score(0.0812, 0.0612, 0.1023, groups),
            },
            "segment": {
                "accuracy": Score(0.6911, 0.6522, 0.7333, groups),
                "macro_f1": Score(0.6733),
                "calibration_error": Score(float("nan")),
            },
        },
        "per_class": [
            ClassScores(label, {"precision": p, "recall": r, "f1": f}, int(t), int(q))
            for label, p, r, f, t, q in zip(classes, *columns, matrix.sum(1), matrix.sum(0), strict=True)
        ],
        "confusion": matrix.tolist(),
        "per_fold": [FoldScores(1, 617, {"accuracy": 0.7004}), FoldScores(2, 617, {"accuracy": 0.7242})],
        "chance": 1 / len(classes),
        "cost": Cost(
            parameters=2_300_000,
            frontend_parameters=400_000,
            flops_per_clip=7.6e9,
            clips_per_second=31.04,
            peak_memory_bytes=900_000_000,
            train_seconds=350.0,
            train_steps=1200,
            device="cpu (2 threads)",
            precision="bf16",
        ),
        "calibration_bins": [CalibrationBin(0.35, 0.4, 20), CalibrationBin(0.9, 0.8, 80)],
    }
    return Result(**{**values, **more})


def _curves(runs: int, validation: bool = True) -> list[list[dict[str, Any]]]:
    curve: list[dict[str, Any]] = []
    for step in range(10, 210, 10):
        curve.append({"step": step, "epoch": 0, "loss": 2.0 / step, "rate": 5e-5, "clips_per_second": 40.1})
        if validation and step % 40 == 0:
            curve.append({"step": step, "epoch": 0, "validation_accuracy": step / 400, "validation_macro_f1": 0.2})
    return [curve] * runs


def _picture(clip: str = "a/b.wav", label: str = "dog", bins: int = 64, frames: int = 100) -> MapPicture:
    rng = np.random.default_rng(1)
    wave = rng.normal(size=8000).astype(np.float32)
    maps = rng.normal(size=(2, bins, frames)).astype(np.float32)
    return MapPicture(clip, label, "predicted cat (45.7 %)", 4.0, wave, maps[:1], maps[1])


@pytest.fixture
def page(tmp_path):
    def write(*sections: Section, title: str = "A page") -> _Page:
        path = write_report(tmp_path / "new" / "report.html", sections, title=title)
        assert path == tmp_path / "new" / "report.html"
        return _Page(path)

    return write


def _assert_self_contained(page: _Page) -> None:
    assert not re.search(r"https?://|url\(|@import", page.source)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    starts = {"image": "data:image/png;base64,", "img": "data:image/png;base64,", "audio": "data:audio/mpeg;base64,"}
    for tag, attrs in page.tags:
        for name in ("src", "href", "srcset", "xlink:href"):
            assert (attrs.get(name) or starts.get(tag, "#")).startswith(starts.get(tag, "#"))
    # A script runs only if the page's policy names it by its hash.
    [policy] = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    scripts = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{found}'" for found in hashes]
    assert "<script" not in page.source.replace("<script>", "", len(scripts))
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))


def test_two_models_with_odd_names(page):
    classes = [_ODD, "Küche", "猫", "dog"]
    skipped = [
        Skipped("caf\udce9/<i>.wav", "cannot be decoded: <unknown> & empty"),
        Skipped("line\nbreak.wav", "is empty (0 bytes)"),
    ]
    first = Section(_result(_ODD, classes, skipped=skipped), _curves(2), [_picture("caf\udce9/\u202egpj.wav", _ODD)])
    second = Section(_result("esc10-mel", classes, 1, provenance=IMAGENET), _curves(2), [_picture("ü/猫.wav")])
    made = page(first, second, title=_ODD)
    _assert_self_contained(made)
    assert "<b>" not in made.source
    assert "<i>" not in made.source
    for cell in (*classes, f"{_ODD}gafx_r → ast tiny", "esc10-melgafx_r → ast tiny"):
        assert cell in made.cells
    for message in (
        "esc data · official protocol · folds 1, 2 · test part · 1 234 tracks · 213 groups · 2 468 segments of 4 s",
        "Accuracy: Wilson 95 %; Macro-F1 and Calibration error: bootstrap over 213 groups, 1000 resamples, 95 %",
        r"caf\xe9/<i>.wav",
        "cannot be decoded: <unknown> & empty",
        r"line\nbreak.wav",
        "is empty (0 bytes)",
        rf"caf\xe9/\u202egpj.wav — {_ODD} — predicted cat (45.7 %)",
        "ü/猫.wav — dog — predicted cat",
    ):
        assert message in made.text
    assert len(made.drawn("dot")) == 2 * 2  # in the overviews for wide and narrow screens
    assert len(made.drawn("chance")) == 4 + 2  # in the overviews, and the diagonals of the reliability diagrams
    assert sum(tag == "image" for tag, _ in made.tags) == 4
    assert {"random", "ImageNet"} <= set(made.cells)


def test_every_number_is_shown(page):
    made = page(Section(_result("one", ["a", "b", "c"]), _curves(2), []))
    cells = made.cells
    for shown in (
        "71.2 %66.3 to 75.5",
        "70.1 %65.1 to 74.2",
        "0.0810.061 to 0.102",
        "69.1 %65.2 to 73.3",
        "67.3 %",
        "–",
    ):
        assert shown in cells
    for shown in ("33.3 %", "70.0 %", "72.4 %", "617", "1 234", "2.30 M", "5 min 50 s", "31.0"):
        assert shown in cells
    for shown in ("400 k", "7.60 G", "900.0 MB", "1 200", "cpu (2 threads)", "bf16", "width 16", "5e6f7a8b", "Seed7"):
        assert shown in made.text
    result = _result("one", ["a", "b", "c"])
    for entry in result.per_class:
        at = len(cells) - 1 - cells[::-1].index(entry.name)
        numbers = [fmt.number(value, key) for key, value in entry.scores.items()]
        assert cells[at + 1 : at + 6] == [*numbers, str(entry.tracks), str(entry.predicted)]
    filled = np.count_nonzero(result.confusion)
    assert len(made.drawn("shade")) == filled == len(made.drawn("count")) + len(made.drawn("over"))
    assert len(made.drawn("bubble")) == 2
    assert len(made.drawn("line")) == 2 * 4  # raw and smoothed loss, learning rate, validation accuracy
    assert "fold 2: last 50%" in made.text


def test_the_second_model_takes_the_class_order_of_the_first(page):
    turned = _result("turned", ["b", "a"], confusion=[[1, 2], [3, 4]])
    made = page(Section(_result("first", ["a", "b"], confusion=[[4, 3], [2, 1]])), Section(turned))
    hints = re.findall(r"(\w) → (\w): (\d)", made.text)
    assert hints[:4] == hints[4:] == [("a", "a", "4"), ("a", "b", "3"), ("b", "a", "2"), ("b", "b", "1")]
    places = [made.cells.index("a"), made.cells.index("b")]
    rest = made.cells[places[1] + 1 :]
    assert places[0] < places[1]
    assert rest.index("a") < rest.index("b")
    assert turned.classes == ["b", "a"]


def test_many_labels_a_clip(page):
    interval = "bootstrap over 80 groups, 200 resamples, 95 %"
    scores = {"mean_average_precision": Score(0.4111, 0.371, 0.462, interval), "mean_auc": Score(float("nan"))}
    per_class = [
        ClassScores("folk", {"average_precision": None, "auc": None}, 0),
        ClassScores("rock", {"average_precision": 0.3141, "auc": 0.7272}, 12),
    ]
    result = _result(
        "tags",
        ["rock", "folk"],
        objective="tag",
        confusion=None,
        chance=None,
        calibration_bins=None,
        scores={"track": scores, "segment": scores},
        per_class=per_class,
        per_fold=[FoldScores(0, 80)],
    )
    made = page(Section(result, _curves(1, validation=False), [_picture()]))
    _assert_self_contained(made)
    assert "41.1 %37.1 to 46.2" in made.cells
    at = made.cells.index("rock")
    assert made.cells[at : at + 8] == ["rock", "31.4 %", "0.727", "12", "folk", "–", "–", "0"]
    assert f"Mean average precision: {interval}." in made.text
    assert "nan" not in made.text
    for absent in ("Confusion", "Reliability", "chance"):
        assert absent not in made.text


@pytest.mark.parametrize("number", [2, 20, 21, 50])
def test_numbers_of_classes(page, number):
    classes = [f"class number {index} with a long name" for index in range(number)]
    made = page(Section(_result("many", classes)))
    _assert_self_contained(made)
    assert all(name in made.cells for name in classes)
    numbered = len(made.drawn("count")) + len(made.drawn("over"))
    assert numbered == (len(made.drawn("shade")) if number <= 20 else 0)
    assert "Learning curves" not in made.text
    assert "Front-end maps" not in made.text


def test_little_is_known(page):
    made = page(Section(Result(name="bare", data="", protocol="", classes=[], scores={}), [[]], []))
    _assert_self_contained(made)
    assert made.cells[:2] == ["Model", "Start"]
    assert "bare" in made.cells
    assert "every file was read" in made.text
    with pytest.raises(ValueError, match="one Section"):
        page()


def test_values_that_are_no_numbers_and_curves_of_one_point(page):
    curve = [{"step": 1, "loss": float("nan"), "rate": 1e-4}, {"step": 2, "loss": 1.5, "rate": None}]
    picture = _picture(bins=3, frames=2)
    picture.feature_map[:] = np.nan
    nothing = np.zeros(3, np.float32), np.zeros((1, 1, 1), np.float32)
    silent = MapPicture("s.wav", "a", "predicted a (100.0 %)", 0.5, *nothing, picture.mel)
    made = page(Section(_result("odd", ["a", "b"], per_fold=[]), [curve], [picture, silent]))
    _assert_self_contained(made)
    assert not re.search(r"\b(nan|inf)\b", made.source)


def test_a_page_of_two_models_and_eight_pictures_is_small(page):
    pictures = [_picture(bins=513, frames=1000)] * 4
    made = page(*(Section(_result(name, ["a", "b"]), _curves(10), pictures) for name in "xy"))
    assert len(made.source) < 2.5e6


def test_pictures_share_one_colour_scale():
    assert colour_range([np.zeros((2, 2)), np.ones((2, 2)), np.full((1, 1), np.nan)]) == (0, 1)
    assert colour_range([]) == (0, 1)


def test_printable():
    assert printable("a b\u00a0\u200dé猫") == "a b\u00a0\u200dé猫"
    assert printable("\udce9\ud800\x00\u202e\x7f") == r"\xe9\ud800\x00\u202e\x7f"


def _misjudged(tmp_path: Path | None = None) -> Misjudged:
    """Five of nine misjudged tracks: two with audio, one with a file, two without."""
    file = ""
    if tmp_path is not None:
        (tmp_path / "a b#ü.wav").write_bytes(b"sound")
        file = str(tmp_path / "a b#ü.wav")
    tracks = [
        MisjudgedTrack(f"{_ODD}.wav", "dog", "cat", 0.9, file, 2, Excerpt(1.5, b"one")),
        MisjudgedTrack("2.wav", "cat", "dog", 0.8, "", 0, Excerpt(0.0, b"two!")),
        MisjudgedTrack("3.wav", "dog", "cat", 0.7, file, 1),
        MisjudgedTrack("4.wav", "dog", "cow", 0.6, "/nowhere/4.wav"),
        MisjudgedTrack("5.wav", "cow", "dog", 0.5),
    ]
    errors = [LabelError("3.wav", "dog", "cat", 0.6, 0.1, 0.7), LabelError(f"{_ODD}.wav", "dog", "cat", 0.5, 0.1, 0.9)]
    return Misjudged(tracks, 9, errors, 0.3)


_ANIMALS = {"classes": ["cat", "cow", "dog"], "confusion": [[4, 0, 1], [0, 4, 1], [5, 2, 4]]}


def test_misjudged_tracks(page, tmp_path):
    made = page(Section(_result("animals", **_ANIMALS), misjudged=_misjudged()))
    _assert_self_contained(made)
    rows = [attrs for tag, attrs in made.tags if tag == "tr" and "data-cell" in attrs]
    assert [row["data-cell"] for row in rows] == ["2-0", "0-2", "2-0", "2-1", "1-2"]
    assert [row["data-suspect"] for row in rows] == ["2", "", "1", "", ""]
    players = [attrs for tag, attrs in made.tags if tag == "audio"]
    assert [base64.b64decode(player["src"].partition(",")[2]) for player in players] == [b"one", b"two!"]
    assert {player["preload"] for player in players} == {"none"}
    assert players[0]["aria-label"] == f"{_ODD}.wav, from 1.5 s"
    for said in (
        "most probable label of 9 of 1,234 tracks is not one of their labels",
        "2 with the audio embedded", "3 without audio", "4 not listed", "2 of 1,234 tracks, all in label_errors.csv",
        "If 5 % of the labels (62 tracks) were wrong at random, 30 % of those, 19, would be among the suspects",
    ):  # fmt: skip
        assert said in made.text
    cells = {attrs["data-cell"]: attrs for tag, attrs in made.tags if tag == "a" and "data-cell" in attrs}
    assert set(cells) == {"0-2", "1-2", "2-0", "2-1"}  # not the diagonal, not the empty ones
    assert cells["2-0"] == {"href": "#misjudged-1", "data-cell": "2-0", "aria-label": "dog → cat: 5 of 11 (45 %)"}
    # A file that is not embedded is linked, whatever its name is.
    linked = page(Section(_result("animals", **_ANIMALS), misjudged=_misjudged(tmp_path)))
    assert '<a href="../a%20b%23%C3%BC.wav">open the file</a>' in linked.source
    assert "1 with a link to the file, 2 without audio" in linked.text
    assert "None: the most probable label" in page(Section(_result("right", ["a"]), misjudged=Misjudged())).text


def test_of_many_skipped_files_the_first_are_shown_and_the_file_with_all_is_named(page):
    skipped = [Skipped(f"{number}.wav", "is empty (0 bytes)") for number in range(501)]
    made = page(Section(_result("animals", ["a"], skipped=skipped)))
    shown = [cell for cell in made.cells if cell.endswith(".wav")]
    assert shown == [f"{number}.wav" for number in range(500)]
    assert "501 files could not be used" in made.text
    assert "The first 500 of 501 files; result.json lists all." in made.text
    assert "result.json" not in page(Section(_result("animals", ["a"], skipped=skipped[:500]))).text


@pytest.mark.parametrize("suspects", [1, 50])
def test_what_is_read_of_all_clips_is_read_once_however_many_labels_are_suspected(monkeypatch, suspects):
    count, read = 200, []
    truth = np.arange(count) % 2
    values = np.where(truth[:, None] == [0, 1], 0.9, 0.1)
    values[:suspects] = values[:suspects, ::-1]
    names = [f"{number}.wav" for number in range(count)]
    labels = [[number] for number in truth.tolist()]
    manifest = make_manifest(Path("clips"), ["a", "b"], names, labels, [1.0] * count, [8000] * count)
    first_label = Manifest.first_label
    monkeypatch.setattr(Manifest, "first_label", lambda self: read.append(1) or first_label(self))
    found = misjudged(manifest, Predictions(np.arange(count), np.zeros(count, int), values), {}, multi_label=False)
    assert sorted((error.clip, error.label, error.suggested) for error in found.suspects or ()) == sorted(
        (f"{number}.wav", "ab"[number % 2], "ba"[number % 2]) for number in range(suspects)
    )
    assert len(read) == 1


def test_one_page_embeds_no_more_than_it_may():
    first, second = within([_misjudged(), _misjudged()], 4 + 4 + 8)  # base64 of 3, 3 and 4 bytes
    kept = [[track.clip for track in model.tracks if track.excerpt] for model in (first, second)]
    assert kept == [[f"{_ODD}.wav", "2.wav"], [f"{_ODD}.wav"]]
    assert [model.count for model in within([_misjudged()], 0)] == [9]
    assert not any(track.excerpt for track in within([_misjudged()], 0)[0].tracks)


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium or google-chrome on this machine")
    with playwright.sync_playwright() as started:
        # Chromium refuses its sandbox to root.
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield opened
        opened.close()


@pytest.mark.slow
def test_cells_and_buttons_filter_the_list_in_a_browser(browser, tmp_path):
    path = write_report(tmp_path / "r.html", [Section(_result("x", **_ANIMALS), misjudged=_misjudged())], title="x")
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.goto(path.as_uri())

    def listed() -> list[str]:
        return [name.split("\n")[0] for name in page.locator(".stack tbody tr:visible th").all_inner_texts()]

    assert len(listed()) == 5
    page.locator('a[data-cell="2-0"]').click()
    assert listed() == [f"{_ODD}.wav", "3.wav"]
    assert "2 of 5 listed: dog → cat" in page.locator(".filter").inner_text()
    page.locator('a[data-cell="1-2"]').focus()
    page.keyboard.press("Enter")
    assert listed() == ["5.wav"]
    page.locator("[data-show=suspects]").click()
    assert listed() == ["3.wav", f"{_ODD}.wav"]
    page.locator("[data-show=all]").click()
    assert len(listed()) == 5
    # Nothing is cut on a narrow screen: what is wider than it scrolls inside its own box.
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not wrong
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(path.as_uri())
    assert plain.locator(".stack tbody tr:visible").count() == 5
    assert plain.locator(".filter:visible").count() == 0


def test_a_mel_front_end_is_drawn_once(page):
    both, alone = _picture(), replace(_picture(), mel=None)
    made = page(Section(_result("mel", ["a"]), pictures=[alone, alone]))
    assert "mel spectrogram" not in made.source
    assert "Mel spectrogram" not in made.source
    assert sum(tag == "image" for tag, _ in made.tags) == 2
    made = page(Section(_result("gafx_r", ["a"]), pictures=[both]), Section(_result("mel", ["a"]), pictures=[alone]))
    assert sum(tag == "image" for tag, _ in made.tags) == 3


@pytest.mark.parametrize(("width", "high", "form"), [(372, 9e6, "{:.0f}"), (60, 1.0, "{:g}"), (120, 0.0025, "{:g}")])
def test_labels_of_ticks_do_not_overlap(width, high, form):
    drawn = svg.Axes(0, 0, width, 10, (0.0, high), (0, 1)).x_axis("", 7, form)
    found = re.findall(r'<text class="tick" x="([\d.]+)"[^>]*>([^<]+)<', drawn)
    assert found
    for (left, here), (right, there) in itertools.pairwise(found):
        assert float(right) - float(left) > 6 * (len(here) + len(there)) / 2


def test_percentages_of_ticks_differ():
    labels = re.findall(r">([\d.]+%)<", svg.Axes(0, 0, 400, 10, (0.98, 1.0), (0, 1)).x_axis("", 7, "{:.0%}"))
    assert len(labels) > 3
    assert len(set(labels)) == len(labels)


def test_names_keep_the_part_in_which_they_differ():
    names = [f"frontend=gafx_r_slim, augment.mixup_probability={value}" for value in (0.0, 0.5)]
    plot = score_plot([PlotRow(name, Score(0.5, 0.4, 0.6)) for name in names], "accuracy", "{:.0%}")
    shown = re.findall(r'<text class="item"[^>]*>([^<]+)<', plot)
    assert len(set(shown)) == len(shown) == 4  # two names for wide screens and two for narrow ones


def test_backticks_are_code(tmp_path):
    assert html_module._prose("its key `tuning`, <b>`a&b`") == (
        "its key <code>tuning</code>, &lt;b&gt;<code>a&amp;b</code>"
    )


def test_an_embedded_map_is_a_png_of_its_values():
    matplotlib = pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    ramp = np.linspace(0, 1, 256)[None].repeat(3, axis=0)
    ramp[0, 0] = np.nan
    uri = svg.png(ramp, (0.0, 1.0))
    shown = np.asarray(image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)
    magma = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3].astype(int)
    assert np.abs(shown - magma[None]).max() <= 3
    large = np.zeros((321, 1000))
    large[:160] = 1.0  # the lower frequencies
    picture = image.open(io.BytesIO(base64.b64decode(svg.png(large, (0.0, 1.0)).partition(",")[2])))
    assert picture.size == (480, 160)
    values = np.asarray(picture).mean(axis=1)
    assert (values[0], values[-1]) == (0, 255)


@pytest.mark.parametrize(
    ("limits", "most", "expected"),
    [
        ((0.0, 1.0), 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ((0.31, 0.74), 7, [0.4, 0.5, 0.6, 0.7]),
        ((-3.0, 12.0), 6, [-2.5, 0.0, 2.5, 5.0, 7.5, 10.0]),
        ((0.0, 1234.0), 6, [0.0, 250.0, 500.0, 750.0, 1000.0]),
        ((2.0, 2.0), 5, [2.0]),
    ],
)
def test_ticks(limits, most, expected):
    assert svg.ticks(limits, most) == pytest.approx(expected)


def test_the_validation_curve_marks_the_kept_epoch():
    curve = [{"step": 10 * (epoch + 1), "epoch": epoch, "s": value} for epoch, value in enumerate((0.25, 1.0, 0.5))]
    drawn = validation_curves([curve, curve], ["fold 1", "fold 2"], "s", "score", "{:g}", [2, None])
    x, y = re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', drawn)[0]
    assert float(x) == pytest.approx(58 + 372 * 20 / 30, abs=0.1)  # step 20 of 30 on an axis of 372 pixels
    assert float(y) == pytest.approx(12 + 240 * (1 - 1 / 1.05), abs=0.1)
    assert "fold 1: kept epoch 2, 1" in drawn
    assert drawn.count('class="dot"') == 1
