"""Frames of raw samples and the ResNet that reads them (GAFX section 3.1.2, Table 2); GAFX-R and GAFX-A share it."""

from typing import Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.nn.conv import BasicBlock, init_resnet, norm_layer

FRAME = 200
BINS = 128
OUT_SAMPLES = 4  # what is left of a frame's 200 samples
# Channels (in units of `width`, the last fixed) and strides along a frame of Table 2's layers 1 to 5.
_LAYERS = ((1, 1), (2, 2), (4, 2), (8, 2), (None, 2))


def count_frames(samples: int, frame: int = FRAME) -> int:
    """Frames of 200 (or `frame`) samples that a wave fills, the last one perhaps in part."""
    # Nowhere negative: in ONNX a quotient of whole numbers is rounded towards zero, not down.
    return (samples + frame - 1) // frame


def cut_frames(wave: Tensor, frame: int = FRAME) -> Tensor:
    """`(batch, 1, samples)` -> `(batch, 1, ceil(samples / frame), frame)`, the last frame filled up with zeros."""
    count = count_frames(wave.shape[-1], frame)
    return nn.functional.pad(wave, (0, count * frame - wave.shape[-1])).unflatten(-1, (count, frame))


class FrameResNet(nn.Module):
    """Table 2's network: frames of 200 samples -> 128 channels over 4 places a frame; time is never strided.

    `(batch, 1, frames, 200)` -> `(batch, 128, frames, 4)`. Along a frame the sizes are 200, 100 (conv1), 50 (max-pool),
    50, 25, 13, 7, 4 (layers 1 to 5). Kernels are ResNet-18's: 7 x 7 in conv1, 3 x 3 in the blocks.

    Args:
        width: channels of the first layer, a multiple of 16; the others are its multiples, the last is 128 whatever the
            width. 64 is the paper's.
        norm: `batch` as in ResNet, or `group`, which makes results independent of batch size and number of processes.

    Raises:
        UsageError: a width that is no multiple of 16.
    """

    def __init__(self, width: int, norm: Literal["batch", "group"]):
        super().__init__()
        # Below 16 channels oneDNN's channels-last kernels are not dependable: torch 2.12 crashes in the backward pass
        # of the strided 1 x 1 convolution from 8 to 16 channels in float32.
        if width < 16 or width % 16:
            raise UsageError(f"frontend.width={width} must be a multiple of 16, e.g. 64 (the paper's) or 16")
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

    def first_filters(self) -> Tensor:
        """conv1 as impulse responses `(width, 7 frames, 7 samples)`.

        Rows of a kernel lie a frame apart. In the response of the whole kernel they beat against each other every
        rate / frame (110 Hz); its mean over such a period is the sum of the rows' power responses.
        """
        return self.conv1.weight.detach()[:, 0]

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.to(self.conv1.weight.dtype)
        if not torch.compiler.is_exporting():  # the layout depends on whether the batch is 1
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        for layer in self.layers:
            x = layer(x)
        return x
