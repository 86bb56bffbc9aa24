"""Relevance propagation, one rule per operation: what arrives at an output leaves at its inputs, all of it.

Mix-QViT (arXiv 2501.06357) uses the z+ rule for linear layers and conserves relevance through products and sums. What
it leaves open is ours, and named where it stands: the share of a residual sum, norms and activations, padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-20


def conserved(relevance: Tensor, total: Tensor) -> Tensor:
    """Scale to a given sum; what has no relevance anywhere shares it evenly."""
    present = relevance.sum()
    if present <= TINY:
        return torch.full_like(relevance, 1 / relevance.numel()) * total
    return relevance * (total / present)


def linear_rule(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """z+ rule: an output's relevance goes to its inputs in proportion to their positive contributions.

    The bias takes none. An output without positive contributions spreads its relevance evenly over the inputs.

    Args:
        x: (..., in) input.
        weight: (out, in).
        relevance: (..., out), not negative.

    Returns:
        (..., in).
    """
    positive, negative = x.clamp(min=0), x.clamp(max=0)
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    contributions = positive @ up.T + negative @ down.T
    share, rest = _shares(relevance, contributions)
    back = positive * (share @ up) + negative * (share @ down)
    return back + rest.sum(-1, keepdim=True) / x.shape[-1]


def product_rule(left: Tensor, right: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """z+ rule for ``left @ right``: each operand takes half.

    Args:
        left: (..., M, K).
        right: (..., K, N).
        relevance: (..., M, N), not negative.

    Returns:
        Relevance of both operands, (..., M, K) and (..., K, N).
    """
    parts = [(left.clamp(min=0), right.clamp(min=0)), (left.clamp(max=0), right.clamp(max=0))]
    share, rest = _shares(relevance / 2, sum(a @ b for a, b in parts))  # type: ignore[arg-type]
    rest = rest / left.shape[-1]
    to_left = sum(a * (share @ b.transpose(-2, -1)) for a, b in parts) + rest.sum(-1, keepdim=True)
    to_right = sum(b * (a.transpose(-2, -1) @ share) for a, b in parts) + rest.sum(-2, keepdim=True)
    return to_left, to_right  # type: ignore[return-value]


def sum_rule(left: Tensor, right: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Residual sum: in proportion to the magnitudes of the summands (our choice), evenly where both are zero."""
    a, b = left.abs(), right.abs()
    whole = a + b
    share = torch.where(whole > TINY, a / whole.clamp(min=TINY), torch.full_like(a, 0.5))
    return relevance * share, relevance * (1 - share)


def gated_rule(relevance: Tensor, gradient: Tensor) -> Tensor:
    """Attention: the positive part of gradient x relevance, scaled to the relevance that came in.

    Without the scaling (our choice) layers in front of it would be measured in another unit. Where no part is positive
    the relevance stays as it is.
    """
    gated = (gradient * relevance).clamp(min=0)
    total = relevance.sum()
    return conserved(gated, total) if gated.sum() > TINY else relevance


def _shares(relevance: Tensor, contributions: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance per unit of contribution, and the relevance that nothing contributed to."""
    some = contributions > TINY
    nothing = torch.zeros_like(relevance)
    return (
        torch.where(some, relevance / contributions.clamp(min=TINY), nothing),
        torch.where(some, nothing, relevance),
    )
