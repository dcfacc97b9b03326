"""Standardise features, in as few dimensions as the rows span."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scaling:
    """Mean and std of training rows, and a rotation into the space that these rows span.

    An L2 penalty, distances and dot products are invariant to rotations, so estimators that depend on these alone give
    the same predictions in as many dimensions as there are rows, at less cost.

    Attributes:
        kept: `(width,)` bool; a constant feature (a bin above the band limit) has a std of rounding errors and is left
            out.
        mean, std: `(kept,)`.
        basis: `(kept, dimensions)` orthonormal columns; None without a rotation.
    """

    kept: Array
    mean: Array
    std: Array
    basis: Array | None

    @classmethod
    def fit(cls, values: Array, weight: Array | None = None) -> Self:
        """Compute the scaling of `(rows, width)` features; `weight` is `(rows,)`, by default equal for all rows."""
        values = values.astype(np.float64)
        mean = np.average(values, axis=0, weights=weight)
        std = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
        kept = std > 1e-6 * np.maximum(np.abs(mean), 1e-6)
        scaled = (values[:, kept] - mean[kept]) / std[kept]
        rotated = kept.any() and scaled.shape[1] > len(scaled)
        basis = np.linalg.svd(scaled, full_matrices=False)[2].T if rotated else None
        return cls(kept, mean[kept], std[kept], basis)

    def apply(self, values: Array) -> Array:
        """`(rows, width)` -> `(rows, dimensions)` float64; one column of zeros where every feature is constant."""
        if not self.kept.any():
            return np.zeros((len(values), 1))
        scaled = (values[:, self.kept] - self.mean) / self.std
        return scaled if self.basis is None else scaled @ self.basis

    def unscale(self, weight: Array, bias: Array) -> tuple[Array, Array]:
        """Express a linear function of scaled features by the features themselves.

        Args:
            weight: `(outputs, dimensions)`.
            bias: `(outputs,)`.

        Returns:
            weight `(outputs, width)` and bias `(outputs,)`.
        """
        whole = np.zeros((len(weight), len(self.kept)))
        if self.kept.any():
            whole[:, self.kept] = (weight if self.basis is None else weight @ self.basis.T) / self.std
            bias = bias - whole[:, self.kept] @ self.mean
        return whole, bias
