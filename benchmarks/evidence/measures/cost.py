"""What an evaluated model costs: a probe that adds realised ratios, mean bits and relative bit operations."""

from __future__ import annotations

import json
from typing import Any

from mmengine.config import Config

from mixaq_mmdet.analysis.bops import backbone_bops
from mixaq_mmdet.engine.evaluate import Evaluation, annotation_file


def realised(found: Evaluation, cfg: Config) -> dict[str, Any]:
    """Costs of the backbone at the size of the set's pictures."""
    with open(annotation_file(cfg.test_dataloader['dataset'])) as stream:
        sizes = {(image['height'], image['width']) for image in json.load(stream)['images']}
    if len(sizes) > 1:
        raise ValueError(f'pictures of {len(sizes)} sizes have no one cost; evaluate a set of one size')
    return {'cost': backbone_bops(found.detector.backbone, sizes.pop()).summary()}
