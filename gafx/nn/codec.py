"""Interface of neural audio codecs: waves to integer codes, and back."""

from torch import Tensor, nn


class Codec(nn.Module):
    """An audio codec with vector quantisation: wave -> codes -> wave.

    A frame is `hop_length` samples; a wave that is not a multiple of it is zero-padded at its end. Each frame has one
    code of each of `quantizers` codebooks, an integer in [0, num_codes). Computed in float32, also under autocast,
    wherever the choice of a code depends on it.

    Attributes:
        sample_rate: of waves, mono, in Hz.
        hop_length: samples per frame.
        num_codes: entries of each codebook.
        quantizers: codebooks used, i.e. codes per frame.
        dim: size of a frame's vector.
    """

    sample_rate: int
    hop_length: int
    num_codes: int
    quantizers: int
    dim: int

    def frames(self, samples: int) -> int:
        """Return the number of frames of a wave of `samples` samples."""
        # No negative numerator: integer division in ONNX rounds towards zero, not down.
        return (samples + self.hop_length - 1) // self.hop_length

    def codes(self, wave: Tensor) -> Tensor:
        """Encode. `(batch, 1, samples)` -> int64 `(batch, quantizers, frames)`."""
        raise NotImplementedError

    def vectors(self, codes: Tensor) -> Tensor:
        """Return the sum of the codebooks' vectors. `(batch, quantizers, frames)` -> `(batch, dim, frames)`."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Decode. `(batch, quantizers, frames)` -> `(batch, 1, frames * hop_length)`."""
        raise NotImplementedError

    def pad(self, wave: Tensor) -> Tensor:
        """Zero-pad the end to whole frames. `(batch, 1, samples)` -> `(batch, 1, frames * hop_length)`."""
        missing = self.frames(wave.shape[-1]) * self.hop_length - wave.shape[-1]
        return nn.functional.pad(wave, (0, missing))
