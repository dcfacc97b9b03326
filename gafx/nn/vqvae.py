"""VQ-VAE of waves as in Jukebox (Dhariwal et al. 2020, arXiv 2005.00341, section 3 and appendix B.1).

One level of Jukebox's three, which are separate networks there; the default is the most compressed one, 128 samples per
code. Order of operations, paddings and shapes are those of the published code (github.com/openai/jukebox), so that its
weights fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gafx.errors import require
from gafx.nn.codec import Codec
from gafx.nn.precision import Float32

STRIDE = 2


class ResBlock(nn.Sequential):
    """x + [ReLU, dilated convolution of 3, ReLU, convolution of 1](x)."""

    def __init__(self, width: int, dilation: int):
        super().__init__(
            nn.ReLU(), nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation), nn.ReLU(),
            nn.Conv1d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _res_blocks(width: int, dilations: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(width, dilation) for dilation in dilations))


def _encoder_stage(channels: int, width: int, dim: int, halvings: int, dilations: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(halvings):
        down = nn.Conv1d(channels if number == 0 else width, width, 2 * STRIDE, STRIDE, STRIDE // 2)
        layers.append(nn.Sequential(down, _res_blocks(width, dilations)))
    return nn.Sequential(*layers, nn.Conv1d(width, dim, 3, padding=1))


def _decoder_stage(width: int, dim: int, doublings: int, dilations: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(doublings):
        last = number == doublings - 1
        up = nn.ConvTranspose1d(width, dim if last else width, 2 * STRIDE, STRIDE, STRIDE // 2)
        layers.append(nn.Sequential(_res_blocks(width, dilations), up))
    return nn.Sequential(nn.Conv1d(dim, width, 3, padding=1), *layers)


def _init(network: nn.Module) -> None:
    """Keep the variance of the wave through all layers, with biases of zero: an untrained encoder then has vectors that
    depend on the wave, at its scale. (PyTorch's default has biases that outweigh the wave.)"""
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            taps = module.kernel_size[0] / (module.stride[0] if isinstance(module, nn.ConvTranspose1d) else 1)
            nn.init.normal_(module.weight, std=(module.in_channels * taps) ** -0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    blocks = [list(module.parameters())[::2] for module in network.modules() if isinstance(module, ResBlock)]
    for wide, narrow in blocks:  # kernels after a ReLU, which halves the power; the branches of all blocks add up
        for kernel, gain in ((wide, 2.0), (narrow, 2.0 / len(blocks))):
            nn.init.normal_(kernel, std=(gain / kernel[0].numel()) ** 0.5)


@dataclass(frozen=True)
class Quantized:
    """Result of `VQVAE.quantize`.

    Attributes:
        vectors: `(batch, dim, frames)` of the codebook; gradients reach the encoder unchanged (straight-through).
        codes: `(batch, 1, frames)`.
        commitment: `(batch,)` mean squared distance of the encoder's vectors to those of the codebook.
    """

    vectors: Tensor
    codes: Tensor
    commitment: Tensor


class VQVAE(Codec, Float32):
    """Convolutional encoder and decoder with one codebook: mono waves, `2 ** sum(halvings)` samples per code.

    The encoder halves the time axis by strided convolutions, each followed by residual blocks whose dilation grows by
    `dilation_growth`; the decoder mirrors it, with dilations in reversed order. Each stage of `halvings` ends in a
    convolution to `dim` channels.

    The codebook is a moving average of the encoder's vectors (van den Oord et al. 2017, appendix A.1); a code whose
    average number of uses per step falls below `restart_below` restarts at a random vector of the batch (Jukebox,
    appendix B.1). Both happen in training mode only, in `quantize`; with several processes over the vectors of all.

    Args:
        sample_rate: in Hz.
        num_codes: entries of the codebook.
        dim: size of a code's vector.
        width: channels of the convolutions.
        depth: residual blocks after each strided convolution.
        dilation_growth: factor of the dilation from block to block.
        halvings: strided convolutions of each stage.
        decay: of the moving average per step.
        restart_below: uses per step, averaged; 0 never restarts a code.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 44100,
        num_codes: int = 2048,
        dim: int = 64,
        width: int = 32,
        depth: int = 4,
        dilation_growth: int = 3,
        halvings: Sequence[int] = (3, 2, 2),
        decay: float = 0.99,
        restart_below: float = 0.03,
    ):
        super().__init__()
        self.sample_rate, self.num_codes, self.dim, self.quantizers = sample_rate, num_codes, dim, 1
        self.hop_length = STRIDE ** sum(halvings)
        dilations = [dilation_growth**number for number in range(depth)]
        self.encoder = nn.Sequential(
            *(
                _encoder_stage(1 if number == 0 else dim, width, dim, count, dilations)
                for number, count in enumerate(halvings)
            )
        )
        out = nn.Conv1d(dim, 1, 3, padding=1)
        self.decoder = nn.Sequential(
            *(_decoder_stage(width, dim, count, dilations[::-1]) for count in reversed(halvings)), out
        )
        for network in (self.encoder, self.decoder):
            _init(network)
        nn.init.normal_(out.weight, std=0.1 * (3 * dim) ** -0.5)  # starts far below the level of waves
        library = require("vector_quantize_pytorch", "the VQ-VAE codec")
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        # Straight-through gradients and the commitment loss are computed in `quantize`, in float32 and per clip.
        self.quantizer = library.VectorQuantize(
            dim, num_codes, decay=decay, threshold_ema_dead_code=restart_below, commitment_weight=0.0,
            sync_codebook=distributed and torch.distributed.get_world_size() > 1,
        )  # fmt: skip
        codebook = self.quantizer._codebook
        # After a restart a code has log(2) / (1 - decay) steps to be used.
        codebook.reset_cluster_size = 2 * restart_below
        del codebook.initted  # a constant without k-means; a bool tensor would be saved, averaged and broadcast
        codebook.initted = True
        # No code has been used: all start at vectors of the first batches. Until then vectors of norm 1, in the mean.
        nn.init.normal_(codebook.embed, std=dim**-0.5)
        for unused in (codebook.cluster_size, codebook.embed_avg):
            nn.init.zeros_(unused)

    @property
    def codebook(self) -> Tensor:
        """`(num_codes, dim)`."""
        codebook: Tensor = self.quantizer.codebook
        return codebook

    def encode(self, wave: Tensor) -> Tensor:
        """Compute the encoder's vectors. `(batch, 1, samples)` -> `(batch, dim, frames)`."""
        vectors: Tensor = self.encoder(self.pad(wave))
        return vectors

    def quantize(self, vectors: Tensor) -> Quantized:
        """Replace the encoder's vectors `(batch, dim, frames)` by those of the codebook; in training, update it."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.to(self.codebook.dtype)
            if self.training:
                nearest, codes = self._update(vectors.detach().transpose(1, 2))
                nearest = nearest.transpose(1, 2)
            else:
                codes = self._nearest(vectors)
                nearest = self.vectors(codes[:, None])
            commitment = (vectors - nearest).square().mean(dim=(1, 2))
            return Quantized(vectors + (nearest - vectors).detach(), codes[:, None], commitment)

    def codes(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            return self._nearest(self.encode(wave.to(self.codebook.dtype)))[:, None]

    def vectors(self, codes: Tensor) -> Tensor:
        return nn.functional.embedding(codes[:, 0], self.codebook).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        return self.decode_vectors(self.vectors(codes))

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """`(batch, dim, frames)` -> `(batch, 1, frames * hop_length)`."""
        wave: Tensor = self.decoder(vectors)
        return wave

    def _nearest(self, vectors: Tensor) -> Tensor:
        """`(batch, dim, frames)` -> `(batch, frames)` index of the closest vector of the codebook."""
        # Squared distance less that of the vector to zero, which is the same for all codes.
        codebook = self.codebook
        return (codebook.square().sum(dim=1) - 2 * vectors.transpose(1, 2) @ codebook.T).argmin(dim=-1)

    @torch.no_grad()
    def _update(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Look up vectors `(batch, frames, dim)` and update the codebook; return the vectors and codes before that."""
        nearest, codes, _ = self.quantizer(vectors)
        # The library marks this constant, a buffer, as requiring a gradient; a buffer that does cannot be restored.
        self.quantizer.zero.requires_grad_(False)
        return nearest, codes
