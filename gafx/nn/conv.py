"""Residual blocks with strides along the last axis only, which keep time at the full frame rate."""

from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "group"]
GROUPS = 8


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Return BatchNorm, or GroupNorm with 8 groups, which depends neither on the batch nor on its sharding."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(GROUPS, channels)


class BasicBlock(nn.Module):
    """ResNet-18's basic block (He et al., 2016) on `(batch, channels, frames, samples)` with stride (1, `stride`)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, (1, stride), 1, bias=False)
        self.norm1 = norm_layer(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = norm_layer(norm, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, (1, stride), bias=False), norm_layer(norm, out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def init_resnet(module: nn.Module) -> None:
    """Initialise as ResNet: He-normal kernels (fan out), norm weights 1 and biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
