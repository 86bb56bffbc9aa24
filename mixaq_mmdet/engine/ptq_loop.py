"""PTQLoop: post-training quantization through tools/train.py."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from .argument_checks import known_arguments_only
from .calibration.run import calibrate_in_runner, loader_for, refuse_averaging
from .checkpoints.overwriting import refuse_overwriting

_FROM_A_BASE = (
    "; keys of the base config's train_cfg stay unless deleted: "
    "train_cfg=dict(_delete_=True, type='PTQLoop', num_images=32)"
)


@LOOPS.register_module()
class PTQLoop(EpochBasedTrainLoop):
    """A training loop of one epoch that calibrates, saves an ordinary checkpoint (epoch_1.pth) and then validates.

    To continue a run that was killed, give the same command again in the same work folder: it starts after the last
    finished block. A run that is resumed from a calibrated checkpoint validates and ends.

    Args:
        runner: the Runner.
        dataloader: ``train_dataloader`` of the config; its dataset is read through the test pipeline.
        num_images: number of calibration images, in total over all ranks.
        seed: which images are drawn.
    """

    @known_arguments_only(_FROM_A_BASE)
    def __init__(self, runner: Any, dataloader: Any, num_images: int = 32, seed: int = 0) -> None:
        refuse_averaging(runner)
        refuse_overwriting(runner.cfg)
        _save_at_the_end(runner)
        self.seed = seed
        super().__init__(runner, loader_for(runner, dataloader, num_images, seed), max_epochs=1)
        # schedulers and time estimates divide by it, and a rank may have no image
        self._max_iters: int = max(self._max_iters, 1)
        runner.register_hook(_ResumesCalibrations())

    def run(self) -> nn.Module:
        """Calibrate, save, validate."""
        self.runner.call_hook('before_train')
        if self._epoch < self._max_epochs:
            self.run_epoch()
        else:
            print_log('calibration: the resumed checkpoint is calibrated; validating it', 'current')
        if self.runner.val_loop is not None:
            self.runner.val_loop.run()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Calibrate; the hooks of an epoch's end save the result."""
        self.runner.call_hook('before_train_epoch')
        journal = calibrate_in_runner(self.runner, self.dataloader, self.seed, resumable=True)
        self._iter = self._max_iters
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        if journal is not None:
            journal.clear()


class _ResumesCalibrations(Hook):
    """Refuses to resume from a file without a calibration: its epochs would pass for one, its optimizer not fit."""

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Look into the file before the model and the optimizer load it."""
        state = checkpoint.get('state_dict', checkpoint)
        if runner._resume and not any(bool(flag) for name, flag in state.items() if name.endswith('.calibrated')):
            raise ValueError(
                '--resume: the checkpoint is not calibrated, so there is no calibration to continue; give it as '
                'load_from instead of --resume, with a work folder of its own'
            )


def _save_at_the_end(runner: Any) -> None:
    """Let CheckpointHooks of any schedule (recipes of Mask2Former count iterations) save the one epoch there is."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            hook.by_epoch, hook.interval, hook.save_begin = True, 1, 0
            hook.filename_tmpl = hook.filename_tmpl.replace('iter_', 'epoch_')
