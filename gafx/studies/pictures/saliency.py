"""Gradient of a class over the map: where a small change of the map would change the prediction most."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.model import GAFX
from gafx.nn.precision import device_of

Array = npt.NDArray[Any]


def map_gradient(model: GAFX, wave: Tensor, label: int | None = None) -> tuple[Array, int]:
    """Return the absolute gradient of a class's logit over the classifier's input map (Simonyan et al., 2014).

    Args:
        model: in eval mode; its weights get no gradients.
        wave: `(channels, samples)`.
        label: the class; None for the predicted one.

    Returns:
        `(parts, frequency, time)`, with planes and channels as parts, and the class.
    """
    device = device_of(model)
    with torch.no_grad():
        feature_map = model.features(wave[None].to(device))
    feature_map = feature_map.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model.classifier(feature_map)
        chosen = int(logits[0].argmax()) if label is None else label
        (gradient,) = torch.autograd.grad(logits[0, chosen], feature_map)
    parts = model.frontend.planes_to_channels(gradient[0].abs().float())
    return np.asarray(parts.cpu().numpy()), chosen
