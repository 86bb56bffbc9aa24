"""Feature distillation: a float copy of the backbone shows the quantized one what its outputs should be.

OFQ trains classifiers with a float teacher (arXiv 2302.02210). Nothing is published for detectors: comparing the maps
that go to the neck, by their relative squared error, is ours [open].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

KEYS = ('checkpoint', 'weight')
LOSS_NAME = 'loss_distill'


def relative_error(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """|output - target|^2 / |target|^2 of every image and map, their mean; the maps are (B, C_i, H_i, W_i)."""
    errors = []
    for output, target in zip(outputs, targets, strict=True):
        target = target.float()
        size = target.square().flatten(1).sum(1).clamp(min=torch.finfo(torch.float32).eps)
        errors.append((output.float() - target).square().flatten(1).sum(1) / size)
    return torch.stack(errors).mean()


class FeatureDistiller:
    """Holds the teacher where module trees, state dicts, distributed wrappers and copies of the model do not see it.

    The backbone leaves the loss of a training step here; whoever computes the detector's losses takes it
    (:func:`share_losses`).

    Args:
        config: ``checkpoint`` (a float file of the same architecture) and ``weight`` (of the loss).
        build: makes the teacher.
    """

    def __init__(self, config: Mapping[str, Any], build: Callable[[], nn.Module]) -> None:
        if not isinstance(config, Mapping) or set(config) != set(KEYS):
            raise ValueError(f'distill={config!r} must be dict(checkpoint="float.pth", weight=1.0)')
        checkpoint, weight = (config[key] for key in KEYS)
        if not isinstance(checkpoint, str) or not checkpoint:
            raise ValueError(f'distill.checkpoint={checkpoint!r} must name a float checkpoint')
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 < float(weight) < math.inf:
            raise ValueError(
                f'distill.weight={weight!r} must be a number above 0; remove distill to train without a teacher'
            )
        self.checkpoint = checkpoint
        self.weight = float(weight)
        self.shared = False
        self._build = build
        self._teacher: nn.Module | None = None
        self._loss: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureDistiller:
        """A copy without teacher and loss: averages of a model, for example, never train."""
        return FeatureDistiller({key: getattr(self, key) for key in KEYS}, self._build)

    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Make the teacher from a float backbone's weights, with or without the prefix of a detector's file."""
        inside = {name.removeprefix('backbone.'): v for name, v in state_dict.items() if name.startswith('backbone.')}
        teacher = self._build()
        try:
            teacher.load_state_dict(inside or dict(state_dict), strict=True)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f'distill.checkpoint={self.checkpoint!r} does not fit a float backbone of this architecture: {error}'
            ) from error
        self._teacher = teacher.eval().requires_grad_(False)

    def compare(self, images: Tensor, outputs: Sequence[Tensor]) -> None:
        """Leave the loss of a training step: what the teacher makes of the images, against the outputs."""
        if self._teacher is None or not self.shared:
            raise ValueError(
                'distill is set, but nothing takes its loss; add default_hooks=dict(distillation=dict(type='
                '"DistillationHook")), or call mixaq_mmdet.engine.start_distillation(model) before the first step'
            )
        with torch.no_grad():
            targets = self._teacher.to(images.device)(images)
        self._loss = self.weight * relative_error(outputs, targets)

    def take(self) -> Tensor | None:
        """The loss of the last step, once."""
        loss, self._loss = self._loss, None
        return loss


class Distilled:
    """A backbone that may be trained towards the outputs of a float one."""

    distiller: FeatureDistiller | None = None


def distillers(model: nn.Module) -> list[FeatureDistiller]:
    """Those of all backbones inside a model."""
    found = [module.distiller for module in model.modules() if isinstance(module, Distilled)]
    return [distiller for distiller in found if distiller is not None]


def share_losses(model: nn.Module) -> None:
    """Let the losses that ``model(..., mode='loss')`` returns include those of its distilled backbones."""
    for distiller in distillers(model):
        if not distiller.shared:
            distiller.shared = True
            model.register_forward_hook(_add_loss)


def _add_loss(model: nn.Module, inputs: Any, output: Any) -> None:
    losses = [loss for distiller in distillers(model) if (loss := distiller.take()) is not None]
    if losses and isinstance(output, dict):
        output[LOSS_NAME] = torch.stack(losses).sum()
