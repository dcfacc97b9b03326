"""Output of `gafx music`: a page, music.json, and the tables for the terminal."""

from collections.abc import Sequence
from pathlib import Path

from gafx.io import write_json
from gafx.report import figures, svg
from gafx.report import format as fmt
from gafx.report.html import write_page
from gafx.stats.scores import Score
from gafx.studies.music.evaluate import Comparison, Generated
from gafx.studies.music.measures import COPY_LENGTHS, DISTRIBUTIONS, REPEAT_LENGTH


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write music.html and music.json into `folder`; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "music.json", comparison.as_dict())
    plot = figures.score_plot(
        [figures.PlotRow(row.name, row.nll) for row in comparison.rows if row.nll is not None],
        "negative log-likelihood, nats per token (lower is better)", fmt.ticks("nll"),
    )  # fmt: skip
    return write_page(
        folder / "music.html", "music.html.j2", title="Generated music", comparison=comparison, plot=plot,
        colours=[svg.model_colour(number) for number in range(len(comparison.rows))], names=list(DISTRIBUTIONS),
        copy_lengths=COPY_LENGTHS, repeat_length=REPEAT_LENGTH, difference=_difference,
    )  # fmt: skip


def table(comparison: Comparison) -> str:
    """The tables for the terminal: likelihood; overlaps; copies and repetition."""
    rows, settings = comparison.rows, comparison.settings
    return "\n".join([
        comparison.data,
        "",
        "negative log-likelihood in nats per token, mean over pieces; 95 % intervals over groups of pieces",
        fmt.text_table(
            ["model", "what", "nats/token", "minus n-gram", "p (Holm)"],
            [[row.name, row.about, _nll(row), _difference(row), fmt.p_value(row.adjusted)]
             for row in rows if row.nll is not None],
        ),
        *(["<=: an upper bound, by a latent vector"] if any(row.is_bound for row in rows) else []),
        "",
        f"overlap with the test part, of {settings['number']} pieces of at most {settings['length']} tokens each, "
        f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}, seed {settings['seed']}",
        fmt.text_table(
            ["model", *(fmt.lowered(fmt.label(name)) for name in DISTRIBUTIONS)],
            [[row.name, *(_percent(row.overlaps[name]) for name in DISTRIBUTIONS)] for row in rows if row.overlaps]
            + [["(training with itself)", *(_percent(comparison.ceilings[name]) for name in DISTRIBUTIONS)]],
        ),
        "",
        f"runs that occur in the training part, of tokens, and of intervals in any key; runs of {REPEAT_LENGTH} tokens "
        "that occurred earlier in the piece",
        _copies_table(rows),
        *map(fmt.printable, comparison.notes),
    ])  # fmt: skip


def _copies_table(rows: Sequence[Generated]) -> str:
    kinds = ("tokens", "intervals")
    header = ["model", *(name for kind in kinds for name in (*(f"{size} {kind}" for size in COPY_LENGTHS), "longest"))]
    lines = []
    for row in rows:
        cells = [row.name]
        for found in (row.copied, row.copied_intervals):
            cells += [
                *(fmt.number(found.fractions[size].value, "overlap") for size in COPY_LENGTHS),
                str(found.longest),
            ]
        lines.append([*cells, _percent(row.repeated), fmt.fraction(row.left_out)])
    return fmt.text_table([*header, "repeated", "left out"], lines)


def _nll(row: Generated) -> str:
    return f"{'<= ' * row.is_bound}{fmt.score(row.nll, 'nll', unit=False)}"


def _difference(row: Generated) -> str:
    return fmt.NONE if row.versus is None else fmt.score(row.versus.as_score(), "nll", unit=False)


def _percent(score: Score) -> str:
    return fmt.score(score, "overlap")
