"""GAFX-R: a ResNet over frames of raw samples (GAFX section 3.1.2, Table 2)."""

from typing import ClassVar, Literal

from torch import Tensor

from gafx.frontends.base import FrontEnd, Shape, check_positive
from gafx.nn.conv import BasicBlock
from gafx.nn.frames import BINS, FrameResNet, count_frames, cut_frames, log_bands
from gafx.nn.maps import Over
from gafx.registry import FRONTENDS


@FRONTENDS.register
class GAFXR(FrontEnd):
    """GAFX-R: 22.05 kHz mono, one frame per 200 samples, 128 bins: 30 s give 128 x 3308.

    The wave is zero-padded to whole frames, cut into frames of 200 samples, passed through `FrameResNet`, and averaged
    over the 4 positions that remain of a frame. 735 GFLOP per 30 s clip at the width of the paper, since time is never
    strided; `time_stride` and `conv` are departures from the paper that cost less.

    Args:
        width: channels of the first layer, a multiple of 16; the others are multiples of it, the last is always 128.
            64 is the paper's.
        norm: `batch` as in ResNet, or `group`, which makes results independent of batch size and number of processes.
        sample_rate: in Hz; with the paper's 22,050 a frame is 9.07 ms.
        hop_length: samples per frame, 200 in the paper; with `sample_rate=16000 hop_length=160` 10.24 s give AST's
            128 x 1024.
        time_stride: of the first convolution along frames, 1 (the paper's) to 7. The cost is divided by it, and so is
            the number of frames: they are those of `mel` with `hop_length` times `time_stride`. Weights trained with
            another stride can be loaded, as a start.
        conv: `full` (the paper's) or `separable`: each 3 x 3 convolution of the blocks is one of each channel alone and
            a 1 x 1 convolution over all of them, 97 GFLOP and 1.63 instead of 12.27 million parameters. Weights of one
            do not fit the other.
        init: `random`, as ResNet's; or `gabor`: the first layer starts with pairs of Gabor filters (cosine and sine) of
            7 samples, evenly spaced up to half the sampling rate, in the kernel row of the frame itself.
        log: take the logarithm of the network's output, which is not negative, plus 0.01: bands then differ by ratios.
        map_norm: which values of the map share a mean and a std, see `gafx.nn.maps.MapNorm`; null for `clip`.
        pretrained: weights saved by gafx, see `FrontEnd.load_pretrained`; `false` starts at random.
        across_rates: also accept `pretrained` weights that were trained at another sampling rate.
    """

    fsdp_units = (BasicBlock,)
    hash_if_changed: ClassVar = ("time_stride", "conv", "init", "log", "map_norm")

    def __init__(
        self,
        *,
        width: int = 64,
        norm: Literal["batch", "group"] = "batch",
        sample_rate: int = 22050,
        hop_length: int = 200,
        time_stride: int = 1,
        conv: Literal["full", "separable"] = "full",
        init: Literal["random", "gabor"] = "random",
        log: bool = False,
        map_norm: Literal["clip", "scalar", "band"] | None = None,
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        self.across_rates = across_rates
        self.map_norm: Over | None = map_norm
        check_positive(sample_rate=sample_rate, hop_length=hop_length)
        self.sample_rate, self.hop_length, self.time_stride = sample_rate, hop_length, time_stride
        self.resnet, self.log = FrameResNet(width, norm, init, time_stride=time_stride, form=conv), log
        if pretrained is not False:
            self.load_pretrained(pretrained)

    def output_shape(self, samples: int) -> Shape:
        return 1, BINS, count_frames(samples, self.hop_length * self.time_stride)

    def first_filters(self) -> Tensor:
        """Return the kernels of the first convolution, `(width, 7 frames, 7 samples)`."""
        return self.resnet.first_filters()

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, 128, ceil(samples / (hop_length * time_stride)))`."""
        self.check_wave(wave)
        bands = self.resnet(cut_frames(wave, self.hop_length, self.time_stride)).mean(dim=-1).unsqueeze(1)
        return log_bands(bands) if self.log else bands
