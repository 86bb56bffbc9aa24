"""tools/publish_checkpoint.py: a small file that loads, a card that tells where it comes from."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from mmdet.registry import MODELS
from tiny_detector import two_stages
from tool_process import load_tool

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.quantization.quantizers import Quantizer


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


def test_folders_of_the_machine_become_the_data_folder(source, publish, tmp_path):
    checkpoint = torch.load(source, weights_only=True)
    root = '/home/somebody/coco/'
    checkpoint['meta']['cfg'] += f"data_root = '{root}'\nann_file = '{root}annotations/train.json'\n"
    torch.save(checkpoint, source)
    publish(source, tmp_path / 'model.pth')
    text = torch.load(tmp_path / 'model.pth', weights_only=True)['meta']['cfg']
    assert "data_root = 'data/coco/'" in text
    assert "ann_file = 'data/coco/annotations/train.json'" in text


@pytest.fixture
def quantized(tiny_cfg, tmp_path):
    """(config, checkpoint) of a calibrated detector, as a training writes it."""

    def write(method: str):
        tiny_cfg.model = two_stages(tiny_cfg.model)
        tiny_cfg.model.backbone.update(
            type='TwoBranchSwin', quant={'method': method, 'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4}, low_ratios=0.5
        )
        model = MODELS.build(tiny_cfg.model)
        Calibrator(model.backbone).run([torch.randn(2, 3, 64, 64)])
        path = tmp_path / f'{method}.pth'
        torch.save({'meta': {'cfg': tiny_cfg.pretty_text}, 'state_dict': model.state_dict()}, path)
        return tiny_cfg, path

    return write


@torch.no_grad()
def test_weights_on_their_grids_give_the_codes_of_the_trained_model(quantized, publish, tmp_path):
    cfg, trained = quantized('LSQ')
    on_grids = tmp_path / 'on_grids.pth'
    publish(trained, on_grids, '--on-grids')
    expected, found = (load_detector(cfg, path).backbone for path in (trained, on_grids))
    layers = dict(expected.named_modules())
    compared = 0
    for path, layer in found.named_modules():
        if isinstance(getattr(layer, 'weight_quant', None), Quantizer):
            assert torch.equal(layer.quantized_weight(), layers[path].quantized_weight()), path
            compared += 1
    assert compared > 8


def test_grids_that_follow_the_weights_are_refused(quantized, publish, tmp_path):
    _, trained = quantized('OFQ')
    with pytest.raises(SystemExit, match='rounds a rounded weight to another one'):
        publish(trained, tmp_path / 'out.pth', '--on-grids')
    assert not (tmp_path / 'out.pth').exists()


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
