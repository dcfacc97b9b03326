"""Sampling of tokens: temperature and nucleus (top-p) of Holtzman et al. (arXiv 1904.09751)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pick(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | Sequence[torch.Generator] | None
) -> Tensor:
    """Draw a token for each row of logits.

    The nucleus is the smallest set of most probable tokens whose probabilities sum to at least `top_p`; the
    probabilities at this temperature are renormalised over it. One number is drawn per row, so a row's tokens depend
    on its own generator alone.

    Args:
        logits: `(batch, vocabulary)`; -inf for tokens that must not be drawn.
        temperature: divisor of the logits, at least 0; 0 is greedy: the most probable token, the first of equal ones.
        top_p: in (0, 1]; 1 keeps all tokens.
        generator: on the CPU; one for all rows or one per row; None for torch's own.

    Returns:
        int64 `(batch,)` on the device of the logits.
    """
    if temperature == 0:
        return logits.argmax(dim=1)
    if generator is None or isinstance(generator, torch.Generator):
        drawn = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64)
    else:
        drawn = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in generator])
    # In float64 on the CPU: the rounding of a long sum in float32 would cost rare tokens, and would depend on the GPU.
    scaled = logits.detach().double().cpu() / temperature
    probabilities, order = scaled.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    before = probabilities.cumsum(dim=1) - probabilities
    mass = (probabilities * (before < top_p)).cumsum(dim=1)
    # The first whose cumulated mass is above the draw, which is below 1; tokens without mass never are.
    place = torch.searchsorted(mass, drawn * mass[:, -1:], right=True).clamp_(max=logits.shape[1] - 1)
    last = (before < top_p).sum(dim=1, keepdim=True) - 1
    return order.gather(1, torch.minimum(place, last))[:, 0].to(logits.device)
