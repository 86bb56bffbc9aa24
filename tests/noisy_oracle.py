"""A detector that looks at the annotations and spoils them a little: an AP between 0 and 1 in milliseconds.

Tests of evaluation and of the experiment runner need results that differ between arms, not a network. The one
parameter makes checkpoints, training and optimizers work as for a real detector.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from tiny_detector import tiny_config
from torch import Tensor


@MODELS.register_module(force=True)
class NoisyOracle(BaseModel):
    """Predicts each object with probability ``1 - missed``, its box moved by ``noise`` pixels.

    Reads its noise from the image id and ``seed`` alone, so that two runs agree and two arms are paired.
    """

    def __init__(
        self,
        noise: float = 2.0,
        missed: float = 0.2,
        seed: int = 0,
        delay: float = 0.0,
        data_preprocessor: Any = None,
    ) -> None:
        super().__init__(data_preprocessor)
        self.noise, self.missed, self.seed, self.delay = noise, missed, seed, delay
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs: Any, data_samples: list, mode: str = 'tensor') -> Any:
        """Loss that pulls the parameter to zero, or predictions."""
        if mode == 'loss':
            time.sleep(self.delay)  # leaves time to interrupt a training
            return {'loss': self.scale.square()}
        return [self._spoil(sample) for sample in data_samples]

    def _spoil(self, sample: Any) -> Any:
        random = torch.Generator().manual_seed(1000 * self.seed + int(sample.img_id))
        truth = sample.gt_instances
        kept = torch.rand(len(truth), generator=random) >= self.missed
        boxes = _tensor(truth.bboxes) + self.noise * torch.randn(len(truth), 4, generator=random)
        scores = torch.rand(len(truth), generator=random) * self.scale.detach()
        masks = torch.from_numpy(truth.masks.to_ndarray()).bool().roll(int(self.noise), dims=-1)
        sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=truth.labels, masks=masks)[kept]
        return sample


def _tensor(boxes: Any) -> Tensor:
    return boxes.tensor if hasattr(boxes, 'tensor') else boxes


def oracle_config(root: str | Path, work_dir: str | Path, **model: Any) -> Config:
    """``tiny_config`` with the detector replaced; keywords go to ``NoisyOracle``."""
    cfg = tiny_config(root, work_dir)
    cfg.model = {
        'type': 'NoisyOracle',
        'data_preprocessor': {'type': 'DetDataPreprocessor', 'pad_mask': True},
        **model,
    }
    return cfg
