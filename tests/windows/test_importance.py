"""Scores against their definitions, and what they must not depend on."""

import pytest
import torch

from mixaq_mmdet.registry import IMPORTANCE
from mixaq_mmdet.windows import importance as module
from mixaq_mmdet.windows.geometry import partition, window_rows
from mixaq_mmdet.windows.importance import Importance, build_importance, content_map, image_keys, pool_content

NAMES = ['L2', 'Std', 'Random']


def scores(spec, x: torch.Tensor, window: int = 4, shift: int = 0, keys: list[int] | None = None) -> torch.Tensor:
    importance = build_importance(spec)
    real = window_rows(*x.shape[1:3], window, shift) >= 0
    return importance(partition(importance.token_map(x, keys), window, shift), real)


@pytest.fixture
def stream() -> torch.Tensor:
    return torch.randn(2, 10, 13, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('values', [1, 200, 2 * 13 * 6 * 3, 10**6])
def test_l2_does_not_depend_on_the_parts_a_map_is_read_in(stream, values, monkeypatch):
    monkeypatch.setattr(module, 'CACHED_VALUES', values)
    assert torch.equal(build_importance('L2').token_map(stream), stream.abs().mean(-1, keepdim=True))


@pytest.mark.parametrize('shift', [0, 2])
def test_l2_is_the_norm_of_the_mean_absolute_activations(stream, shift):
    tokens = partition(stream, 4, shift).abs().mean(-1)
    torch.testing.assert_close(scores('L2', stream, shift=shift), tokens.square().sum(-1).sqrt())


@pytest.mark.parametrize('shift', [0, 2])
def test_std_is_taken_over_real_tokens_and_channels(stream, shift):
    found = scores('Std', stream, shift=shift)
    for window, rows in enumerate(window_rows(10, 13, 4, shift)):
        values = stream.flatten(1, 2)[:, rows[rows >= 0]].flatten(1)
        torch.testing.assert_close(found[:, window], values.std(1, correction=0))


def test_l2_does_not_overflow_in_half_precision():
    found = scores('L2', torch.full((1, 8, 8, 16), 300.0, dtype=torch.float16))
    torch.testing.assert_close(found, torch.full((1, 4), 1200.0))


@pytest.mark.parametrize('name', NAMES)
def test_reverse_turns_the_order_around(name, stream):
    forward = scores(name, stream)
    backward = scores(dict(type=name, reverse=True), stream)
    assert torch.equal(forward.argsort(1), backward.argsort(1).flip(1))


@pytest.mark.parametrize('name', NAMES)
def test_scores_do_not_depend_on_batch_mates(name, stream):
    together = scores(name, stream, keys=[5, 9])
    alone = scores(name, stream[1:], keys=[9])
    torch.testing.assert_close(together[1:], alone, rtol=1e-6, atol=0)


def test_random_depends_on_seed_and_image_only(stream):
    first = scores('Random', stream, keys=[1, 2])
    assert torch.equal(first, scores('Random', 7 * stream, keys=[1, 2]))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, scores(dict(type='Random', seed=1), stream, keys=[1, 2]))


def test_random_does_not_favour_windows_without_padding():
    """13 columns leave the last of 4 windows one real column; it must win as often as the others."""
    x = torch.zeros(400, 4, 13, 1)
    best = scores('Random', x, keys=list(range(400))).argmax(1)
    counts = torch.bincount(best, minlength=4)
    assert counts.min() > 60, counts


def test_image_keys_ignore_padding_and_batch_mates():
    images = torch.randn(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (0, 8, 0, 12))
    assert image_keys(images) == image_keys(padded)
    assert image_keys(images)[1:2] == image_keys(images[1:2])
    assert len(set(image_keys(images))) == 3


def test_content_follows_patches_that_hold_any_content():
    images = torch.ones(1, 3, 18, 20)
    images[:, :, 9:] = 0
    images[:, 1, 17, 19] = -2.0
    by_patch = pool_content(content_map(images), 4, 4)
    assert by_patch.shape == (1, 5, 5)
    assert (by_patch[0] > 0).tolist() == [[True] * 5] * 3 + [[False] * 5, [False] * 4 + [True]]
    merged = pool_content(by_patch, 2, 2)
    assert (merged[0] > 0).tolist() == [[True] * 3, [True] * 3, [False, False, True]]


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('Entropy', "importance='Entropy' is unknown.*'L2'.*'Random'.*'Std'"),
        (dict(type='Entropy'), "importance='Entropy'"),
        (dict(reverse=True), 'importance=None'),
        (dict(type='L2', seed=3), "importance=.*unexpected keyword argument 'seed'.*L2"),
        (3, 'importance=3'),
    ],
)
def test_bad_importance_names_the_field_and_the_fix(spec, message):
    with pytest.raises(ValueError, match=message):
        build_importance(spec)


def test_a_new_importance_is_one_class_and_one_decorator(stream):
    @IMPORTANCE.register_module()
    class Peak(Importance):
        def token_map(self, x, image_keys=None):
            return x.float().amax(-1, keepdim=True)

        def window_scores(self, tokens, real):
            return tokens.flatten(2).amax(-1)

    try:
        assert scores('Peak', stream).shape == (2, 12)
    finally:
        IMPORTANCE.module_dict.pop('Peak')
