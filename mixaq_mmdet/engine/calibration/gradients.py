"""Gradients of a whole-model loss at the output of one block, for methods that weigh a block's errors by them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.detectors import BaseDetector
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn

from mixaq_mmdet.models.distillation import relative_error
from mixaq_mmdet.models.steps import OutputStep, Step, Stream
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.quantization import QuantWeight, quantizer_mode

from ..distributed import alone
from ..random_states import seeded
from .inputs import TensorStore

Loss = Callable[[Sequence[Tensor], int], Tensor]
"""From the maps of an image, (1, C_i, H_i, W_i) each, and its index to a number."""


class MapError:
    """Relative squared error of an image's maps against those of the float model.

    Args:
        backbone: nothing of it is calibrated yet.
        images: the images.
        limit: bytes of each map's store that stay in memory.
    """

    def __init__(self, backbone: TwoBranchSwin, images: TensorStore, limit: int) -> None:
        self.targets = [TensorStore(limit) for _ in backbone.out_indices]
        with torch.no_grad(), backbone.at_ratios(0.0, 0.0), quantizer_mode(backbone, 'float'):
            for i in range(len(images)):
                for store, target in zip(self.targets, backbone(images[i]), strict=True):
                    store.append(target)

    def __call__(self, maps: Sequence[Tensor], index: int) -> Tensor:
        """The mean over the maps."""
        return relative_error(maps, [store[index] for store in self.targets])


class DetectorLoss:
    """A detector's own loss of an image, as its training would count it, from the maps of its backbone.

    Heads run as in training, but nothing is dropped and no norm uses the batch. What is random in it - samplers of
    proposals, denoising queries - is the same for an image whenever it is asked for, on whichever rank.

    Args:
        detector: the detector.
        images: the images, (1, C, H, W) each.
        samples: of each image its data samples; their objects are in pixels of that tensor.
    """

    def __init__(self, detector: Any, images: TensorStore, samples: Sequence[Any]) -> None:
        self.detector, self.images, self.samples = detector, images, samples
        preprocessor = detector.data_preprocessor
        if isinstance(preprocessor, DetDataPreprocessor):  # it pads what is drawn on images in training only
            for sample in samples:
                if preprocessor.pad_mask:
                    preprocessor.pad_gt_masks(sample)
                if preprocessor.pad_seg:
                    preprocessor.pad_gt_sem_seg(sample)

    def __call__(self, maps: Sequence[Tensor], index: int) -> Tensor:
        """The sum of all losses."""
        detector, samples = self.detector, copy.deepcopy(self.samples[index])
        seed = get_rank() + index * get_world_size()  # the image's place among those of all ranks
        with replaced_backbone(detector, maps), _heads_in_training(detector), alone(), seeded(seed):
            return detector.parse_losses(detector.loss(self.images[index], samples))[0]


def whole_model_loss(
    model: nn.Module,
    backbone: TwoBranchSwin,
    images: TensorStore,
    samples: Sequence[Any],
    annotated: bool,
    limit: int,
) -> Loss:
    """The loss that output gradients are of: a detector's own if its images have objects, or the error of the maps.

    Args:
        model: the whole model.
        backbone: inside it; nothing of it is calibrated yet.
        images: the images of this rank.
        samples: the data samples of each.
        annotated: whether objects of the samples are in pixels of the images.
        limit: bytes of a store that stay in memory.
    """
    name = type(model).__name__
    if not isinstance(model, BaseDetector):
        why = f'{name} is no whole detector'
    elif not annotated:
        why = 'the images come without annotations'
    elif not _has_objects(samples):
        why = 'the calibration images have no annotated objects'
    else:
        print_log(f"calibration: output gradients are those of {name}'s own loss", 'current')
        return DetectorLoss(model, images, samples)
    print_log(f"calibration: output gradients are those of the error of the backbone's maps, because {why}", 'current')
    return MapError(backbone, images, limit)


def _has_objects(samples: Sequence[Any]) -> bool:
    """Whether the images of all ranks were annotated, and some of them have objects."""
    own = [len(sample[0].gt_instances) if 'bboxes' in sample[0].gt_instances else None for sample in samples]
    numbers = [number for share in all_gather_object(own) for number in share]
    return None not in numbers and sum(numbers) > 0


@contextmanager
def replaced_backbone(model: Any, features: Sequence[Tensor]) -> Iterator[None]:
    """Let the backbone return stored features, if there are any, instead of computing them again."""
    if not features:
        yield
        return
    model.backbone.forward = lambda x: tuple(features)
    try:
        yield
    finally:
        del model.backbone.forward


@contextmanager
def _heads_in_training(detector: Any) -> Iterator[None]:
    """Let everything behind the backbone give what losses ask for, while nothing is dropped and norms stay as they are.

    Detectors and heads look at their own flag, layers that drop or gather statistics have no layers inside; those of
    attention have, and quantized ones would lose their frozen weights.
    """
    inside = set(detector.backbone.modules())
    switched = [m for m in detector.modules() if m not in inside and not m.training and not _is_layer(m)]
    for module in switched:
        module.training = True
    try:
        yield
    finally:
        for module in switched:
            module.training = False


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, QuantWeight | nn.MultiheadAttention) or not any(True for _ in module.children())


def output_gradients(
    model: nn.Module,
    step: Step,
    behind: Sequence[Step],
    stream: Stream,
    outputs: Sequence[Tensor],
    loss: Callable[[Sequence[Tensor]], Tensor],
    maps: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Gradients of a loss by possible outputs of a step; the steps behind it are float, every window is high.

    Args:
        model: whose backbone the steps walk.
        step: whose output it is.
        behind: the steps that follow.
        stream: that enters ``step``; one image.
        outputs: each as the step's module would give it, (1, H * W, C).
        loss: of the maps of the backbone's ``out_indices``.
        maps: those that steps before this one gave.
    """
    gradients = []
    with quantizer_mode(model, 'float'):
        with torch.no_grad():
            size = step(stream).size
        with torch.enable_grad():
            for output in outputs:
                x = output.detach().requires_grad_()
                gradients.append(torch.autograd.grad(loss(_maps(step.after(stream, x, size), behind, maps)), x)[0])
    return gradients


def _maps(stream: Stream, steps: Sequence[Step], maps: Sequence[Tensor]) -> list[Tensor]:
    found = [*maps]
    for step in steps:
        if isinstance(step, OutputStep):
            found.append(step.map(stream))
        stream = step(stream)
    return found
