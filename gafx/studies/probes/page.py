"""What `gafx probe synthetic` leaves behind: one picture on a page, the table as CSV and JSON, and the printed one."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from gafx.io import write_text
from gafx.report import svg
from gafx.report.html import write_page
from gafx.studies.probes.features import BANDS, MODULATIONS
from gafx.studies.probes.linear import LEVEL
from gafx.studies.probes.picture import KINDS, picture, words
from gafx.studies.probes.synthetic import Probed, as_record


def write_probed(probed: Probed, folder: Path) -> Path:
    """Write probe.html, probe.csv and probe.json into `folder`; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    record = as_record(probed)
    write_text(folder / "probe.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "probe.csv", csv_lines(record["findings"]))
    by_factor = {factor.name: [f for f in probed.findings if f.factor == factor.name] for factor in probed.factors}
    panels = [(factor, found, probed.genre_alone.get(factor)) for factor, found in by_factor.items()]
    colours = {subject.name: svg.model_colour(number) for number, subject in enumerate(probed.subjects)}
    return write_page(
        folder / "probe.html", "probe.html.j2",
        title="What a front-end hears", measured=protocol(probed), colours=colours,
        picture=picture([subject.name for subject in probed.subjects], panels),
        subjects=probed.subjects, factors=probed.factors, by_factor=by_factor, words=words, kinds=KINDS,
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


def table(probed: Probed) -> str:
    """The table for a terminal: a line a front-end, a column a factor; `~` marks what chance alone explains."""
    names = [factor.name for factor in probed.factors]
    kinds = {finding.factor: finding for finding in probed.findings}
    lines = [["front-end", *(f"{name} ({KINDS[kinds[name].kind]})" for name in names)]]
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


def _dimensions(probed: Probed) -> list[tuple[str, dict[str, int]]]:
    """How many numbers the probes of each front-end read, by the kind of features."""
    kinds = {factor.name: factor.features for factor in probed.factors}
    return [
        (s.name, {kinds[f.factor]: f.dimensions for f in probed.findings if f.subject == s.name})
        for s in probed.subjects
    ]


def csv_lines(findings: list[dict[str, Any]]) -> str:
    """Findings as lines; what holds several values is left to the JSON."""
    text = io.StringIO()
    columns = [key for key, value in findings[0].items() if not isinstance(value, dict) and key != "within_tolerance"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(findings)
    return text.getvalue()
