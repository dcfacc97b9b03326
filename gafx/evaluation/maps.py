"""Front-end maps of a few tracks, for the report and for trackers."""

import numpy as np
import numpy.typing as npt
import torch

from gafx.data.dataset import ClipDataset
from gafx.data.manifest import Manifest
from gafx.frontends.mel import MelFrontEnd
from gafx.inference import Predictions
from gafx.model import GAFX, create_frontend
from gafx.nn.precision import device_of
from gafx.objectives.base import Objective
from gafx.report.figures import MapPicture


def spread_over_classes(manifest: Manifest, rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Choose `count` of the manifest's `rows` (fewer if there are fewer), of different classes as far as possible."""
    labels = manifest.first_label()[rows]
    classes, first = np.unique(labels, return_index=True)
    if count <= len(classes):
        return rows[first[np.linspace(0, len(first) - 1, count).round().astype(int)]]
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    turn = np.arange(len(rows)) - np.searchsorted(ordered, ordered)  # 0 for the first row of each class, and so on
    return rows[order[np.lexsort((ordered, turn))][:count]]


@torch.inference_mode()
def map_pictures(
    objective: type[Objective], model: GAFX, clips: ClipDataset, tracks: Predictions, count: int
) -> list[MapPicture]:
    """The maps of the first segments of a few tracks, of different classes as far as possible; none of tokens.

    Args:
        objective: that the model was trained for; it describes the predictions.
        model: in eval mode, on its device.
        clips: segments of the tracks.
        tracks: predictions of the tracks.
        count: number of tracks; clips that cannot be read are left out.
    """
    manifest, front_end = clips.manifest, model.frontend
    if front_end.unit == "tokens":
        return []
    mel = None if isinstance(front_end, MelFrontEnd) else create_frontend("mel", sample_rate=front_end.sample_rate)
    device = device_of(model)
    pictures = []
    for row in spread_over_classes(manifest, tracks.row, count).tolist():
        track = int(np.flatnonzero(tracks.row == row)[0])
        sample = clips[(0, int(np.flatnonzero(clips.segments.row == row)[0]))]
        if sample.error is not None:
            continue
        wave = sample.wave[None].to(device)
        feature_map = model.features(wave)[0].float().cpu().numpy()
        mono, decoded = sample.wave.mean(dim=0), None
        if mel is not None and front_end.num_codes is not None:
            made = front_end.decode(front_end.codes(wave))[..., : len(mono)].mean(dim=1, keepdim=True)
            decoded = mel(made.float().cpu())[0, 0].numpy()
        pictures.append(
            MapPicture(
                clip=manifest.relative_path(row),
                label="; ".join(manifest.classes[label] for label in manifest.labels[row]),
                prediction=objective.describe(tracks.values[track], manifest.classes),
                seconds=sample.wave.shape[1] / front_end.sample_rate,
                wave=mono.numpy(),
                feature_map=front_end.planes_to_channels(feature_map),
                mel=None if mel is None else mel(mono[None, None])[0, 0].numpy(),
                decoded=decoded,
            )
        )
    return pictures
