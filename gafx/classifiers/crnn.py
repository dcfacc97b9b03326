"""Convolutions and a recurrent layer with an output for each frame: the AudioSet tagger of Dinkel et al. (2021)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape, check_rates, find_weights
from gafx.errors import UsageError
from gafx.nn.precision import HALF_TYPES
from gafx.nn.recurrent import UNROLLED, unrolled_gru
from gafx.registry import CLASSIFIERS
from gafx.saving import catalogue, weights
from gafx.saving.info import AUDIOSET

_PICKLES = (".pth", ".pt")
_HEAD = "outputlayer."
_POOLED = 64  # bins of the map that become one row before the recurrent layer: three poolings by 4
_HIDDEN = 128
# Probabilities of a frame are kept in [1e-7, 1 - 1e-7], as in the published code (its upper limit is 1).
_LIMIT = math.log(1e-7 / (1 - 1e-7))


class LPPool(nn.Module):
    """Pooling with the norm of order 4, `(sum of x^4)^(1/4)` over each window of (time, frequency)."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            total = nn.functional.avg_pool2d(x.square().square(), self.size) * math.prod(self.size)
            # Below 1e-30 the gradient of the root would be infinite (torch's own LPPool2d gives NaN at 0).
            return total.clamp(min=1e-30).sqrt().sqrt()


class ConvBlock(nn.Module):
    """Batch norm, 3 x 3 convolution, leaky ReLU."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.LeakyReLU(0.1, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        kind = self.block[0].weight.dtype
        # The pooling computes in float32, which a batch norm that `bfloat16()` converted does not take.
        return self.block(x.to(kind) if kind in HALF_TYPES else x)


@CLASSIFIERS.register
class CRNN(Classifier):
    """Five convolutions, a bidirectional GRU and a probability of each label in each frame, pooled over the clip.

    The teacher of "Voice activity detection in the wild: a data-driven approach using teacher-student training" (Dinkel
    et al., 2021, arXiv 2105.04065; https://github.com/RicherMans/Datadriven-GPVAD). 0.81 million parameters with 527
    labels. Pooling reduces time to a quarter; the probabilities of frames are interpolated back to the frames of the
    map. That of a clip is `sum p^2 / sum p` over its frames ("linear softmax"), which weights a frame by its own
    probability, so that a short sound in a long clip counts.

    `forward` returns the logits of the clip's probabilities, `log(p / (1 - p))`: the sigmoid of `objective=tag` gives
    the published output; `objective=classify` trains their softmax. They cannot be computed from an embedding of fixed
    size, so `head`, the output layer, applies to frames: `head(embed(map))` is the logit of an average frame.

    Args:
        map_shape: (channels, frequency, time) of the maps; the published weights are for 64 bins.
        num_classes: number of outputs.
        pretrained: weights to start from, or `false` for a random start. `audioset-crnn` or `true`: the published ones,
            fetched once (3.3 MB) into the cache of `gafx.saving.catalogue`. Or the path of their state dict (`.pth`,
            from which only tensors are read) or of a model saved by gafx (`.safetensors`, a folder or an id on the
            hub). The output layer is loaded if the number of classes agrees, else it stays random. The published
            weights set `input_scale`.
        dropout: on the input of the recurrent layer in training, in [0, 1).

    Raises:
        UsageError: a map of fewer than 64 bins or 4 frames, `dropout` out of range, or weights that cannot be loaded or
            do not fit.
    """

    frame_head = True
    fixed_length = UNROLLED
    min_frames = 4
    published: ClassVar[Mapping[bool | str, str]] = {True: AUDIOSET, "audioset-crnn": AUDIOSET}

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        pretrained: bool | str = False,
        dropout: float = 0.3,
    ):
        super().__init__()
        check_rates(dropout=dropout)
        self.map_shape, self.num_classes, self.width = map_shape, num_classes, 2 * _HIDDEN
        # The order, and so the names of the tensors, are those of the published model.
        self.features = nn.Sequential(
            ConvBlock(map_shape[0], 32),
            LPPool((2, 4)),
            ConvBlock(32, 128),
            ConvBlock(128, 128),
            LPPool((2, 4)),
            ConvBlock(128, 128),
            ConvBlock(128, 128),
            LPPool((1, 4)),
            nn.Dropout(dropout),
        )
        self.gru = nn.GRU(128 * (map_shape[1] // _POOLED), _HIDDEN, bidirectional=True, batch_first=True)
        self.outputlayer = nn.Linear(self.width, num_classes)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.kaiming_uniform_(self.outputlayer.weight)
        nn.init.zeros_(self.outputlayer.bias)
        if pretrained is not False:
            self._load(pretrained)

    @classmethod
    def check_map(cls, map_shape: Shape) -> None:
        _, frequency, frames = map_shape
        if frequency < _POOLED or frames < cls.min_frames:
            raise UsageError(
                f"a map of {frequency} x {frames} (frequency x time) is too small for classifier=crnn, which needs "
                f"{_POOLED} x {cls.min_frames}; use longer clips or a front-end with more bins"
            )

    def frames(self, feature_map: Tensor) -> Tensor:
        """Compute the outputs of the recurrent layer.

        `(batch, channels, frequency, time)` -> `(batch, time // 4, 256)`.
        """
        self.check_input(feature_map)
        x = self.features(feature_map.transpose(2, 3)).transpose(1, 2).flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.outputlayer.weight.dtype)
            return unrolled_gru(self.gru, x) if torch.compiler.is_exporting() else self.gru(x)[0]

    def _frame_logits(self, frames: Tensor) -> Tensor:
        """`(batch, time // 4, 256)` -> `(batch, classes, time // 4)`, float32 or float64."""
        logits = self.head(frames).transpose(1, 2)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).clamp(_LIMIT, -_LIMIT)

    def frame_probabilities(self, feature_map: Tensor) -> Tensor:
        """Compute the probability of each label in each frame of the map, in [1e-7, 1 - 1e-7].

        `(batch, channels, frequency, time)` -> `(batch, classes, time)`, float32.
        """
        return _to_frames(self._frame_logits(self.frames(feature_map)).sigmoid(), feature_map)

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the mean over time of the recurrent layer's outputs.

        `(batch, channels, frequency, time)` -> `(batch, 256)`.
        """
        return self.frames(feature_map).mean(dim=1)

    def head(self, embedding: Tensor) -> Tensor:
        """Compute the logits of frames. `(..., 256)` -> `(..., classes)`."""
        return self.outputlayer(embedding)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Compute the logits of clips. `(batch, channels, frequency, time)` -> `(batch, classes)`, in [-16.2, 16.2]."""
        return self._pool(self.frames(feature_map), feature_map)

    def embed_and_classify(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        frames = self.frames(feature_map)
        return frames.mean(dim=1), self._pool(frames, feature_map)

    def _pool(self, frames: Tensor, feature_map: Tensor) -> Tensor:
        """Logits of the clips `(batch, classes)` from the outputs of the recurrent layer."""
        logits = self._frame_logits(frames)
        present, absent = (_to_frames(each.sigmoid(), feature_map) for each in (logits, -logits))
        # With c = sum p^2 / sum p, 1 - c is sum p (1 - p) / sum p. The difference 1 - p would lose small values.
        return present.square().sum(dim=2).log() - (present * absent).sum(dim=2).log()

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the output layer."""
        return (_HEAD,)

    def _load(self, source: bool | str) -> None:
        """Load pretrained weights in place. Raises `UsageError` if they do not fit."""
        model = catalogue.find("audioset-crnn" if source is True else source)
        path = (
            catalogue.fetch(model)
            if model and model.classifier["name"] == "crnn"
            else find_weights(source, None, (".safetensors", *_PICKLES))
        )
        state = self._read(path)
        own = self.state_dict()
        head = [name for name in own if name.startswith(_HEAD)]
        if not all(name in state and state[name].shape == own[name].shape for name in head):
            state |= {name: own[name] for name in head}
        else:
            published = catalogue.identify(path)
            self.head_labels = published[0].labels if published else weights.labels(path)
        weights.fit(
            self, state, path,
            cure="use the front-end that it was trained with; that of the published weights is frontend=mel_librosa of "
            "gafx train, and in Python in gafx.load('audioset-crnn', classes=[...])",
        )  # fmt: skip
        self.record_source(path, source)

    def _read(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of a file under the names of this class, and set `input_scale` for published ones."""
        if path.suffix not in _PICKLES:
            return weights.part(weights.read(path), "classifier")
        state = weights.read_state_dict(path)
        self.input_scale = take_scale(state, path)
        return state


def take_scale(state: dict[str, Tensor], path: Path) -> tuple[float, float]:
    """Move the mean and the std of the published network's input from its first batch norm to the map's norm.

    The published network reads log-mel powers as they are, and its first batch norm, with one channel, centres and
    scales them. gafx does that before the classifier (`MapNorm`: mean 0 and std 0.5), so that a masked value is the
    mean and a front-end's statistics can be computed anew for other data. The result is the same.

    Args:
        state: changed in place: the statistics of that batch norm become 0 and 0.25.
        path: of the file, for messages.

    Returns:
        mean and std for `MapNorm.fit`.

    Raises:
        UsageError: there is no such batch norm.
    """
    first = "features.0.block.0"
    mean, variance = state.get(f"{first}.running_mean"), state.get(f"{first}.running_var")
    if mean is None or variance is None or not mean.shape == variance.shape == (1,):
        raise UsageError(
            f"{path} holds no crnn of Datadriven-GPVAD: {first}.running_mean and .running_var must be there, with one "
            "element each"
        )
    eps = nn.BatchNorm2d(1).eps
    state[f"{first}.running_mean"], state[f"{first}.running_var"] = mean * 0, variance * 0 + 0.25
    return float(mean), math.sqrt((float(variance) + eps) / (4 * (0.25 + eps)))


def _to_frames(values: Tensor, feature_map: Tensor) -> Tensor:
    """Interpolate `(batch, classes, time // 4)` linearly to the frames of the map."""
    return nn.functional.interpolate(values, size=feature_map.shape[3], mode="linear", align_corners=False)
