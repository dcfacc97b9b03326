"""Numbers as people read them: every score reads the same wherever it is printed."""

import re

import numpy as np
import pytest

from gafx.deploy.demo.page import describe_scores
from gafx.evaluation.result import ClassScores, Evaluation, FoldScores, Result, Section
from gafx.report import format as fmt
from gafx.report.evaluation import table, write_report
from gafx.saving.card import model_card
from gafx.saving.info import ModelInfo
from gafx.stats.scores import Score
from gafx.studies.ablation import view
from gafx.studies.ablation.collect import Line
from gafx.studies.ablation.spec import Row

FOUND = Score(0.3351, 0.2914, 0.3802, "Wilson 95 %")
ON = {"data": "gtzan", "protocol": "paper", "part": "test", "tracks": 20, "recordings": 20}


def evaluation(name, folder):
    result = Result(
        name="m", data="gtzan", protocol="paper", classes=["a", "b"], tracks=20, groups=20, labels_tested=2,
        scores={"track": {name: FOUND}, "segment": {name: FOUND}}, per_fold=[FoldScores(1, 20, {name: FOUND.value})],
        per_class=[ClassScores("a", {name: FOUND.value}, 10)],
    )  # fmt: skip
    return Evaluation(folder, [Section(result)])


def cells(page):
    """Text of the table cells of an HTML page, an inner element's after a space."""
    found = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page, flags=re.DOTALL)
    return [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in found]


@pytest.mark.parametrize("name", [*fmt.METRICS, "new_score", "new_error_db"])
def test_a_score_reads_the_same_everywhere(name, tmp_path):
    """Terminal, report, model card and demo; the ablation table has the unit in its heading."""
    text = fmt.score(FOUND, name)
    value, bounds = fmt.number(FOUND.value, name), fmt.bounds(FOUND, name)
    assert text == f"{value} ({bounds})"
    found = evaluation(name, tmp_path)
    assert text in table(found)
    shown = cells(write_report(tmp_path / "r.html", found.sections, title="t").read_text())
    assert shown.count(f"{value} {bounds}") == 3  # headline, track, segment
    assert shown.count(value) == 2  # fold, class
    assert fmt.label(name) in shown
    info = ModelInfo({"name": "mel"}, {"name": "ast"}, ["a", "b"], 1.0, 16000, 1, [1, 2, 3])
    info.scores, info.evaluated_on = {name: FOUND.as_dict()}, ON
    assert f"| {fmt.lowered(fmt.label(name))} | {value} | {bounds} | Wilson 95 % |" in model_card(info)
    assert describe_scores(info.scores, ON).startswith(f"{fmt.lowered(fmt.label(name))} {text}; on 20 tracks")
    line = Line(Row("r"), [], [], {}, scores={name: [FOUND.value]})
    assert view._mean(line, name) == fmt.number(FOUND.value, name, unit=False) == value.split()[0]
    assert fmt.heading(name) == fmt.label(name) + (f" ({value.split()[1]})" if " " in value else "")


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (0.3351, "macro_f1", "33.5 %"),
        (0.3351, "validation_macro_f1", "33.5 %"),
        (13.6, "mean_absolute_error_db", "13.60 dB"),
        (1.2345, "d_prime", "1.234"),
        (-0.0004, "explained_variance", "0.000"),
        (None, "accuracy", "–"),
        (float("nan"), "accuracy", "–"),
        (float("inf"), "d_prime", "–"),
        (np.float64(0.5), "accuracy", "50.0 %"),
        (True, "accuracy", "–"),
    ],
)
def test_numbers(value, name, text):
    assert fmt.number(value, name) == text


def test_scores_without_bounds_and_means_over_runs():
    assert fmt.score(0.5, "accuracy") == fmt.score({"value": 0.5}, "accuracy") == "50.0 %"
    assert fmt.score(None, "accuracy") == fmt.score(Score(float("nan"), 0.1, 0.2), "accuracy") == "–"
    assert fmt.bounds(None, "accuracy") == fmt.bounds(Score(0.5), "accuracy") == "–"
    assert fmt.mean_std([0.49, 0.53], "accuracy") == "51.0 ± 2.8 %"
    assert fmt.mean_std([0.49], "accuracy") == "49.0 %"
    assert fmt.mean_std([], "accuracy") == "–"


@pytest.mark.parametrize(
    ("seconds", "text", "clock"),
    [
        (0.012, "12.0 ms", "0:00"), (8.46, "8.5 s", "0:08"), (59.4, "59 s", "0:59"), (59.6, "1 min 00 s", "1:00"),
        (205, "3 min 25 s", "3:25"), (7500, "2 h 05 min", "2:05:00"), (273_600, "3 d 4 h", "76:00:00"),
    ],
)  # fmt: skip
def test_durations(seconds, text, clock):
    assert fmt.duration(seconds) == text
    assert fmt.clock(seconds) == clock


def test_latencies():
    seconds = (0.00834, 0.1304, 0.9996, 12.3)
    assert list(map(fmt.latency, seconds)) == ["8.3 ms", "130 ms", "1.00 s", "12.30 s"]


def test_sizes_counts_and_other_cells():
    assert [fmt.size(n) for n in (1, 812, 4200, 35_100_000, 1.25e9, 3.84e12, 1e20)] == [
        "1 byte",
        "812 bytes",
        "4.2 kB",
        "35.1 MB",
        "1.25 GB",
        "3.84 TB",
        "100.00 EB",
    ]
    assert [fmt.scaled(n) for n in (5_530_000, 735e9, 12)] == ["5.53 M", "735 G", "12"]
    assert fmt.cell(2_300_000, "frontend_parameters") == "2.30 M"
    assert fmt.cell(900_000_000, "peak_memory_bytes") == "900.0 MB"
    assert fmt.cell(350.0, "train_seconds") == "5 min 50 s"
    assert fmt.cell(1234) == "1\u202f234"
    assert (fmt.cell(2024, "seed"), fmt.cell(True), fmt.cell(None), fmt.cell("bf16")) == ("2024", "yes", "–", "bf16")
    assert fmt.setting({"name": "mel", "parts": {"a": [1, 2.5]}, "on": True, "x": None}) == (
        "name mel, parts a 1, 2.5, on yes, x –"
    )
    assert (fmt.plural(1, "class", "classes"), fmt.plural(0, "track")) == ("1 class", "0 tracks")
    assert [fmt.probability(p) for p in (0.0001, 0.034, 0.12, 0.9972, 1.0)] == [
        "0 %",
        "3.4 %",
        "12 %",
        "99.7 %",
        "100 %",
    ]
    assert [fmt.p_value(p) for p in (0.0004, 0.0312)] == ["< 0.001", "0.031"]


def test_a_table_of_text():
    assert fmt.text_table(["a", "wide"], [["long", "1"], ["x", ""]]) == "a     wide\n----  ----\nlong  1\nx"
