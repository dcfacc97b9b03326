"""`gafx pictures`: one page per finished run, on its test part."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gafx.config import EvaluateConfig
from gafx.data.batches import evaluation_loader
from gafx.data.dataset import ClipDataset
from gafx.evaluation.maps import map_pictures
from gafx.evaluation.runs import Run, expand, objective_around, open_part, open_run
from gafx.inference import Predictions, predict_segments, to_tracks
from gafx.io import check_writable
from gafx.model import GAFX
from gafx.nn.precision import device_of, float64, pick_device
from gafx.outputs import Outputs
from gafx.report import svg
from gafx.report.figures import map_picture, map_ranges
from gafx.report.format import plural
from gafx.report.html import write_page
from gafx.studies.pictures import embedding, figures
from gafx.studies.pictures.filters import responses
from gafx.studies.pictures.saliency import map_gradient

Array = npt.NDArray[Any]
_log = logging.getLogger("gafx")


@dataclass(frozen=True)
class TestOutputs:
    """Outputs of a model for the test tracks.

    Attributes:
        tracks: predictions.
        embedding: `(tracks, width)`, mean over a track's segments.
        bins: `(tracks, channels * planes * bins)`, mean of the map over time.
    """

    tracks: Predictions
    embedding: Array
    bins: Array


def picture_runs(
    folders: Sequence[Path], *, clips: int = 4, output: Path | None = None, root: str | None = None,
    device: str = "cpu",
) -> list[Path]:  # fmt: skip
    """Write a page for each run and return their paths.

    Args:
        folders: of finished runs; glob patterns are expanded.
        clips: number of test clips that are shown with their maps and gradients.
        output: folder for the pages, named by run; default `pictures.html` in each run's folder.
        root: folder of the data, if it is not where it was in training.
        device: see `gafx.nn.precision.pick_device`.

    Raises:
        UsageError: no such run, an unfinished one, or data that are not those of the run.
    """
    pages = []
    for folder in expand(folders):
        run = open_run(folder)
        _log.info("%s: reading its test part", folder.name)
        path = folder / "pictures.html"
        if output is not None:
            Outputs.keep_out(output, root or run.record["data"]["root"], "--output")
            path = output / f"{folder.name}.html"
        check_writable(path.parent, "name another folder with --output")
        if output is not None:
            Outputs().claim(path, "--output")
        pages.append(picture_run(run, path, clips=clips, root=root, device=device))
    return pages


def picture_run(run: Run, path: Path, *, clips: int = 4, root: str | None = None, device: str = "cpu") -> Path:
    """Compute the outputs for the test part of one run and write the page."""
    model, dataset = open_part(run, EvaluateConfig(root=root, workers=0))
    model.to(pick_device(device))
    outputs = predict_and_embed(run, model, dataset)
    manifest, data, info = dataset.manifest, run.config.data, model.info
    assert info is not None
    labels = manifest.first_label()[outputs.tracks.row]
    known = labels >= 0
    names = [manifest.relative_path(int(row)) for row in outputs.tracks.row[known]]
    fold = f", fold {data.fold}" if run.protocol.has_folds else ""
    return write_page(
        path, "pictures.html.j2",
        title=f"Pictures of {run.folder.name}",
        tested=f"{data.name}, protocol {data.protocol}{fold}, test part: {plural(len(names), 'track')}, "
        f"{plural(len(info.classes), 'class', 'classes')}",
        parts=f"{info.frontend['name']} + {info.classifier['name']}, start: {info.provenance.describe()}",
        reads_labels=run.objective.reads_labels, colour_bar=svg.colour_bar(), least=embedding.LEAST,
        filters=[(found, figures.filter_picture(found)) for found in responses(model.frontend)],
        layouts=[(layout, figures.scatter(layout, labels[known], manifest.classes, names))
                 for layout in embedding.layouts(outputs.embedding[known])],
        legend=[(figures.legend_marker(number), info.classes[number]) for number in np.unique(labels[known]).tolist()],
        correlations=_correlations(outputs), skipped=[*manifest.skipped, *outputs.tracks.skipped],
        **_maps(run, model, dataset, outputs.tracks, clips),
    )  # fmt: skip


def predict_and_embed(run: Run, model: GAFX, clips: ClipDataset) -> TestOutputs:
    """Compute predictions, embeddings and mean maps of the test tracks in one pass over their segments."""
    device = device_of(model)
    objective = objective_around(run, model).to(device)
    widths: list[int] = []

    def outputs(wave: torch.Tensor) -> torch.Tensor:
        feature_map = model.features(wave)
        means = model.frontend.planes_to_channels(feature_map).flatten(1, 2).mean(dim=2)
        parts = [objective.predict(wave), model.classifier.embed(feature_map), means]
        widths[:] = [part.shape[1] for part in parts]
        return torch.cat([float64(part) for part in parts], dim=1)

    loader = evaluation_loader(clips, batch_size=8)
    found = predict_segments(model, loader, clips.segments, outputs, device=device, precision="fp32")
    tracks = to_tracks(found)
    values, embedded, bins = np.split(tracks.values, np.cumsum(widths)[:2], axis=1)
    return TestOutputs(replace(tracks, values=values), embedded, bins)


def _correlations(outputs: TestOutputs) -> list[tuple[str, str, int, float]]:
    """Figure, kind, number of columns and effective dimensions of the embedding (clustered) and of the map's bins."""
    found = []
    for kind, values in (("embedding dimension", outputs.embedding), ("map bin", outputs.bins)):
        if len(values) >= embedding.LEAST:
            matrix = embedding.correlation(values)
            order = embedding.clustered(matrix) if values is outputs.embedding else np.arange(len(matrix))
            figure = figures.heatmap(matrix[np.ix_(order, order)], kind)
            found.append((figure, kind, len(matrix), embedding.effective_dimensions(values)))
    return found


def _maps(run: Run, model: GAFX, clips: ClipDataset, tracks: Predictions, count: int) -> dict[str, Any]:
    """Maps, mel spectrograms and gradients of a few clips, with common value ranges."""
    found = map_pictures(run.objective, model, clips, tracks, count)
    rows = {clips.manifest.relative_path(int(row)): int(row) for row in np.unique(clips.segments.row)}
    map_range, mel_range = map_ranges(found)
    shown = []
    for picture in found:
        drawn = map_picture(picture, map_range, mel_range)
        if run.objective.reads_labels:
            first = int(np.flatnonzero(clips.segments.row == rows[picture.clip])[0])
            drawn += figures.gradient_picture(map_gradient(model, clips[(0, first)].wave)[0], picture.seconds)
        shown.append((picture, drawn))
    return {"shown": shown, "map_range": map_range, "mel_range": mel_range}
