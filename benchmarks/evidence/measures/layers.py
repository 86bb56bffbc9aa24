"""Whether the cheap proxy (KL divergence of the predictions) ranks layers as their loss of AP does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from mixaq_mmdet.analysis.divergence import Divergence
from mixaq_mmdet.analysis.layer_sensitivity import alone, layer_names
from mixaq_mmdet.engine.calibration.detectors import calibrated_detector, preprocessed
from mixaq_mmdet.engine.evaluate import build_dataloader, evaluate
from mixaq_mmdet.engine.matches import Matches, load_matches, mean_ap, save_matches
from mixaq_mmdet.quantization import quantizer_mode

from .. import splits
from ..intervals import SAMPLES, image_weights, interval_of
from ..store import write_json

if TYPE_CHECKING:
    from ..worker import Context

METHOD = 'MixQViT'


def proxy(context: Context) -> dict[str, Any]:
    """Both losses of every layer alone at ``settings['bits']``, and the rank correlation of the two over layers.

    The proxy sees ``max(settings['pictures'])`` calibration pictures, AP the first ``settings['images']`` of the
    config's test set. Finished layers lie in the work folder, so that an interrupted measurement goes on.
    """
    assert context.cfg is not None
    splits.require(context.repository, context.experiment.split)
    cfg, own, seed = context.cfg, context.experiment.settings, context.experiment.seed
    quant = {'method': METHOD, 'w_bits': own['bits'], 'a_bits': own['bits']}
    detector: Any = calibrated_detector(cfg, str(context.checkpoint), quant, own['calibration_pictures'], seed)
    pictures, _ = preprocessed(cfg, detector, max(own['pictures']), seed)
    judge = Divergence(detector, pictures)
    loader = build_dataloader(cfg.test_dataloader, limit=own['images'])

    def losses() -> tuple[list[float], Matches]:
        return judge.by_image(detector), evaluate(detector, dataloader=loader).matches['bbox']

    folder = context.folder / 'layers'
    with quantizer_mode(detector, 'float'):
        reference = _kept(folder, 'float', losses)[1]
    found = {}
    for name in layer_names(detector.backbone):
        with alone(detector.backbone, name):
            found[name] = _kept(folder, name, losses)
    return {'extras': compare(reference, found, own['pictures']), 'images': len(reference.image_ids)}


def _kept(folder: Path, name: str, losses: Any) -> tuple[list[float], Matches]:
    """``losses()``, or what an earlier attempt kept of them; the JSON appears last."""
    drifts, matches = folder / f'{name}.json', folder / f'{name}.npz'
    if not drifts.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        by_picture, hits = losses()
        save_matches(matches, {'bbox': hits})
        write_json(drifts, by_picture)
    return json.loads(drifts.read_text()), load_matches(matches)['bbox']


def compare(
    reference: Matches, found: dict[str, tuple[list[float], Matches]], pictures: list[int], samples: int = SAMPLES
) -> dict[str, Any]:
    """Rank correlation with its interval over both sets of pictures, and the losses themselves.

    Args:
        reference: of the float model.
        found: for each layer the proxy on each of its pictures, and the matches.
        pictures: how many of the proxy's pictures; the interval is that of the most, the others are estimates.
        samples: bootstrap resamples.
    """
    images = len(reference.image_ids)
    weights = np.concatenate([np.ones((1, images), np.int32), image_weights(images, samples)])
    whole = mean_ap(reference, weights)
    lost = np.stack([whole - mean_ap(matches, weights) for _, matches in found.values()])
    drifts = np.array([by_picture for by_picture, _ in found.values()])
    seen = drifts.shape[1]
    mean = drifts @ np.concatenate([np.ones((1, seen)), image_weights(seen, samples, seed=1)]).T / seen
    values = spearman(mean, lost)
    return {
        'correlation': interval_of(values[:1], values[None, 1:], images=images).as_dict(),
        'by_pictures': {
            str(number): round(float(spearman(drifts[:, :number].mean(1, keepdims=True), lost[:, :1])[0]), 4)
            for number in pictures
        },
        'layers': {
            name: {'kl': float(kl), 'ap': round(float(ap), 4)}
            for name, kl, ap in zip(found, mean[:, 0], lost[:, 0], strict=True)
        },
    }


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank correlation over the rows of each column of two (L, R) arrays, ties at their mean rank; (R,)."""
    a, b = (rankdata(values, axis=0) - (len(values) + 1) / 2 for values in (first, second))
    spread = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.divide((a * b).sum(0), spread, out=np.zeros(len(spread)), where=spread > 0)
