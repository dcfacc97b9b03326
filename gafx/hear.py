"""gafx models behind the common API of HEAR 2021 (https://hearbenchmark.com/hear-api.html), for `heareval`.

    heareval.embeddings.runner gafx.hear --model outputs/RUN --tasks-dir tasks
    heareval.embeddings.runner gafx.hear --model-options '{"model_file_path": "audioset-crnn"}' --tasks-dir tasks

Memory does not grow with the length of the audio, apart from the embeddings themselves: whatever is longer than the
model's segments is read in windows.
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gafx.audio.segments import segment_starts
from gafx.config import parse_values
from gafx.errors import UsageError, did_you_mean
from gafx.frontends.base import FrontEnd, match_channels
from gafx.loading import load
from gafx.model import GAFX, create_frontend
from gafx.saving import catalogue

_FRONTEND, _EXAMPLE = "frontend=", "frontend=mel,sample_rate=44100"
_OPTIONS = ("hop_ms", "window_seconds")
_SEGMENT_SECONDS = 10.0  # window of a front-end alone
_BATCH_SAMPLES = 2**21  # in a forward pass: 13 windows of 10 s at 16 kHz
_CONTEXT = 1  # neighbours on each side in a timestamp embedding of a front-end alone


class HEARModel(nn.Module):
    """A model, or a front-end alone, with the attributes that the API asks for.

    A scene embedding of a model is `GAFX.embed`, the mean over its windows; of a front-end alone it is the mean and the
    std over time of each bin of its map. A timestamp embedding of a model that has frames (`classifier=crnn`, also as
    the base of `linear_probe`) is the frame at that time; of a front-end alone, the bins of its map there, averaged
    over `hop_ms`, with those of the two neighbours; of any other model, the embedding of `window_seconds` around that
    time.

    Args:
        model: with a classifier, or a front-end alone.
        hop_ms: time between two timestamp embeddings.
        window_seconds: of the timestamp embeddings of a model without frames.

    Attributes:
        sample_rate: of the audio in Hz.
        scene_embedding_size: of a scene embedding.
        timestamp_embedding_size: of a timestamp embedding.

    Raises:
        UsageError: `hop_ms` or `window_seconds` is no finite number above 0.
    """

    def __init__(self, model: GAFX | FrontEnd, *, hop_ms: float = 50.0, window_seconds: float = 1.0):
        super().__init__()
        for key, value in (("hop_ms", hop_ms), ("window_seconds", window_seconds)):
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
                raise UsageError(f"{key}={value!r} must be a number above 0")
        self.model, self.hop_ms = model, float(hop_ms)
        front_end = model.frontend if isinstance(model, GAFX) else model
        self.frontend = front_end
        self.sample_rate = front_end.sample_rate
        seconds = model.info.segment_seconds if isinstance(model, GAFX) and model.info else _SEGMENT_SECONDS
        self.least = model.min_samples() if isinstance(model, GAFX) else _min_samples(front_end)
        self.segment = max(self.least, round(seconds * self.sample_rate))
        self.window = max(self.least, min(self.segment, round(window_seconds * self.sample_rate)))
        self.has_frames = True
        if isinstance(model, GAFX):
            framed = _framed(model)
            self.has_frames = hasattr(framed, "frames")
            self.scene_embedding_size = int(model.classifier.width)
            self.timestamp_embedding_size = int(framed.width) if self.has_frames else self.scene_embedding_size
        else:
            channels, bins, _ = front_end.output_shape(self.segment)
            values = channels * front_end.planes * bins
            self.scene_embedding_size, self.timestamp_embedding_size = 2 * values, (2 * _CONTEXT + 1) * values

    def scenes(self, wave: Tensor) -> Tensor:
        """Scene embeddings of whole windows. `(windows, 1, samples)` -> `(windows, scene_embedding_size)`."""
        if isinstance(self.model, GAFX):
            return self.model.embed(match_channels(wave, self.frontend.channels))
        frames = self._bins(wave)
        return torch.cat([frames.mean(dim=1), frames.std(dim=1, correction=0)], dim=1)

    def frames(self, wave: Tensor) -> Tensor:
        """Frames at equal distances over a wave. `(windows, 1, samples)` -> `(windows, frames, size)`."""
        if isinstance(self.model, GAFX):
            return _framed(self.model).frames(self.model.features(match_channels(wave, self.frontend.channels)))
        return self._bins(wave)

    def _bins(self, wave: Tensor) -> Tensor:
        feature_map = self.frontend(match_channels(wave, self.frontend.channels))
        return self.frontend.planes_to_channels(feature_map).flatten(1, 2).transpose(1, 2)

    def forward(self, audio: Tensor) -> Tensor:
        """Compute scene embeddings; see `get_scene_embeddings`."""
        return get_scene_embeddings(audio, self)


def _framed(model: GAFX) -> Any:
    """The classifier whose frames are read: that of the model, or the base of a linear layer on another one."""
    return getattr(model.classifier, "base", model.classifier)


def load_model(model_file_path: str = "", **options: Any) -> HEARModel:
    """Load a model for `get_timestamp_embeddings` and `get_scene_embeddings`.

    Args:
        model_file_path: whatever `gafx.load` takes: a run's folder, a saved model, a name of the catalogue, a
            repository of the hub. Or a front-end alone, `frontend=mel` or with arguments
            `frontend=mel,sample_rate=44100`. Empty: the catalogue's default if it is in the cache.
        **options: `hop_ms` and `window_seconds` of `HEARModel`.

    Raises:
        UsageError: no model there, an unknown option, front-end or argument, or nothing is named and no model is in
            the cache.
    """
    for key in options:
        if key not in _OPTIONS:
            hint = did_you_mean(key, _OPTIONS) or ";"
            raise UsageError(f"load_model has no option {key!r}{hint} it takes {' and '.join(_OPTIONS)}")
    source = str(model_file_path)
    if source.startswith(_FRONTEND):
        name, *pairs = source.removeprefix(_FRONTEND).split(",")
        for pair in pairs:
            if not pair.partition("=")[1]:
                raise UsageError(f"{source!r}: {pair!r} has no value; write e.g. {_EXAMPLE}")
        front_end = create_frontend(name, **parse_values(pairs, source, _EXAMPLE))
        return HEARModel(front_end, **options).eval()
    default = catalogue.CATALOGUE[catalogue.DEFAULT]
    if not source and not default.is_cached:
        raise UsageError(
            "load_model() without a model takes the published audioset-crnn, which is not in the cache: name a run's "
            "folder, a model of gafx list --pretrained (naming one fetches it), or a front-end as frontend=mel"
        )
    return HEARModel(load(source or default.name), **options).eval()


@torch.no_grad()
def get_scene_embeddings(audio: Tensor | npt.NDArray[np.floating], model: HEARModel) -> Tensor:
    """Compute an embedding of each sound.

    Args:
        audio: `(sounds, samples)` floating-point, mono, in [-1, 1], at `model.sample_rate`; any length.
        model: from `load_model`.

    Returns:
        `(sounds, model.scene_embedding_size)` float32.

    Raises:
        UsageError: audio of another shape or type, no samples, or samples that are not finite.
    """
    wave = _wave(_checked(audio, model), model)
    starts = segment_starts(wave.shape[2], model.segment)
    found = _in_windows(model.scenes, wave, starts, model.segment)
    return found.mean(dim=1)


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor | npt.NDArray[np.floating], model: HEARModel) -> tuple[Tensor, Tensor]:
    """Compute embeddings at equal distances in time, each centred on its timestamp.

    Args:
        audio: `(sounds, samples)` floating-point, mono, in [-1, 1], at `model.sample_rate`; any length.
        model: from `load_model`.

    Returns:
        embeddings `(sounds, timestamps, model.timestamp_embedding_size)` float32, and timestamps `(sounds, timestamps)`
        in milliseconds: the middles of consecutive stretches of `hop_ms`.

    Raises:
        UsageError: audio of another shape or type, no samples, or samples that are not finite.
    """
    checked = _checked(audio, model)
    length, wave = checked.shape[1], _wave(checked, model)
    hop = model.hop_ms / 1000 * model.sample_rate
    times = (np.arange(max(1, round(length / hop))) + 0.5) * hop  # in samples
    found = (_frames_at if model.has_frames else _windows_at)(model, wave, times)
    stamps = torch.from_numpy(times / model.sample_rate * 1000).to(found)
    return found, stamps.expand(len(found), -1).clone()


def _windows_at(model: HEARModel, wave: Tensor, times: np.ndarray) -> Tensor:
    """Embeddings of windows around `times` in samples; windows at the ends are moved inwards."""
    window = min(model.window, wave.shape[2])
    starts = np.clip(np.rint(times - window / 2), 0, wave.shape[2] - window).astype(int)
    return _in_windows(model.scenes, wave, starts.tolist(), window)


def _frames_at(model: HEARModel, wave: Tensor, times: np.ndarray) -> Tensor:
    """Frames at `times` in samples, each from the segment in whose middle it is nearest, interpolated linearly."""
    total, context = wave.shape[2], _CONTEXT if not isinstance(model.model, GAFX) else 0
    window = min(model.segment, total)
    starts = np.array(sorted({*range(0, total - window + 1, max(1, window // 2)), total - window}))
    nearest = np.abs(times[:, None] - (starts + window / 2)).argmin(axis=1)
    step = model.hop_ms / 1000 * model.sample_rate
    found: list[Tensor] = []
    for index, start in enumerate(starts.tolist()):
        inside = times[nearest == index] - start
        if not len(inside):
            continue

        def at(piece: Tensor, inside: np.ndarray = inside) -> Tensor:
            frames = model.frames(piece)
            cells = max(1, min(frames.shape[1], math.ceil(window / step)))  # frames closer than a hop are averaged
            frames = nn.functional.adaptive_avg_pool1d(frames.float().transpose(1, 2), cells)
            if context:
                padded = nn.functional.pad(frames, (context, context), mode="replicate")
                frames = torch.cat([padded[:, :, i : i + cells] for i in range(2 * context + 1)], dim=1)
            place = torch.from_numpy(np.clip(inside / window * cells - 0.5, 0, cells - 1)).to(frames)
            low = place.floor().long()
            high = (low + 1).clamp(max=cells - 1)
            return torch.lerp(frames[:, :, low], frames[:, :, high], place - low).transpose(1, 2)

        found.append(_in_windows(at, wave, [start], window)[:, 0])
    return torch.cat(found, dim=1)


def _in_windows(compute: Callable[[Tensor], Tensor], wave: Tensor, starts: list[int], window: int) -> Tensor:
    """Apply `compute` to windows of `(sounds, 1, samples)` in batches of bounded size; `(sounds, windows, ...)`."""
    cuts = [(sound, start) for sound in range(len(wave)) for start in starts]
    window = min(window, wave.shape[2])
    size = max(1, _BATCH_SAMPLES // window)
    found = [
        compute(torch.stack([wave[sound, :, start : start + window] for sound, start in cuts[at : at + size]])).float()
        for at in range(0, len(cuts), size)
    ]
    return torch.cat(found).unflatten(0, (len(wave), len(starts)))


def _checked(audio: Any, model: HEARModel) -> Tensor:
    """Audio as a tensor; raise `UsageError` for what no embedding can be computed of."""
    needed = f"it must be (sounds, samples), floating-point, in [-1, 1], at {model.sample_rate} Hz"
    if not isinstance(audio, (Tensor, np.ndarray)):
        raise UsageError(f"audio is a {type(audio).__name__}, not a tensor or an array: {needed}")
    shape, dtype = tuple(audio.shape), audio.dtype
    if len(shape) != 2 or 0 in shape or "float" not in str(dtype):
        raise UsageError(f"audio of shape {shape} and {dtype}: {needed}, with at least one sample")
    tensor = torch.as_tensor(audio)
    if not torch.isfinite(tensor).all():
        raise UsageError(f"audio with NaN or infinite samples: {needed}")
    return tensor


def _wave(audio: Tensor, model: HEARModel) -> Tensor:
    """Move audio to the model, and repeat it up to the shortest length that the model accepts."""
    tensor = next(iter((*model.parameters(), *model.buffers())), None)
    wave = audio[:, None].to(device=tensor.device if tensor is not None else audio.device, dtype=torch.float32)
    return wave.repeat(1, 1, -(-model.least // wave.shape[2]))[:, :, : max(model.least, wave.shape[2])]


def _min_samples(front_end: FrontEnd) -> int:
    """Samples of the shortest wave of which a front-end makes a frame."""
    samples = 1
    while front_end.output_shape(samples)[2] < 1:
        samples *= 2
    return samples
