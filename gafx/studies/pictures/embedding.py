"""Embeddings in two dimensions, and how features hang together."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_PERPLEXITY, _NEIGHBOURS = 30.0, 15
LEAST = 6  # tracks below which nothing is laid out
MISSING = "UMAP is not drawn: umap-learn is not installed; pip install 'gafx[pictures]' brings it"


@dataclass(frozen=True)
class Layout:
    """Places of tracks in two dimensions.

    Attributes:
        name: of the method.
        said: its settings in words, or why there is nothing.
        places: `(tracks, 2)`; None where there is nothing.
    """

    name: str
    said: str
    places: Array | None


def standardised(values: Array) -> Array:
    """Columns at mean 0 and deviation 1; constant ones become 0."""
    centred = values - values.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 1e-9)


def pca(values: Array) -> Layout:
    """The two directions of greatest variance."""
    from sklearn.decomposition import PCA

    model = PCA(2, random_state=0)
    places = model.fit_transform(standardised(values))
    first, second = 100 * model.explained_variance_ratio_
    return Layout("PCA", f"{first:.0f} and {second:.0f} % of the variance", places)


def tsne(values: Array, seed: int = 0) -> Layout:
    """t-SNE from PCA's places (van der Maaten and Hinton, 2008)."""
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(values) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    said = f"perplexity {perplexity:.1f}, seed {seed}; distances between groups mean little"
    return Layout("t-SNE", said, model.fit_transform(standardised(values)))


def umap(values: Array, seed: int = 0) -> Layout:
    """UMAP (McInnes et al., 2018), where umap-learn is installed: the optional extra `pictures`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that numba compiles, that a fixed seed means one thread
            from umap import UMAP
    except ImportError:
        return Layout("UMAP", MISSING, None)
    neighbours = min(_NEIGHBOURS, len(values) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = UMAP(n_neighbors=neighbours, min_dist=0.1, random_state=seed, n_jobs=1).fit_transform(
            standardised(values)
        )
    return Layout("UMAP", f"{neighbours} neighbours, least distance 0.1, seed {seed}", np.asarray(places))


def correlation(values: Array) -> Array:
    """`(columns, columns)` Pearson correlations over the rows; 0 for constant columns."""
    scaled = standardised(values)
    return np.clip(scaled.T @ scaled / len(scaled), -1.0, 1.0)


def clustered(matrix: Array) -> Array:
    """An order of the columns in which those that hang together are neighbours: average linkage on 1 - |r|."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(matrix) < 3:
        return np.arange(len(matrix))
    distance = 1 - np.abs((matrix + matrix.T) / 2)
    np.fill_diagonal(distance, 0.0)
    return np.asarray(leaves_list(linkage(squareform(distance, checks=False), "average")))


def effective_dimensions(values: Array) -> float:
    """How many directions the variance is spread over: (sum of the eigenvalues)^2 / sum of their squares."""
    eigenvalues = np.linalg.svd(standardised(values), compute_uv=False) ** 2
    total = eigenvalues.sum()
    return float(total**2 / (eigenvalues**2).sum()) if total > 0 else 0.0
