"""The evaluation function against mmdet's own test run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, save_checkpoint
from noisy_oracle import oracle_config
from tiny_detector import write_tiny_coco

from mixaq_mmdet.engine.evaluate import annotation_file, build_dataloader, evaluate
from mixaq_mmdet.engine.matches import mean_ap


@pytest.fixture
def cfg(tiny_coco: Path, tmp_path: Path) -> Config:
    """A detector of middling quality on four images."""
    return oracle_config(tiny_coco, tmp_path / 'work_dir')


@pytest.fixture
def checkpoint(cfg: Config, tmp_path: Path) -> Path:
    init_default_scope('mmdet')
    path = tmp_path / 'weights.pth'
    save_checkpoint({'state_dict': MODELS.build(cfg.model).state_dict(), 'meta': {}}, str(path))
    return path


def test_config_route_equals_the_stock_test_run(cfg: Config, checkpoint: Path) -> None:
    result = evaluate(cfg, checkpoint)
    cfg.load_from = str(checkpoint)
    stock = Runner.from_cfg(cfg).test()
    assert set(stock) <= set(result.metrics)
    for name, value in stock.items():
        assert round(result.metrics[name], 3) == pytest.approx(value, abs=1e-9), name
    assert result.images == 4
    assert 0.1 < result.metrics['coco/bbox_mAP'] < 0.9, 'all or nothing would prove nothing'


def test_matches_reproduce_the_metrics(cfg: Config, checkpoint: Path) -> None:
    result = evaluate(cfg, checkpoint)
    for kind in ('bbox', 'segm'):
        assert mean_ap(result.matches[kind])[0] == pytest.approx(100 * result.metrics[f'coco/{kind}_mAP'], abs=1e-9)
    assert result.matches['bbox'].image_ids.tolist() == ['1', '2', '3', '4']


def test_loaded_detector_gives_the_same_and_keeps_its_mode(cfg: Config, checkpoint: Path) -> None:
    result = evaluate(cfg, checkpoint)
    loader = build_dataloader(cfg.test_dataloader)
    result.detector.train()
    again = [evaluate(result.detector, dataloader=loader) for _ in range(2)]
    assert again[0].metrics == again[1].metrics == result.metrics
    assert result.detector.training


def test_limit_counts_the_first_images_only(cfg: Config, checkpoint: Path) -> None:
    whole = evaluate(cfg, checkpoint)
    part = evaluate(cfg, checkpoint, limit=2)
    assert part.images == 2
    kept = whole.matches['bbox'].subset(whole.matches['bbox'].image_ids <= '2')
    assert mean_ap(part.matches['bbox'])[0] == pytest.approx(mean_ap(kept)[0])


def test_dataset_edits_choose_another_set(cfg: Config, checkpoint: Path, tmp_path: Path) -> None:
    other = write_tiny_coco(tmp_path / 'other', num_images=3, seed=5)
    assert evaluate(cfg, checkpoint, dataset={'data_root': str(other)}).images == 3


def test_no_detection_at_all_is_an_ap_of_zero(cfg: Config, checkpoint: Path) -> None:
    cfg.model.missed = 1.0
    assert evaluate(cfg, checkpoint).metrics['coco/segm_mAP'] == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'limit': 0}, 'limit=0'),
        ({'dataset': {'ann_file': ''}}, 'ann_file'),
        ({}, 'load_from is missing'),
    ],
)
def test_user_errors_name_the_field(cfg: Config, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(cfg, **arguments)


def test_loaded_detector_needs_a_dataloader() -> None:
    with pytest.raises(ValueError, match='dataloader is missing'):
        evaluate(torch.nn.Linear(1, 1))


def test_the_root_of_the_annotation_file_is_joined_once():
    config = {'data_root': 'data/set/', 'ann_file': 'annotations/val.json'}
    assert annotation_file(config) == 'data/set/annotations/val.json'
    assert annotation_file({'dataset': config}) == 'data/set/annotations/val.json'
    built = SimpleNamespace(data_root='data/set/', ann_file='data/set/annotations/val.json')
    assert annotation_file(built) == 'data/set/annotations/val.json'
