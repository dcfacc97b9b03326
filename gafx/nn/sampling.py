"""Choice of the next token from its logits."""

import torch
from torch import Tensor

from gafx.errors import UsageError


def pick(
    logits: Tensor, temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a token for each row: from the whole distribution, or from its nucleus (Holtzman et al., 2020).

    The nucleus is the smallest set of the most likely tokens whose probabilities, at this temperature, sum to at least
    `top_p`. One uniform number is drawn for each row, in order, so the same generator gives the same tokens on every
    device up to rounding.

    Args:
        logits: `(batch, tokens)`; minus infinity for tokens that must not be drawn.
        temperature: divides the logits; 0 takes the most likely token, the first of equal ones, and draws nothing.
        top_p: in (0, 1].
        generator: of the CPU; None for the global one.

    Returns:
        int64 `(batch,)`.

    Raises:
        UsageError: a temperature or `top_p` out of range.
        ValueError: logits without a finite one in a row, or NaN.
    """
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature={temperature} must be at least 0; 0 takes the most likely token every time")
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p={top_p} must be above 0 and at most 1; 1 draws from all tokens")
    logits = logits.double()
    if logits.isnan().any() or not logits.isfinite().any(dim=1).all():
        raise ValueError("logits of a token must be numbers, at least one of them finite in every row")
    if temperature == 0:
        return logits.argmax(dim=1)
    # Relative to the largest, so that a low temperature overflows nothing.
    values, order = ((logits - logits.amax(dim=1, keepdim=True)) / temperature).sort(
        dim=1, descending=True, stable=True
    )
    share = values.softmax(dim=1)
    share = share * (share.cumsum(dim=1) - share < top_p)
    edges = share.cumsum(dim=1)
    drawn = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator).to(edges.device)
    place = torch.searchsorted(edges, drawn * edges[:, -1:], right=True)
    # A number within rounding of 1 must not fall behind the last token of the nucleus.
    last = (share > 0).sum(dim=1, keepdim=True) - 1
    return order.gather(1, place.minimum(last)).squeeze(1)
