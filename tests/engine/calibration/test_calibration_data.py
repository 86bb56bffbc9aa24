"""Which images are calibrated on."""

import logging

import pytest
from mmdet.datasets import MultiImageMixDataset
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset

from mixaq_mmdet.engine.calibration.data import calibration_loader, image_ids, plain_dataset, reading_pipeline

register_all_modules()


def loader(cfg, num_images=3, seed=0):
    return calibration_loader(cfg.train_dataloader, reading_pipeline(cfg), num_images, seed)


def test_the_seed_draws_the_images(tiny_cfg):
    assert image_ids(loader(tiny_cfg)) == image_ids(loader(tiny_cfg))
    drawn = {tuple(image_ids(loader(tiny_cfg, seed=seed))) for seed in range(8)}
    assert len(drawn) > 1
    assert all(len(set(ids)) == 3 for ids in drawn)


def test_a_small_set_is_used_whole_with_a_warning(tiny_cfg, monkeypatch):
    levels = []
    monkeypatch.setattr('mixaq_mmdet.engine.calibration.data.print_log', lambda *_, level: levels.append(level))
    assert sorted(image_ids(loader(tiny_cfg, num_images=32))) == [1, 2, 3, 4]
    assert levels == [logging.WARNING]


def test_ranks_share_the_drawn_images(tiny_cfg, monkeypatch):
    together = image_ids(loader(tiny_cfg))
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr('mixaq_mmdet.engine.calibration.data.get_rank', lambda rank=rank: rank)
        monkeypatch.setattr('mixaq_mmdet.engine.calibration.data.get_world_size', lambda: 2)
        shares.append(image_ids(loader(tiny_cfg)))
    assert sorted(shares[0] + shares[1]) == sorted(together)


def test_batches_come_from_the_test_pipeline(tiny_cfg):
    batch = next(iter(loader(tiny_cfg)))
    assert len(batch['inputs']) == 1
    assert 'flip' not in batch['data_samples'][0]


@pytest.mark.parametrize(
    ('mix', 'repeat', 'concat'),
    [
        ('mmdet.MultiImageMixDataset', 'RepeatDataset', 'ConcatDataset'),
        (MultiImageMixDataset, RepeatDataset, ConcatDataset),  # as pure Python configs name them
    ],
)
def test_wrappers_are_looked_through(mix, repeat, concat):
    plain = {'type': 'CocoDataset', 'ann_file': 'a.json', 'pipeline': ['train']}
    wrapped = {'type': mix, 'dataset': {'type': repeat, 'times': 3, 'dataset': plain}}
    expected = {**plain, 'pipeline': ['test'], 'test_mode': True}
    assert plain_dataset(wrapped, ['test']) == expected
    joined = plain_dataset({'type': concat, 'datasets': [wrapped, plain]}, ['test'])
    assert joined == {'type': concat, 'datasets': [expected, expected]}
    assert plain['pipeline'] == ['train']


@pytest.mark.parametrize(
    ('edit', 'num_images', 'message'),
    [
        ({}, 0, 'num_images=0 must be a whole number of at least 1'),
        ({'train_dataloader': None}, 3, r'train_dataloader\.dataset is missing'),
        ({'test_dataloader': None, 'val_dataloader': None}, 3, r'test_dataloader\.dataset\.pipeline is missing'),
        ({'train_dataloader.dataset.indices': []}, 3, r'train_dataloader\.dataset is empty'),
    ],
)
def test_bad_input(tiny_cfg, edit, num_images, message):
    cfg = Config(tiny_cfg.to_dict())
    cfg.merge_from_dict(edit)
    with pytest.raises(ValueError, match=message):
        loader(cfg, num_images)
