"""Calibration of a model in memory, on images as users have them: tensors, files, batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.dataset import Compose, pseudo_collate
from torch import Tensor, nn

from ..damaged_images import check_image_file
from ..progress import progress
from .calibrator import Calibrator
from .summary import Summary, summarize


def calibrate_model(model: nn.Module, images: Any) -> Summary:
    """Fit all quantizers of ``model``; what it is calibrated on is read by :func:`single_images`.

    Returns:
        A line for each quantizer.
    """
    calibrator = Calibrator(model)
    samples, tensors = calibrator.read(single_images(calibrator.model, images))
    if not samples:
        raise ValueError('images is empty; calibrate on some 32 images of the training set')
    with progress('calibration', calibrator.steps(len(samples))) as tick:
        calibrator.tick = tick
        noise = calibrator.calibrate(samples, tensors)
    return summarize(calibrator.model, noise)


def single_images(model: Any, images: Any) -> Iterator[Any]:
    """Batches of one image each: tensors (1, C, H, W), or dicts as a dataloader of the test pipeline yields them."""
    if isinstance(images, str | Path | Mapping):
        images = [images]
    if not isinstance(images, Iterable):
        raise ValueError(f'images={images!r} must be tensors, names of image files, or a dataloader')
    pipeline = None
    for number, image in enumerate([images] if isinstance(images, Tensor) else images):
        if isinstance(image, Tensor):
            yield from _of_tensor(model, image)
        elif isinstance(image, str | Path):
            pipeline = pipeline or _pipeline(model)
            check_image_file(image, f'images[{number}]')
            yield pseudo_collate([pipeline({'img_path': str(image), 'img_id': number})])
        elif isinstance(image, Mapping) and 'inputs' in image:
            for one, sample in zip(image['inputs'], image['data_samples'], strict=True):
                yield {'inputs': [one], 'data_samples': [sample]}
        else:
            raise ValueError(
                f'images[{number}] is a {type(image).__name__}; give tensors (3, H, W), names of image files, or a '
                'dataloader of the test pipeline'
            )


def _of_tensor(model: Any, image: Tensor) -> Iterator[Any]:
    """Each image of a normalised (C, H, W) or (N, C, H, W)."""
    if image.dim() not in (3, 4) or not image.is_floating_point():
        raise ValueError(
            f'images: a tensor of shape {tuple(image.shape)} and {image.dtype}; normalised images are floats of '
            '(3, H, W) or (N, 3, H, W)'
        )
    device = next(model.parameters()).device
    for one in image.to(device) if image.dim() == 4 else [image.to(device)]:
        yield one.unsqueeze(0)


def _pipeline(model: Any) -> Compose:
    """The test pipeline of a detector's config."""
    from mmdet.utils import get_test_pipeline_cfg

    if getattr(model, 'cfg', None) is None:
        raise ValueError(
            'images are files, and the model has no cfg whose test pipeline could read them; load it with '
            'mixaq_mmdet.load or init_detector, or give tensors'
        )
    return Compose(get_test_pipeline_cfg(model.cfg))
