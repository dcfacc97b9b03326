"""The probes' picture: a panel a question, front-ends side by side with intervals, guessing as a line."""

from collections.abc import Sequence

from gafx.report import svg
from gafx.studies.probes.linear import Finding

KINDS = {"accuracy": "accuracy", "r2": "R²"}
_PANEL, _GAP, _ROW, _COLUMNS, _LETTERS = 252, 28, 22, 3, 26

# Name of the question, its findings in the order of the rows, and what the label alone scores.
Panel = tuple[str, list[Finding], Finding | None]


def words(finding: Finding) -> tuple[str, str, str]:
    """A score, its interval and the chance level as they are printed."""
    share = finding.kind == "accuracy"
    form = (lambda value: f"{100 * value:.1f}") if share else (lambda value: f"{value:.2f}")
    unit, score = " %" if share else "", finding.score
    interval = f"{form(score.low)} to {form(score.high)}" if score.low is not None and score.high is not None else "–"
    return form(score.value) + unit, interval, form(finding.chance) + unit


def picture(names: Sequence[str], panels: Sequence[Panel]) -> str:
    """A panel a question, a row a front-end; what chance alone explains is hollow and grey.

    A dashed line stands where guessing lands, a dotted one where knowing the label and nothing else would.

    Args:
        names: of the rows.
        panels: their findings are in the order of `names`.
    """
    left = 14 + 6.6 * min(_LETTERS, max(map(len, names)))
    height = _ROW * len(names)
    parts: list[str] = []
    for number, (question, found, alone) in enumerate(panels):
        column, line = number % _COLUMNS, number // _COLUMNS
        x, y = left + column * (_PANEL + _GAP), 30 + line * (height + 92)
        axes = svg.Axes(x, y, _PANEL, height, _limits([*found, *([alone] if alone else [])]), (len(found), 0))
        parts.append(_panel(axes, question, found, alone))
        if column == 0:
            parts += [
                svg.text(0, y + _ROW * (row + 0.5) + 4, svg.short(name, _LETTERS), "start", "item")
                for row, name in enumerate(names)
            ]
    lines, columns = -(-len(panels) // _COLUMNS), min(len(panels), _COLUMNS)
    size = left + columns * _PANEL + (columns - 1) * _GAP + 12, lines * (height + 92) - 8
    return svg.picture(*size, "".join(parts), "Scores of the probes: a panel a question, a row a front-end")


def _panel(axes: svg.Axes, name: str, found: list[Finding], alone: Finding | None) -> str:
    kind, bottom = found[0].kind, axes.top + axes.height
    middle = axes.left + axes.width / 2
    parts = [svg.text(middle, axes.top - 12, name, "middle", "item", ' style="font-weight: 600"')]
    parts.append(axes.x_axis(KINDS[kind], 5, "{:.0%}" if kind == "accuracy" else "{:g}"))
    for row in range(len(found)):
        y = axes.top + _ROW * (row + 0.5)
        parts.append(svg.line(axes.left, y, axes.left + axes.width, y, "grid"))
    if alone is not None:
        x = axes.x(max(alone.score.value, axes.x_range[0]))
        parts.append(svg.line(x, axes.top, x, bottom, "chance", 'style="stroke-dasharray: 1 3; stroke-width: 2"'))
    for row, finding in enumerate(found):
        y = axes.top + _ROW * (row + 0.5)
        x = axes.x(finding.chance)
        parts.append(svg.line(x, y - _ROW / 2, x, y + _ROW / 2, "chance"))
        colour = "var(--muted)" if finding.by_chance else svg.model_colour(row)
        style, score = f'style="--model: {colour}"', finding.score
        bounds = (score.value if bound is None else bound for bound in (score.low, score.high))
        low, high = (axes.x(min(max(bound, axes.x_range[0]), axes.x_range[1])) for bound in bounds)
        parts.append(svg.line(low, y, high, y, "interval", style))
        value, interval, guess = words(finding)
        hint = f"{finding.subject}, {name}: {value} ({interval}), without features {guess}"
        hint += "; chance alone explains it" if finding.by_chance else ""
        place = f'cx="{axes.x(max(score.value, axes.x_range[0])):.1f}" cy="{y:.1f}" r="4.5"'
        hollow = f'<circle {place} fill="var(--paper)" stroke="var(--muted)" stroke-width="1.5">'
        drawn = hollow if finding.by_chance else f'<circle class="dot" {place} {style}>'
        parts.append(f"{drawn}{svg.title(hint)}</circle>")
    return "".join(parts)


def _limits(found: list[Finding]) -> tuple[float, float]:
    """Of a panel: from 0, or from what lies below it, to above the highest interval; R² below -0.5 is cut there."""
    highest = max(finding.score.value if finding.score.high is None else finding.score.high for finding in found)
    lowest = min(finding.score.value if finding.score.low is None else finding.score.low for finding in found)
    return max(min(0.0, lowest), -0.5), min(1.0, max(highest * 1.08, 0.1))
