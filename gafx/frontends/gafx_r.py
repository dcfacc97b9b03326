"""GAFX-R: a ResNet over frames of raw samples (GAFX section 3.1.2, Table 2)."""

from typing import Literal

from torch import Tensor

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape
from gafx.nn.conv import BasicBlock
from gafx.nn.frames import BINS, FrameResNet, count_frames, cut_frames
from gafx.registry import FRONTENDS


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
        hop_length: samples of a frame, the paper's 200; with `sample_rate=16000 hop_length=160` 10.24 s give AST's
            128 x 1024.
        pretrained: weights that gafx saved, see `FrontEnd.load_pretrained`; `false` starts at random.
        across_rates: take `pretrained` weights that gafx saved at another sampling rate, too.
    """

    fsdp_units = (BasicBlock,)

    def __init__(
        self,
        *,
        width: int = 64,
        norm: Literal["batch", "group"] = "batch",
        sample_rate: int = 22050,
        hop_length: int = 200,
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        self.across_rates = across_rates
        if sample_rate < 1:
            raise UsageError(f"frontend.sample_rate={sample_rate} must be at least 1")
        if hop_length < 1:
            raise UsageError(f"frontend.hop_length={hop_length} must be at least 1, e.g. 200 (the paper's) or 160")
        self.sample_rate, self.hop_length = sample_rate, hop_length
        self.resnet = FrameResNet(width, norm)
        if pretrained is not False:
            self.load_pretrained(pretrained)

    def output_shape(self, samples: int) -> Shape:
        return 1, BINS, count_frames(samples, self.hop_length)

    def first_filters(self) -> Tensor:
        """Kernels of the network's first convolution, `(width, 7 frames, 7 samples)`."""
        return self.resnet.first_filters()

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, 128, ceil(samples / hop_length))`."""
        self.check_wave(wave)
        return self.resnet(cut_frames(wave, self.hop_length)).mean(dim=-1).unsqueeze(1)
