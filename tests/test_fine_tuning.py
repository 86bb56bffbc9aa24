"""Fine-tuning the shipped detector on three of its classes, by the edits every MMDetection user makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tool_process import REPOSITORY, load_tool

CHECKPOINT = REPOSITORY / 'checkpoints/mask-rcnn_swin-mini_float-16k.pth'
CLASSES = ('striped disc', 'checked box', 'striped ring')


@pytest.fixture
def three_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    if not CHECKPOINT.exists():
        pytest.skip(f'{CHECKPOINT.relative_to(REPOSITORY)} is not in this checkout')
    sizes = (word for split in ('train', 'calib', 'search', 'val', 'test') for word in (f'--{split}', '4'))
    load_tool('make_minicoco.py').main(['--out', str(tmp_path / 'minicoco'), '--size', '128', *sizes])
    monkeypatch.setenv('MINICOCO_ROOT', f'{tmp_path}/minicoco/')
    (tmp_path / 'three.py').write_text(
        f"""
_base_ = ['{REPOSITORY}/configs/mini/mask-rcnn_swin-mini_float.py']
load_from = '{CHECKPOINT}'
model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))
three = dict(dataset=dict(metainfo=dict(classes={CLASSES})))
train_dataloader = dict(batch_size=2, **three)
val_dataloader = three
test_dataloader = three
train_cfg = dict(max_epochs=1)
param_scheduler = []
work_dir = '{tmp_path}/work_dir'
"""
    )
    return Config.fromfile(tmp_path / 'three.py')


def test_three_classes_start_from_the_shipped_weights(three_classes, monkeypatch):
    shipped = torch.load(CHECKPOINT, weights_only=True)['state_dict']
    runner = Runner.from_cfg(three_classes)
    started = {}

    def remember(*_args, **_kwargs):
        started.update({key: value.clone() for key, value in runner.model.state_dict().items()})

    monkeypatch.setattr(runner, 'call_hook', _before(runner.call_hook, 'before_train', remember))
    metrics = runner.train() and runner.val()

    fresh = {key for key, value in shipped.items() if started[key].shape != value.shape}
    assert {key.rsplit('.', 1)[0] for key in fresh} == {
        'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg', 'roi_head.mask_head.conv_logits'
    }  # fmt: skip
    assert all(
        torch.equal(started[key], value.to(started[key].dtype)) for key, value in shipped.items() if key not in fresh
    )
    trained = runner.model.state_dict()
    assert trained['roi_head.bbox_head.fc_cls.weight'].shape[0] == 4
    assert not torch.equal(trained['backbone.norm3.weight'], started['backbone.norm3.weight'])
    assert -1 <= metrics['coco/bbox_mAP'] <= 1


def _before(call_hook, name: str, action):
    """``call_hook`` that runs ``action`` before the hooks of one point of a run."""

    def wrapped(point: str, **arguments) -> None:
        if point == name:
            action()
        call_hook(point, **arguments)

    return wrapped
