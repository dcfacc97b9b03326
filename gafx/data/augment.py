"""Random draws for a training clip: pure functions of (seed, epoch, index), independent of batch, worker and rank."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gafx.config import AugmentConfig

# One random stream per purpose keeps the draws independent of each other: adding a mask must not move a crop.
ORDER, CROP, MIXUP, MASKS = range(4)


def stream(purpose: int, seed: int, epoch: int, index: int = 0) -> np.random.Generator:
    """Return the random generator of one purpose for one clip of one epoch."""
    return np.random.Generator(
        np.random.Philox(key=np.random.SeedSequence([purpose, seed, epoch, index]).generate_state(2, np.uint64))
    )


@dataclass(frozen=True)
class Mixup:
    """Index of a clip's partner among the training clips, and the clip's own weight in the mix, in [0, 1]."""

    partner: int
    weight: float


def draw_mixup(config: AugmentConfig, clips: int, seed: int, epoch: int, index: int) -> Mixup | None:
    """Draw a clip's mixup (Zhang et al., 2018; on waveforms as in AST and PaSST), `None` where it is not mixed."""
    if config.mixup_probability <= 0 or clips < 2:
        return None
    rng = stream(MIXUP, seed, epoch, index)
    if rng.random() >= config.mixup_probability:
        return None
    return Mixup(int(rng.integers(clips)), float(rng.beta(config.mixup_alpha, config.mixup_alpha)))


def draw_masks(config: AugmentConfig, seed: int, epoch: int, index: int) -> npt.NDArray[np.float32]:
    """Draw the masks of one map as `(time_masks + frequency_masks, 2)` of (start, width) in fractions of the axis.

    In fractions rather than bins, since the loader does not know the map's size. A width is uniform in
    [0, largest fraction], a start uniform over the positions where the mask fits (SpecAugment, Park et al., 2019).
    """
    rng = stream(MASKS, seed, epoch, index)
    widths = [config.time_mask_fraction] * config.time_masks + [config.frequency_mask_fraction] * config.frequency_masks
    width = rng.random(len(widths)) * np.asarray(widths)
    start = rng.random(len(widths)) * (1 - width)
    return np.stack([start, width], axis=1).astype(np.float32) if widths else np.zeros((0, 2), np.float32)
