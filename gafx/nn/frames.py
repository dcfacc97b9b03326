"""Frames of raw samples and the ResNet over them (GAFX section 3.1.2, Table 2), shared by GAFX-R and GAFX-A."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.nn.conv import BasicBlock, Form, Norm, conv_norm, init_resnet, norm_layer

FRAME = 200
BINS = 128
KERNEL = 7  # of conv1, along frames and along samples
LOG_FLOOR = 0.01
OUT_SAMPLES = 4  # width of a 200-sample frame after the strides
# Channels (in units of `width`, the last fixed) and strides along a frame of Table 2's layers 1 to 5.
_LAYERS = ((1, 1), (2, 2), (4, 2), (8, 2), (None, 2))


def count_frames(samples: int, frame: int = FRAME) -> int:
    """Return the number of frames of a wave, including an incomplete last one."""
    # No negative numerator: integer division in ONNX rounds towards zero, not down.
    return (samples + frame - 1) // frame


def cut_frames(wave: Tensor, frame: int = FRAME, multiple: int = 1) -> Tensor:
    """Cut a wave into zero-padded frames, whose number is a multiple of `multiple`.

    `(batch, 1, samples)` -> `(batch, 1, ceil(samples / frame / multiple) * multiple, frame)`.
    """
    count = count_frames(wave.shape[-1], frame * multiple) * multiple
    return nn.functional.pad(wave, (0, count * frame - wave.shape[-1])).unflatten(-1, (count, frame))


def log_bands(bands: Tensor) -> Tensor:
    """Logarithm of a non-negative map plus 0.01, float32 of the same shape."""
    return torch.log(bands.float().clamp(min=0) + LOG_FLOOR)


def gabor_kernel(width: int, std: Tensor) -> Tensor:
    """Kernels of conv1 as Gabor filters, `(width, 1, 7, 7)`.

    Pairs of cosine and sine, with centres evenly spaced between 0 and half the sampling rate, in the middle row, which
    reads the frame itself; the other rows, which read its neighbours, are 0. A Hann window over the 7 taps is the
    envelope: filters this short cannot resolve more.

    Args:
        width: number of kernels, even.
        std: of all values, that of the random start, so that the next layer sees the same scale.
    """
    count = width // 2
    centre = math.pi * (torch.arange(count) + 0.5) / count
    time = torch.arange(KERNEL) - KERNEL // 2
    angle = centre[:, None] * time
    envelope = torch.hann_window(KERNEL + 2, periodic=False)[1:-1]
    taps = (torch.stack([angle.cos(), angle.sin()], dim=1) * envelope).flatten(0, 1)
    kernel = torch.zeros(width, 1, KERNEL, KERNEL)
    kernel[:, 0, KERNEL // 2] = nn.functional.normalize(taps, dim=1)
    return kernel * (std * KERNEL)  # KERNEL^2 values of this std have the norm std * KERNEL


class FrameResNet(nn.Module):
    """ResNet of Table 2: frames of 200 samples -> 128 channels at 4 positions per frame, without strides along time.

    `(batch, 1, frames, 200)` -> `(batch, 128, frames / time_stride, 4)`. Along a frame the sizes are 200, 100 (conv1),
    50 (max-pool), 50, 25, 13, 7, 4 (layers 1 to 5). Kernels are ResNet-18's: 7 x 7 in conv1, 3 x 3 in the blocks.

    Args:
        width: channels of the first layer, a multiple of 16; the others are multiples of it, the last is always 128.
            64 is the paper's.
        norm: `batch` as in ResNet, or `group`, which makes results independent of batch size and number of processes.
        init: `random`, or `gabor`: see `gabor_kernel`, for conv1 only.
        time_stride: of conv1 along frames, whose number must be a multiple of it; 1 is the paper's. Its kernel spans 7
            frames: a stride of up to 7 skips none, and output k is centred on frames `[k * time_stride, (k + 1) *
            time_stride)`, for an even stride on the earlier of the two in their middle.
        form: of the 3 x 3 convolutions, `full` (the paper's) or `separable`, see `conv3x3`.

    Raises:
        UsageError: `width` is not a multiple of 16, or `time_stride` is not 1 to 7.
    """

    def __init__(
        self, width: int, norm: Norm, init: Literal["random", "gabor"] = "random", *, time_stride: int = 1,
        form: Form = "full",
    ):  # fmt: skip
        super().__init__()
        # Below 16 channels oneDNN's channels-last kernels are unreliable: torch 2.12 crashes in the backward pass
        # of the strided 1 x 1 convolution from 8 to 16 channels in float32.
        if width < 16 or width % 16:
            raise UsageError(f"frontend.width={width} must be a multiple of 16, e.g. 64 (the paper's) or 16")
        if not 1 <= time_stride <= KERNEL:
            raise UsageError(
                f"frontend.time_stride={time_stride} must be between 1 (the paper's) and {KERNEL}, e.g. 2: the first "
                f"convolution reads {KERNEL} frames, and a larger stride would skip some"
            )
        before = (KERNEL - 1) // 2 - (time_stride - 1) // 2
        self.conv1 = nn.Conv2d(1, width, KERNEL, (time_stride, 2), (before, KERNEL // 2), bias=False)
        self.norm1 = norm_layer(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, (1, 2), 1)
        layers, channels = [], width
        for times, stride in _LAYERS:
            out = BINS if times is None else times * width
            layers.append(
                nn.Sequential(BasicBlock(channels, out, stride, norm, form), BasicBlock(out, out, 1, norm, form))
            )
            channels = out
        self.layers = nn.ModuleList(layers)
        init_resnet(self)
        if init == "gabor":
            with torch.no_grad():
                self.conv1.weight.copy_(gabor_kernel(width, self.conv1.weight.std()))
        # With channels last a training step took 0.67 to 0.74 of the time in bfloat16, 0.86 to 1.07 in float32 (two AMX
        # cores, widths 64 and 16: benchmarks/training_step.py).
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    def first_filters(self) -> Tensor:
        """Return the kernels of conv1 as impulse responses `(width, 7 frames, 7 samples)`.

        The rows of a kernel are a frame apart, so the response of the whole kernel interferes every rate / frame
        (110 Hz); its mean over such a period is the sum of the rows' power responses.
        """
        return self.conv1.weight.detach()[:, 0]

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.to(self.conv1.weight.dtype)
        if not torch.compiler.is_exporting():  # the memory format would depend on whether the batch size is 1
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.pool(self.relu(conv_norm(self.conv1, self.norm1, x)))
        for layer in self.layers:
            x = layer(x)
        return x
