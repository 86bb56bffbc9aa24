"""AnnealingHook: at the end of a training, weights that have settled on a code stay where they are."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor

from mixaq_mmdet.checks import check_count, check_flag, check_number
from mixaq_mmdet.quantization import QuantWeight

from ..argument_checks import known_arguments_only


@HOOKS.register_module()
class AnnealingHook(Hook):
    """Confidence-guided annealing of OFQ (arXiv 2302.02210).

    From ``begin`` on every quantized weight that is farther than ``boundary`` from where its code changes gets back,
    after each step, the value it had before. So only weights that are not sure of their code move on. The learning rate
    should be at its minimum by then, which is a matter of the schedule. Biases, norms, learned steps and layers without
    quantizers train as before; so do query and key weights under ``qkr=True``, none of which is rounded by itself.

    Args:
        begin: iterations, or epochs, that train freely.
        by_epoch: count ``begin`` in epochs.
        boundary: in steps of the weight's grid.
    """

    # behind the optimizer, before EMAHook and others that copy or read the model
    priority = 'VERY_HIGH'

    @known_arguments_only()
    def __init__(self, begin: int, by_epoch: bool = False, boundary: float = 0.005) -> None:
        self.begin = check_count(begin, 'AnnealingHook: begin')
        self.by_epoch = check_flag(by_epoch, 'AnnealingHook: by_epoch')
        self.boundary = check_number(boundary, 'AnnealingHook: boundary', 0, 0.5, usual=0.005)
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def before_train(self, runner: Any) -> None:
        """A model without a weight that can settle is an error here, not in a step."""
        if not any(layer.boundary_distance() is not None for layer in _layers(runner.model)):
            raise ValueError(
                "AnnealingHook has nothing to hold: no weight's grid tells where codes change; use "
                "quant=dict(method='OFQ') or 'LSQ', or leave the hook out"
            )

    @torch.no_grad()
    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Keep each weight, and which of its values are sure of their code."""
        if (runner.epoch if self.by_epoch else runner.iter) < self.begin:
            return
        for layer in _layers(runner.model):
            distance = layer.boundary_distance()
            if distance is not None:
                self._kept.append((layer.weight, layer.weight.clone(), distance > self.boundary))

    @torch.no_grad()
    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Undo what the step did to those."""
        for weight, before, sure in self._kept:
            weight.copy_(torch.where(sure, before, weight))
        self._kept.clear()


def _layers(model: Any) -> list[QuantWeight]:
    model = model.module if is_model_wrapper(model) else model
    return [module for module in model.modules() if isinstance(module, QuantWeight)]
