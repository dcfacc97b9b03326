"""GAFX-A: GAFX-R's network, then self-attention over the frames (GAFX section 3.1.3)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape
from gafx.nn.attention import AttentionLayer
from gafx.nn.conv import BasicBlock
from gafx.nn.frames import BINS, OUT_SAMPLES, FrameResNet, count_frames, cut_frames
from gafx.nn.maps import MapNorm
from gafx.registry import FRONTENDS
from gafx.saving import weights


@FRONTENDS.register
class GAFXA(FrontEnd):
    """GAFX-A: 22.05 kHz mono, one frame for every 200 samples, 128 bins: 30 s give 128 x 3308.

    The wave is cut into frames and read by GAFX-R's network; the 4 places left of a frame become one; self-attention
    layers then let every frame see all others. The paper gives neither depth nor heads nor norms, says that its loss
    was NaN (section 4.2.2), and has no figure for it in Table 6.

    What comes before and after the layers is ours too. With `norm=pre` the network's output is brought to mean 0 and
    deviation 0.5 over each clip, so that its scale does not matter and the clip's dynamics stay; the layers start close
    to the identity, so training starts where GAFX-R's does. There is no norm after the last layer: `GAFX` brings each
    clip's map to its scale anyway, and a norm over each frame would make soft frames as loud as others.
    docs/gafx_a.md tells what was measured.

    Args:
        width: channels of the network's first layer, a multiple of 16; 64 is the paper's.
        cnn_norm: norms inside the network, `batch` or `group`, as GAFX-R's `norm`.
        pooling: over the 4 positions of a frame: `mean`, or `project`, a linear layer from 4 x 128 to 128 (initialised
            to the mean with `norm=pre`).
        depth: attention layers, at least 1.
        heads: attention heads, a divisor of 128 up to 64.
        norm: of the attention layers. `pre`: built to train: LayerNorm before each branch, bounded queries and keys,
            rotary positions. `post`: the layer that a reader of the paper would take from its library, LayerNorm after
            each sum, straight on the network's output, no positions. `none`: the same without any norm.
        sample_rate: in Hz; the paper's 22,050 makes a frame 9.07 ms.
        pretrained: weights that gafx saved: of a GAFX-A, or of a GAFX-R, which start the network and leave the
            attention at its start; see `FrontEnd.load_pretrained`. `false` starts at random.
        across_rates: take `pretrained` weights that gafx saved at another sampling rate, too.
    """

    fsdp_units = (BasicBlock, AttentionLayer)
    renamed: ClassVar = {"places": "pooling"}

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
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        self.across_rates = across_rates
        if sample_rate < 1:
            raise UsageError(f"frontend.sample_rate={sample_rate} must be at least 1")
        if depth < 1:
            raise UsageError(f"frontend.depth={depth} must be at least 1; without attention take frontend=gafx_r")
        if not 1 <= heads <= BINS // 2 or BINS % heads:
            raise UsageError(f"frontend.heads={heads} must divide {BINS}: choose 1, 2, 4, 8, 16, 32 or 64")
        self.sample_rate = sample_rate
        self.resnet = FrameResNet(width, cnn_norm)
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
        """Kernels of the network's first convolution, `(width, 7 frames, 7 samples)`."""
        return self.resnet.first_filters()

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, 128, ceil(samples / 200))`."""
        self.check_wave(wave)
        x = self.resnet(cut_frames(wave))
        if self.projection is None:
            x = x.mean(dim=-1)
        else:
            x = self.projection(x.transpose(1, 2).flatten(2)).transpose(1, 2)
        x = self.entry(x.unsqueeze(1)).squeeze(1).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(1, 2).unsqueeze(1)

    def load_pretrained(self, source: bool | str) -> None:
        """Load weights that gafx saved of a GAFX-A, or of a GAFX-R: those start the network alone.

        Raises:
            UsageError: nothing there, or weights of a front-end built differently.
        """
        path = weights.find(source, key="frontend.pretrained")
        state = weights.part(weights.read(path), "frontend")
        if not all(name.startswith("resnet.") for name in state):
            return super().load_pretrained(source)
        self.check_rate(path)
        cure = "give frontend.width and frontend.cnn_norm what that GAFX-R has as width and norm"
        weights.fit(self.resnet, weights.part(state, "resnet"), path, cure=cure)
        self.record_source(path, source)
