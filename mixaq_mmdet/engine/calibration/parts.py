"""What of a model is calibrated: the detector itself, or each of those that a wrapper such as SoftTeacher holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mixaq_mmdet.models.quant_detector import head_method
from mixaq_mmdet.models.steps import BlockStep
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.quantization import Method, Quantizer, QuantWeight


@dataclass(frozen=True)
class Part:
    """A detector, a classifier or a bare backbone that is calibrated by itself.

    Args:
        path: inside the model; empty for the model itself.
        model: it.
        backbone: its quantized one, if any.
        head_method: of its quantized neck and heads, if they are.
        others: modules inside it that belong to other parts.
    """

    path: str
    model: Any
    backbone: TwoBranchSwin | None
    head_method: Method | None
    others: frozenset[nn.Module] = frozenset()

    @property
    def prefix(self) -> str:
        """What stands before names of its modules in names of the model's."""
        return f'{self.path}.' if self.path else ''

    @property
    def ready(self) -> bool:
        """Whether all that it would use is calibrated."""
        return not any(quantizer not in self.others for quantizer in uncalibrated(self.model))

    def groups(self) -> dict[str, list[nn.Module]]:
        """Quantized layers outside the backbone, by the part of the detector that they belong to, in forward order.

        A group is a direct child of the detector; below ``roi_head`` each head, and each stage of a cascade.
        """
        groups: dict[str, list[nn.Module]] = {}
        for path, module in self.model.named_modules():
            if isinstance(module, QuantWeight) and not path.startswith('backbone.') and module not in self.others:
                names = path.split('.')
                depth = 1 if names[0] != 'roi_head' else 3 if names[2].isdigit() else 2
                groups.setdefault('.'.join(names[:depth]), []).append(module)
        return groups

    def steps(self, images: int) -> int:
        """Passes of a calibration on ``images`` images, for progress."""
        total = 0
        if self.backbone is not None:
            blocks = [step.module for step in self.backbone.steps() if step.has_layers]
            method = self.backbone.quant_method
            assert method is not None
            # passes on to the next block
            passes = 2 if method.uses_float_inputs else 1
            total += sum(method.calibration_steps(block, images) + passes * images for block in blocks)
        if self.head_method is not None:
            groups = [nn.ModuleList(layers) for layers in self.groups().values()]
            total += sum(self.head_method.calibration_steps(group, images) for group in groups)
        return total

    def equals(self, other: Part) -> bool:
        """Whether both hold the same tensors, so that one calibration is that of both."""
        mine, theirs = self.model.state_dict(), other.model.state_dict()
        return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def quantized_backbones(model: nn.Module) -> list[TwoBranchSwin]:
    """Every quantized TwoBranchSwin inside a model."""
    return [m for m in model.modules() if isinstance(m, TwoBranchSwin) and m.quant_method is not None]


def quantized_backbone(model: nn.Module) -> TwoBranchSwin | None:
    """The first quantized TwoBranchSwin inside a model, if any."""
    return next(iter(quantized_backbones(model)), None)


def calibrated_parts(model: nn.Module) -> list[Part]:
    """The parts of a model, in its order; none where nothing is quantized.

    Raises:
        ValueError: naming a wrapper whose backbones are no detector's: what they see is not known.
    """
    backbones = quantized_backbones(model)
    parts = []
    for path, module in model.named_modules():
        part = Part(path, module, _one_of(backbones, getattr(module, 'backbone', None)), head_method(module))
        if part.backbone is not None or part.head_method is not None:
            parts.append(part)
    loose = [backbone for backbone in backbones if all(backbone is not part.backbone for part in parts)]
    if loose and len(backbones) == 1:  # bare, or inside a model of another kind
        return [Part('', model, loose[0], head_method(model))]
    if loose:
        paths = [path for path, module in model.named_modules() if _one_of(loose, module)]
        raise ValueError(
            f'{type(model).__name__} holds {len(backbones)} quantized backbones, of which {paths} are no backbone of a '
            'detector; calibrate each of them by itself before they are put together'
        )
    return [replace(part, others=_modules_below(part, parts)) for part in parts]


def asks_for_gradients(model: nn.Module) -> bool:
    """Whether the calibration of a model asks for gradients of a whole-model loss."""
    methods = [backbone.quant_method for backbone in quantized_backbones(model)]
    return any(method is not None and method.uses_gradients for method in methods)


def uncalibrated(model: nn.Module) -> list[Quantizer]:
    """Quantizers of a model that have no range and would be used."""
    unused = set()
    for backbone in quantized_backbones(model):
        for stage in backbone.stages[max(backbone.out_indices) + 1 :]:
            unused.update(stage.modules())
    return [m for m in model.modules() if isinstance(m, Quantizer) and not m.ready and m not in unused]


def low_branch_left_behind(backbone: TwoBranchSwin) -> bool:
    """Whether training moved the high branch alone, so that its low one fits the weights no more.

    The norms tell: both branches start with the same, no calibration parts them, and training moves those that it
    runs. Asked of methods that can calibrate the low branch alone, which are those that train.
    """
    if bool(backbone.low_trained) or backbone.quant_method is None or not backbone.quant_method.fits_low_alone:
        return False
    return any(step.module.low_norms_differ() for step in backbone.steps() if isinstance(step, BlockStep))


def twins_of(parts: Sequence[Part]) -> Iterator[tuple[Part, Part | None]]:
    """Each part, and an earlier one that holds the same tensors; asked before any of them changes."""
    seen: list[Part] = []
    for part in parts:
        twin = next((other for other in seen if part.equals(other)), None)
        if twin is None:
            seen.append(part)
        yield part, twin


def _one_of(backbones: Sequence[TwoBranchSwin], module: object) -> TwoBranchSwin | None:
    return next((backbone for backbone in backbones if backbone is module), None)


def _modules_below(part: Part, parts: Sequence[Part]) -> frozenset[nn.Module]:
    inner = [other for other in parts if other is not part and other.path.startswith(part.prefix)]
    return frozenset(module for other in inner for module in other.model.modules())
