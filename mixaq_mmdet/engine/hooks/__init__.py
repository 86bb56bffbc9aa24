"""Hooks, one file each; importing registers them, and gives some to every Runner."""

from .calibration import CalibrationHook
from .cost import CostHook
from .distillation import DistillationHook, start_distillation
from .exact_resume import ExactResumeHook
from .standing import add_to_every_runner
from .window_map import WindowMapHook

# mmdet's own scripts shall report what a test cost, and heed model.backbone.distill
add_to_every_runner(CostHook, DistillationHook)

__all__ = [
    'CalibrationHook',
    'CostHook',
    'DistillationHook',
    'ExactResumeHook',
    'WindowMapHook',
    'start_distillation',
]
