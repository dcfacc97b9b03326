"""Projections of embeddings to two dimensions, and correlations of features."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.report.format import fraction

Array = npt.NDArray[Any]
_PERPLEXITY, _NEIGHBOURS = 30.0, 15
LEAST = 6  # tracks below which nothing is projected
MISSING = "UMAP is not drawn: umap-learn is not installed; pip install 'gafx[pictures]' brings it"


@dataclass(frozen=True)
class Layout:
    """Positions of tracks in two dimensions.

    Attributes:
        name: of the method.
        description: its settings, or the reason why there are no positions.
        positions: `(tracks, 2)`; None where there are none.
        axes: their labels.
    """

    name: str
    description: str
    positions: Array | None
    axes: tuple[str, str] = ("dimension 1", "dimension 2")


def layouts(values: Array, seed: int = 0) -> list[Layout]:
    """Project embeddings `(tracks, width)` by PCA, t-SNE and UMAP.

    There are none for fewer than `LEAST` tracks or two dimensions that vary.
    """
    if len(values) < LEAST or standardised(values).any(axis=0).sum() < 2:
        return []
    return [pca(values), tsne(values, seed), umap(values, seed)]


def standardised(values: Array) -> Array:
    """Columns with mean 0 and std 1; constant ones become 0."""
    mean = values.mean(axis=0)
    centred = values - mean
    std = centred.std(axis=0)
    # Relative to the mean: rounding gives constant columns a std, and the variance of a quiet sound is small.
    return np.divide(centred, std, out=np.zeros_like(centred), where=std > 1e-9 * np.abs(mean))


def pca(values: Array) -> Layout:
    """The two directions of greatest variance."""
    from sklearn.decomposition import PCA

    model = PCA(2, svd_solver="full")
    positions = model.fit_transform(standardised(values))
    first, second = (fraction(ratio, 0) for ratio in model.explained_variance_ratio_)
    axes = (f"component 1 ({first} of the variance)", f"component 2 ({second})")
    return Layout("PCA", f"{first} and {second} of the variance", positions, axes)


def tsne(values: Array, seed: int = 0) -> Layout:
    """t-SNE, initialised by PCA (van der Maaten and Hinton, 2008)."""
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(values) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    text = f"perplexity {perplexity:.1f}, seed {seed}; distances between clusters are not meaningful"
    return Layout("t-SNE", text, model.fit_transform(standardised(values)))


def umap(values: Array, seed: int = 0) -> Layout:
    """UMAP (McInnes et al., 2018), where umap-learn is installed: the optional extra `pictures`."""
    neighbours = min(_NEIGHBOURS, len(values) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that numba compiles, that a fixed seed means one thread
        try:
            from umap import UMAP
        except ImportError:
            return Layout("UMAP", MISSING, None)
        model = UMAP(n_neighbors=neighbours, min_dist=0.1, random_state=seed, n_jobs=1)
        positions = np.asarray(model.fit_transform(standardised(values)))
    return Layout("UMAP", f"{neighbours} neighbours, minimum distance 0.1, seed {seed}", positions)


def correlation(values: Array) -> Array:
    """`(columns, columns)` Pearson correlations over the rows; 0 for constant columns."""
    scaled = standardised(values)
    return np.clip(scaled.T @ scaled / len(scaled), -1.0, 1.0)


def clustered(matrix: Array) -> Array:
    """Order of the columns in which correlated ones are neighbours: average linkage on 1 - |r|."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(matrix) < 3:
        return np.arange(len(matrix))
    distance = 1 - np.abs((matrix + matrix.T) / 2)
    np.fill_diagonal(distance, 0.0)
    return np.asarray(leaves_list(linkage(squareform(distance, checks=False), "average")))


def effective_dimensions(values: Array) -> float:
    """Number of directions that the variance is spread over: (sum of eigenvalues)^2 / sum of their squares."""
    eigenvalues = np.linalg.svd(standardised(values), compute_uv=False) ** 2
    total = eigenvalues.sum()
    return float(total**2 / (eigenvalues**2).sum()) if total > 0 else 0.0
