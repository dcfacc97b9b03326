"""Compute features of a data set's segments with a frozen model or front-end, and keep them in a cache."""

import json
import logging
import os
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gafx.audio.level import level
from gafx.classifiers.base import ProbeFeatures, probe_features
from gafx.data.batches import evaluation_loader
from gafx.data.dataset import ClipDataset
from gafx.data.manifest import Manifest, Skipped
from gafx.data.readers import FileReader
from gafx.data.segments import evaluation_segments
from gafx.deploy.inputs import Inputs, open_inputs
from gafx.deploy.windows import Computed, Layout, Run, compute
from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd
from gafx.inference import Predictions, predict_segments
from gafx.io import atomic_path, digest
from gafx.model import GAFX
from gafx.nn.precision import device_of

VERSION = 1  # of the computation; raise it when the numbers change, so that older caches are not used
_LEAST_LEVEL = -200.0  # dBFS, instead of the infinite one of zeros
_log = logging.getLogger("gafx")


def with_level(run: Callable[[Tensor], Tensor], rate: int) -> Callable[[Tensor], Tensor]:
    """Return a function of waves that appends their level in dBFS to what `run` computes, as the last column."""

    def both(wave: Tensor) -> Tensor:
        levels = [max(level(clip, rate), _LEAST_LEVEL) for clip in wave.cpu().numpy()]
        return torch.cat([run(wave), torch.tensor(levels, device=wave.device)[:, None]], dim=1)

    return both


def segment_features(
    source: GAFX | FrontEnd, run: Callable[[Tensor], Tensor], manifest: Manifest, rows: npt.NDArray[np.int64],
    seconds: float, *, batch_size: int = 8, name: str = "features", overlap: float = 0.0,
) -> Predictions:  # fmt: skip
    """Compute a row of features for each segment that evaluation would test.

    Args:
        source: what computes them, in eval mode, on the device to use.
        run: `(batch, channels, samples)` waves -> `(batch, width)`.
        manifest: the data set.
        rows: of it.
        seconds: length of a segment.
        batch_size: segments per batch.
        name: of the progress bar.
        overlap: of consecutive segments, as a fraction of a segment in [0, 1).
    """
    front_end, least = (source.frontend, source.min_samples()) if isinstance(source, GAFX) else (source, 1)
    rate = front_end.sample_rate
    segments = evaluation_segments(manifest, rows, rate, round(seconds * rate), least, overlap=overlap)
    clips = ClipDataset(manifest, segments, FileReader(manifest, rate, front_end.channels))
    with tqdm(total=len(clips), desc=name, unit="segment", disable=not sys.stderr.isatty()) as bar:
        return predict_segments(
            source, evaluation_loader(clips, batch_size=batch_size), segments, run, device=device_of(source),
            precision="fp32", progress=bar.update,
        )  # fmt: skip


def sound_features(
    run: Run, inputs: Inputs, layout: Layout, *, sample_rate: float | None = None, **options: Any
) -> Predictions:
    """Compute a row of features for each of some sounds, the mean over its windows.

    Args:
        run: `(batch, channels, samples)` waves -> `(batch, width)`.
        inputs, sample_rate: as for `gafx.predict`.
        layout: of the windows.
        **options: of `gafx.deploy.windows.compute`.

    Returns:
        values in the order of the inputs, with their positions as `row`; `skipped` lists those that cannot be read.

    Raises:
        UsageError: inputs of another form, or none that can be read.
    """
    sums: dict[int, tuple[Any, int]] = {}
    means, skipped = {}, []
    for found in compute(run, open_inputs(inputs, sample_rate), layout, **options):
        if isinstance(found, Computed):
            total, count = sums.get(found.file, (0.0, 0))
            sums[found.file] = total + found.values.astype(np.float64), count + 1
        elif found.error is not None:
            skipped.append(Skipped(found.name, found.error))
        else:
            total, count = sums.pop(found.file)
            means[found.file] = total / count
    if not means:
        raise UsageError(f"no sound can be read{''.join(f'; {each.path}: {each.reason}' for each in skipped[:3])}")
    rows = sorted(means)
    values = np.stack([means[row] for row in rows])
    return Predictions(np.array(rows), np.zeros(len(rows), np.int64), values, tuple(skipped))


def probe_run(model: GAFX, features: ProbeFeatures) -> Callable[[Tensor], Tensor]:
    """Return the function that computes what a head on a frozen model reads.

    `(batch, channels, samples)` -> `(batch, width)`.
    """
    return lambda wave: probe_features(model.classifier, model.features(wave), features)


def weights_digest(arguments: Mapping[str, Any], module: nn.Module) -> str:
    """Digest of a module's arguments and weights."""
    parts: list[Any] = [repr(arguments)]
    for name, tensor in sorted(module.state_dict().items()):
        parts += [f"{name}{tensor.dtype}{tuple(tensor.shape)}"]
        parts += [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()]
    return digest(*parts, size=12)


def data_digest(manifest: Manifest) -> str:
    """Digest of a data set's clips, labels and files (their sizes and modification times), for the cache's names."""
    parts = [manifest.fingerprint(), manifest.audio_fingerprint()]
    for row in range(len(manifest)):
        file = manifest.file(row)
        status = os.stat(file if isinstance(file, bytes) else file.path)
        parts.append(f"{status.st_size} {status.st_mtime_ns};")
    return digest(*parts, size=12)


def cache_file(folder: Path, name: str, key: Sequence[object], device: torch.device | None = None) -> Path:
    """Return the path of the file of `cached`."""
    if device is not None and device.type != "cpu":
        key = (*key, device.type)
    return folder / f"{name}-{digest(repr(key), size=10)}.npz"


def cached(
    folder: Path, name: str, key: Sequence[object], make: Callable[[], tuple[dict[str, Any], Sequence[Skipped]]],
    device: torch.device | None = None,
) -> tuple[dict[str, Any], tuple[Skipped, ...]]:  # fmt: skip
    """Return the arrays and skipped files of `make`, kept as `<name>-<digest of key>.npz`, which is never unpickled.

    A damaged file is written again. Features computed on a GPU have a separate file, since a GPU rounds differently.
    """
    path = cache_file(folder, name, key, device)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, tuple(Skipped(**entry) for entry in json.loads(str(arrays.pop("skipped"))))
    except FileNotFoundError:
        pass
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        _log.warning("%s is damaged (%s) and is written again", path, error)
    arrays, skipped = make()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, **arrays, skipped=np.array(json.dumps([clip.as_dict() for clip in skipped])))
    return arrays, tuple(skipped)


def cached_predictions(
    folder: Path, name: str, key: Sequence[object], make: Callable[[], Predictions], device: torch.device | None = None
) -> Predictions:
    """`cached` for a table of features."""

    def arrays() -> tuple[dict[str, Any], Sequence[Skipped]]:
        found = make()
        return {"row": found.row, "start": found.start, "values": found.values}, found.skipped

    kept, skipped = cached(folder, name, key, arrays, device)
    return Predictions(**kept, skipped=skipped)
