"""A backbone alone, trained towards the float one's maps: what a learning rate of the low branch's own is worth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import nn

from mixaq_mmdet.analysis.inspection import two_branch
from mixaq_mmdet.analysis.study import evaluation_loader
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.calibration.data import calibration_loader, reading_pipeline
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.models.distillation import relative_error
from mixaq_mmdet.models.two_branch_block import LOW_NORMS
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin

from .features import feature_errors, network_inputs, summary

if TYPE_CHECKING:
    from ..worker import Context

CALIBRATION_IMAGES = 32
LOWEST_RATE = 0.05  # of the first rate, where the cosine ends


def adapt(context: Context) -> dict[str, Any]:
    """Settings: ``steps``, ``rate``, ``branch_lr_mult``, ``sampling`` ('fixed': the control), ``images``, ``ratios``.

    The reference is the float model that the training starts from. The seed decides images, flips and ratios.
    """
    settings, seed = context.experiment.settings, context.experiment.seed
    cfg: Any = context.cfg
    init_default_scope(cfg.default_scope)
    set_random_seed(seed)
    reference = _float_detector(context)
    detector = load_detector(cfg, context.checkpoint)
    backbone = two_branch(detector)
    Calibrator(detector).run(calibration_loader(cfg.train_dataloader, reading_pipeline(cfg), CALIBRATION_IMAGES, seed))
    _train(cfg, detector, reference.backbone, settings, seed)
    images = network_inputs(reference, evaluation_loader(cfg, limit=settings['images']))
    backbone.eval()
    found = {ratio: feature_errors(backbone, reference.backbone, images, ratio) for ratio in settings['ratios']}
    return {
        'images': len(images),
        'extras': {
            'feature_error': {str(ratio): summary(errors) for ratio, errors in found.items()},
            'by_image': {str(ratio): errors.tolist() for ratio, errors in found.items()},
            'norms_apart': norms_apart(backbone),
        },
    }


def norms_apart(backbone: TwoBranchSwin) -> float:
    """Mean absolute difference between the weights of the low norms and of the high ones."""
    pairs = [
        (getattr(block, low).weight, getattr(block, high).weight)
        for stage in backbone.stages
        for block in stage.blocks
        for low, high in LOW_NORMS.items()
    ]
    return float(torch.cat([(low - high).abs() for low, high in pairs]).mean())


def _float_detector(context: Context) -> nn.Module:
    cfg = Config(context.cfg.to_dict())
    cfg.model.backbone.quant = None
    return load_detector(cfg, context.checkpoint)


def _train(cfg: Any, detector: nn.Module, reference: nn.Module, settings: Any, seed: int) -> None:
    """Train the backbone alone, in place."""
    backbone = detector.backbone
    optim = {**cfg.optim_wrapper, **{key: settings[key] for key in ('sampling', 'branch_lr_mult')}, 'seed': seed}
    optim['optimizer'] = {**optim['optimizer'], 'lr': settings['rate']}
    wrapper: Any = build_optim_wrapper(nn.ModuleDict({'backbone': backbone}), Config({'o': optim}).o)
    steps = settings['steps']

    def share(step: int) -> float:
        return LOWEST_RATE + (1 - LOWEST_RATE) * (1 + math.cos(math.pi * step / max(steps, 1))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(wrapper.optimizer, share)
    batches = iter(Runner.build_dataloader(cfg.train_dataloader, seed=seed))
    backbone.train()
    for _ in range(steps):
        inputs = detector.data_preprocessor(next(batches), True)['inputs']
        with torch.no_grad():
            targets = reference(inputs)
        with wrapper.optim_context(backbone):
            loss = relative_error(backbone(inputs), targets)
        wrapper.update_params(loss)
        schedule.step()
