"""What the page says, as HTML: its head, the answer to a file, and the sentences for what is refused."""

import base64
import html
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from gafx.audio.formats import NAMES
from gafx.data.protocols import PROTOCOLS
from gafx.deploy import plot
from gafx.deploy.predict import Prediction
from gafx.deploy.words import clock
from gafx.inference import Probabilities
from gafx.report import format as fmt
from gafx.saving.info import ModelInfo

_SHOWN_LABELS = 6


def head(info: ModelInfo, name: str, max_bytes: int, max_seconds: float) -> str:
    """The page's head: what the model is, knows and scores, and what files it takes."""
    labels = ", ".join(map(escape, info.classes))
    if len(info.classes) > 30:
        labels = f"<details><summary>{len(info.classes)} labels</summary>{labels}</details>"
    rows = [("Labels", labels), ("Parts", escape(_parts(info.frontend, info.classifier)))]
    rows.append(("Trained on", escape(_training(info.training))))
    rows.append(("Scores", _scores(info.scores, info.evaluated_on)))
    lines = "".join(f"<dt>{term}</dt><dd>{said}</dd>" for term, said in rows)
    limits = (
        f"{NAMES.capitalize()}, up to {megabytes(max_bytes)} and "
        f"{duration(max_seconds)}. Nothing leaves this server, and nothing is kept on it."
    )
    return (
        f'<style>{_file("page.css")}</style><header class="gafx"><h1>{escape(name)}</h1>'
        f"<p>Drop a file of sound, or record one, and see what the model makes of it.</p><dl>{lines}</dl>"
        f'<p class="gafx-small">{limits}</p></header><div id="gafx-note" role="alert" aria-live="assertive"></div>'
    )


def script(max_bytes: int) -> str:
    """JavaScript that refuses what is too large or no sound before it is uploaded, with the server's sentences."""
    return _file("page.js").strip().replace("$LIMIT", str(max_bytes)).replace(
        "$SENTENCES",
        json.dumps({
            "large": too_large("{name}", None, max_bytes),
            "empty": "{name} is empty (0 bytes): choose another file",
            "wrong": no_sound("{name}"),
            "many": "One file at a time, please: {name} and {more} more were dropped",
        }),
    )  # fmt: skip


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def too_large(name: str, size: int | None, limit: int) -> str:
    """The sentence for a file over the limit of size; without its size where the browser fills it in."""
    has = "{size}" if size is None else megabytes(size)
    if size is not None and has == megabytes(limit):  # a little too large
        has = f"{size:,} bytes"
    return (
        f"{name} has {has}, and this page takes at most {megabytes(limit)}: cut it or store it as mp3, label it with "
        "gafx predict, or start the demo with a larger --max-mb"
    )


def too_long(name: str, seconds: float, limit: float) -> str:
    """The sentence for sound over the limit of length."""
    return (
        f"{name} lasts {duration(seconds)}, and this page takes at most {duration(limit)}: cut it, label it with gafx "
        "predict, or start the demo with a larger --max-seconds"
    )


def no_sound(name: str) -> str:
    """The sentence for a file that is of another kind by its name."""
    return f"{name} is no file of sound: drop a wav, flac, ogg, opus or mp3; unpack archives first"


def refusal(sentence: str) -> str:
    """A sentence in place of a result."""
    return f'<div class="gafx gafx-refusal" role="alert">{escape(sentence)}</div>'


def result(prediction: Prediction, observed: plot.Observed, model: Probabilities, *, narrow: bool = False) -> str:
    """The answer to one file: its labels with bars, the picture for light and for dark pages, what the shares mean."""
    ranked = prediction.top()
    label, share = ranked[0]
    bars = "".join(_bar(*entry) for entry in ranked[:_SHOWN_LABELS])
    more = ranked[_SHOWN_LABELS:]
    rest = f'<details><summary>{len(more)} more</summary><ul class="gafx-bars">{"".join(_bar(*e) for e in more)}</ul>'
    name = Path(prediction.file).name
    windows = prediction.windows
    assert windows is not None
    length = float(windows[0, 1] - windows[0, 0])
    count = f"{len(windows)} windows" if len(windows) > 1 else "one window"
    described = f"Shares over time, waveform, map and mel spectrogram of {name}; the largest share is that of {label}"
    images = "".join(
        f'<img class="gafx-{kind}" src="{_image(prediction, observed, narrow, kind == "dark")}" '
        f'alt="{escape(described)}">'
        for kind in ("light", "dark")
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in (_meaning(model, share), _calibration(model.info)))
    return (
        f'<section class="gafx gafx-result" aria-label="Result">'
        f"<h2>{escape(label)} <span>{_percent(share)}</span></h2>"
        f'<p class="gafx-small"><span class="gafx-file">{escape(name)}</span>, {duration(observed.seconds)}, '
        f"{count} of {length:.3g} s</p>"
        f'<audio class="gafx-player" controls hidden aria-label="Play the file"></audio>'
        f'<ul class="gafx-bars">{bars}</ul>{f"{rest}</details>" if more else ""}'
        f'<div class="gafx-picture">{images}</div><div class="gafx-small">{notes}</div></section>'
    )


def _bar(label: str, share: float) -> str:
    return (
        f'<li><span class="gafx-label">{escape(label)}</span><span class="gafx-track" aria-hidden="true">'
        f'<span style="width:{100 * min(max(share, 0), 1):.1f}%"></span></span>'
        f'<span class="gafx-share">{_percent(share)}</span></li>'
    )


def _image(prediction: Prediction, observed: plot.Observed, narrow: bool, dark: bool) -> str:
    figure = plot.draw(prediction, observed, mel=True, width=4.2 if narrow else 10.0, dark=dark)
    return "data:image/webp;base64," + base64.b64encode(plot.encode(figure, "webp")).decode("ascii")


def _meaning(model: Probabilities, share: float) -> str:
    if model.sums_to_one:
        return (
            "A share is what the model gives a label, averaged over the windows. Shares of all labels sum to 100 %, "
            "whatever is heard: the model cannot say that it is none of them."
        )
    return (
        "Each label has a share of its own, averaged over the windows: how sure the model is that it applies. They do "
        "not sum to 100 %: several labels may apply, or none."
    )


def _calibration(info: Any) -> str:
    known = info.calibration
    if not known:
        return (
            "The shares are not calibrated: they rank the labels, but 80 % need not mean right in 80 of 100 cases "
            "(training under a protocol named ..._val fits that)."
        )
    on = f" on {known['tracks']} {known.get('part', 'validation')} tracks" if "tracks" in known else ""
    return (
        f"The shares are calibrated{on} (temperature {info.temperature:.3g}): for sound like that, 80 % means right in "
        "about 80 of 100 cases. For other sound nobody has measured it."
    )


def _parts(frontend: dict[str, Any], classifier: dict[str, Any]) -> str:
    return f"front-end {frontend.get('name', 'built by its class')}, classifier {classifier.get('name', 'unknown')}"


def _training(training: dict[str, Any]) -> str:
    if not training.get("data"):
        return "not recorded"
    said = str(training["data"])
    if training.get("protocol"):
        said += f", protocol {training['protocol']}"
    protocol = PROTOCOLS.get(str(training.get("protocol")))
    if training.get("fold") and (protocol is None or protocol.has_folds):
        said += f", fold {training['fold']}"
    return said


def _scores(scores: dict[str, dict[str, Any]], on: dict[str, Any]) -> str:
    known = {name: score for name, score in scores.items() if score.get("value") is not None}
    if not known:
        return "not evaluated"
    text = "; ".join(f"{fmt.lowered(fmt.label(name))} {fmt.score(score, name)}" for name, score in known.items())
    where = f"{on.get('tracks', 'unknown')} tracks of the {on.get('part', 'test')} part of {on.get('data', 'unknown')}"
    fold = f", fold {on['fold']}" if on.get("fold") else ""
    return escape(f"{text}; on {where}, protocol {on.get('protocol', 'unknown')}{fold}; 95 % intervals")


def megabytes(size: int) -> str:
    """Bytes for a sentence."""
    if size < 2**20:
        return f"{size:,} bytes"
    return f"{size / 2**20:.4g} MB" if size < 2**30 else f"{size / 2**30:.3g} GB"


def duration(seconds: float) -> str:
    """A length for a sentence: `0.4 s`, `17 s`, `20:00 min`, `1:02:05 h`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{clock(seconds)} {'h' if seconds >= 3600 else 'min'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def escape(text: object) -> str:
    """Text inside HTML; what no UTF-8 page can hold (undecodable bytes of names) as an escape."""
    return html.escape(str(text).encode("utf-8", "backslashreplace").decode("utf-8"))
