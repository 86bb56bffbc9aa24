"""CalibrationHook: calibrate in place, before training with learned steps or before a test run."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS

from ..argument_checks import known_arguments_only
from ..calibration import check_branches, low_branch_left_behind, quantized_backbone, uncalibrated
from ..calibration_data import check_draw
from ..calibration_run import calibrate_in_runner, loader_for, refuse_averaging


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Calibrates a quantized model that is not calibrated yet; one that is stays as it is.

    Before training it initialises learned steps from real batches; before a test run of a float checkpoint in a
    quantized config it does what PTQLoop does, without saving.

    Training at ratio 0 never runs the low branch, which goes stale. With ``branches='low'`` a calibrated model gets it
    anew - norms copied from the high branch, quantizers fitted on the low half of the windows - unless it was trained:
    from the first training step with low windows on, a buffer in the checkpoint says so, and a test keeps it. A resumed
    run keeps what its beginning calibrated, trained or not.

    Args:
        num_images: calibration images, over all ranks together.
        seed: which images are drawn.
        branches: 'all', or 'low' to calibrate a stale low branch too.
    """

    # before EMAHook and others that copy or read the model
    priority = 'VERY_HIGH'

    @known_arguments_only()
    def __init__(self, num_images: int = 32, seed: int = 0, branches: str = 'all') -> None:
        check_draw(num_images, seed)
        self.branches = check_branches(branches)
        self.num_images = num_images
        self.seed = seed

    def before_train(self, runner: Any) -> None:
        """Initialise what training starts from."""
        self._calibrate(runner, trains=True)

    def before_test(self, runner: Any) -> None:
        """Make an uncalibrated model ready to be tested."""
        self._calibrate(runner)
        self._warn_of_a_low_branch_left_behind(runner)

    def before_val(self, runner: Any) -> None:
        """The same before a validation that no training precedes."""
        if runner._train_loop is None or isinstance(runner._train_loop, dict):
            self._calibrate(runner)

    def _calibrate(self, runner: Any, trains: bool = False) -> None:
        if uncalibrated(runner.model):
            branches = 'all'
        elif self.branches == 'low' and self._low_is_untrained(runner) and not (trains and runner.iter):
            branches = 'low'
        else:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if isinstance(model, BaseTTAModel):
            raise ValueError(
                '--tta: the checkpoint is not calibrated, and augmented images are nothing to calibrate on; run '
                'tools/train.py with train_cfg=dict(_delete_=True, type="PTQLoop") and test the file that it writes'
            )
        if not trains:  # a training's first step copies the calibrated model into the average
            refuse_averaging(runner)
        loader = loader_for(runner, runner.cfg.get('train_dataloader'), self.num_images, self.seed)
        calibrate_in_runner(runner, loader, self.seed, branches=branches)

    def _warn_of_a_low_branch_left_behind(self, runner: Any) -> None:
        backbone = quantized_backbone(runner.model)
        if backbone is None or self.branches == 'low' or not any(backbone.low_ratios):
            return
        if low_branch_left_behind(backbone):
            print_log(
                'low_ratios: the low branch was left behind - no training step ran it, and its norms are not those of '
                "the high branch; set custom_hooks=[dict(type='CalibrationHook', branches='low')] to fit it anew",
                'current',
                level=logging.WARNING,
            )

    @staticmethod
    def _low_is_untrained(runner: Any) -> bool:
        backbone = quantized_backbone(runner.model)
        return backbone is not None and not bool(backbone.low_trained)
