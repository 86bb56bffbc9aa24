"""tools/publish_checkpoint.py: a small file that loads, a card that tells where it comes from."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from tool_process import load_tool


@pytest.fixture
def source(tmp_path):
    state = {'layer.weight': torch.linspace(-1, 1, 6).view(2, 3), 'count': torch.tensor(3)}
    meta = {'epoch': 6, 'seed': 0, 'dataset_meta': {'classes': ('box',)}, 'time': 'today', 'experiment_name': 'x'}
    meta['cfg'] = "work_dir = '/home/somebody/runs'\nload_from = '/home/somebody/start.pth'\nlr = 0.1\n"
    path = tmp_path / 'epoch_6.pth'
    torch.save({'meta': meta, 'state_dict': state, 'optimizer': {'state': torch.zeros(100)}, 'message_hub': {}}, path)
    return path


@pytest.fixture
def publish(monkeypatch):
    tool = load_tool('publish_checkpoint.py')

    def run(*arguments) -> int:
        monkeypatch.setattr('sys.argv', ['publish_checkpoint.py', *map(str, arguments)])
        return tool.main()

    return run


def test_weights_are_halved_and_everything_else_left_behind(source, publish, tmp_path):
    scalars = tmp_path / 'scalars.json'
    scalars.write_text(
        '{"loss": 1.0, "step": 1}\n{"coco/bbox_mAP": 0.1, "step": 1}\n{"coco/bbox_mAP": 0.4, "step": 2}\n'
    )
    target = tmp_path / 'out' / 'model.pth'
    assert publish(source, target, '--scalars', scalars, '--command', 'tools/train.py x.py') == 0

    shipped = torch.load(target, weights_only=True)
    assert set(shipped) == {'meta', 'state_dict'}
    assert set(shipped['meta']) == {'epoch', 'seed', 'dataset_meta', 'cfg'}
    assert 'lr = 0.1' in shipped['meta']['cfg']
    assert 'somebody' not in shipped['meta']['cfg']
    assert shipped['state_dict']['layer.weight'].dtype == torch.float16
    assert shipped['state_dict']['count'].dtype == torch.int64

    card = json.loads(target.with_suffix('.json').read_text())
    assert card['sha256'] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert card['metrics_at_the_end_of_training'] == {'coco/bbox_mAP': 0.4}
    assert (card['seed'], card['command']) == (0, 'tools/train.py x.py')
    assert len(target.with_suffix('.log').read_text().splitlines()) == 3


def test_full_precision_on_request(source, publish, tmp_path):
    target = tmp_path / 'model.pth'
    assert publish(source, target, '--full-precision') == 0
    assert torch.load(target, weights_only=True)['state_dict']['layer.weight'].dtype == torch.float32


def test_what_is_no_training_checkpoint_is_refused(publish, tmp_path):
    with pytest.raises(SystemExit, match='is not a file'):
        publish(tmp_path / 'nowhere.pth', tmp_path / 'out.pth')
    torch.save({'weights': {}}, tmp_path / 'foreign.pth')
    with pytest.raises(SystemExit, match=r"no state_dict but \['weights'\]"):
        publish(tmp_path / 'foreign.pth', tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()
