"""The report page: one file that holds every number, whatever the names, classes and scores are."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gafx.data.manifest import Skipped
from gafx.evaluation.result import ClassScores, Cost, FoldScores, Result, Section
from gafx.report import format as fmt
from gafx.report import svg
from gafx.report.evaluation import write_report
from gafx.report.figures import MapPicture, validation_curves
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
        if "style" not in self.open:
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
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        for name in ("src", "href", "srcset", "xlink:href"):
            start = "data:image/png;base64," if tag in ("image", "img") else "#"
            assert (attrs.get(name) or start).startswith(start)
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
    assert len(made.drawn("dot")) == 2
    assert len(made.drawn("chance")) == 2 + 2  # in the overview, and the diagonals of the reliability diagrams
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
    assert "Inputs of the classifier" not in made.text


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
