"""AP of an exported detector beside that of the simulated model, on the same images at the same padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, METRICS
from mmengine.structures import InstanceData
from torch import Tensor

from mixaq_mmdet.engine.progress import progress
from mixaq_mmdet.quantization import held_weights

from .run import fit_image
from .targets import find_target


def check_evaluation(cfg: Any, target: str, scope: str, as_bytes: bool) -> None:
    """A ValueError, before anything is written, where there is nothing to evaluate."""
    if as_bytes:
        raise ValueError('--evaluate compares on normalised images; export without --bytes to evaluate')
    if scope != 'detector':
        raise ValueError(f'--evaluate needs detections, and --scope {scope} gives maps; use --scope detector')
    if find_target(target).package is None:
        raise ValueError(f'--evaluate runs the file, and {target} does not run here; export without --evaluate')
    if 'val_dataloader' not in cfg or 'val_evaluator' not in cfg:
        raise ValueError('--evaluate needs val_dataloader and val_evaluator in the config')


def evaluate(
    cfg: Any, model: Any, path: Path, target: str, shape: tuple[int, int], number: int
) -> dict[str, dict[str, float]]:
    """AP in percent by metric, each of 'simulated' and 'exported', on the first images of the val set that fit.

    Args:
        cfg: config with ``val_dataloader`` and ``val_evaluator``.
        model: the simulated detector.
        path: exported file of the whole detector.
        target: runtime.
        shape: (H, W) of the file.
        number: images.

    Raises:
        ValueError: if no image of val fits.
    """
    session = find_target(target).session(path)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    metrics = {name: METRICS.build(cfg.val_evaluator) for name in ('simulated', 'exported')}
    identities: list[Any] = []
    with torch.no_grad(), held_weights(model), progress('AP of both on val', min(number, len(dataset))) as tick:
        for index in range(len(dataset)):
            if len(identities) == number:
                break
            data = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
            sample, x = data['data_samples'][0], data['inputs']
            if x.shape[-2] > shape[0] or x.shape[-1] > shape[1]:
                continue
            identities.append(sample.img_id)
            x = fit_image(x, shape)
            sample.set_metainfo({'batch_input_shape': shape, 'pad_shape': shape})
            for name, predict in (('simulated', _of_model(model)), ('exported', _of_session(session))):
                sample.pred_instances = predict(x, sample)
                metrics[name].process({}, [sample.to_dict()])
            tick()
    if not identities:
        raise ValueError(f'--evaluate: no image of val fits into shape={shape}; export a larger shape')
    found: dict[str, dict[str, float]] = {}
    for name, metric in metrics.items():
        metric.dataset_meta, metric.img_ids = dataset.metainfo, identities
        for key, value in metric.evaluate(size=len(identities)).items():
            if key.endswith('mAP'):
                found.setdefault(key, {})[name] = 100 * value
    return found


def _of_model(model: Any) -> Callable[[Tensor, DetDataSample], InstanceData]:
    @torch.no_grad()
    def predict(x: Tensor, sample: DetDataSample) -> InstanceData:
        return model.predict(x, [sample.clone()], rescale=True)[0].pred_instances

    return predict


def _of_session(session: Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]) -> Any:
    def predict(x: Tensor, sample: DetDataSample) -> InstanceData:
        return as_instances([torch.from_numpy(out) for out in session({'image': x.numpy()})], sample)

    return predict


def as_instances(outputs: Sequence[Tensor], sample: DetDataSample, threshold: float = 0.5) -> InstanceData:
    """The outputs of an exported detector in the original image: boxes rescaled, masks pasted."""
    dets, labels, *masks = outputs
    found = labels >= 0
    scale = dets.new_tensor(sample.scale_factor).repeat(2)
    instances = InstanceData(bboxes=dets[found, :4] / scale, scores=dets[found, 4], labels=labels[found])
    if masks:
        height, width = sample.ori_shape[:2]
        pasted, _ = _do_paste_mask(masks[0][found][:, None], instances.bboxes, height, width, skip_empty=False)
        instances.masks = pasted >= threshold
    return instances
