"""mmdet's inference API gives what ``tools/test.py`` gives, for a detector on TwoBranchSwin with low windows."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from tiny_detector import CLASSES
from tool_process import load_tool
from two_branch_files import write_two_branch_files


@pytest.fixture(scope='module')
def files(tiny_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A config file with an ``init_cfg`` that must not be downloaded, and a checkpoint of random weights."""
    return write_two_branch_files(tiny_coco, tmp_path_factory.mktemp('api'), low_ratios=0.4, prune_ratios=0.2)


@pytest.fixture(scope='module')
def tested(files: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What ``tools/test.py --out`` writes, one entry per image."""
    folder = tmp_path_factory.mktemp('tested')
    load_tool('test.py').main([*files, '--out', str(folder / 'out.pkl'), '--work-dir', str(folder)])
    return pickle.loads((folder / 'out.pkl').read_bytes())


def assert_same(instances, expected: dict) -> None:
    assert len(expected['scores']) > 0
    for name in ('bboxes', 'scores', 'labels'):
        torch.testing.assert_close(torch.as_tensor(instances[name]), expected[name], rtol=1e-5, atol=1e-4)


def test_inference_detector(files, tested):
    model = init_detector(*files, device='cpu')
    assert model.dataset_meta['classes'] == CLASSES
    assert model.backbone.low_ratios == (0.4,) * model.backbone.num_pairs
    for sample, expected in zip(
        inference_detector(model, [image['img_path'] for image in tested]), tested, strict=True
    ):
        assert_same(sample.pred_instances, expected['pred_instances'])


def test_det_inferencer(files, tested):
    inferencer = DetInferencer(model=files[0], weights=files[1], device='cpu', show_progress=False)
    paths = [image['img_path'] for image in tested]
    predictions = inferencer(paths, no_save_vis=True, return_datasamples=True)['predictions']
    for sample, expected in zip(predictions, tested, strict=True):
        assert_same(sample.pred_instances, expected['pred_instances'])


def test_ratios_by_config_options_change_the_predictions(files, tested):
    """Otherwise the agreement above would say nothing about the configured ratios."""
    options = {'model.backbone.prune_ratios': 0.8, 'model.backbone.low_ratios': 0.0}
    model = init_detector(*files, device='cpu', cfg_options=options)
    sample = inference_detector(model, tested[0]['img_path'])
    assert not torch.equal(sample.pred_instances.scores, tested[0]['pred_instances']['scores'])
    assert Config.fromfile(files[0]).model.backbone.prune_ratios == 0.2
