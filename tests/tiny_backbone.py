"""A tiny quantized backbone with norms far from the identity, and its float twin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixaq_mmdet.models import TwoBranchSwin

ARCHITECTURE = {
    'embed_dims': 8,
    'depths': (2, 1),
    'num_heads': (1, 2),
    'strides': (4, 2),
    'out_indices': (0, 1),
    'window_size': 4,
}


def backbone(quant: dict[str, Any] | None = None, seed: int = 0, **options: Any) -> nn.Module:
    """An eval-mode backbone; the same seed gives the same weights with and without ``quant``."""
    model = TwoBranchSwin(**{**ARCHITECTURE, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if 'norm' in name and name.endswith('weight'):
                parameter.copy_((noise / 2).exp())
            elif parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5 / 2)
            else:
                parameter.copy_(noise * 0.5)
    stock = {name: value for name, value in model.state_dict().items() if '_low' not in name}
    if quant is not None:
        model = TwoBranchSwin(**{**ARCHITECTURE, **options}, quant=quant)
    model.load_state_dict(stock)
    return model.eval()


def images(number: int = 2, size: tuple[int, int] = (50, 67), seed: int = 5) -> list[Tensor]:
    """Images that need padding at every stage."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, *size, generator=generator) for _ in range(number)]


def signal_to_noise(reference: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> float:
    """dB over all outputs together."""
    signal = sum(float(a.square().sum()) for a in reference)
    noise = sum(float((a - b).square().sum()) for a, b in zip(reference, outputs, strict=True))
    return float(10 * torch.log10(torch.tensor(signal / max(noise, 1e-30))))
