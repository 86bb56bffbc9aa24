"""A calibrated tiny backbone and its integer twin."""

from __future__ import annotations

from typing import Any

import tiny_backbone
import torch
from torch import Tensor, nn

from mixaq_mmdet.deploy import IntegerSwin
from mixaq_mmdet.deploy.convert import convert_backbone
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.quantization.quantizers.learned import LearnedQuantizer

SIZES = {'embed_dims': 32, 'num_heads': (1, 2)}  # heads of 32 channels, which the kernels know


def simulated(method: str = 'RepQ', **options: Any) -> TwoBranchSwin:
    """A calibrated backbone; ``options`` are bits, ``quant_options``, or arguments of the backbone."""
    quant = {'method': method, 'w_bits': 8, 'a_bits': 8, **options.pop('quant_options', {})}
    quant.update(
        {key: options.pop(key) for key in list(options) if key.endswith(('_bits', '_symmetric', '_per_channel'))}
    )
    model = tiny_backbone.backbone(quant, **{**SIZES, **options})
    Calibrator(model).run(tiny_backbone.images(2))
    _train_a_little(model)
    return model.eval()


@torch.no_grad()
def _train_a_little(model: nn.Module) -> None:
    """Move learned steps and offsets from their first values, each on its own, as training does."""
    generator = torch.Generator().manual_seed(3)
    for quantizer in model.modules():
        if isinstance(quantizer, LearnedQuantizer):
            quantizer.step.mul_(0.8 + 0.4 * torch.rand(quantizer.step.shape, generator=generator))
            for offset in (quantizer.before, quantizer.after):
                if offset is not None:
                    offset.add_(2 * quantizer.step.mean() * torch.randn(offset.shape, generator=generator))


def integer(model: nn.Module, engine: str = 'torch', **options: Any) -> IntegerSwin:
    """The converted ``model`` with its ratios."""
    sizes = {**tiny_backbone.ARCHITECTURE, **SIZES, **options}
    twin = IntegerSwin(**sizes, engine=engine, low_ratios=model.low_ratios, prune_ratios=model.prune_ratios)
    twin.load_state_dict(convert_backbone(model))
    return twin


@torch.no_grad()
def relative_error(reference: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> float:
    """Largest relative error (Frobenius) of the maps."""
    return max(float((a - b).norm() / a.norm()) for a, b in zip(reference, outputs, strict=True))
