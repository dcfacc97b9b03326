"""Codes of a neural audio codec, as vectors: the input of TokenFormer and CodebookFormer."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape, check_positive
from gafx.nn import published_codecs as published
from gafx.nn.codec import Codec
from gafx.nn.published_codecs import TransformersCodec
from gafx.nn.vqvae import VQVAE
from gafx.registry import FRONTENDS
from gafx.saving import weights
from gafx.saving.info import WeightSource

_PUBLISHED: Mapping[str, type[TransformersCodec]] = {"encodec": published.EnCodec, "dac": published.DAC}


@FRONTENDS.register
class VQ(FrontEnd):
    """Frozen codec: 44.1 kHz mono, one frame per 128 samples; 30 s give 10,336 codes in [0, 2048).

    The codec is trained by `objective=codec` alone; every other objective leaves its weights and its codebook as they
    are. Its codes are computed in float32, also under autocast, so they do not depend on the precision.

    Args:
        codec: `vqvae`, the VQ-VAE of Jukebox at its highest compression, see `gafx.nn.vqvae.VQVAE`; `encodec` (24 kHz,
            75 frames/s) or `dac` (16, 24 or 44.1 kHz), through transformers, see `gafx.nn.published_codecs`.
        output: the map's columns. `codebook`: the codebook's own vectors, a fixed map; `embedding`: learned
            embeddings of the codes, initialised at random.
        width: of the learned embeddings.
        quantizers: codebooks used; the vectors of a frame's codes are added.
        sample_rate: in Hz, 44100 by default for `vqvae`; that of its configuration for another codec.
        num_codes: entries of the codebook of `vqvae`.
        codec_width: channels of the convolutions of `vqvae`.
        codec_depth: residual blocks after each strided convolution of `vqvae`.
        restart_below: of `vqvae` in training: a code whose moving average of uses per step is lower restarts.
        codec_config: of `encodec` or `dac`: what differs from the defaults of transformers' EncodecConfig or DacConfig.
            Weights bring their own.
        pretrained: weights of a run of `objective=codec`, or of another model with this codec, whose embeddings are
            used if it has some of the same width. For `vqvae` also Jukebox's `vqvae.pth.tar`, or the same tensors as
            safetensors; for `encodec` and `dac` also a folder that transformers saved (config.json and
            model.safetensors) or a hub repository, `true` for facebook/encodec_24khz and descript/dac_44khz. `false`
            starts at random.
        across_rates: also accept `pretrained` weights that were trained at another sampling rate.
    """

    def __init__(
        self,
        *,
        codec: Literal["vqvae", "encodec", "dac"] = "vqvae",
        output: Literal["codebook", "embedding"] = "codebook",
        width: int = 64,
        quantizers: int = 1,
        sample_rate: int | None = None,
        num_codes: int = 2048,
        codec_width: int = 32,
        codec_depth: int = 4,
        restart_below: float = 0.03,
        codec_config: dict | None = None,
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        check_positive(
            width=width, quantizers=quantizers, sample_rate=44100 if sample_rate is None else sample_rate,
            num_codes=num_codes, codec_width=codec_width, codec_depth=codec_depth,
        )  # fmt: skip
        if not 0 <= restart_below < float("inf"):
            raise UsageError(f"frontend.restart_below={restart_below} must be at least 0")
        self.across_rates = across_rates
        self.codec: Codec
        if codec == "vqvae":
            if quantizers > 1 or codec_config is not None:
                wrong = f"codec_config={codec_config}" if quantizers == 1 else f"quantizers={quantizers}"
                raise UsageError(f"frontend.{wrong} is of codec=encodec and codec=dac; codec=vqvae has one codebook")
            self.codec = VQVAE(
                sample_rate=sample_rate or 44100, num_codes=num_codes, width=codec_width, depth=codec_depth,
                restart_below=restart_below,
            )  # fmt: skip
        else:
            kind = _PUBLISHED[codec]
            if pretrained is not False:
                if codec_config is not None:
                    raise UsageError(
                        "frontend.codec_config comes with the weights of frontend.pretrained: leave it out"
                    )
                codec_config, _ = kind.find(pretrained)
            self.codec = kind(codec_config, quantizers=quantizers)
            self.fixed_length = kind.fixed_length
            if sample_rate not in (None, self.codec.sample_rate):
                raise UsageError(
                    f"frontend.sample_rate={sample_rate}, but this {codec} is of {self.codec.sample_rate} Hz: leave "
                    "frontend.sample_rate out"
                )
            self.published = {True: kind.repository}  # type: ignore[misc]
        self.codec.requires_grad_(False)
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
        return self.map_of(self.codes(wave))

    def map_of(self, codes: Tensor) -> Tensor:
        codes = _by_quantizer(codes)
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
        quantizers, most = self.codec.quantizers, self.codec.num_codes
        form = "(batch, frames)" if quantizers == 1 else f"(batch, {quantizers}, frames)"
        whole = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
        fits = codes.ndim == 2 if quantizers == 1 else codes.ndim == 3 and codes.shape[1] == quantizers
        if not (whole and fits and codes.numel() > 0):
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} and {codes.dtype} do not fit: decode takes integers {form}, as "
                "codes returns them"
            )
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= most:
            raise ValueError(f"codes from {low} to {high} are not of this codec, which has 0 to {most - 1}")
        codes = codes.long()
        return self.codec.decode(_by_quantizer(codes))

    @classmethod
    def source_of(cls, arguments: Mapping[str, Any]) -> WeightSource:
        kind = _PUBLISHED.get(arguments.get("codec", ""))
        names: dict[bool | str, str] = {True: kind.repository} if kind else {}
        return WeightSource.from_argument(arguments.get("pretrained", False), names)

    def resolve(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        config = self.codec.config if isinstance(self.codec, TransformersCodec) else None
        return {**arguments, "codec_config": config}

    def load_pretrained(self, source: bool | str) -> None:
        codec = self.codec
        if isinstance(codec, TransformersCodec):
            _, path = codec.find(source)
            file = weights.read(path)
        else:
            path = published.find_vqvae(source)
            file = published.read_vqvae(path)
        state = weights.part(file, "frontend")
        is_jukebox = isinstance(codec, VQVAE) and published.is_jukebox(state)
        self.check_rate(path, published.JUKEBOX_RATE if is_jukebox else None)
        if isinstance(codec, VQVAE) and is_jukebox:
            renamed = published.rename_jukebox(state, len(codec.encoder), path)
            state = {f"codec.{name}": tensor for name, tensor in renamed.items()}
        elif isinstance(codec, TransformersCodec) and not any(name.startswith("codec.") for name in state):
            state = {f"codec.{name}": tensor for name, tensor in codec.rename(state).items()}
        ours = self.state_dict()
        table = "embedding.weight"
        if table in ours:
            state.setdefault(table, ours[table])
        else:
            state.pop(table, None)
        cure = (
            "build the front-end with the codec's arguments that it was saved with (config.json next to the weights); "
            "Jukebox's has codec_width=32, codec_depth=4 and num_codes=2048"
        )
        weights.fit(self, state, path, cure=cure)
        self.record_source(path, source)


def _by_quantizer(codes: Tensor) -> Tensor:
    """Codes of one codebook with the axis that those of several have: `(batch, quantizers, frames)`."""
    return codes.unsqueeze(1) if codes.ndim == 2 else codes
