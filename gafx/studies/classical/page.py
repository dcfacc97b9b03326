"""Output of `gafx classical`: the page, a report of each model, and the table for the terminal."""

from pathlib import Path
from typing import Any

import numpy as np

from gafx.data.leaks.describe import headline
from gafx.data.protocols import Protocol
from gafx.evaluation.result import Evaluation
from gafx.report import evaluation as reports
from gafx.report import figures
from gafx.report import format as fmt
from gafx.report.html import write_page
from gafx.studies.classical.models import TITLES
from gafx.studies.classical.pictures import write_pictures
from gafx.studies.classical.run import FLAG, Classical

_TREES = ("xgboost", "random_forest")  # models whose SHAP values are exact and fast, the first is preferred


def write_classical(done: Classical) -> Path:
    """Write classical.html, the pictures in `pictures/`, and a report of each model; return the page's path."""
    for name, tested in done.main.items():
        reports.write_reports([Evaluation(done.folder / "models" / name, [tested.section])])
    tree, held_out = next((done.held_out[name] for name in _TREES if name in done.main), (None, None))
    # A fold whose training part has one class has no estimator.
    explained = None if tree is None else tree.estimator
    present = None if tree is None or explained is None else tree.present[explained.classes_]
    pictures = write_pictures(
        done.table, done.feature_names, done.classes, done.folder / "pictures", model=explained, present=present,
        held_out=held_out,
        confusions={TITLES[name]: np.asarray(tested.result.confusion) for name, tested in done.main.items()},
        seed=done.config.seed,
    )  # fmt: skip
    rows = [figures.PlotRow(TITLES[name], tested.result.track_scores["accuracy"], tested.result.chance)
            for name, tested in done.main.items()]  # fmt: skip
    first = next(iter(done.main.values())).result
    return write_page(
        done.folder / "classical.html", "classical.html.j2", title=f"{done.data.name}: classical models", done=done,
        titles=TITLES, tested=tested_text(done), flag=FLAG, best=done.best, pictures=pictures,
        plot=figures.score_plot(rows, f"accuracy, {_unit(done)}", fmt.ticks("accuracy")), unit=_unit(done),
        chosen=[(name, kind, settings_text(tested.chosen), settings_text({"all clips": done.saved[name]["settings"]}))
                for kind, tests in (("track", done.by_track), ("random", done.at_random))
                for name, tested in tests.items()],
        leaks=headline(first.leaks) if first.leaks else "",
        test=next(iter(done.versus.values())).paired.name if done.versus else "",
        inflation_test=next(iter(done.inflation.values())).paired.name if done.inflation else "",
    )  # fmt: skip


def _unit(done: Classical) -> str:
    return "tracks" if done.by_track else f"windows at random: {FLAG}"


def tested_text(done: Classical) -> str:
    """Data, protocol, sample size, windows and features, as text."""
    result, data = next(iter(done.main.values())).result, done.data
    folds = f", {len(result.folds)} folds pooled" if len(result.folds) > 1 else ""
    count = (
        fmt.plural(result.tracks, "track")
        if done.by_track
        else f"{result.tracks} windows taken for recordings ({FLAG})"
    )
    return (
        f"{data.name}, {Protocol.parse(data.protocol).label(data.split_seed)}{folds}: {count}, "
        f"{fmt.plural(len(done.classes), 'class', 'classes')}, chance {fmt.number(result.chance, 'chance')}; windows "
        f"of {done.config.seconds:g} s, {len(done.feature_names)} features ({done.config.features}); 95 % intervals"
    )


def settings_text(chosen: dict[str, dict[str, Any]]) -> str:
    """Settings of each fold; equal ones together."""
    folds: dict[str, list[str]] = {}
    for fold, settings in chosen.items():
        said = ", ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()
        )
        folds.setdefault(said or "none", []).append(fold.removeprefix("fold "))
    if len(folds) == 1:
        return next(iter(folds))
    return "; ".join(f"{said} (fold{'s' * (len(own) > 1)} {', '.join(own)})" for said, own in folds.items())


def table(done: Classical) -> str:
    """The table for the terminal: a line per model, and below it what a random split of the windows adds."""
    header = ["model", "accuracy", "windows", "macro-F1", "fit", "predict", "p (Holm)"]
    lines = []
    for name, tested in done.main.items():
        scores = tested.result.scores
        windows = scores.get("segment", {}).get("accuracy")
        versus = done.versus.get(name)
        lines.append([
            TITLES[name], fmt.score(scores["track"]["accuracy"], "accuracy"), fmt.score(windows, "accuracy"),
            fmt.score(scores["track"]["macro_f1"], "macro_f1"), fmt.duration(tested.fit_seconds),
            f"{fmt.latency(tested.predict_seconds)} a window", fmt.p_value(versus.adjusted) if versus else "best",
        ])  # fmt: skip
    parts = [tested_text(done), fmt.text_table(header, lines)]
    if done.inflation:
        header = ["model", "windows, by track", f"windows, at random ({FLAG})", "difference (points)", "p (Holm)"]
        lines = [
            [TITLES[name], fmt.score(own.by_track, "accuracy"), fmt.score(own.at_random, "accuracy"),
             fmt.score(own.paired.as_score(), "accuracy", unit=False), fmt.p_value(own.adjusted)]
            for name, own in done.inflation.items()
        ]  # fmt: skip
        parts.append(fmt.text_table(header, lines))
    leaks = next(iter(done.main.values())).result.leaks
    skipped = [f"skipped: {fmt.printable(clip.path)}: {clip.reason}" for clip in done.skipped[:10]]
    times = ", ".join(f"{stage} {fmt.duration(seconds)}" for stage, seconds in done.seconds.items())
    notes = [f"leak check: {headline(leaks)}"] if leaks else []
    return "\n".join([*parts, *notes, *skipped, *map(fmt.printable, done.notes), f"time: {times}"])
