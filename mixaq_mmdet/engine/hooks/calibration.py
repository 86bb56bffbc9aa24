"""CalibrationHook: calibrate in place, before training with learned steps or before a test run."""

from __future__ import annotations

import logging
from typing import Any

from mmdet.engine.hooks import MeanTeacherHook
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS

from ..argument_checks import known_arguments_only
from ..calibration import check_branches, low_branch_left_behind, quantized_backbones, uncalibrated
from ..calibration.data import check_draw
from ..calibration.run import calibrate_in_runner, loader_for, refuse_averaging
from ..checkpoints.overwriting import refuse_overwriting


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Calibrates a quantized model that is not calibrated yet. It does not change a calibrated model.

    Before training it sets the first values of learned steps from real batches. Before a test of a float checkpoint
    with a quantized config it does the same as PTQLoop, without saving.

    Training at ratio 0 never runs the low branch, so the branch becomes outdated. With ``branches='low'`` the hook
    calibrates the low branch of a calibrated model again: it copies the norms from the high branch and fits the
    quantizers on the low half of the windows. It does not do so if the low branch was trained, which a buffer in the
    checkpoint records from the first training step with low windows on. A resumed run keeps what its beginning
    calibrated.

    Args:
        num_images: number of calibration images, in total over all ranks.
        seed: which images are drawn.
        branches: 'all', or 'low' to calibrate an outdated low branch too.
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
        refuse_overwriting(runner.cfg)
        if runner.iter == 0:
            _start_teachers(runner)
        self._calibrate(runner, trains=True)

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Tell a teacher, which follows its student's parameters, when their low branch has been trained."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if any(isinstance(hook, MeanTeacherHook) for hook in runner.hooks):
            pairs = zip(quantized_backbones(model.student), quantized_backbones(model.teacher), strict=True)
            for student, teacher in pairs:
                teacher.low_trained.copy_(student.low_trained)

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
        backbones = [backbone for backbone in quantized_backbones(runner.model) if any(backbone.low_ratios)]
        if self.branches != 'low' and any(low_branch_left_behind(backbone) for backbone in backbones):
            print_log(
                'low_ratios: the low branch was left behind - no training step ran it, and its norms are not those of '
                "the high branch; set custom_hooks=[dict(type='CalibrationHook', branches='low')] to calibrate it",
                'current',
                level=logging.WARNING,
            )

    @staticmethod
    def _low_is_untrained(runner: Any) -> bool:
        backbones = quantized_backbones(runner.model)
        return bool(backbones) and not any(bool(backbone.low_trained) for backbone in backbones)


def _start_teachers(runner: Any) -> None:
    """Let a teacher begin as its student before they are calibrated, not after: it is calibrated for its weights."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    for hook in runner.hooks:
        if isinstance(hook, MeanTeacherHook):
            hook.momentum_update(model, 1)
