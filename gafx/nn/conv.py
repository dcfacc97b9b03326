"""Convolutions: residual blocks with a stride along the last axis, the stem of a transformer, pooled convolutions."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from gafx.errors import UsageError
from gafx.nn.cpu import calls_forward_alone

Norm = Literal["batch", "group"]
Form = Literal["full", "separable"]
Activation = Literal["relu", "elu"]
GROUPS = 8


def activation_layer(activation: Activation) -> nn.Module:
    """Return ReLU or ELU."""
    return nn.ReLU(inplace=True) if activation == "relu" else nn.ELU(inplace=True)


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Return BatchNorm, or GroupNorm with 8 groups, which depends neither on the batch nor on its sharding."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(GROUPS, channels)


def conv_norm(conv: Any, norm: Any, x: Tensor) -> Tensor:
    """Compute `norm(conv(x))`; in evaluation without gradients, and for a batch norm, as a single convolution.

    The running statistics are folded into the kernel and a bias at each call: that saves a pass over the map, leaves
    the state as it is, and needs no cache. Both are computed where a clip's map has fewer values than the kernel, for
    layers of other classes or with hooks, and in exported graphs, since runtimes fold them by themselves. Of
    convolutions in sequence the last is followed by the norm.
    """
    layers: list[Any] = [*conv] if isinstance(conv, nn.Sequential) else [conv]
    for layer in layers[:-1]:
        x = layer(x)
    last = layers[-1]
    if not _folds(last, norm, x):
        return norm(last(x))
    wide = torch.promote_types(norm.running_var.dtype, torch.float32)  # a model in bfloat16 has its statistics in it
    scale = norm.weight * torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    kernel, dtype = last.weight * scale[:, None, None, None], last.weight.dtype
    if last.bias is not None:
        shift = shift + last.bias * scale
    return functional.conv2d(
        x, kernel.to(dtype), shift.to(dtype), last.stride, last.padding, last.dilation, last.groups
    )  # fmt: skip


def _folds(conv: Any, norm: Any, x: Tensor) -> bool:
    if torch.is_grad_enabled() or conv.training or norm.training or torch.compiler.is_exporting():
        return False
    # Derived classes may compute something else.
    if type(conv) is not nn.Conv2d or type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return False
    if norm.running_mean is None or not norm.affine or conv.padding_mode != "zeros":
        return False
    return x.shape[1:].numel() >= conv.weight.numel() and calls_forward_alone(conv, norm)


class ConvNorms(nn.Sequential):
    """Layers in sequence, of which every convolution is followed by its norm: the two are computed by `conv_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        layers = iter(self)
        for layer in layers:
            norm = next(layers, None) if isinstance(layer, nn.Conv2d) else None
            x = layer(x) if norm is None else conv_norm(layer, norm, x)
        return x


def conv3x3(in_channels: int, out_channels: int, stride: int, form: Form) -> nn.Module:
    """Return a 3 x 3 convolution with stride (1, `stride`); `separable`: of each channel alone, then 1 x 1 over all."""
    if form == "full":
        return nn.Conv2d(in_channels, out_channels, 3, (1, stride), 1, bias=False)
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, (1, stride), 1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
    )


class BasicBlock(nn.Module):
    """ResNet-18's basic block (He et al., 2016) on `(batch, channels, frames, samples)` with stride (1, `stride`)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm, form: Form = "full"):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride, form)
        self.norm1 = norm_layer(norm, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, 1, form)
        self.norm2 = norm_layer(norm, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvNorms(
                nn.Conv2d(in_channels, out_channels, 1, (1, stride), bias=False), norm_layer(norm, out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(conv_norm(self.conv1, self.norm1, x))
        return self.relu(conv_norm(self.conv2, self.norm2, y) + self.shortcut(x))


def init_resnet(module: nn.Module) -> None:
    """Initialise as ResNet: He-normal kernels (fan out), norm weights 1 and biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


class ConvStem(nn.Module):
    """Four 3 x 3 convolutions of stride 2, each with batch norm and ReLU, then a 1 x 1 convolution.

    It replaces the patch kernel of a vision transformer (Xiao et al., 2021, "Early convolutions help transformers see
    better", ViT_C), with the channel widths of its 1 GF and 4 GF models: an eighth, a quarter, half and all of `width`.

    `(batch, in_channels, 16 * rows, 16 * columns)` -> `(batch, width, rows, columns)`. On CPUs it is computed in the
    type of its weights, without autocast: with AMX, oneDNN's bfloat16 convolutions can give NaN on narrow maps (torch
    2.12).

    Args:
        in_channels: of the map.
        width: of the output; a multiple of 8.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        widths = [in_channels, width // 8, width // 4, width // 2, width]
        layers: list[nn.Module] = []
        for here, there in pairwise(widths):
            layers += [
                nn.Conv2d(here, there, 3, 2, 1, bias=False), norm_layer("batch", there), nn.ReLU(inplace=True)
            ]  # fmt: skip
        self.layers = ConvNorms(*layers)
        self.proj = nn.Conv2d(width, width, 1)
        init_resnet(self.layers)
        nn.init.trunc_normal_(self.proj.weight, std=width**-0.5)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.proj(self.layers(x.to(self.proj.weight.dtype)))


class BatchNorm(_BatchNorm):
    """Batch norm of `(batch, channels, ...)` that takes a single value of each channel in training, too.

    The variance of one value is 0, which PyTorch refuses: it is normalised by the running statistics. The last batch of
    an epoch can be a single clip.
    """

    def _check_input_dim(self, input: Tensor) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.numel() > input.shape[1]:
            return super().forward(input)
        mean, variance = self.running_mean, self.running_var
        return nn.functional.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)


class PooledConvs(nn.Module):
    """Convolutions, each with its activation, max pooling and batch norm, in this order.

    Convolutions keep the size of the map; pooling divides it, rounding up, so that any map is large enough. Kernels
    start He-uniform. On CPUs it is computed in the type of its weights, without autocast, see `ConvStem`.

    `(batch, in_channels, rows, columns)` -> `(batch, widths[-1], *self.sizes(rows, columns))`.

    Args:
        in_channels: of the map.
        widths: output channels of the convolutions.
        kernels: sizes of their square kernels.
        pool: size and stride of the pooling windows.
        activation: `relu` or `elu`.

    Raises:
        UsageError: no convolution, a number of kernels other than that of widths, or a number below 1.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], kernels: Sequence[int], pool: int, activation: Activation
    ):
        super().__init__()
        if not widths or len(widths) != len(kernels) or min(*widths, *kernels, pool) < 1:
            raise UsageError(
                f"classifier.channels={list(widths)}, classifier.kernels={list(kernels)} and classifier.pool={pool} "
                "must be at least 1, with one kernel for each number of channels, e.g. [32, 32, 32], [3, 3, 2] and 3"
            )
        self.pool, self.count = pool, len(widths)
        layers: list[nn.Module] = []
        for here, there, kernel in zip((in_channels, *widths), widths, kernels, strict=False):
            if kernel % 2 == 0:  # one more at the end
                layers.append(nn.ZeroPad2d((0, 1, 0, 1)))
            conv = nn.Conv2d(here, there, kernel, padding=(kernel - 1) // 2)
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
            layers += [conv, activation_layer(activation), nn.MaxPool2d(pool, ceil_mode=True), BatchNorm(there)]
        self.layers = nn.Sequential(*layers)

    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the size of the output of a map of `rows` x `columns`."""
        for _ in range(self.count):
            rows, columns = -(-rows // self.pool), -(-columns // self.pool)
        return rows, columns

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.layers(x.to(next(self.parameters()).dtype))
