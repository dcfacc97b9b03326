"""Metrics of a run: metrics.jsonl, a progress bar, and wandb or TensorBoard if configured."""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from gafx.config import TrainConfig, flatten, to_dict
from gafx.io import write_text
from gafx.report import svg
from gafx.report.figures import MapPicture
from gafx.report.format import printable

_NO_RUN_ID = r"[:;,#?/']"  # characters that wandb refuses in the id of a run


class MetricsLog:
    """metrics.jsonl: one JSON object per line, each with its `step`.

    Args:
        path: of the file.
        step: that the run resumes from; later lines are deleted.
    """

    def __init__(self, path: Path, step: int):
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # a kill cut the line short
                    continue
                if record["step"] <= step:
                    kept.append(line)
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def progress_bar(total: int, done: int, enabled: bool) -> tqdm:
    """Progress bar over the steps of a run; without a terminal, a line every 30 s.

    Args:
        total, done: steps.
        enabled: whether this process shows it.
    """
    return tqdm(
        total=total, initial=done, unit="step", dynamic_ncols=True, disable=not enabled, file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )  # fmt: skip


def start_trackers(accelerator: Accelerator, config: TrainConfig) -> None:
    """Start the configured trackers. wandb stays offline unless `tracking.online` is set."""
    if not config.tracking.trackers:
        return
    folder = config.folder
    wandb = {
        "name": folder.name, "id": re.sub(_NO_RUN_ID, "-", folder.name), "resume": "allow", "dir": str(folder),
        "mode": "online" if config.tracking.online else "offline",
    }  # fmt: skip
    flat = {
        key: value for key, value in flatten(to_dict(config), "/").items() if isinstance(value, (int, float, str, bool))
    }
    accelerator.init_trackers(
        config.tracking.project, flat, {"wandb": wandb} if "wandb" in config.tracking.trackers else {}
    )


def log_media(trackers: Iterable[Any], pictures: Iterable[MapPicture], sample_rate: int, step: int) -> None:
    """Log sound, front-end map and prediction of clips to wandb and TensorBoard.

    Args:
        trackers: of Accelerate.
        pictures: of the clips.
        sample_rate: of their waves in Hz.
        step: that they belong to.
    """
    for picture in pictures:
        tag, text = f"validation/{printable(picture.clip)}", f"{picture.label}: {picture.prediction}"
        limits = svg.colour_range([picture.feature_map])
        # The first part is at the bottom, as in the report's pictures.
        image = np.concatenate([svg.rgb(part, limits) for part in picture.feature_map[::-1]])
        for tracker in trackers:
            if tracker.name == "tensorboard":
                writer = tracker.tracker
                writer.add_audio(f"{tag}/sound", picture.wave[None], step, sample_rate)
                writer.add_image(f"{tag}/map", image, step, dataformats="HWC")
                writer.add_text(f"{tag}/prediction", text, step)
            elif tracker.name == "wandb":
                import wandb

                sound = wandb.Audio(picture.wave, sample_rate=sample_rate, caption=text)
                tracker.tracker.log({f"{tag}/sound": sound, f"{tag}/map": wandb.Image(image, caption=text)}, step=step)
