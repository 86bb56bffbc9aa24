"""Resume as if nothing had happened: random states travel with the checkpoint."""

from __future__ import annotations

from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mixaq_mmdet.registry import HOOKS

from ..random_states import random_states, set_random_states
from ..resumed_batches import ResumedBatches, shuffler

CHECKPOINT_KEY = 'exact_resume'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Make a resumed run equal to the uninterrupted one.

    mmengine saves the model and the optimizer but no random state, so DropPath, flips and samplers differ from the
    first iteration after a resume. This hook stores the random states of every rank in checkpoints and restores them
    when training continues. Validation does not change the random states of the training, because a resumed run does
    not repeat it.

    The result is exact for checkpoints at the end of an epoch in epoch-based loops and for those of CheckpointHook in
    iteration-based loops, with ``num_workers=0`` and the same number of ranks. Otherwise a warning says what is lost.
    The hook does not cover data sets and transforms with a state of their own (such as CachedMosaic), nor the gradients
    of an unfinished update: set the checkpoint's ``interval`` to a multiple of ``accumulative_counts``.
    """

    # Just before CheckpointHook (VERY_LOW, 90): whatever draws numbers before it saves has done so by then.
    priority = 89

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None
        self._to_restore: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember what the file holds; whether this is a resume shows in ``before_train``."""
        self._to_restore = checkpoint.get(CHECKPOINT_KEY)

    def before_train(self, runner: Runner) -> None:
        """Restore, after the other hooks of this point have drawn what they need."""
        self._warn_of_limits(runner)
        stored, self._to_restore = self._to_restore, None
        if runner.iter == 0:  # load_from starts a new run
            return
        if stored is not None and stored['sampler_seed'] is not None:  # None: a sampler without one, as PTQLoop's
            shuffler(runner.train_dataloader).seed = stored['sampler_seed']
        own = self._states_of_this_rank(runner, stored)
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop) and not runner.train_dataloader.num_workers:
            # the loop comes to the first new batch after this point, and restores there
            loop.dataloader_iterator = ResumedBatches(
                loop.dataloader_iterator, runner.iter, lambda: self._restore(runner, own)
            )
        else:
            self._restore(runner, own)

    @staticmethod
    def _states_of_this_rank(runner: Runner, stored: dict[str, Any] | None) -> dict[str, Any] | None:
        if stored is None:
            runner.logger.warning(
                'ExactResumeHook: the checkpoint holds no random states, the run goes on with fresh ones. '
                'Only checkpoints saved with this hook in custom_hooks hold them, in epoch-based loops those saved at '
                'the end of an epoch.'
            )
            return None
        ranks = stored['ranks']
        if len(ranks) != get_world_size():
            runner.logger.warning(
                f'ExactResumeHook: the checkpoint was saved by {len(ranks)} ranks and {get_world_size()} resume; '
                'the run goes on with fresh random states.'
            )
            return None
        return ranks[get_rank()]

    @staticmethod
    def _restore(runner: Runner, states: dict[str, Any] | None) -> None:
        if states is not None:
            set_random_states(states)
            runner.logger.info('ExactResumeHook: random states restored')

    def before_train_epoch(self, runner: Runner) -> None:
        """Forget the last epoch's states: a checkpoint in the middle of an epoch must not carry them."""
        self._states = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Forget the states of the last checkpoint."""
        self._states = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Collect before a checkpoint of an iteration-based loop."""
        if isinstance(runner.train_loop, IterBasedTrainLoop) and _saves_now(runner):
            self._collect(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Collect before a checkpoint of an epoch-based loop."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._collect(runner)

    def _collect(self, runner: Runner) -> None:
        """The states of all ranks: every rank must come here, only one of them writes."""
        seed = getattr(shuffler(runner.train_dataloader), 'seed', None)
        self._states = {'ranks': all_gather_object(random_states()), 'sampler_seed': seed}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the collected states; files written at other times have none."""
        if self._states is not None:
            checkpoint[CHECKPOINT_KEY] = self._states

    def before_val(self, runner: Runner) -> None:
        """Validation inside training draws numbers too (every new loader iterator takes one)."""
        self._before_validation = random_states()

    def after_val(self, runner: Runner) -> None:
        """Continue as if validation had not been."""
        if self._before_validation is not None:
            set_random_states(self._before_validation)
            self._before_validation = None

    def _warn_of_limits(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            runner.logger.warning(
                f'ExactResumeHook: loops of type {type(runner.train_loop).__name__} do not resume exactly; '
                'use EpochBasedTrainLoop or IterBasedTrainLoop'
            )
        workers = runner.train_dataloader.num_workers
        if workers:
            runner.logger.warning(
                f'ExactResumeHook: num_workers={workers}; loader processes keep random states of their own, '
                'set train_dataloader.num_workers=0 for an exact resume'
            )


def _saves_now(runner: Runner) -> bool:
    """Whether a CheckpointHook saves after the present iteration, the same answer on every rank."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
    return any(
        hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
        or (hook.save_last and hook.is_last_train_iter(runner))
        for hook in hooks
    )
