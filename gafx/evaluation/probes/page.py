"""What `gafx probe synthetic` leaves behind: one picture on a page, the table as CSV and JSON, and the printed one."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from gafx.evaluation import svg
from gafx.evaluation.page import write_page
from gafx.evaluation.probes.features import BANDS, MODULATIONS
from gafx.evaluation.probes.linear import LEVEL, Finding
from gafx.evaluation.probes.synthetic import Probed, as_record
from gafx.files import write_text

_KINDS = {"accuracy": "accuracy", "r2": "R²"}
_PANEL, _GAP, _ROW, _COLUMNS = 252, 28, 22, 3


def write_probed(probed: Probed, folder: Path) -> Path:
    """Write probe.html, probe.csv and probe.json into `folder`; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    record = as_record(probed)
    write_text(folder / "probe.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "probe.csv", _csv(record))
    by_factor = {factor.name: [f for f in probed.findings if f.factor == factor.name] for factor in probed.factors}
    colours = {subject.name: svg.model_colour(number) for number, subject in enumerate(probed.subjects)}
    return write_page(
        folder / "probe.html", "probe.html.j2",
        title="What a front-end hears", measured=protocol(probed), picture=picture(probed), colours=colours,
        subjects=probed.subjects, factors=probed.factors, by_factor=by_factor, words=words, kinds=_KINDS,
        genre_alone=probed.genre_alone,
        by_chance=[f for f in probed.findings if f.by_chance], tests=len(probed.findings), level=LEVEL,
        folds=probed.folds, seed=probed.seed, bands=BANDS, modulations=MODULATIONS, skipped=probed.skipped,
        dimensions=_dimensions(probed),
    )  # fmt: skip


def protocol(probed: Probed) -> str:
    """Data, number of tracks and protocol in a sentence."""
    made = probed.settings
    tracks = probed.findings[0].tracks
    chords = next(finding.rows for finding in probed.findings if finding.factor == "chord")
    return (
        f"synthetic, seed {made['seed']}, vary={made['vary']}: {tracks} tracks of {made['seconds']:g} s, {chords} "
        f"chords; linear probes on frozen maps, {probed.folds}-fold cross-validation over tracks (seed {probed.seed}), "
        "each track predicted once; 95 % intervals"
    )


def words(finding: Finding) -> tuple[str, str, str]:
    """A score, its interval and the chance level as they are printed."""
    share = finding.kind == "accuracy"
    form = (lambda value: f"{100 * value:.1f}") if share else (lambda value: f"{value:.2f}")
    unit, score = " %" if share else "", finding.score
    interval = f"{form(score.low)} to {form(score.high)}" if score.low is not None and score.high is not None else "–"
    return form(score.value) + unit, interval, form(finding.chance) + unit


def table(probed: Probed) -> str:
    """The table for a terminal: a line a front-end, a column a factor; `~` marks what chance alone explains."""
    names = [factor.name for factor in probed.factors]
    kinds = {finding.factor: finding for finding in probed.findings}
    lines = [["front-end", *(f"{name} ({_KINDS[kinds[name].kind]})" for name in names)]]
    for subject in probed.subjects:
        of_subject = {finding.factor: finding for finding in probed.findings if finding.subject == subject.name}
        cells = []
        for name in names:
            value, interval, _ = words(of_subject[name])
            cells.append(f"{'~' if of_subject[name].by_chance else ''}{value} ({interval})")
        lines.append([subject.name, *cells])
    guessed = [words(kinds[name])[2] for name in names]
    lines.append(["(genre alone)", *(_of_genre(probed, name) for name in names)])
    lines.append(["(no features)", *guessed])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    body.insert(1, "  ".join("-" * width for width in widths))
    within = [
        f"{finding.subject} {100 * finding.within[0].value:.1f} % ({100 * (finding.within[0].low or 0):.1f} to "
        f"{100 * (finding.within[0].high or 0):.1f})"
        for finding in probed.findings
        if finding.within
    ]
    guess = next(finding.within[1].value for finding in probed.findings if finding.within)
    note = (
        f"~ chance alone explains it: not better than the featureless prediction of the same tracks at {LEVEL:g}, "
        f"adjusted for {len(probed.findings)} tests (Holm), or the interval reaches it"
    )
    skipped = [f"{len(probed.skipped)} unreadable tracks skipped; the page lists them"] if probed.skipped else []
    tempo = f"tempo within 4 %: {'; '.join(within)}; no features {100 * guess:.1f} %"
    return "\n".join([protocol(probed), *body, tempo, note, *skipped])


def _of_genre(probed: Probed, factor: str) -> str:
    return "{} ({})".format(*words(probed.genre_alone[factor])) if factor in probed.genre_alone else ""


def picture(probed: Probed) -> str:
    """A panel a factor, front-ends side by side with their intervals; what chance alone explains is hollow and grey.

    A dashed line stands where guessing lands, a dotted one where knowing the genre and nothing else would.
    """
    subjects = [subject.name for subject in probed.subjects]
    left = 14 + 6.6 * min(24, max(map(len, subjects)))
    height = _ROW * len(subjects)
    parts: list[str] = []
    for number, factor in enumerate(probed.factors):
        column, line = number % _COLUMNS, number // _COLUMNS
        found = [finding for finding in probed.findings if finding.factor == factor.name]
        x, y = left + column * (_PANEL + _GAP), 30 + line * (height + 92)
        genre = probed.genre_alone.get(factor.name)
        axes = svg.Axes(x, y, _PANEL, height, _limits([*found, *([genre] if genre else [])]), (len(found), 0))
        parts.append(_panel(axes, factor.name, found, genre))
        if column == 0:
            parts += [
                svg.text(0, y + _ROW * (row + 0.5) + 4, svg.short(name, 24), "start", "item")
                for row, name in enumerate(subjects)
            ]
    lines = -(-len(probed.factors) // _COLUMNS)
    size = left + _COLUMNS * _PANEL + (_COLUMNS - 1) * _GAP + 12, lines * (height + 92) - 8
    return svg.picture(*size, "".join(parts), "Scores of the probes: a panel a factor, a row a front-end")


def _panel(axes: svg.Axes, name: str, found: list[Finding], genre: Finding | None) -> str:
    kind = found[0].kind
    middle = axes.left + axes.width / 2
    parts = [svg.text(middle, axes.top - 12, name, "middle", "item", ' style="font-weight: 600"')]
    parts.append(axes.x_axis(_KINDS[kind], 5, "{:.0%}" if kind == "accuracy" else "{:g}"))
    for row in range(len(found)):
        y = axes.top + _ROW * (row + 0.5)
        parts.append(svg.line(axes.left, y, axes.left + axes.width, y, "grid"))
    chance = axes.x(found[0].chance)  # of the same tracks and folds, so the same for all
    parts.append(svg.line(chance, axes.top, chance, axes.top + axes.height, "chance"))
    if genre is not None:
        x, end = axes.x(max(genre.score.value, axes.x_range[0])), axes.top + axes.height
        parts.append(svg.line(x, axes.top, x, end, "chance", 'style="stroke-dasharray: 1 3; stroke-width: 2"'))
    for row, finding in enumerate(found):
        y = axes.top + _ROW * (row + 0.5)
        colour = "var(--muted)" if finding.by_chance else svg.model_colour(row)
        style, score = f'style="--model: {colour}"', finding.score
        bounds = (score.value if bound is None else bound for bound in (score.low, score.high))
        low, high = (axes.x(min(max(bound, axes.x_range[0]), axes.x_range[1])) for bound in bounds)
        parts.append(svg.line(low, y, high, y, "interval", style))
        value, interval, guess = words(finding)
        hint = f"{finding.subject}, {name}: {value} ({interval}), without features {guess}"
        hint += "; chance alone explains it" if finding.by_chance else ""
        place = f'cx="{axes.x(max(score.value, axes.x_range[0])):.1f}" cy="{y:.1f}" r="4.5"'
        if finding.by_chance:
            drawn = f'<circle {place} fill="var(--paper)" stroke="var(--muted)" stroke-width="1.5">'
        else:
            drawn = f'<circle class="dot" {place} {style}>'
        parts.append(f"{drawn}{svg.title(hint)}</circle>")
    return "".join(parts)


def _limits(found: list[Finding]) -> tuple[float, float]:
    """Of a panel: from 0 (or what lies a little below it) to above the highest interval; R² below -0.5 is cut there."""
    highest = max(finding.score.value if finding.score.high is None else finding.score.high for finding in found)
    lowest = min(finding.score.value if finding.score.low is None else finding.score.low for finding in found)
    return max(min(0.0, lowest), -0.5), min(1.0, max(highest * 1.08, 0.1))


def _dimensions(probed: Probed) -> list[tuple[str, dict[str, int]]]:
    """How many numbers the probes of each front-end read, by the kind of features."""
    kinds = {factor.name: factor.features for factor in probed.factors}
    return [
        (s.name, {kinds[f.factor]: f.dimensions for f in probed.findings if f.subject == s.name})
        for s in probed.subjects
    ]


def _csv(record: dict[str, Any]) -> str:
    """The findings as lines."""
    text = io.StringIO()
    columns = [key for key in record["findings"][0] if key != "within_tolerance"]
    writer = csv.DictWriter(text, [*columns, "within_4_percent"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for finding in record["findings"]:
        within = finding["within_tolerance"]
        writer.writerow({**finding, "within_4_percent": within and within["value"]["value"]})
    return text.getvalue()
