"""Whether an evaluated model converts to integers: a probe beside that of its costs."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from mixaq_mmdet.deploy.convert import convert_backbone
from mixaq_mmdet.engine.evaluate import Evaluation

from .cost import realised


def realised_and_converted(found: Evaluation, cfg: Config) -> dict[str, Any]:
    """Costs of the backbone, and whether it converts; if not, the message that refuses it."""
    try:
        convert_backbone(found.detector.backbone)
    except ValueError as error:
        refusal: str | None = str(error)
    else:
        refusal = None
    return {**realised(found, cfg), 'converts': refusal is None, 'refusal': refusal}
