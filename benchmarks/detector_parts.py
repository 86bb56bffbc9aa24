"""The parts of a detector around its products: portable kernels against mmcv's and mmdet's own.

    python benchmarks/detector_parts.py [--size 800x1216] [--proposals 1000] [--detections 100] [--rounds 5]
                                        [--threads 2] [--json docs/results/detector_parts.json]

RoIAlign of boxes and masks over four levels of 256 channels, forward and backward; NMS of an RPN and of a box head
with 80 classes, at no least score and at mmdet's 0.05; pasting; the data preprocessor with the embedding of Swin-T.
Inputs are random with a fixed seed: boxes of all sizes in clusters, as proposals lie around objects. Rounds interleave,
and the figure is the median of per-round ratios. Before anything is timed both sides have to give the same result.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from timing import alternate, describe_device, ratios
from torch import Tensor, nn

from mixaq_mmdet.deploy import kernels as integer_kernels
from mixaq_mmdet.deploy.kernels.portable import PortableKernels, load_portable
from mixaq_mmdet.deploy.layouts import Grid, LinearWeights
from mixaq_mmdet.deploy.parts.bytes import ByteDataPreprocessor, ByteImages
from mixaq_mmdet.deploy.parts.masks import paste_masks, reference
from mixaq_mmdet.deploy.parts.nms import batched_nms, mmcv_batched_nms, mmdet_multiclass_nms, multiclass_nms
from mixaq_mmdet.reporting.files import write_whole

STRIDES, CHANNELS, CLASSES, LEVELS = (4, 8, 16, 32), 256, 80, 5
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
STOCK, OURS = 'stock', 'kernels'
Work = Callable[[], Any]
Pair = tuple[Work, Work]
"""A part by mmcv or mmdet, and by the kernels."""


class Inputs:
    """Random inputs of one seed.

    Args:
        size: (H, W) of the image.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size, self.generator = size, torch.Generator().manual_seed(0)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def boxes(self, count: int, objects: int = 50) -> Tensor:
        """(count, 4) around some objects of 16 to 500 pixels, inside of the image."""
        limits = torch.tensor(self.size[::-1])
        middle, side = self.rand(objects, 2) * limits, 16 * 2 ** (5 * self.rand(objects, 2))
        of = torch.randint(objects, (count,), generator=self.generator)
        middle, side = middle[of] + 0.2 * side[of] * self.randn(count, 2), side[of] * 2 ** (0.4 * self.randn(count, 2))
        corners = torch.stack([middle - side / 2, middle + side / 2], 1).clamp(min=0)
        return torch.minimum(corners, limits).view(count, 4)

    def pyramid(self, channels_last: bool) -> list[Tensor]:
        """Maps of all levels."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        maps = [self.randn(1, CHANNELS, *(-(-side // stride) for side in self.size)) for stride in STRIDES]
        return [x.contiguous(memory_format=layout).requires_grad_() for x in maps]


def extractor(kind: str, bins: int) -> nn.Module:
    """Of one side of a pair."""
    layer = dict(type='RoIAlign', output_size=bins, sampling_ratio=0)
    return MODELS.build(dict(type=kind, roi_layer=layer, out_channels=CHANNELS, featmap_strides=list(STRIDES)))


def roi_parts(inputs: Inputs, boxes: int, masks: int) -> dict[str, Pair]:
    """Both extractors, forward and backward, on maps as a float convolution writes them and as an integer one does."""
    found: dict[str, Pair] = {}
    first = inputs.pyramid(False)
    last = [x.detach().contiguous(memory_format=torch.channels_last) for x in first]
    for name, count, bins in (('boxes', boxes, 7), ('masks', masks, 14)):
        rois = torch.cat([torch.zeros(count, 1), inputs.boxes(count)], 1)
        stock, ours = extractor('mmdet.SingleRoIExtractor', bins), extractor('KernelRoIExtractor', bins)
        _same(ours(first, rois), stock(first, rois))
        gradient = inputs.randn(count, CHANNELS, bins, bins)

        def forward(side: nn.Module, maps: list[Tensor], rois: Tensor = rois) -> Work:
            return lambda: side([x.detach() for x in maps], rois)

        def step(side: nn.Module, rois: Tensor = rois, gradient: Tensor = gradient) -> Work:
            return lambda: torch.autograd.grad(side(first, rois), first, gradient)

        found[f'RoIAlign of {name}'] = forward(stock, first), forward(ours, first)
        found[f'RoIAlign of {name}, channels last'] = forward(stock, first), forward(ours, last)
        found[f'RoIAlign of {name}, forward and backward'] = step(stock), step(ours)
    return found


def nms_parts(inputs: Inputs, proposals: int, detections: int) -> dict[str, Pair]:
    """What an RPN and a box head do."""
    candidates = inputs.boxes(LEVELS * proposals)
    scores, levels = inputs.rand(len(candidates)), torch.arange(LEVELS).repeat_interleave(proposals)
    rpn = dict(type='nms', iou_threshold=0.7)
    ours, theirs = (
        batched_nms(candidates, scores, levels, rpn, limit=proposals),
        mmcv_batched_nms(candidates, scores, levels, rpn),
    )
    _same(ours[0], theirs[0][:proposals])
    found: dict[str, Pair] = {
        'NMS of an RPN': (
            lambda: mmcv_batched_nms(candidates, scores, levels, rpn),
            lambda: batched_nms(candidates, scores, levels, rpn, limit=proposals),
        )
    }
    boxes = inputs.boxes(proposals)[:, None] + 4 * inputs.randn(proposals, CLASSES, 4)
    boxes = boxes.clamp(min=0).view(proposals, -1)
    classes = torch.softmax(3 * inputs.randn(proposals, CLASSES + 1), 1)
    for least in (0.0, 0.05):
        arguments = (boxes, classes, least, dict(type='nms', iou_threshold=0.5), detections)
        _same(multiclass_nms(*arguments)[0], mmdet_multiclass_nms(*arguments)[0])
        found[f'NMS of {CLASSES} classes, scores above {least}'] = (
            lambda a=arguments: mmdet_multiclass_nms(*a),
            lambda a=arguments: multiclass_nms(*a),
        )
    return found


def mask_part(kernels: PortableKernels, inputs: Inputs, detections: int) -> dict[str, Pair]:
    """Pasting into the image."""
    noise = inputs.randn(detections, 1, 7, 7)
    masks = torch.nn.functional.interpolate(noise, (28, 28), mode='bicubic')[:, 0].mul(4).sigmoid()
    boxes = inputs.boxes(detections)
    apart = (paste_masks(kernels, masks, boxes, inputs.size) != reference(masks, boxes, inputs.size)).double().mean()
    if apart > 1e-5:
        raise SystemExit(f'pasted masks differ in {apart:.1e} of their pixels')
    return {
        'pasting of masks': (
            lambda: reference(masks, boxes, inputs.size),
            lambda: paste_masks(kernels, masks, boxes, inputs.size),
        )
    }


def byte_part(inputs: Inputs) -> dict[str, Pair]:
    """From the bytes of an image to embedded patches, with the integer embedding on both sides."""
    kernels, _ = integer_kernels.load()
    if kernels is None:
        return {}
    codes = torch.randint(-128, 128, (96, 48), generator=inputs.generator).to(torch.int8)
    weights = LinearWeights(codes, torch.full((96,), 0.01), torch.zeros(96, dtype=torch.int32), torch.zeros(96))
    embedding = integer_kernels.IntegerEmbedding(
        kernels, weights, Grid(5.1 / 255, 104, 8), torch.ones(96), torch.zeros(96)
    )
    image = torch.randint(256, (3, *inputs.size), generator=inputs.generator, dtype=torch.uint8)
    settings = dict(mean=MEAN, std=STD, pad_size_divisor=32, bgr_to_rgb=True)
    stock, ours = MODELS.build(dict(type='mmdet.DetDataPreprocessor', **settings)), ByteDataPreprocessor(**settings)
    table: list[tuple[Tensor, Tensor]] = []

    def from_floats() -> Tensor:
        return embedding.run(stock(dict(inputs=[image], data_samples=None))['inputs'])[0]

    def from_bytes() -> Tensor:
        given: ByteImages = ours(dict(inputs=[image], data_samples=None))['inputs']
        if not table:
            table.append(embedding.byte_codes(given.normalization.values(3)))
        return embedding.run_bytes(given.images, given.size, table[0], given.normalization.reverse_channels)[0]

    _same(from_bytes(), from_floats())
    return {'normalising and embedding': (from_floats, from_bytes)}


def _same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def measure(parts: dict[str, Pair], rounds: int) -> dict[str, Any]:
    """Seconds of both sides of each part and what one side takes for each second of the other."""
    found = {}
    for name, (stock, ours) in parts.items():
        seconds = alternate({STOCK: stock, OURS: ours}, rounds, least_seconds=1.0)
        found[name] = {
            'seconds': {side: statistics.median(values) for side, values in seconds.items()},
            'stock / kernels': {
                key: 1 / value
                for key, value in zip(('median', 'most', 'least'), ratios(seconds, STOCK)[OURS].values(), strict=True)
            },
        }
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='800x1216', metavar='HxW')
    parser.add_argument('--proposals', type=int, default=1000)
    parser.add_argument('--detections', type=int, default=100)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--json', type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Compare, measure, print, write."""
    options = parse_args(argv)
    torch.set_num_threads(options.threads)
    kernels, reason = load_portable()
    if kernels is None:
        raise SystemExit(f'no portable kernels here: {reason}')
    height, width = (int(side) for side in options.size.split('x'))
    inputs = Inputs((height, width))
    parts = {
        **roi_parts(inputs, options.proposals, options.detections),
        **nms_parts(inputs, options.proposals, options.detections),
        **mask_part(kernels, inputs, options.detections),
        **byte_part(inputs),
    }
    found = measure(parts, options.rounds)
    for name, values in found.items():
        stock, ours = (1e3 * values['seconds'][side] for side in (STOCK, OURS))
        print(f'{name}: {values["stock / kernels"]["median"]:.1f} times as fast, {stock:.1f} -> {ours:.2f} ms')
    if options.json:
        settings = {name: getattr(options, name) for name in ('size', 'proposals', 'detections', 'rounds')}
        write_whole(options.json, json.dumps({**settings, **describe_device(), 'parts': found}, indent=1) + '\n')


if __name__ == '__main__':
    main()
