"""gafx: waveform in, label out. Pluggable waveform front-ends, an Audio Spectrogram Transformer, Accelerate.

The public names are imported on first use, so that `import gafx` stays quick and imports no torch.
"""

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gafx._version import __version__

if TYPE_CHECKING:
    from gafx.data.sources.base import load_manifest
    from gafx.deploy.generate import generate
    from gafx.deploy.predict import predict
    from gafx.fitting.embedder import Embedder
    from gafx.loading import load, load_weights
    from gafx.model import GAFX, create_frontend, create_model
    from gafx.saving.catalogue import list_models

_HOMES = {
    "Embedder": "gafx.fitting.embedder",
    "GAFX": "gafx.model",
    "create_frontend": "gafx.model",
    "create_model": "gafx.model",
    "generate": "gafx.deploy.generate",
    "load": "gafx.loading",
    "load_weights": "gafx.loading",
    "list_models": "gafx.saving.catalogue",
    "load_manifest": "gafx.data.sources.base",
    "predict": "gafx.deploy.predict",
}

__all__ = [
    "GAFX",
    "Embedder",
    "__version__",
    "create_frontend",
    "create_model",
    "generate",
    "list_classifiers",
    "list_frontends",
    "list_models",
    "load",
    "load_manifest",
    "load_weights",
    "predict",
]


def list_frontends(filter: str | Iterable[str] = "") -> list[str]:
    """Names of the front-ends, for `create_frontend`.

    Args:
        filter: only names that match it, with the wildcards `*` and `?`, or one of several; empty for all.
    """
    from gafx.registry import FRONTENDS, matching

    return matching(FRONTENDS.names(), filter)


def list_classifiers(filter: str | Iterable[str] = "") -> list[str]:
    """Names of the classifiers, for `create_model`; `filter` as in `list_frontends`."""
    from gafx.registry import CLASSIFIERS, matching

    return matching(CLASSIFIERS.names(), filter)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gafx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
