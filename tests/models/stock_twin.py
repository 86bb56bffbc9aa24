"""A TwoBranchSwin beside the stock Swin that holds the same weights."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.backbones import SwinTransformer
from torch import Tensor, nn

from mixaq_mmdet.models import TwoBranchSwin

TINY = dict(embed_dims=8, depths=(2, 1, 3, 2), num_heads=(1, 2, 4, 8), window_size=4, drop_path_rate=0.3)


def randomise(model: nn.Module, spread: float = 0.1, seed: int = 0) -> nn.Module:
    """Give every parameter a value that matters: stock initialisation leaves norms and biases at 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        centre = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
        with torch.no_grad():
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    return model


def twins(
    dtype: torch.dtype = torch.float64, own: dict[str, Any] | None = None, spread: float = 0.1, **changes: Any
) -> tuple[SwinTransformer, TwoBranchSwin]:
    """Stock and two-branch Swin of the tiny geometry with ``changes``; ``own`` are arguments stock does not have."""
    arguments = {**TINY, **changes}
    stock = randomise(SwinTransformer(**arguments), spread)
    ours = TwoBranchSwin(**arguments, **(own or {}))
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock.to(dtype), ours.to(dtype)


def images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(model: nn.Module, x: Tensor, training: bool) -> tuple[tuple[Tensor, ...], dict[str, Tensor | None]]:
    """Outputs and gradients; the low norms' gradients are added to those of the norms they were copied from."""
    model.train(training)
    model.zero_grad()
    torch.manual_seed(3)
    outs = model(x)
    weights = [torch.randn(out.shape, generator=torch.Generator().manual_seed(i)).to(out) for i, out in enumerate(outs)]
    sum((out * weight).sum() for out, weight in zip(outs, weights, strict=True)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name in [name for name in gradients if '_low.' in name]:
        low, high = gradients.pop(name), gradients[name.replace('_low.', '.')]
        if high is not None:
            gradients[name.replace('_low.', '.')] = high + low
    return tuple(outs), gradients


def assert_same(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Largest difference relative to the largest value."""
    assert found.shape == expected.shape, what
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f'{what}: {error:.2e} > {tolerance}'


def assert_twins_agree(stock: nn.Module, ours: nn.Module, x: Tensor, training: bool, tolerance: float = 1e-11) -> None:
    """Outputs and all gradients are stock's, but parameters that stock leaves without a gradient get zeros."""
    expected_outs, expected = run(stock, x, training)
    outs, gradients = run(ours, x, training)
    assert len(outs) == len(expected_outs)
    for i, (out, expected_out) in enumerate(zip(outs, expected_outs, strict=True)):
        assert_same(out, expected_out, tolerance, f'output {i}')
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is not None:
            assert_same(gradients[name], gradient, tolerance, name)
        elif dict(ours.named_parameters())[name].requires_grad:
            assert gradients[name].count_nonzero() == 0, name
