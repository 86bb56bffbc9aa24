"""A cheap proxy of a loss of AP: how far a quantized detector's answers about fixed proposals drift from float ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaq_mmdet.quantization import quantizer_mode

from .detector_logits import Logits, Regions, check_two_stage, logits, regions


class Divergence:
    """KL divergence to the float model: RPN objectness + RoI classes + mask logits, each a mean, averaged over images.

    The paper measures its metric; the proxy and the equal weights of its three parts are ours.

    Args:
        detector: a calibrated detector; its quantizers are switched off for the reference.
        images: batches of one image from the preprocessor: dicts with ``inputs`` and ``data_samples``.
        proposals: RoIs asked per image.
        masks: how many of them are asked for masks.
    """

    def __init__(self, detector: Any, images: Sequence[dict[str, Any]], proposals: int = 64, masks: int = 16) -> None:
        check_two_stage(detector)
        self.images = list(images)
        self._asked: list[Regions] = []
        self._float: list[Logits] = []
        with torch.no_grad(), quantizer_mode(detector, 'float'):
            for image in self.images:
                features = detector.extract_feat(image['inputs'])
                self._asked.append(regions(detector, features, image['data_samples'], proposals, masks))
                self._float.append(logits(detector, features, self._asked[-1]))

    def __call__(self, detector: nn.Module) -> float:
        """Divergence of a detector as it stands."""
        drifts = self.by_image(detector)
        return float(sum(drifts) / len(drifts))

    @torch.no_grad()
    def by_image(self, detector: Any) -> list[float]:
        """The same for each image."""
        drifts = []
        for image, asked, reference in zip(self.images, self._asked, self._float, strict=True):
            found = logits(detector, detector.extract_feat(image['inputs']), asked)
            drifts.append(drift(reference, found))
        return drifts


def drift(reference: Logits, found: Logits) -> float:
    """Sum of the three mean divergences."""
    parts = [bernoulli_divergence(reference.objectness, found.objectness)]
    pairs = list(zip(reference.classes, found.classes, strict=True))
    parts.append(sum(categorical_divergence(a, b) for a, b in pairs) / len(pairs))  # type: ignore[arg-type]
    if reference.masks is not None and found.masks is not None:
        parts.append(bernoulli_divergence(reference.masks, found.masks))
    return float(sum(parts))


def categorical_divergence(reference: Tensor, found: Tensor) -> Tensor:
    """Mean KL of softmax distributions, both (n, classes)."""
    log_p, log_q = F.log_softmax(reference.double(), -1), F.log_softmax(found.double(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def bernoulli_divergence(reference: Tensor, found: Tensor) -> Tensor:
    """Mean KL of independent logits of any shape."""
    p = reference.double().sigmoid()
    positive = F.logsigmoid(reference.double()) - F.logsigmoid(found.double())
    negative = F.logsigmoid(-reference.double()) - F.logsigmoid(-found.double())
    return (p * positive + (1 - p) * negative).mean()
