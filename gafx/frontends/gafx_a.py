"""GAFX-A: GAFX-R's network, then self-attention over the frames (GAFX section 3.1.3)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape, check_positive
from gafx.nn.attention import AttentionLayer
from gafx.nn.conv import BasicBlock
from gafx.nn.frames import BINS, OUT_SAMPLES, FrameResNet, count_frames, cut_frames, log_bands
from gafx.nn.maps import MapNorm, Over
from gafx.registry import FRONTENDS
from gafx.saving import weights


@FRONTENDS.register
class GAFXA(FrontEnd):
    """GAFX-A: 22.05 kHz mono, one frame per 200 samples, 128 bins: 30 s give 128 x 3308.

    The wave is cut into frames and passed through the network of GAFX-R; the 4 positions that remain of a frame are
    pooled; self-attention layers then mix the frames. The paper states neither depth nor heads nor norms, reports a NaN
    loss (section 4.2.2), and has no accuracy for it in Table 6.

    The normalisation before and after the layers is a choice of gafx. With `norm=pre` the output of the network is
    normalised to mean 0 and std 0.5 over each clip, which removes its scale and keeps the dynamics within the clip. The
    layers start close to the identity, so training starts where that of GAFX-R does. There is no norm after the last
    layer: `GAFX` normalises the map of each clip, and a norm over each frame would remove the dynamics. Measurements:
    docs/gafx_a.md.

    Args:
        width: channels of the network's first layer, a multiple of 16; 64 is the paper's.
        cnn_norm: norm layers of the network, `batch` or `group`, as `norm` of GAFX-R.
        pooling: over the 4 positions of a frame: `mean`, or `project`, a linear layer from 4 x 128 to 128 (initialised
            to the mean with `norm=pre`).
        depth: attention layers, at least 1.
        heads: attention heads, a divisor of 128 up to 64.
        norm: of the attention layers. `pre`, which trains stably: LayerNorm before each branch, normalised queries and
            keys, rotary positions. `post`, the standard layer of PyTorch: LayerNorm after each sum, no positions, no
            normalisation of the network's output. `none`: `post` without LayerNorm.
        sample_rate: in Hz; with the paper's 22,050 a frame is 9.07 ms.
        init: `random`, as ResNet's; or `gabor`: the first layer starts with pairs of Gabor filters (cosine and sine) of
            7 samples, evenly spaced up to half the sampling rate, in the kernel row of the frame itself.
        log: take the logarithm of the network's output, which is not negative, plus 0.01: bands then differ by ratios.
        map_norm: which values of the map share a mean and a std, see `gafx.nn.maps.MapNorm`; null for `clip`.
        pretrained: weights saved by gafx, see `FrontEnd.load_pretrained`: of a GAFX-A, or of a GAFX-R, which initialise
            the network only. `false` starts at random.
        across_rates: also accept `pretrained` weights that were trained at another sampling rate.
    """

    fsdp_units = (BasicBlock, AttentionLayer)
    renamed: ClassVar = {"places": "pooling"}
    hash_if_changed: ClassVar = ("init", "log", "map_norm")

    def __init__(
        self,
        *,
        width: int = 64,
        cnn_norm: Literal["batch", "group"] = "batch",
        pooling: Literal["mean", "project"] = "mean",
        depth: int = 2,
        heads: int = 4,
        norm: Literal["pre", "post", "none"] = "pre",
        sample_rate: int = 22050,
        init: Literal["random", "gabor"] = "random",
        log: bool = False,
        map_norm: Literal["clip", "scalar", "band"] | None = None,
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        self.across_rates = across_rates
        self.map_norm: Over | None = map_norm
        check_positive(sample_rate=sample_rate)
        if depth < 1:
            raise UsageError(f"frontend.depth={depth} must be at least 1; without attention use frontend=gafx_r")
        if not 1 <= heads <= BINS // 2 or BINS % heads:
            raise UsageError(f"frontend.heads={heads} must divide {BINS}: choose 1, 2, 4, 8, 16, 32 or 64")
        if log and pooling == "project":
            raise UsageError("frontend.log=true needs frontend.pooling=mean: a projection gives negative values")
        self.sample_rate = sample_rate
        self.resnet, self.log = FrameResNet(width, cnn_norm, init), log
        self.projection = nn.Linear(OUT_SAMPLES * BINS, BINS) if pooling == "project" else None
        self.entry: nn.Module = MapNorm(learned=True) if norm == "pre" else nn.Identity()
        self.layers = nn.ModuleList(AttentionLayer(BINS, heads, norm) for _ in range(depth))
        if self.projection is not None and norm == "pre":
            with torch.no_grad():
                self.projection.weight.copy_(torch.eye(BINS).repeat_interleave(OUT_SAMPLES, dim=1) / OUT_SAMPLES)
                self.projection.bias.zero_()
        if pretrained is not False:
            self.load_pretrained(pretrained)

    def output_shape(self, samples: int) -> Shape:
        return 1, BINS, count_frames(samples)

    def first_filters(self) -> Tensor:
        """Return the kernels of the first convolution, `(width, 7 frames, 7 samples)`."""
        return self.resnet.first_filters()

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, 128, ceil(samples / 200))`."""
        self.check_wave(wave)
        x = self.resnet(cut_frames(wave))
        if self.projection is None:
            x = x.mean(dim=-1)
        else:
            x = self.projection(x.transpose(1, 2).flatten(2)).transpose(1, 2)
        if self.log:
            x = log_bands(x)
        x = self.entry(x.unsqueeze(1)).squeeze(1).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(1, 2).unsqueeze(1)

    def load_pretrained(self, source: bool | str) -> None:
        """Load weights saved by gafx of a GAFX-A, or of a GAFX-R, which initialise the network only."""
        path = weights.find(source, key="frontend.pretrained")
        state = weights.part(weights.read(path), "frontend")
        if not all(name.startswith("resnet.") for name in state):
            return super().load_pretrained(source)
        self.check_rate(path)
        cure = "set frontend.width and frontend.cnn_norm to width and norm of that GAFX-R"
        weights.fit(self.resnet, weights.part(state, "resnet"), path, cure=cure)
        self.record_source(path, source)
