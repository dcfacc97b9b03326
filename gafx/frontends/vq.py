"""Codes of a neural audio codec, as vectors: the input of TokenFormer and CodebookFormer."""

from typing import Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape, check_positive
from gafx.nn.codec import Codec
from gafx.nn.vqvae import VQVAE
from gafx.registry import FRONTENDS
from gafx.saving import weights


@FRONTENDS.register
class VQ(FrontEnd):
    """Frozen codec: 44.1 kHz mono, one frame per 128 samples; 30 s give 10,336 codes in [0, 2048).

    The codec is trained by `objective=codec` alone; every other objective leaves its weights and its codebook as they
    are. Its codes are computed in float32, also under autocast, so they do not depend on the precision.

    Args:
        codec: `vqvae`, the VQ-VAE of Jukebox at its highest compression, see `gafx.nn.vqvae.VQVAE`.
        output: the map's columns. `codebook`: the codebook's own vectors, a fixed map; `embedding`: learned
            embeddings of the codes, initialised at random.
        width: of the learned embeddings.
        quantizers: codebooks used; the vectors of a frame's codes are added.
        sample_rate: in Hz, of `vqvae`.
        num_codes: entries of the codebook of `vqvae`.
        codec_width: channels of the convolutions of `vqvae`.
        codec_depth: residual blocks after each strided convolution of `vqvae`.
        restart_below: of `vqvae` in training: a code whose moving average of uses per step is lower restarts.
        pretrained: weights of a run of `objective=codec`, or of another model with this codec, whose embeddings are
            used if it has some of the same width; `false` starts at random.
        across_rates: also accept `pretrained` weights that were trained at another sampling rate.
    """

    def __init__(
        self,
        *,
        codec: Literal["vqvae"] = "vqvae",
        output: Literal["codebook", "embedding"] = "codebook",
        width: int = 64,
        quantizers: int = 1,
        sample_rate: int = 44100,
        num_codes: int = 2048,
        codec_width: int = 32,
        codec_depth: int = 4,
        restart_below: float = 0.03,
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        check_positive(
            width=width, quantizers=quantizers, sample_rate=sample_rate, num_codes=num_codes, codec_width=codec_width,
            codec_depth=codec_depth,
        )  # fmt: skip
        if not 0 <= restart_below < float("inf"):
            raise UsageError(f"frontend.restart_below={restart_below} must be at least 0")
        if quantizers > 1:
            raise UsageError(f"frontend.quantizers={quantizers}: codec=vqvae has one codebook; set quantizers=1")
        self.across_rates = across_rates
        self.codec: Codec = VQVAE(
            sample_rate=sample_rate, num_codes=num_codes, width=codec_width, depth=codec_depth,
            restart_below=restart_below,
        ).requires_grad_(False)  # fmt: skip
        self.sample_rate, self.num_codes = self.codec.sample_rate, self.codec.num_codes
        self.learned = output == "embedding"
        self.embedding = nn.Embedding(quantizers * self.num_codes, width) if self.learned else None
        if pretrained is not False:
            self.load_pretrained(pretrained)
        self.train(self.training)

    def train(self, mode: bool = True) -> "VQ":
        """Set training mode; of the codec only while it is trained, since it updates its codebook in that mode."""
        super().train(mode)
        self.codec.train(mode and any(parameter.requires_grad for parameter in self.codec.parameters()))
        return self

    def output_shape(self, samples: int) -> Shape:
        bins = self.codec.dim if self.embedding is None else self.embedding.embedding_dim
        return 1, bins, self.codec.frames(samples)

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, vector size, frames)`."""
        self.check_wave(wave)
        with torch.no_grad():
            codes = self.codec.codes(wave)
        if self.embedding is None:
            return self.codec.vectors(codes).unsqueeze(1)
        first = torch.arange(self.codec.quantizers, device=codes.device) * self.codec.num_codes
        return self.embedding(codes + first[:, None]).sum(dim=1).transpose(1, 2).unsqueeze(1)

    @torch.no_grad()
    def codes(self, wave: Tensor) -> Tensor:
        self.check_wave(wave)
        codes = self.codec.codes(wave)
        return codes.squeeze(1) if self.codec.quantizers == 1 else codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self.codec.decode(codes.unsqueeze(1) if codes.ndim == 2 else codes)

    def load_pretrained(self, source: bool | str) -> None:
        path = weights.find(source, key="frontend.pretrained")
        self.check_rate(path)
        state = weights.part(weights.read(path), "frontend")
        ours = self.state_dict()
        table = "embedding.weight"
        if table in ours:
            state.setdefault(table, ours[table])
        else:
            state.pop(table, None)
        cure = "build the front-end with the codec's arguments that it was saved with (config.json next to the weights)"
        weights.fit(self, state, path, cure=cure)
        self.record_source(path, source)
