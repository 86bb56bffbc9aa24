"""What window tiers cost inside the backbone: sensitivity of block pairs, and signal to noise of windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixaq_mmdet.analysis.pair_sensitivity import SCORES, pair_sensitivity
from mixaq_mmdet.analysis.study import evaluation_loader
from mixaq_mmdet.analysis.window_sqnr import sqnr_by_stage
from mixaq_mmdet.engine.detectors import load_detector

if TYPE_CHECKING:
    from ..worker import Context


def sensitivity(context: Context) -> dict[str, Any]:
    """Settings: ``images``, ``ratios``, ``score`` as in ``analyze.py sensitivity``."""
    settings = context.experiment.settings
    loader = evaluation_loader(context.cfg, limit=settings['images'])
    detector = load_detector(context.cfg, context.checkpoint)
    arms = pair_sensitivity(detector, loader, settings['ratios'], settings['score'])
    unit = SCORES[settings['score']].unit
    return {'images': settings['images'], 'extras': {'unit': unit, 'ratios': settings['ratios'], 'arms': arms}}


def sqnr(context: Context) -> dict[str, Any]:
    """Settings: ``images``. Mean dB of each stage's windows: all, by objects, and by importance (from revision 2)."""
    images = context.experiment.settings['images']
    loader = evaluation_loader(context.cfg, limit=images)
    return {
        'images': images,
        'extras': {'stages': sqnr_by_stage(load_detector(context.cfg, context.checkpoint), loader)},
    }
