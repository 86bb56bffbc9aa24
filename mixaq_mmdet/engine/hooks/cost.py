"""CostHook: after every test one line that says what the tested backbone cost."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from mixaq_mmdet.models.backbone_cost import CostMeter
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin


@HOOKS.register_module()
class CostHook(Hook):
    """Prints mean activation bits, realised ratios and relative bit operations over the inputs of a test.

    Importing the package adds it to every Runner; without a TwoBranchSwin it does nothing.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._meter = CostMeter()
        self._watching: Any = None

    def before_test_epoch(self, runner: Any) -> None:
        """Begin to watch the backbone's inputs."""
        backbone = _two_branch_backbone(runner.model)
        if backbone is not None:
            self._meter = CostMeter()
            self._watching = backbone.register_forward_pre_hook(self._meter.watch)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Print the line, on rank 0."""
        if self._watching is None:
            return
        self._watching.remove()
        self._watching = None
        self._meter.settings = sum(all_gather_object(self._meter.settings), Counter())
        if self._meter.settings and is_main_process():
            print_log(cost_line(self._meter.summary(_two_branch_backbone(runner.model))), 'current')


def cost_line(summary: dict[str, Any]) -> str:
    """One line from ``CostMeter.summary``."""
    relative = summary['relative']
    low, prune = (_ratios(summary[f'realised_{tier}_ratios']) for tier in ('low', 'prune'))
    times = f' ({1 / relative:.2f}x fewer)' if relative else ''
    return (
        f'backbone cost over {summary["images"]} inputs: mean activation bits {summary["mean_activation_bits"]:.2f}, '
        f'realised low ratios {low}, realised prune ratios {prune}, '
        f'relative BOPs {relative:.3f}{times} of all windows high'
    )


def _ratios(ratios: list[float]) -> str:
    return '[' + ', '.join(f'{ratio:.2f}' for ratio in ratios) + ']' if any(ratios) else 'none'


def _two_branch_backbone(model: Any) -> TwoBranchSwin | None:
    model = model.module if is_model_wrapper(model) else model
    return next((module for module in model.modules() if isinstance(module, TwoBranchSwin)), None)
