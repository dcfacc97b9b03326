"""Learnable Gabor filters with Gaussian pooling: the first two stages of LEAF (Zeghidour et al., ICLR 2021)."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gafx.nn.clip import clip
from gafx.nn.spectral import MelScale, mel_edges
from gafx.nn.tables import on_cpu

# Complex numbers in a chunk of blocks. On a CPU one block of 128 filters fits the caches (twice as many took 1.0 to 1.7
# times as long); a GPU needs more work per kernel launch.
_CPU_CHUNK, _GPU_CHUNK = 2**19, 2**23


@on_cpu
def spaced_filters(
    n_filters: int,
    sample_rate: int,
    f_min: float,
    f_max: float,
    width_range: tuple[float, float],
    scale: MelScale = "htk",
) -> Tensor:
    """Compute centres and logarithms of the widths of Gabor filters evenly spaced on a scale, float32 `(2, n_filters)`.

    Arguments and units are those of `GaborFilterBank`; `scale` is one of `gafx.nn.spectral.hz_to_mel`.
    """
    edges = mel_edges(n_filters, f_min, f_max, scale) / sample_rate
    half_power = (edges[2:] - edges[:-2]) / 2  # of a triangle
    width = math.sqrt(math.log(2)) / (math.pi * half_power)
    return torch.stack([(2 * math.pi * edges[1:-1]).float(), width.clamp(*width_range).log().float()])


class _Blocks(NamedTuple):
    """Division of the work into blocks: `n_fft` samples give `frames` frames.

    A frame is the weighted sum of `parts` runs of `hop` samples, the last zero-padded, so pooling is one product for
    each run of a block and then a sum of `parts` shifted results.
    """

    window: int
    hop: int
    parts: int
    n_fft: int
    runs: int
    frames: int

    @classmethod
    def plan(cls, window: int, hop: int) -> "_Blocks":
        parts = -(-window // hop)
        n_fft = 1 << (max(6 * window, 2 * (window - 1 + parts * hop)) - 1).bit_length()
        runs = (n_fft - window + 1) // hop
        return cls(window, hop, parts, n_fft, runs, runs - parts + 1)

    @property
    def span(self) -> int:
        """Number of samples of the wave that a block depends on."""
        return self.window - 1 + self.runs * self.hop

    def valid(self, filtered: Tensor) -> Tensor:
        """Return the part of the circular convolution that equals the linear one, as real pairs: a writable view."""
        return torch.view_as_real(filtered)[:, :, self.window - 1 : self.span]


class _PooledEnergy(torch.autograd.Function):
    """Pooled energies of segments of waves, computed a few blocks at a time.

    Autograd would keep 12 MiB for every 0.14 s of sound; this keeps only the inputs and recomputes each block in the
    backward pass. torch.utils.checkpoint does that too, but memory still grew by about 6 MiB per block, perhaps by
    fragmentation: four clips of 10 s, forward and backward, took 2058 MiB with it and take 75 to 105 MiB here.
    """

    @staticmethod
    def forward(ctx: Any, segments: Tensor, responses: Tensor, weights: Tensor, blocks: _Blocks) -> Tensor:
        ctx.save_for_backward(segments, responses, weights)
        ctx.blocks = blocks
        n_filters = len(weights)
        energy = segments.new_empty(n_filters, len(segments), blocks.frames)
        for rows in _chunks(segments, n_filters, blocks):
            filtered = torch.fft.ifft(torch.fft.fft(segments[rows], blocks.n_fft) * responses)
            squares = blocks.valid(filtered).square().view(n_filters, -1, 2 * blocks.hop)
            products = torch.bmm(squares, weights).view(n_filters, -1, blocks.runs, blocks.parts)
            shifted = (products[:, :, part : part + blocks.frames, part] for part in range(blocks.parts))
            energy[:, rows] = sum(shifted)
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        segments, responses, weights = ctx.saved_tensors
        # Inside autocast, backward() would compute these products in half precision.
        with torch.autocast(segments.device.type, enabled=False):
            found = _gradients(segments, responses, weights, gradients[0], ctx.blocks, ctx.needs_input_grad[0])
        return *found, None


def _gradients(
    segments: Tensor, responses: Tensor, weights: Tensor, of_energy: Tensor, blocks: _Blocks, wave_learns: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Compute the gradients of segments (if needed), responses and weights from that of the energy."""
    of_segments = torch.zeros_like(segments) if wave_learns else None
    of_responses, of_weights = torch.zeros_like(responses), torch.zeros_like(weights)
    n_filters, scale = len(weights), 2 / blocks.n_fft  # 2 of the square, 1 / n_fft of the inverse transform
    for rows in _chunks(segments, n_filters, blocks):
        spectrum = torch.fft.fft(segments[rows], blocks.n_fft)
        filtered = torch.fft.ifft(spectrum * responses)
        valid = blocks.valid(filtered)
        squares = valid.square().view(n_filters, -1, 2 * blocks.hop)
        of_products = weights.new_zeros(n_filters, len(spectrum), blocks.runs, blocks.parts)
        for part in range(blocks.parts):
            of_products[:, :, part : part + blocks.frames, part] = of_energy[:, rows]
        of_products = of_products.view(n_filters, -1, blocks.parts)
        of_weights.baddbmm_(squares.transpose(1, 2), of_products)
        valid *= torch.bmm(of_products, weights.transpose(1, 2)).view_as(valid)
        filtered[:, :, : blocks.window - 1] = 0
        filtered[:, :, blocks.span :] = 0
        of_product = torch.fft.fft(filtered)
        if of_segments is not None:
            of_spectrum = (of_product * responses.conj()).sum(dim=0)
            of_segments[rows] = 2 * torch.fft.ifft(of_spectrum).real[:, : blocks.span]
        of_responses += (of_product * spectrum.conj()).sum(dim=1, keepdim=True)
    return of_segments, of_responses * scale, of_weights


def _chunks(segments: Tensor, n_filters: int, blocks: _Blocks) -> list[slice]:
    limit = _CPU_CHUNK if segments.device.type == "cpu" else _GPU_CHUNK
    step = max(1, limit // (n_filters * blocks.n_fft))
    return [slice(start, start + step) for start in range(0, len(segments), step)]


class GaborFilterBank(nn.Module):
    """Energy of a wave in Gabor filters, pooled by a Gaussian for each filter: a learnable power spectrogram.

    Filter n is `exp(i centre t) exp(-t^2 / (2 width^2)) / (sqrt(2 pi) width)` for `|t| <= window_length // 2`
    (section 3.1.1); the squared modulus of its response is averaged by `exp(-t^2 / (2 v^2)) / (sqrt(2 pi) v)` over as
    many samples, once every `hop_length` (section 3.1.2). Three numbers a filter are learned:

    - `centre`: angular frequency in radians a sample, clipped to [0, pi].
    - `log_width`: logarithm of the width in samples. The width is clipped so that the full width at half maximum of
      the magnitude response is between 1 / window_length and 1/4 cycle a sample, the range in the authors' code.
    - `log_pool_width`: logarithm of v in halves of the window, clipped to [2 / window_length, 1/2]; starts at 0.4.

    The paper learns the widths themselves. Ours learns their logarithms, so that a step changes narrow and wide filters
    by the same ratio. Centres start evenly spaced on the mel scale (HTK's), widths so that the half-power bandwidth is
    that of the triangular mel filter at that frequency; where the window cannot resolve that, it is clipped.

    Frame k is centred on samples [k * hop, (k + 1) * hop), `ceil(samples / hop)` frames; the wave is zero outside. A
    sine of amplitude 1 at a filter's centre gives 1/4.

    Args:
        sample_rate: in Hz.
        n_filters: number of filters.
        window_length: samples of filters and pooling windows, odd.
        hop_length: samples a frame.
        f_min: lower edge of the lowest mel filter in Hz.
        f_max: upper edge of the highest mel filter in Hz.
    """

    def __init__(
        self, sample_rate: int, n_filters: int, window_length: int, hop_length: int, f_min: float, f_max: float
    ):
        super().__init__()
        if window_length < 5 or window_length % 2 == 0:
            raise ValueError(f"window_length={window_length} must be odd and at least 5")
        self.n_filters, self.hop_length = n_filters, hop_length
        self.reach = window_length // 2
        fwhm = math.sqrt(2 * math.log(2)) / math.pi  # of the magnitude response, times the width
        self.width_range = (4 * fwhm, window_length * fwhm)
        self.pool_range = (2 / window_length, 0.5)

        centre, log_width = spaced_filters(n_filters, sample_rate, f_min, f_max, self.width_range).unbind()
        self.centre, self.log_width = nn.Parameter(centre.clone()), nn.Parameter(log_width.clone())
        self.log_pool_width = nn.Parameter(torch.full((n_filters,), math.log(0.4)))

        self.blocks = _Blocks.plan(window_length, hop_length)

    def frames(self, samples: int) -> int:
        # No negative numerator: integer division in ONNX rounds towards zero, not down.
        return (samples + self.hop_length - 1) // self.hop_length

    def filters(self) -> Tensor:
        """Compute the filters, complex `(n_filters, window_length)`."""
        return torch.polar(*self._polar())

    def _polar(self) -> tuple[Tensor, Tensor]:
        """Compute modulus and angle of the filters, each `(n_filters, window_length)`."""
        width = clip(self.log_width, *map(math.log, self.width_range)).exp()[:, None]
        time = torch.arange(-self.reach, self.reach + 1, device=width.device, dtype=width.dtype)
        envelope = torch.exp(-0.5 * (time / width).square()) / (math.sqrt(2 * math.pi) * width)
        return envelope, clip(self.centre, 0.0, math.pi)[:, None] * time

    def pooling(self) -> Tensor:
        """Compute the pooling windows, `(n_filters, window_length)`."""
        width = clip(self.log_pool_width, *map(math.log, self.pool_range)).exp()[:, None] * self.reach
        time = torch.arange(-self.reach, self.reach + 1, device=width.device, dtype=width.dtype)
        return torch.exp(-0.5 * (time / width).square()) / (math.sqrt(2 * math.pi) * width)

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, samples)` float32 -> `(batch, n_filters, frames)`, at least 0."""
        # Each filter is a product in the frequency domain, block by block (overlap-save). Seconds a second of sound,
        # 128 filters of 551 samples, float32, one core of an AMD EPYC with AVX-512, torch 2.12, best of three:
        #                                                 forward              forward and backward
        #   conv1d in segments of 20000 samples, of 4000    0.032, 0.074         0.111, 0.23
        #   matrix product with the unfolded wave         0.073                0.23
        #   transforms of 4096, 8192, 16384               0.017, 0.019, 0.022  0.055, 0.059, 0.067
        # All are exact and compute each segment once more on the way back.
        if torch.compiler.is_exporting():
            return self._convolved(wave)
        batch, samples = wave.shape
        frames, blocks = self.frames(samples), self.blocks
        count, stride = -(-frames // blocks.frames), blocks.frames * blocks.hop
        before = 2 * self.reach - blocks.hop // 2
        after = (count - 1) * stride + blocks.span - before - samples
        segments = nn.functional.pad(wave, (before, after)).unfold(-1, blocks.span, stride).reshape(-1, blocks.span)
        responses = torch.fft.fft(self.filters(), blocks.n_fft)[:, None]
        padded = nn.functional.pad(self.pooling(), (0, blocks.parts * blocks.hop - blocks.window))
        # Each weight occurs twice, for the real and the imaginary part.
        weights = padded.view(-1, blocks.parts, blocks.hop).transpose(1, 2).repeat_interleave(2, dim=1)
        energy: Tensor = _PooledEnergy.apply(segments, responses, weights, blocks)
        return energy.view(self.n_filters, batch, -1)[..., :frames].transpose(0, 1)

    def _convolved(self, wave: Tensor) -> Tensor:
        """Compute `forward` as two convolutions for export, without complex numbers and without a loop over blocks.

        It is slower, and keeps the filtered wave in memory: 2 * n_filters numbers per sample.
        """
        window, samples = 2 * self.reach + 1, wave.shape[-1]
        before = 2 * self.reach - self.hop_length // 2
        after = (self.frames(samples) - 1) * self.hop_length + 2 * window - 1 - before - samples
        envelope, angle = self._polar()
        # conv1d does not flip the filter, which here conjugates it; the modulus for a real wave is the same.
        parts = torch.stack([envelope * angle.cos(), envelope * angle.sin()], dim=1).flatten(0, 1)[:, None]
        filtered = nn.functional.conv1d(nn.functional.pad(wave, (before, after))[:, None], parts)
        weights = self.pooling()[:, None].expand(-1, 2, -1)
        return nn.functional.conv1d(filtered.square(), weights, stride=self.hop_length, groups=self.n_filters)
