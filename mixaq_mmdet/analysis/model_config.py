"""The backbone of a config, alone or with its detector, and the size of image that it usually sees."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.models.backbones.swin import SwinTransformer
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mixaq_mmdet.engine.calibration.data import reading_pipeline
from mixaq_mmdet.engine.evaluate import annotation_file

COCO_SHAPE = (800, 1216)
COMMON_ASPECT = 1.5


def build_backbone(cfg: Config) -> SwinTransformer:
    """Build the Swin backbone of a config, with fresh weights and in eval mode; nothing is downloaded."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = MODELS.build({**_detector_with_swin(cfg)['backbone'], 'init_cfg': None})
    built.eval()
    return built


def build_detector(cfg: Config) -> BaseDetector:
    """The same for the whole detector."""
    detector = _detector_with_swin(cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = MODELS.build({**detector, 'backbone': {**detector['backbone'], 'init_cfg': None}})
    built.eval()
    return built


def _detector_with_swin(cfg: Config) -> Mapping[str, Any]:
    """The detector's config, if its backbone is a Swin that can be built without a checkpoint."""
    detector = _find_detector(cfg.get('model'))
    if detector is None:
        raise ValueError('model.backbone is missing; give the config of a detector with a Swin backbone')
    kind = str(detector['backbone'].get('type'))
    if kind.rsplit('.', 1)[-1] == 'IntegerSwin':
        raise ValueError(
            f'model.backbone.type={kind!r} is converted: its bits and weights are in its checkpoint, which is not read '
            'here; give the config that it was converted from (bops counts the same bits there, and latency --integer '
            'measures the converted path)'
        )
    if kind.rsplit('.', 1)[-1] not in ('TwoBranchSwin', 'SwinTransformer'):
        raise ValueError(
            f"model.backbone.type={kind!r} is not a Swin; use 'TwoBranchSwin' or mmdet's 'SwinTransformer'"
        )
    return detector


def _find_detector(model: Any) -> Mapping[str, Any] | None:
    """The config that has the backbone; wrappers (test-time augmentation, semi-supervised ones) are looked through."""
    if not isinstance(model, Mapping):
        return None
    if 'backbone' in model:
        return model
    return next((found for name in ('module', 'detector') if (found := _find_detector(model.get(name)))), None)


def input_shape(cfg: Config, given: Sequence[int] | None) -> tuple[int, int]:
    """(height, width) in pixels from ``--shape``, or what is usual for the config."""
    if given is None:
        return usual_shape(cfg)
    height, width = given
    if height < 1 or width < 1:
        raise ValueError(f'--shape {height} {width} has an empty side; give height and width in pixels')
    return height, width


def usual_shape(cfg: Config) -> tuple[int, int]:
    """(height, width) in pixels that the test pipeline makes of most images, padding to the divisor included.

    A fixed ``Resize`` scale is filled by a 3:2 image; where nothing is resized, the most common size in the test
    set's annotation file counts, and without that file 800 x 1216.
    """
    divisor = ((cfg.get('model') or {}).get('data_preprocessor') or {}).get('pad_size_divisor', 1)
    try:
        pipeline = reading_pipeline(cfg)
    except ValueError:
        pipeline = []
    scales = [step['scale'] for step in pipeline if step.get('type') == 'Resize' and step.get('scale')]
    if scales:
        short, long = min(scales[-1]), max(scales[-1])
        shape = (short, min(long, round(short * COMMON_ASPECT)))
    else:
        shape = _most_common_size(cfg) or COCO_SHAPE
    return math.ceil(shape[0] / divisor) * divisor, math.ceil(shape[1] / divisor) * divisor


def _most_common_size(cfg: Config) -> tuple[int, int] | None:
    try:
        path = Path(annotation_file((cfg.get('test_dataloader') or {}).get('dataset') or {}))
    except ValueError:
        return None
    if not path.is_file():
        return None
    sizes = Counter((image['height'], image['width']) for image in json.loads(path.read_text())['images'])
    return sizes.most_common(1)[0][0]
