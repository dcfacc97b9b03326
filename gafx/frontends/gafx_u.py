"""GAFX-U: the dual U-Net of Hybrid Demucs, read as a spectrogram (GAFX section 3.1.1, Table 1)."""

from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor

from gafx.errors import UsageError, require
from gafx.frontends.base import FrontEnd, Shape, check_positive, match_channels
from gafx.nn.exported import log1p
from gafx.nn.maps import Over
from gafx.registry import FRONTENDS
from gafx.saving import weights

HOP = 1024
BINS = 128
GROUP = 16  # adjacent STFT bins that are averaged: 2048 / 128


@FRONTENDS.register
class GAFXU(FrontEnd):
    """GAFX-U: Hybrid Demucs without its last inverse STFT: 30 s at 16 kHz stereo give 128 x 1876.

    HDemucs (Défossez, 2021) separates a stereo wave into four sources in two branches. The output of the spectral
    branch and the STFT (4096 samples, hop 1024) of the temporal branch's waves are added to a complex spectrum of
    `4 sources x 2 channels x 2048 bins x ceil(samples / 1024) frames` (see `complex_map`). The map is its magnitude,
    averaged over the two channels, then `log1p(log_scale * magnitude)`, averaged over each 16 adjacent bins, with the
    four sources concatenated along time. The paper does not describe the steps between the complex spectrum and the
    concatenation; these are choices of gafx. Mono waves are duplicated.

    At 16 kHz, as in the paper, a frame is 64 ms and a bin of the map 62.5 Hz. The released weights were trained at
    44.1 kHz: at 16 kHz every sound is 2.76 times higher and faster than in training. `sample_rate=44100` avoids this,
    with 2.76 times the frames (5168 for 30 s) and 172 Hz per bin.

    Args:
        pretrained: `true` or `hdemucs_mmi`: the released model from the hub (`adefossez/Demucs-hdemucs_mmi`);
            `torchaudio`: its bundle HDEMUCS_HIGH_MUSDB_PLUS; or a file in the layout of either or of gafx, as
            `.safetensors` or torchaudio's `.pt`, a folder with one, or a hub repository with `model.safetensors`.
            `false` starts at random.
        sources: `time` concatenates the four sources along time (the paper), `channels` makes them four channels of the
            map: a quarter of the frames, and of the classifier's tokens.
        log_scale: factor in the logarithm; `null` leaves the magnitudes linear. Magnitudes of real music have a median
            near 0.015, where log1p(1 * magnitude) would be linear.
        frozen: do not train the network: no gradients, and the map is normalised by training statistics. To freeze it
            in the first epochs only set `optim.frontend.frozen_epochs`, for a smaller learning rate
            `optim.frontend.lr_scale`.
        checkpointing: recompute each layer in the backward pass, which saves memory and costs a second forward pass.
        sample_rate: of the waves, in Hz.
        width: channels of the first layer; 48 as released.
        across_rates: also accept `pretrained` weights that gafx saved at another sampling rate. The released weights,
            trained at 44.1 kHz, are accepted at any rate, as in the paper.
        map_norm: which values of the map share a mean and a std, see `gafx.nn.maps.MapNorm`; null for `clip`, or for
            `scalar` if `frozen`.
    """

    channels = 2
    published: ClassVar = {
        True: "hdemucs_mmi", "hdemucs_mmi": "hdemucs_mmi", "torchaudio": "HDEMUCS_HIGH_MUSDB_PLUS",
    }  # fmt: skip
    hash_if_changed: ClassVar = ("map_norm",)
    fixed_length = "the padding, cropping and LSTM segments of HDemucs depend on the length"

    def __init__(
        self,
        *,
        pretrained: bool | str = False,
        sources: Literal["time", "channels"] = "time",
        log_scale: float | None = 1000.0,
        frozen: bool = False,
        checkpointing: bool = False,
        sample_rate: int = 16000,
        width: int = 48,
        across_rates: bool = False,
        map_norm: Literal["clip", "scalar", "band"] | None = None,
    ):
        super().__init__()
        self.across_rates = across_rates
        require("demucs", "frontend=gafx_u")
        from gafx.frontends._hdemucs import SOURCES, SpectralHDemucs

        if width < 16 or width % 16:
            raise UsageError(f"frontend.width={width} must be a multiple of 16, e.g. 48 (as released) or 16")
        check_positive(sample_rate=sample_rate)
        if log_scale is not None and log_scale <= 0:
            raise UsageError(f"frontend.log_scale={log_scale} must be above 0, or null for linear magnitudes")
        self.sample_rate, self.sources, self.log_scale, self.width = sample_rate, sources, log_scale, width
        self.learned = not frozen
        self.map_norm: Over | None = map_norm
        self.planes = len(SOURCES) if sources == "time" else 1
        self.hdemucs = SpectralHDemucs(width, checkpointing=checkpointing)
        self.fsdp_units = SpectralHDemucs.layer_types
        if pretrained is not False:
            self.load_pretrained(pretrained)
        self.hdemucs.requires_grad_(not frozen)

    def load_pretrained(self, source: bool | str) -> None:
        from gafx.frontends._hdemucs import find_weights, read_weights

        path = find_weights(source, "frontend.pretrained")
        if path.suffix == ".safetensors":
            self.check_rate(path)
        weights.fit(
            self.hdemucs, read_weights(path, self.width), path,
            cure="GAFX-U reads HDemucs in demucs', torchaudio's or gafx's layout; for another width set frontend.width",
        )  # fmt: skip
        self.record_source(path, source)

    def no_weight_decay(self) -> set[str]:
        """The embedding of frequencies, which are positions."""
        return {"hdemucs.freq_emb.embedding.weight"}

    def output_shape(self, samples: int) -> Shape:
        frames = -(-samples // HOP)
        return (1, BINS, 4 * frames) if self.sources == "time" else (4, BINS, frames)

    def first_filters(self) -> Tensor:
        """Return the kernels of the temporal branch's first convolution, `(width, 2 channels, 8 samples)`."""
        kernels: Tensor = self.hdemucs.get_parameter("tencoder.0.conv.weight")
        return kernels.detach()

    def complex_map(self, wave: Tensor) -> Tensor:
        """Compute the sum of both branches' spectra, before any compression.

        `(batch, 1 or 2, samples)` -> complex64 `(batch, 4 sources, 2, 2048, ceil(samples / 1024))`, on the scale of
        `torch.stft(normalized=True)`.
        """
        if wave.ndim == 3 and wave.shape[1] == 1:
            wave = match_channels(wave, 2)
        self.check_wave(wave)
        with torch.set_grad_enabled(self.learned and torch.is_grad_enabled()):
            return self.hdemucs(wave.to(next(self.hdemucs.parameters()).dtype))

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1 or 2, samples)` -> `(batch, *output_shape(samples))`, float32."""
        magnitude = self.complex_map(wave).abs().mean(dim=2)
        if self.log_scale is not None:
            magnitude = log1p(self.log_scale * magnitude)
        bands = magnitude.unflatten(2, (BINS, GROUP)).mean(dim=3)
        return rearrange(bands, "b s f t -> b 1 f (s t)") if self.sources == "time" else bands
