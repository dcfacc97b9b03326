"""Front-end maps of a few test tracks, for the report."""

import numpy as np
import torch

from gafx.data.dataset import ClipDataset
from gafx.frontends.mel import MelFrontEnd
from gafx.inference import Predictions
from gafx.model import GAFX, create_frontend
from gafx.objectives.base import Objective
from gafx.report.figures import MapPicture


@torch.inference_mode()
def map_pictures(
    objective: type[Objective], model: GAFX, clips: ClipDataset, tracks: Predictions, count: int
) -> list[MapPicture]:
    """The maps of the first segments of a few test tracks, of different classes as far as possible.

    Args:
        objective: that the model was trained for; it describes the predictions.
        model: in eval mode, on its device.
        clips: segments of the tracks.
        tracks: predictions of the tracks.
        count: number of tracks; clips that cannot be read are left out.
    """
    manifest, front_end = clips.manifest, model.frontend
    _, first = np.unique(manifest.first_label()[tracks.row], return_index=True)
    chosen = first[np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(int)] if count else []
    mel = None if isinstance(front_end, MelFrontEnd) else create_frontend("mel", sample_rate=front_end.sample_rate)
    device = next(model.parameters()).device
    pictures = []
    for track in chosen:
        row = int(tracks.row[track])
        sample = clips[(0, int(np.flatnonzero(clips.segments.row == row)[0]))]
        if sample.error is not None:
            continue
        feature_map = model.features(sample.wave[None].to(device))[0].float().cpu().numpy()
        mono = sample.wave.mean(dim=0)
        pictures.append(
            MapPicture(
                clip=manifest.relative_path(row),
                label="; ".join(manifest.classes[label] for label in manifest.labels[row]),
                prediction=objective.describe(tracks.values[track], manifest.classes),
                seconds=sample.wave.shape[1] / front_end.sample_rate,
                wave=mono.numpy(),
                feature_map=front_end.planes_to_channels(feature_map),
                mel=None if mel is None else mel(mono[None, None])[0, 0].numpy(),
            )
        )
    return pictures
