"""`gafx pictures`: a finished run's test part in pictures, one page a run."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gafx.config import EvaluateConfig
from gafx.data.batches import evaluation_loader
from gafx.data.dataset import ClipDataset
from gafx.data.protocols import Protocol
from gafx.evaluation.maps import map_pictures
from gafx.evaluation.runs import Run, expand, objective_around, open_part, open_run
from gafx.inference import Predictions, predict_segments, to_tracks
from gafx.model import GAFX
from gafx.report import svg
from gafx.report.figures import map_picture
from gafx.report.html import write_page
from gafx.studies.pictures import figures
from gafx.studies.pictures.embedding import (
    LEAST,
    Layout,
    clustered,
    correlation,
    effective_dimensions,
    pca,
    tsne,
    umap,
)
from gafx.studies.pictures.filters import responses
from gafx.studies.pictures.saliency import map_gradient

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TestOutputs:
    """What the model makes of the test tracks.

    Attributes:
        tracks: their predictions.
        embedding: `(tracks, width)`, mean over a track's segments.
        bins: `(tracks, channels * planes * bins)`: the map's mean over time.
    """

    tracks: Predictions
    embedding: Array
    bins: Array


def picture_runs(
    folders: Sequence[Path], *, clips: int = 4, output: Path | None = None, root: str | None = None
) -> list[Path]:
    """Write a page for each run and return their paths.

    Args:
        folders: of finished runs; glob patterns are resolved.
        clips: how many test clips are shown with their maps and gradients.
        output: folder for the pages, one a run by its name; default `pictures.html` in each run's folder.
        root: where the data lie now, if not where they lay in training.

    Raises:
        UsageError: no such run, an unfinished one, or data that are not those of the run.
    """
    pages = []
    for folder in expand(folders):
        run = open_run(folder)
        path = folder / "pictures.html" if output is None else output / f"{folder.name}.html"
        print(f"{folder.name}: reading its test part", file=sys.stderr, flush=True)
        pages.append(picture_run(run, path, clips=clips, root=root))
    return pages


def picture_run(run: Run, path: Path, *, clips: int = 4, root: str | None = None) -> Path:
    """Read the test part of one run, draw it, and write the page."""
    config = EvaluateConfig(root=root, workers=0)
    model, segments = open_part(run, config)
    heard = hear(run, model, segments)
    manifest, info = segments.manifest, model.info
    assert info is not None
    labels = manifest.first_label()[heard.tracks.row]
    known = labels >= 0
    layouts = _layouts(heard.embedding[known])
    shown = _clips(run, model, segments, heard.tracks, clips)
    names = [manifest.relative_path(int(row)) for row in heard.tracks.row[known]]
    drawn = [(layout, figures.scatter(layout, labels[known], manifest.classes, names)) for layout in layouts]
    order = clustered(correlation(heard.embedding)) if heard.embedding.shape[1] > 2 else np.arange(2)
    enough = len(heard.tracks) >= LEAST
    data = run.config.data
    fold = f", fold {data.fold}" if Protocol.parse(data.protocol).has_folds else ""
    return write_page(
        path, "pictures.html.j2",
        title=f"Pictures of {run.folder.name}",
        said=f"{data.name}, protocol {data.protocol}{fold}, test part: {len(heard.tracks)} tracks, "
        f"{len(info.classes)} classes",
        parts=f"{info.frontend['name']} + {info.classifier['name']}, start: {info.provenance.describe()}",
        reads_labels=run.objective.reads_labels, colour_bar=svg.colour_bar(), **shown,
        filters=[(found, figures.filter_picture(found)) for found in responses(model.frontend)],
        layouts=drawn, least=LEAST, enough=enough,
        legend=[(figures.legend_marker(number), info.classes[number]) for number in np.unique(labels[known]).tolist()],
        width=heard.embedding.shape[1], effective=effective_dimensions(heard.embedding) if enough else None,
        correlations=figures.heatmap(correlation(heard.embedding)[np.ix_(order, order)], "embedding dimension")
        if enough else "",
        bins=figures.heatmap(correlation(heard.bins), "map bin") if enough else "",
        effective_bins=effective_dimensions(heard.bins) if enough else None, map_bins=heard.bins.shape[1],
        skipped=[*manifest.skipped, *heard.tracks.skipped],
    )  # fmt: skip


def hear(run: Run, model: GAFX, clips: ClipDataset) -> TestOutputs:
    """Predictions, embeddings and mean maps of the test tracks, in one pass over their segments."""
    objective = objective_around(run, model)
    widths: list[int] = []

    def read(wave: torch.Tensor) -> torch.Tensor:
        said = objective.predict(wave)
        feature_map = model.features(wave)
        means = model.frontend.planes_to_channels(feature_map).flatten(1, 2).mean(dim=2)
        embedded = model.classifier.embed(feature_map)
        widths[:] = [said.shape[1], embedded.shape[1], means.shape[1]]
        return torch.cat([said.double(), embedded.double(), means.double()], dim=1)

    loader = evaluation_loader(clips, batch_size=8)
    found = predict_segments(model, loader, clips.segments, read, device=torch.device("cpu"), precision="fp32")
    tracks = to_tracks(found)
    values, embedding, bins = np.split(tracks.values, np.cumsum(widths)[:2], axis=1)
    return TestOutputs(Predictions(tracks.row, tracks.start, values, tracks.skipped), embedding, bins)


def _layouts(embedding: Array) -> list[Layout]:
    if len(embedding) < LEAST:
        return []
    return [pca(embedding), tsne(embedding), umap(embedding)]


def _clips(run: Run, model: GAFX, segments: ClipDataset, tracks: Predictions, count: int) -> dict[str, Any]:
    """The map, the mel spectrogram and the gradient of a few clips, with the scales that they share."""
    manifest = segments.manifest
    found = map_pictures(run.objective, model, segments, tracks, count)
    gradients: list[Array] = []
    if run.objective.reads_labels:
        rows = {manifest.relative_path(int(row)): int(row) for row in np.unique(segments.segments.row)}
        for picture in found:
            first = int(np.flatnonzero(segments.segments.row == rows[picture.clip])[0])
            gradients.append(map_gradient(model, segments[(0, first)].wave)[0])
    map_range = svg.colour_range([picture.feature_map for picture in found])
    mel_range = svg.colour_range([picture.mel for picture in found])
    pictures = []
    for number, picture in enumerate(found):
        drawn = map_picture(picture, map_range, mel_range)
        if gradients:
            top = float(np.percentile(gradients[number], 99.5)) or 1.0
            drawn += figures.gradient_picture(gradients[number], picture.seconds, (0.0, top))
        pictures.append((picture, drawn))
    return {"shown": pictures, "map_range": map_range, "mel_range": mel_range}
