"""Images as bytes: the floats, the codes and the maps are those of mmdet's data preprocessor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from integer_twin import integer, relative_error, simulated
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from mixaq_mmdet.deploy.kernels import load
from mixaq_mmdet.deploy.kernels.maps import IntegerEmbedding
from mixaq_mmdet.deploy.layouts import Grid, LinearWeights
from mixaq_mmdet.deploy.parts.bytes import ByteDataPreprocessor, ByteImages, Normalization, normalization_of, use_bytes
from mixaq_mmdet.windows.importance import pool_content

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZES = ((50, 67), (64, 40), (61, 64))
KERNELS, REASON = load()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason=f'no integer kernels here: {REASON}')


def preprocessor(**options: Any) -> DetDataPreprocessor:
    return DetDataPreprocessor(**{**dict(mean=MEAN, std=STD, bgr_to_rgb=True, pad_size_divisor=32), **options})


def images(sizes: tuple[tuple[int, int], ...] = SIZES, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (channels, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def batch(pixels: list[Tensor]) -> dict[str, Any]:
    samples = [DetDataSample(metainfo=dict(img_shape=tuple(x.shape[1:]))) for x in pixels]
    return dict(inputs=pixels, data_samples=samples)


def kept(stock: DetDataPreprocessor) -> DetDataPreprocessor:
    ours = copy.deepcopy(stock)
    ours.__class__ = ByteDataPreprocessor
    return ours


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(bgr_to_rgb=False),
        dict(bgr_to_rgb=False, rgb_to_bgr=True),
        dict(pad_size_divisor=1),
        dict(mean=[114.0], std=[1.0]),
    ],
    ids=str,
)
@pytest.mark.parametrize('sizes', [SIZES, SIZES[:1], ((1, 1), (40, 30))], ids=['three', 'one', 'a pixel'])
def test_floats_are_the_preprocessors(options, sizes):
    stock = preprocessor(**options)
    expected, found = (model(batch(images(sizes)), False) for model in (stock, kept(stock)))
    assert isinstance(found['inputs'], ByteImages)
    assert found['inputs'].shape == expected['inputs'].shape
    assert torch.equal(found['inputs'].floats(), expected['inputs'])
    assert torch.equal(found['inputs'].content(4), pool_content((expected['inputs'] != 0).any(1).float(), 4, 4))
    for mine, theirs in zip(found['data_samples'], expected['data_samples'], strict=True):
        assert mine.metainfo == theirs.metainfo


def test_a_stacked_batch():
    stacked = torch.stack(images(((40, 30),) * 2))
    stock = preprocessor()
    expected, found = (model(batch(stacked), False) for model in (stock, kept(stock)))
    assert torch.equal(found['inputs'].floats(), expected['inputs'])
    assert found['data_samples'][0].metainfo == expected['data_samples'][0].metainfo


def test_what_is_no_byte_is_normalised_by_mmdet():
    floats = [x.float() for x in images()]
    for pixels, training in ((floats, False), (images(), True)):
        stock = preprocessor()
        expected, found = (model(batch(pixels), training) for model in (stock, kept(stock)))
        assert torch.equal(found['inputs'], expected['inputs'])


class OtherPreprocessor(DetDataPreprocessor):
    """Does something else with images."""

    def forward(self, data: dict, training: bool = False) -> dict:
        return super().forward(data, training)


@pytest.mark.parametrize(
    ('model', 'reason'),
    [
        (preprocessor(pad_value=114), 'pad_value=114'),
        (preprocessor(mean=None, std=None), 'mean and std'),
        (OtherPreprocessor(mean=MEAN, std=STD), 'OtherPreprocessor'),
        (nn.Identity(), 'Identity'),
    ],
)
def test_preprocessors_that_are_left_alone(model, reason):
    known, why = normalization_of(model)
    assert known is None
    assert reason in why


class Detector(nn.Module):
    """As much of a detector as is looked at."""

    def __init__(self, backbone: nn.Module, data_preprocessor: nn.Module) -> None:
        super().__init__()
        self.backbone, self.data_preprocessor = backbone, data_preprocessor


def test_only_a_backbone_that_takes_bytes_gets_them():
    detector = Detector(nn.Identity(), preprocessor())
    assert 'Identity takes no bytes' in use_bytes(detector)
    assert type(detector.data_preprocessor) is DetDataPreprocessor


@needs_kernels
@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('interleaved', [False, True])
@pytest.mark.parametrize('patch', [2, 4])
@pytest.mark.parametrize('offset', [None, 0.25])
def test_an_embedding_of_bytes_is_that_of_floats(patch, interleaved, reverse, offset):
    generator = torch.Generator().manual_seed(1)
    inputs = 3 * patch**2
    codes = torch.randint(-128, 128, (32, inputs), generator=generator).to(torch.int8)
    weights = LinearWeights(codes, torch.full((32,), 0.01), torch.zeros(32, dtype=torch.int32), torch.zeros(32))
    before = None if offset is None else torch.tensor([offset, -offset, 0.0]).repeat_interleave(patch**2)
    grid = Grid(5.1 / 255, 104, 8, before=before)
    embedding = IntegerEmbedding(KERNELS, weights, grid, torch.ones(32), torch.zeros(32), patch)
    pixels = images()
    if interleaved:
        pixels = [x.permute(1, 2, 0).contiguous().permute(2, 0, 1) for x in pixels]
    how = Normalization(MEAN, STD, reverse, 1)
    given = ByteImages(pixels, how)
    expected, size = embedding.run(given.floats())
    found, found_size = embedding.run_bytes(pixels, given.size, embedding.byte_codes(how.values(3)), reverse)
    assert found_size == size
    assert torch.equal(found, expected)


@needs_kernels
@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (torch.zeros(3, 40, 40), 'an image'),
        (torch.zeros(4, 40, 40, dtype=torch.uint8), 'an image'),
        (torch.zeros(40, 40, dtype=torch.uint8), 'an image'),
        (torch.zeros(3, 65, 40, dtype=torch.uint8), 'larger than its batch'),
    ],
)
def test_images_that_do_not_fit_are_refused(image, message):
    weights = LinearWeights(
        torch.zeros(32, 48, dtype=torch.int8), torch.ones(32), torch.zeros(32, dtype=torch.int32), torch.zeros(32)
    )
    embedding = IntegerEmbedding(KERNELS, weights, Grid(0.02, 104, 8), None, None)
    codes = embedding.byte_codes(Normalization(MEAN, STD).values(3))
    with pytest.raises(ValueError, match=message):
        embedding.run_bytes([image], (64, 64), codes)


@pytest.mark.parametrize('importance', ['L2', dict(type='Random', seed=0)], ids=['L2', 'Random'])
@pytest.mark.parametrize('engine', ['torch', 'kernels'])
def test_maps_of_a_backbone(engine, importance):
    """Half of the windows pruned, batch padding among them: bytes have to say what is blank as floats do."""
    if engine == 'kernels' and KERNELS is None:
        pytest.skip(REASON)
    model = simulated('RepQ', low_a_bits=4, low_ratios=0.3, prune_ratios=0.5, importance=importance)
    twin = integer(model, engine, importance=importance)
    detector = Detector(twin, preprocessor(pad_size_divisor=1))
    assert use_bytes(detector).startswith('images as bytes')
    given = detector.data_preprocessor(batch(images()), False)['inputs']
    with twin.record_windows() as of_bytes:
        found = twin(given)
    with twin.record_windows() as of_floats:
        expected = twin(given.floats())
    for mine, theirs in zip(of_bytes, of_floats, strict=True):
        assert torch.equal(mine.regular.order, theirs.regular.order)
    assert relative_error(expected, found) == 0
