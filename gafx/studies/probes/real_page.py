"""What `gafx probe` of a real data set leaves behind: a page, the table as CSV and JSON, and the printed one."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gafx.data.protocols import Protocol
from gafx.io import write_text
from gafx.report import svg
from gafx.report.html import write_page
from gafx.studies.probes.classifiers import NAMES
from gafx.studies.probes.linear import LEVEL, Finding
from gafx.studies.probes.page import csv_lines
from gafx.studies.probes.picture import Panel, picture, words
from gafx.studies.probes.real import Entry, RealProbed


def write_real(probed: RealProbed, folder: Path) -> Path:
    """Write probe.html, probe.csv and probe.json into `folder`; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    record = as_record(probed)
    write_text(folder / "probe.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "probe.csv", csv_lines(record["findings"]))
    names = [entry.name for entry in probed.entries]
    panels: list[Panel] = [(reader, [f for f in probed.findings if f.factor == reader], None) for reader in NAMES]
    return write_page(
        folder / "probe.html", "probe_real.html.j2",
        title=f"{probed.data.name}: probes of frozen embeddings", measured=protocol(probed),
        picture=picture(names, panels), readers=NAMES, entries=probed.entries, words=words, level=LEVEL,
        colours={name: svg.model_colour(number) for number, name in enumerate(names)},
        found={(f.subject, f.factor): f for f in probed.findings}, macro_f1=probed.macro_f1, tests=len(probed.findings),
        folds=_folds, all_folds=probed.folds, skipped=probed.skipped, notes=probed.manifest.notes,
    )  # fmt: skip


def protocol(probed: RealProbed) -> str:
    """Data, protocol, number of tracks and chance in a sentence."""
    data, tracks = probed.data, sorted(set(probed.tested.values()))
    pooled = f", {len(probed.folds)} folds pooled" if len(probed.folds) > 1 else ""
    count = f"{tracks[0]}" if len(tracks) == 1 else f"{tracks[0]} to {tracks[-1]}"
    return (
        f"{data.name}, {Protocol.parse(data.protocol).label(data.split_seed)}{pooled}: {count} test tracks, "
        f"{len(probed.manifest.classes)} classes; scikit-learn readers of frozen embeddings, chosen on training tracks "
        "alone; 95 % intervals"
    )


def table(probed: RealProbed) -> str:
    """The table for a terminal: a line an embedding, two columns a reader."""
    found = {(f.subject, f.factor): f for f in probed.findings}
    lines = [["embedding", "width", "tracks", *(f"{reader}, macro-F1" for reader in NAMES)]]
    for entry in probed.entries:
        cells = []
        for reader in NAMES:
            finding, f1 = found[entry.name, reader], probed.macro_f1[entry.name, reader]
            value, interval, _ = words(finding)
            cells.append(f"{'~' if finding.by_chance else ''}{value} ({interval}), {100 * f1.value:.1f} %")
        first = found[entry.name, NAMES[0]]
        lines.append([entry.name + _folds(entry, probed.folds), str(first.dimensions), str(first.tracks), *cells])
    lines.append(["(no features)", "", "", *(words(found[probed.entries[0].name, reader])[2] for reader in NAMES)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    body.insert(1, "  ".join("-" * width for width in widths))
    note = (
        f"~ chance alone explains it: not better than the commonest class at {LEVEL:g}, adjusted for "
        f"{len(probed.findings)} tests (Holm), or the interval reaches it"
    )
    skipped = [f"{len(probed.skipped)} unreadable files skipped; the page lists them"] if probed.skipped else []
    return "\n".join([protocol(probed), *body, note, *skipped])


def _folds(entry: Entry, folds: list[int]) -> str:
    """Which folds an entry was tested on, where these are not all."""
    own = sorted(entry.subjects)
    if own in ([0], folds):
        return ""
    return f" (fold{'s' if len(own) > 1 else ''} {', '.join(map(str, own))})"


def as_record(probed: RealProbed) -> dict[str, Any]:
    """Everything as JSON can hold it."""
    data = probed.data
    keys = ("protocol", "folds", "split_seed", "test_fraction", "val_fraction", "options")
    return json.loads(
        json.dumps(
            {
                "data": {"name": data.name, "fingerprint": probed.manifest.fingerprint(),
                         "classes": list(probed.manifest.classes), **{key: getattr(data, key) for key in keys}},
                "protocol": {"folds": probed.folds, "seed": probed.seed, "tests": len(probed.findings)},
                "embeddings": [
                    {"name": e.name, "said": e.said, "folds": [k for k in e.subjects if k],
                     "digests": [s.digest for s in e.subjects.values()]} for e in probed.entries
                ],
                "findings": [_finding(finding, probed) for finding in probed.findings],
                "skipped": [clip.as_dict() for clip in probed.skipped],
            }
        )
    )  # fmt: skip


def _finding(finding: Finding, probed: RealProbed) -> dict[str, Any]:
    f1 = probed.macro_f1[finding.subject, finding.factor]
    return {
        "embedding": finding.subject, "reader": finding.factor, "score": "accuracy", **asdict(finding.score),
        "macro_f1": f1.value, "macro_f1_low": f1.low, "macro_f1_high": f1.high, "macro_f1_interval": f1.interval,
        "chance": finding.chance, "p": finding.p, "p_adjusted": finding.p_adjusted,
        "chance_alone_explains_it": finding.by_chance, "tracks": finding.tracks, "dimensions": finding.dimensions,
    }  # fmt: skip
