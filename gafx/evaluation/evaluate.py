"""Finished runs -> predictions, metrics, result.json and the report.

What is evaluated comes from the runs: data set, protocol, fold, test part. Runs that differ only in their fold are
pooled into one row; rows of different protocols, data or splits are refused, since their numbers cannot be compared.
"""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from gafx._version import __version__
from gafx.config import EvaluateConfig
from gafx.data.leaks.describe import headline, merge
from gafx.data.manifest import Manifest, Skipped
from gafx.data.protocols import Protocol
from gafx.data.segments import NOTE
from gafx.evaluation.runs import Run, check_comparable, expand, group_key, open_run, predict
from gafx.inference import Predictions, to_tracks
from gafx.io import write_text
from gafx.report.evaluation import Section, write_report
from gafx.saving.info import Provenance
from gafx.saving.hub import write_scores
from gafx.stats.calibration import fit_report, temper
from gafx.stats.scores import calibration_bins, class_scores, confusion, ranking_scores


def evaluate_runs(folders: Sequence[Path], config: EvaluateConfig) -> str:
    """Evaluate runs, write result.json, predictions.csv, segments.csv and report.html, and return the table as text.

    Each run's files go into its folder; with several runs the joint ones go into `config.output` (default:
    `evaluation-<names>` beside the first run). Of several processes (torchrun) each predicts its share; the main one
    does the rest, and the others return an empty text.

    Raises:
        UsageError: no run, an unfinished one, runs that cannot stand in one table, data or labels that no longer match.
    """
    runs = [open_run(folder) for folder in expand(folders)]
    check_comparable(runs)
    for run in runs:
        predict(run, config)
    if not PartialState().is_main_process:
        return ""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(group_key(run.config), []).append(run)
    sections = []
    for members in rows.values():
        section = _section(members, config)
        sections.append(section)
        for run in members:
            single = section if len(members) == 1 else _section([run], config)
            _write(run.folder, [single], [run])
            _let_travel(run, single.result)
    output = runs[0].folder
    if len(runs) > 1:
        names = "-".join(dict.fromkeys(run.folder.name for run in runs))
        output = Path(config.output) if config.output else runs[0].folder.parent / f"evaluation-{_short(names)}"
        _write(output, sections, runs)
    return _table([section.result for section in sections], output)


def _let_travel(run: Run, result: dict[str, Any]) -> None:
    """Write a run's scores into its model's config.json and card.

    They are those of its own fold, even where folds are pooled: each fold's weights are another model, and pooled
    scores are those of none of them.
    """
    data = run.config.data
    protocol = Protocol.parse(data.protocol)
    on = {
        "data": data.name, "protocol": data.protocol, "part": result["part"], "tracks": result["tracks"],
        "recordings": result["groups"], "fold": data.fold if result["folds"] else None,
        "folds": data.folds if "folds" in protocol.settings else None,
        "split_seed": data.split_seed if protocol.is_seeded else None,
        "segment_seconds": data.segment_seconds, "precision": result["cost"]["precision"],
        **({"group_by": data.group_by} if data.group_by != "recording" else {}),
    }  # fmt: skip
    try:
        write_scores(run.folder / "model", result["scores"]["track"], on)
    except OSError as error:
        print(f"warning: the scores do not travel with the model of {run.folder} ({error})", file=sys.stderr)


def _section(members: Sequence[Run], config: EvaluateConfig) -> Section:
    """One row: the pooled folds of one model."""
    members = sorted(members, key=lambda run: run.config.data.fold)
    first = members[0]
    manifest, info, cost = first.manifest, first.info, first.cost
    assert manifest is not None
    assert info is not None
    assert cost is not None
    segments = _pool([run.segments for run in members if run.segments is not None])
    tracks = to_tracks(segments)
    objective = first.objective
    scores = {
        level: {
            name: score.as_dict()
            for name, score in objective.scores(
                found.values, manifest.targets(found.row), manifest.group[found.row], resamples=config.resamples,
                tracks=level == "track",
            ).items()
        }
        for level, found in (("track", tracks), ("segment", segments))
    }  # fmt: skip
    truth, targets = manifest.first_label()[tracks.row], manifest.targets(tracks.row)
    single = objective.reads_labels and not objective.multi_label
    matrix = confusion(truth, tracks.values.argmax(axis=1), len(manifest.classes)) if single else None
    protocol = Protocol.parse(first.config.data.protocol)
    has_folds = bool(protocol.folds(first.config.data.folds, manifest.official_folds))
    per_fold = []
    for run in members if has_folds else []:
        assert run.segments is not None
        own = to_tracks(run.segments)
        hits = (
            {"accuracy": float((own.values.argmax(axis=1) == manifest.first_label()[own.row]).mean())} if single else {}
        )
        per_fold.append({"fold": run.config.data.fold, "tracks": len(own), **hits})
    data = first.config.data
    result: dict[str, Any] = {
        "gafx_version": __version__,
        "name": first.config.label,
        "runs": [str(run.folder) for run in members],
        "run_ids": [run.record["run_id"] for run in members],
        "frontend": info.frontend, "classifier": first.config.classifier,
        "provenance": info.provenance.as_dict(),
        "objective": info.objective, "data": data.name, "protocol": data.protocol, "group_by": data.group_by,
        "folds": [run.config.data.fold for run in members if has_folds], "split_seed": data.split_seed,
        "seed": first.config.seed, "part": "test",
        "classes": list(manifest.classes), "tracks": len(tracks), "segments": len(segments),
        "groups": len(np.unique(manifest.group[tracks.row])), "segment_seconds": data.segment_seconds,
        "scores": scores, "chance": 1 / len(manifest.classes) if single else None,
        "labels_tested": int((targets.sum(axis=0) > 0).sum()) if objective.reads_labels else 0,
        "per_class": _per_class(manifest, tracks, targets, matrix) if objective.reads_labels else [],
        "confusion": None if matrix is None else matrix.tolist(),
        "calibration_bins": calibration_bins(tracks.values, truth) if single else None,
        "calibration": _calibration(members, tracks, targets),
        "per_fold": per_fold,
        "cost": {
            **cost,
            "clips_per_second": round(float(np.mean([run.cost["clips_per_second"] for run in members if run.cost])), 2),
            "peak_memory_bytes": max(run.cost["peak_memory_bytes"] for run in members if run.cost),
            "train_seconds": round(sum(run.record["train_seconds"] for run in members), 1),
        },
        "skipped": [clip.as_dict() for clip in _skipped(members, segments)],
        "missing": manifest.missing, "notes": list(manifest.notes),
        "leaks": merge([run.record.get("leaks") for run in members]),
    }  # fmt: skip
    return Section(result, [_curve(run) for run in members], list(first.pictures or []))


def _calibration(members: Sequence[Run], tracks: Predictions, targets: np.ndarray) -> dict[str, Any] | None:
    """What each model's own temperature, fitted on its validation part, changes on these test tracks."""
    if not all(run.info is not None and run.info.calibration for run in members):
        return None
    multi_label = members[0].objective.multi_label
    tempered = to_tracks(_pool([_tempered(run, multi_label) for run in members]))
    return {
        "temperatures": [run.info.temperature for run in members if run.info is not None],
        "before": fit_report(tracks.values, targets, multi_label=multi_label),
        "after": fit_report(tempered.values, targets, multi_label=multi_label),
    }


def _tempered(run: Run, multi_label: bool) -> Predictions:
    assert run.segments is not None
    assert run.info is not None
    return replace(run.segments, values=temper(run.segments.values, run.info.temperature, multi_label=multi_label))


def _pool(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.values for part in parts]),
        tuple(clip for part in parts for clip in part.skipped),
    )


def _skipped(members: Sequence[Run], segments: Predictions) -> list[Skipped]:
    """Every file that any run left out, in training or in the test, once."""
    trained = [Skipped(**clip) for run in members for clip in run.record["skipped"]]
    return list({clip.as_dict()["path"]: clip for clip in [*trained, *segments.skipped]}.values())


def _per_class(
    manifest: Manifest, tracks: Predictions, targets: np.ndarray, matrix: np.ndarray | None
) -> list[dict[str, Any]]:
    def number(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    if matrix is None:
        rows, once = [], np.ones((1, len(tracks)))
        for index, name in enumerate(manifest.classes):
            precision, auc = ranking_scores(tracks.values[:, index], targets[:, index] > 0, once)
            rows.append(
                {
                    "class": name, "average_precision": number(precision[0]), "auc": number(auc[0]),
                    "tracks": int(targets[:, index].sum()),
                }
            )  # fmt: skip
        return rows
    precisions, recalls, f1 = class_scores(matrix)
    return [
        {
            "class": name, "precision": number(precisions[i]), "recall": number(recalls[i]), "f1": number(f1[i]),
            "tracks": int(matrix[i].sum()), "predicted": int(matrix[:, i].sum()),
        }
        for i, name in enumerate(manifest.classes)
    ]  # fmt: skip


def _curve(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _write(folder: Path, sections: Sequence[Section], runs: Sequence[Run]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = [section.result for section in sections]
    value = results[0] if len(results) == 1 else {"models": results}
    write_text(folder / "result.json", json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    _write_predictions(folder / "predictions.csv", runs, segments=False)
    _write_predictions(folder / "segments.csv", runs, segments=True)
    first = results[0]
    write_report(
        folder / "report.html",
        sections,
        title=f"{first['data']}: {' and '.join(dict.fromkeys(r['name'] for r in results))}",
    )


def _write_predictions(path: Path, runs: Sequence[Run], *, segments: bool) -> None:
    """A line a track (or segment): the run, file, recording, fold, label, prediction and each class's probability (or,
    where the objective reads no labels, its errors).

    `track` is the recording, named by the first of its clips; segments of one recording share it.
    """
    aside = path.with_name(f".{path.name}.writing")
    with aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        manifest = runs[0].manifest
        assert manifest is not None
        # Segments that stand for recordings are told apart by where they begin in the track.
        by_segment = runs[0].config.data.group_by == "segment"
        more = ["start_seconds"] if segments or by_segment else []
        objective = runs[0].objective
        predicts = ["prediction"] if objective.reads_labels else []
        columns = objective.columns(manifest.classes)
        writer.writerow(["clip", "track", "fold", "label", *predicts, *columns, *more, "run"])
        for run in runs:
            assert run.manifest is not None
            assert run.segments is not None
            assert run.info is not None
            found = run.segments if segments else to_tracks(run.segments)
            _, first_of_group = np.unique(run.manifest.group, return_index=True)
            name_of_group = dict(zip(np.unique(run.manifest.group).tolist(), first_of_group.tolist(), strict=True))
            for row, start, values in zip(found.row.tolist(), found.start.tolist(), found.values, strict=True):
                label = ";".join(run.manifest.classes[number] for number in run.manifest.labels[row])
                track = run.manifest.relative_path(name_of_group[int(run.manifest.group[row])])
                prediction = [run.manifest.classes[int(values.argmax())]] if predicts else []
                begin = start / run.info.sample_rate + (run.manifest.start[row] if by_segment else 0.0)
                cells = [f"{begin:.3f}"] if more else []
                shares = [f"{value:.6f}" for value in values]
                writer.writerow(
                    [
                        run.manifest.relative_path(row),
                        track,
                        run.config.data.fold if Protocol.parse(run.config.data.protocol).has_folds else "",
                        label,
                        *prediction,
                        *shares,
                        *cells,
                        run.folder.name,
                    ]
                )
    os.replace(aside, path)


def _table(results: Sequence[dict[str, Any]], output: Path) -> str:
    """The table for a terminal: protocol and sample size above, a line a model."""
    first = results[0]
    folds = (
        f", fold{'s' if len(first['folds']) > 1 else ''} {', '.join(map(str, first['folds']))}"
        if first["folds"]
        else ""
    )
    protocol = Protocol.parse(first["protocol"]).label(first["split_seed"])
    names = list(first["scores"]["track"])[: 2 if first["confusion"] else 3]
    header = ["model", "tracks", *(name.replace("_", " ") for name in names), "training", "segments/s"]
    lines = [header]
    for result in results:
        cells = []
        for name in names:
            cells.append(_words(name, result["scores"]["track"][name]))
        minutes, seconds = divmod(round(result["cost"]["train_seconds"]), 60)
        lines.append(
            [
                _model_name(result),
                str(result["tracks"]),
                *cells,
                f"{minutes} min {seconds:02d} s",
                f"{result['cost']['clips_per_second']:.1f}",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    body.insert(1, "  ".join("-" * width for width in widths))
    chance = f", chance {100 * first['chance']:.1f} %" if first["chance"] else ""
    classes = f"{len(first['classes'])} classes"
    if not first["labels_tested"]:
        classes = "labels not read"
    elif first["labels_tested"] < len(first["classes"]):
        classes = f"{first['labels_tested']} of {classes} occur"
    skipped = sum(len(result["skipped"]) for result in results)
    notes = [f"{skipped} unreadable files skipped; the report lists them"] if skipped else []
    by_segment = first["group_by"] == "segment"
    if by_segment:
        notes.append(f"data.group_by=segment: {NOTE}; its intervals take segments of one track for independent")
    notes += dict.fromkeys(f"leak check: {headline(result['leaks'])}" for result in results if result["leaks"])
    if first["missing"]:
        notes.append(f"{first['missing']} clips of the data set's lists are not in this copy")
    return "\n".join(
        [
            f"{first['data']}, {protocol}{folds}, test part, "
            f"{first['groups']} {'segments taken for recordings' if by_segment else 'recordings'}, {classes}{chance}; "
            "95 % intervals",
            *body,
            *notes,
            f"report: {output / 'report.html'}",
        ]
    )


def _words(name: str, score: dict[str, Any]) -> str:
    """A score and its interval as they stand in the table: shares in percent, other scores as they are."""
    if score["value"] is None:
        return "–"
    plain = name in ("d_prime", "explained_variance") or name.endswith("_db")
    form = (lambda value: f"{value:.2f}") if plain else (lambda value: f"{100 * value:.1f}")
    unit = " dB" if name.endswith("_db") else "" if plain else " %"
    interval = f" ({form(score['low'])} to {form(score['high'])})" if score["low"] is not None else ""
    return f"{form(score['value'])}{unit}{interval}"


def _model_name(result: dict[str, Any]) -> str:
    provenance = Provenance.from_dict(result)
    return f"{result['name']} ({'random start' if provenance.is_random else provenance.describe()})"


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
