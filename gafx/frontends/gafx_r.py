"""GAFX-R: a ResNet over frames of raw samples (GAFX section 3.1.2, Table 2)."""

from typing import Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape
from gafx.nn.conv import BasicBlock, init_resnet, norm_layer
from gafx.registry import FRONTENDS

FRAME = 200
BINS = 128
# Channels (in units of `width`, the last fixed) and strides along a frame of Table 2's layers 1 to 5.
_LAYERS = ((1, 1), (2, 2), (4, 2), (8, 2), (None, 2))


class FrameResNet(nn.Module):
    """Table 2's network: frames of 200 samples -> 128 channels over 4 places a frame; time is never strided.

    `(batch, 1, frames, 200)` -> `(batch, 128, frames, 4)`. Along a frame the sizes are 200, 100 (conv1), 50 (max-pool),
    50, 25, 13, 7, 4 (layers 1 to 5). Kernels are ResNet-18's: 7 x 7 in conv1, 3 x 3 in the blocks.
    """

    def __init__(self, width: int, norm: Literal["batch", "group"]):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 7, (1, 2), 3, bias=False)
        self.norm1 = norm_layer(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, (1, 2), 1)
        layers, channels = [], width
        for times, stride in _LAYERS:
            out = BINS if times is None else times * width
            layers.append(nn.Sequential(BasicBlock(channels, out, stride, norm), BasicBlock(out, out, 1, norm)))
            channels = out
        self.layers = nn.ModuleList(layers)
        init_resnet(self)
        # In bfloat16 channels last took 0.67 to 0.74 of the time of a training step, in float32 0.86 to 1.07 (two AMX
        # cores, widths 64 and 16: benchmarks/training_step.py).
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.contiguous(memory_format=torch.channels_last)
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        for layer in self.layers:
            x = layer(x)
        return x


@FRONTENDS.register
class GAFXR(FrontEnd):
    """GAFX-R: 22.05 kHz mono, one frame for every 200 samples, 128 bins: 30 s give 128 x 3308.

    The wave is padded with zeros to whole frames, cut into frames of 200 samples, read by `FrameResNet`, and averaged
    over the 4 places that are left of a frame. 735 GFLOP a 30 s clip at the paper's width.

    Args:
        width: channels of the first layer, a multiple of 16; the others are its multiples, the last is 128 whatever the
            width. 64 is the paper's.
        norm: `batch` as in ResNet, or `group`, which makes results independent of batch size and number of processes.
        sample_rate: in Hz; the paper's 22,050 makes a frame 9.07 ms.
        pretrained: weights that gafx saved, see `FrontEnd.load_pretrained`; `false` starts at random.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        norm: Literal["batch", "group"] = "batch",
        sample_rate: int = 22050,
        pretrained: bool | str = False,
    ):
        super().__init__()
        # Below 16 channels oneDNN's channels-last kernels are not dependable: torch 2.12 crashes in the backward pass
        # of the strided 1 x 1 convolution from 8 to 16 channels in float32.
        if width < 16 or width % 16:
            raise UsageError(f"frontend.width={width} must be a multiple of 16, e.g. 64 (the paper's) or 16")
        if sample_rate < 1:
            raise UsageError(f"frontend.sample_rate={sample_rate} must be at least 1")
        self.sample_rate = sample_rate
        self.resnet = FrameResNet(width, norm)
        if pretrained is not False:
            self.load_pretrained(pretrained)

    def output_shape(self, samples: int) -> Shape:
        return 1, BINS, -(-samples // FRAME)

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, 128, ceil(samples / 200))`."""
        self.check_wave(wave)
        wave = nn.functional.pad(wave, (0, -wave.shape[-1] % FRAME))
        places = self.resnet(wave.unflatten(-1, (-1, FRAME)))
        return places.mean(dim=-1).unsqueeze(1)
