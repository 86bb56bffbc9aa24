"""CalibrationHook: calibrate in place, before training with learned steps or before a test run."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..calibration import uncalibrated
from ..calibration_run import calibrate_in_runner, loader_for


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Calibrates a quantized model that is not calibrated yet; one that is stays as it is.

    Before training it initialises learned steps from real batches; before a test run of a float checkpoint in a
    quantized config it does what PTQLoop does, without saving.

    Args:
        num_images: calibration images, over all ranks together.
        seed: which images are drawn.
    """

    # before EMAHook and others that copy or read the model
    priority = 'VERY_HIGH'

    def __init__(self, num_images: int = 32, seed: int = 0) -> None:
        self.num_images = num_images
        self.seed = seed

    def before_train(self, runner: Any) -> None:
        """Initialise what training starts from."""
        self._calibrate(runner)

    def before_test(self, runner: Any) -> None:
        """Make an uncalibrated model ready to be tested."""
        self._calibrate(runner)

    def before_val(self, runner: Any) -> None:
        """The same before a validation that no training precedes."""
        if runner._train_loop is None or isinstance(runner._train_loop, dict):
            self._calibrate(runner)

    def _calibrate(self, runner: Any) -> None:
        if uncalibrated(runner.model):
            loader = loader_for(runner, runner.cfg.get('train_dataloader'), self.num_images, self.seed)
            calibrate_in_runner(runner, loader, self.seed)
