"""DistillationHook: gives distilled backbones their teacher, and their loss to the detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader
from torch import nn

from mixaq_mmdet.models.distillation import distillers, share_losses


def start_distillation(model: nn.Module) -> None:
    """Load the teachers of backbones with ``distill``, and add their loss to the model's; without any do nothing."""
    whole: Any = model.module if is_model_wrapper(model) else model
    for distiller in distillers(whole):
        name = distiller.checkpoint
        if '://' not in name and not Path(name).is_file():
            raise ValueError(f'distill.checkpoint={name!r} is not a file; give the float checkpoint that teaches')
        content = CheckpointLoader.load_checkpoint(name, map_location='cpu')
        distiller.load(content.get('state_dict', content))
    share_losses(whole)


@HOOKS.register_module()
class DistillationHook(Hook):
    """Starts what ``distill=dict(checkpoint=..., weight=...)`` of a TwoBranchSwin asks for.

    ``default_hooks=dict(distillation=dict(type='DistillationHook'))`` adds it; the tools of this repository do, too.
    Without such a backbone it does nothing.
    """

    def before_train(self, runner: Any) -> None:
        """A teacher that is missing or does not fit is an error here, not in a step."""
        start_distillation(runner.model)
