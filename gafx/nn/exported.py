"""Operations that an exported model needs in another form to be as exact, or as fast, as PyTorch.

The other form is used during export (`torch.compiler.is_exporting()`) and consists of operations of other runtimes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_for_onnx = False


@contextmanager
def for_onnx() -> Iterator[None]:
    """Within this context `torch.export` traces the forms that are fast in onnxruntime, though slow in PyTorch."""
    global _for_onnx
    _for_onnx = True
    try:
        yield
    finally:
        _for_onnx = False


def is_for_onnx() -> bool:
    """Whether a model is being traced within `for_onnx`."""
    return torch.compiler.is_exporting() and _for_onnx


def log1p(x: Tensor) -> Tensor:
    """Compute log(1 + x). ONNX has no such operation; the sum in float32 would lose small x, so float64 is used."""
    return torch.log(1 + x.double()).to(x.dtype) if torch.compiler.is_exporting() else torch.log1p(x)


def expm1(x: Tensor) -> Tensor:
    """Compute exp(x) - 1, see `log1p`."""
    return (torch.exp(x.double()) - 1).to(x.dtype) if torch.compiler.is_exporting() else torch.expm1(x)


def add_small(x: Tensor, value: float) -> Tensor:
    """Compute `x + value` for a tiny value, such as the energy of silence.

    The optimiser of ONNX models removes the addition of a scalar up to 1e-8, but not that of a vector.
    """
    return x + x.new_full((1,), value) if torch.compiler.is_exporting() else x + value


def cut(wave: Tensor, length: int, hop_length: int) -> Tensor:
    """Cut a wave into frames: `(batch, samples)` -> `(batch, frames, length)`, equal to `wave.unfold`.

    Slices of the wave in rows of a hop are joined. Of `unfold` onnxruntime copies each sample by itself.
    """
    rows = -(-length // hop_length)  # that a frame extends over
    frames = (wave.shape[-1] - length) // hop_length + 1
    missing = (frames + rows) * hop_length - wave.shape[-1]  # never negative
    blocks = torch.nn.functional.pad(wave, (0, missing)).reshape(wave.shape[0], frames + rows, hop_length)
    return torch.cat([blocks[:, row : row + frames] for row in range(rows)], dim=-1)[..., :length]


def power(frames: Tensor, size: int) -> Tensor:
    """Squared magnitudes of the Fourier transforms of real frames with zeros up to `size` samples.

    `(..., samples)` -> `(..., size // 2 + 1)`. Time is counted from the middle of a frame, so that the product with
    cosines takes the sums of samples that mirror each other, that with sines the differences: each half as many.
    onnxruntime computes its own STFT in one thread, with all `size` samples.
    """
    samples = frames.shape[-1]
    half = samples // 2
    first, mirrored = frames[..., :half], frames[..., samples - half :].flip(-1)
    middle = frames[..., half : samples - half]  # of an odd number of samples
    even, odd = torch.cat([first + mirrored, middle], dim=-1), first - mirrored
    twice_time = 2 * torch.arange(samples - half, dtype=torch.float64) - (samples - 1)
    bins = torch.arange(size // 2 + 1, dtype=torch.float64)
    angles = twice_time[:, None] * bins % (2 * size) * (math.pi / size)
    real, imaginary = even @ angles.cos().to(frames), odd @ angles[:half].sin().to(frames)
    return real.square() + imaginary.square()
