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

    ``default_hooks=dict(cost=dict(type='CostHook'))`` adds it to a config. The tools of this repository add it
    by themselves. Without a TwoBranchSwin it does nothing.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._meters: list[tuple[TwoBranchSwin, CostMeter]] = []
        self._watching: list[Any] = []

    def before_test_epoch(self, runner: Any) -> None:
        """Begin to watch the backbone's inputs; a model of two detectors tests one of them."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._meters = [(module, CostMeter()) for module in model.modules() if isinstance(module, TwoBranchSwin)]
        self._watching = [backbone.register_forward_pre_hook(meter.watch) for backbone, meter in self._meters]

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Print the line, on rank 0."""
        while self._watching:
            self._watching.pop().remove()
        for backbone, meter in self._meters:
            meter.settings = sum(all_gather_object(meter.settings), Counter())
            if meter.settings and is_main_process():
                print_log(cost_line(meter.summary(backbone)), 'current')
        self._meters = []


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
