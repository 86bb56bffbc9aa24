"""What a detector takes outside its backbone, part by part: a constant of a latency table that ratios do not change.

The work is the largest that a config allows - every score counts, so that as many detections come out as
``max_per_img`` - because the work of an image depends on what is in it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmdet.structures import DetDataSample
from torch import Tensor, nn

from .timing import Device, now

PARTS = {
    'neck': ('neck', 'forward'),
    'RPN, layers': ('rpn_head', 'forward'),
    'RPN, NMS': ('rpn_head', 'predict_by_feat'),
    'dense head, layers': ('bbox_head', 'forward'),
    'dense head, NMS': ('bbox_head', 'predict_by_feat'),
    'boxes, RoIAlign': ('roi_head.bbox_roi_extractor', 'forward'),
    'boxes, layers': ('roi_head.bbox_head', 'forward'),
    'boxes, NMS': ('roi_head.bbox_head', 'predict_by_feat'),
    'masks, RoIAlign': ('roi_head.mask_roi_extractor', 'forward'),
    'masks, layers': ('roi_head.mask_head', 'forward'),
    'masks, pasting': ('roi_head.mask_head', 'predict_by_feat'),
}
"""Module and method of each part; none lies inside another."""
REST = 'outside, rest'
Watch = Callable[[str, Callable[..., Any]], Callable[..., Any]]


def sample_of(size: tuple[int, int]) -> DetDataSample:
    """The description of an image (height, width) that fills its tensor."""
    meta: dict[str, Any] = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    return DetDataSample(metainfo={**meta, 'scale_factor': (1.0, 1.0)})


class DetectorWork:
    """A detector on one image, whole or from the maps of its backbone on; times its parts in the latter.

    Args:
        detector: in eval mode.
        image: (1, 3, H, W), normalised.
        clock: see ``timing.alternate``.
    """

    def __init__(self, detector: Any, image: Tensor, clock: str = 'wall') -> None:
        self.detector, self.image, self.clock = detector, image, clock
        self.maps = detector.backbone(image)
        self.seconds: list[dict[str, float]] = []

    def whole(self, low: Sequence[float], prune: Sequence[float]) -> None:
        """From the image to detections at these ratios."""
        with self.detector.backbone.at_ratios(low, prune), all_scores(self.detector):
            self._predict()

    def outside(self) -> None:
        """From the maps to detections."""
        spent: dict[str, float] = defaultdict(float)
        device = self.image.device

        def watch(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
            return timed_into(spent, name, work, self.clock, device)

        from_maps = {(self.detector.backbone, 'forward'): lambda _: self.maps}
        with all_scores(self.detector), replaced(from_maps), replaced(watched(self.detector, watch)):
            timed_into(spent, REST, self._predict, self.clock, device)()
        spent[REST] -= sum(seconds for name, seconds in spent.items() if name != REST)
        self.seconds.append(spent)

    def parts(self) -> dict[str, list[float]]:
        """Seconds of each part in each call but the first, which warms up."""
        names = dict.fromkeys(name for spent in self.seconds for name in spent)
        return {name: [spent[name] for spent in self.seconds[1:]] for name in names}

    def _predict(self) -> None:
        self.detector(self.image, [sample_of((self.image.shape[-2], self.image.shape[-1]))], mode='predict')


def watched(detector: nn.Module, watch: Watch) -> dict[tuple[nn.Module, str], Callable[..., Any]]:
    """The methods of ``PARTS`` that a detector has, each as ``watch`` makes it of its name and method."""
    found: dict[tuple[nn.Module, str], Callable[..., Any]] = {}
    for name, (path, method) in PARTS.items():
        try:
            part = detector.get_submodule(path)
        except AttributeError:
            continue
        stages = list(part) if isinstance(part, nn.ModuleList) else [part]
        for stage in stages:
            if hasattr(stage, method):
                found[stage, method] = watch(name, getattr(stage, method))
    return found


@contextmanager
def replaced(methods: Mapping[tuple[nn.Module, str], Callable[..., Any]]) -> Iterator[None]:
    """Let modules do something else, for a while."""
    try:
        for (module, name), method in methods.items():
            object.__setattr__(module, name, method)
        yield
    finally:
        for module, name in methods:
            vars(module).pop(name, None)


@contextmanager
def all_scores(detector: Any) -> Iterator[None]:
    """Let every score count, for a while."""
    configs = {id(cfg): cfg for module in detector.modules() if (cfg := getattr(module, 'test_cfg', None))}
    thresholds = [(part, part['score_thr']) for cfg in configs.values() for part in _with_scores(cfg)]
    try:
        for part, _ in thresholds:
            part['score_thr'] = 0.0
        yield
    finally:
        for part, threshold in reversed(thresholds):
            part['score_thr'] = threshold


def _with_scores(cfg: Any) -> Iterator[Any]:
    """The dicts inside a test config that have a ``score_thr``."""
    if isinstance(cfg, dict):
        if 'score_thr' in cfg:
            yield cfg
        for value in cfg.values():
            yield from _with_scores(value)


def timed_into(
    spent: dict[str, float], name: str, work: Callable[..., Any], clock: str = 'wall', device: Device = 'cpu'
) -> Callable[..., Any]:
    """``work``, adding what it takes to ``spent[name]``."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = now(clock, device)
        result = work(*args, **kwargs)
        spent[name] += now(clock, device) - start
        return result

    return timed


def median_ms(seconds: Sequence[float]) -> float:
    """Milliseconds."""
    return 1000 * statistics.median(seconds)
