"""Output of `gafx probe`: a page, the findings as CSV and JSON, and the table for the terminal."""

from pathlib import Path

from gafx.io import write_csv, write_json
from gafx.report import figures, svg
from gafx.report import format as fmt
from gafx.report.html import write_page
from gafx.studies.probes.features import BANDS, MODULATIONS
from gafx.studies.probes.findings import LEVEL, Finding, Probed

_LOWEST = -0.5  # of R² in the figures


def write_probed(probed: Probed, folder: Path) -> Path:
    """Write probe.html, probe.csv and probe.json into `folder`; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    record = probed.as_dict()
    write_json(folder / "probe.json", record)
    write_csv(folder / "probe.csv", record["findings"])
    colours = {subject.name: svg.model_colour(number) for number, subject in enumerate(probed.subjects)}
    plots = {question.name: _plot(probed, question.name) for question in probed.questions}
    return write_page(
        folder / "probe.html", "probe.html.j2", title=probed.title, probed=probed, colours=colours, plots=plots,
        level=LEVEL, bands=BANDS, modulations=MODULATIONS,
    )  # fmt: skip


def _plot(probed: Probed, question: str) -> str:
    """A row per subject; those that are not better than chance are hollow and grey."""
    rows = [(finding.subject, finding) for finding in probed.of(question)]
    if question in probed.label_alone:
        rows.append(("label alone", probed.label_alone[question]))
    metric = rows[0][1].metric
    return figures.score_plot(
        [figures.PlotRow(name, finding.score, finding.chance, significant=not finding.by_chance,
                         hint=f"{name}: {fmt.score(finding.score, metric)}, p {fmt.p_value(finding.p_adjusted)}")
         for name, finding in rows],
        fmt.lowered(fmt.label(metric)), fmt.ticks(metric), lowest=_LOWEST,
    )  # fmt: skip


def table(probed: Probed) -> str:
    """The table for the terminal: a row per subject, a column per question; `~` marks scores explained by chance."""
    columns = [probed.of(question.name) for question in probed.questions]
    header, rows = ["", "dimensions", "tracks"], []
    for found in columns:
        names = ", ".join(fmt.lowered(fmt.label(name)) for name in (found[0].metric, *found[0].others))
        header.append(f"{found[0].question}: {names}")
    for number, subject in enumerate(probed.subjects):
        own = [found[number] for found in columns]
        dimensions = "/".join(dict.fromkeys(str(finding.dimensions) for finding in own))
        rows.append([subject.name + subject.note, dimensions, str(own[0].tracks), *map(_cell, own)])
    if alone := probed.label_alone:
        cells = (_cell(alone[q.name], mark=False) if q.name in alone else "" for q in probed.questions)
        rows.append(["(label alone)", "", "", *cells])
    rows.append(["(no features)", "", "", *(_without_features(found[0]) for found in columns)])
    unreadable = [f"{fmt.plural(len(probed.skipped), 'unreadable file')} skipped; the page lists them"]
    note = (
        f"~ chance explains it: not better than the prediction without features at {LEVEL:g}, adjusted for "
        f"{len(probed.findings)} tests (Holm), or the interval reaches its score"
    )
    return "\n".join([probed.tested, fmt.text_table(header, rows), note, *unreadable * bool(probed.skipped)])


def _cell(finding: Finding, *, mark: bool = True) -> str:
    others = (fmt.score(score, name) for name, (score, _) in finding.others.items())
    return ", ".join(["~" * (mark and finding.by_chance) + fmt.score(finding.score, finding.metric), *others])


def _without_features(finding: Finding) -> str:
    others = (fmt.number(chance, name) for name, (_, chance) in finding.others.items())
    return ", ".join([fmt.number(finding.chance, finding.metric), *others])
