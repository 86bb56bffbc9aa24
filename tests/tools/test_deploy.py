"""tools/deploy.py convert: from a calibrated checkpoint to a detector that tools/test.py runs."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_detector import tiny_mask_rcnn

from mixaq_mmdet.deploy.files import read_detector
from mixaq_mmdet.engine.calibration import Calibrator
from tools.deploy import main

BACKBONE = dict(type='TwoBranchSwin', quant=dict(method='RepQ', w_bits=4, a_bits=8, low_a_bits=4), low_ratios=0.5)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """(folder with config.py, calibrated.pth and float.pth; the calibrated backbone)."""
    folder = tmp_path_factory.mktemp('convert')
    init_default_scope('mmdet')
    cfg = Config(dict(model=tiny_mask_rcnn(**BACKBONE), default_scope='mmdet', train_cfg=dict(type='PTQLoop')))
    cfg.dump(folder / 'config.py')
    model = MODELS.build(cfg.model)
    torch.save({'state_dict': model.state_dict()}, folder / 'float.pth')
    Calibrator(model.backbone).run([torch.randn(1, 3, 64, 64)])
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, folder / 'calibrated.pth')
    return folder, model.eval()


def convert(folder, checkpoint, out):
    main(['convert', str(folder / 'config.py'), str(folder / checkpoint), '-o', str(folder / out)])


def test_converted_detector_is_ready_to_use(detector, capsys):
    from mmdet.apis import init_detector

    folder, model = detector
    convert(folder, 'calibrated.pth', 'integer.pth')
    assert 'tools/test.py' in capsys.readouterr().out
    cfg = Config.fromfile(folder / 'integer.py')
    assert cfg.model.backbone.type == 'IntegerSwin'
    assert 'train_cfg' not in cfg
    converted = init_detector(cfg, str(folder / 'integer.pth'), device='cpu', palette='random')
    x = torch.randn(1, 3, 50, 67)
    with torch.no_grad():
        for reference, out in zip(model.backbone(x), converted.backbone(x), strict=True):
            assert float((reference - out).norm() / reference.norm()) < 0.03
    for name, value in model.rpn_head.state_dict().items():
        assert torch.equal(value, converted.rpn_head.state_dict()[name])
    sizes = [(folder / name).stat().st_size for name in ('integer.pth', 'calibrated.pth')]
    assert sizes[0] < sizes[1]


def test_uncalibrated_checkpoints_are_refused_and_nothing_is_written(detector):
    folder, _ = detector
    with pytest.raises(SystemExit, match='error: the model is not calibrated'):
        convert(folder, 'float.pth', 'none.pth')
    assert not list(folder.glob('*none*'))


def test_an_interruption_keeps_the_old_file(detector, monkeypatch):
    folder, _ = detector
    (folder / 'kept.pth').write_bytes(b'old')

    def torn(checkpoint, file):
        file.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', torn)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, 'calibrated.pth', 'kept.pth')
    assert (folder / 'kept.pth').read_bytes() == b'old'
    assert not list(folder.glob('.kept*'))


def test_torn_and_foreign_files_are_refused(detector):
    folder, _ = detector
    convert(folder, 'calibrated.pth', 'whole.pth')
    assert read_detector(folder / 'whole.pth')
    content = (folder / 'whole.pth').read_bytes()
    (folder / 'torn.pth').write_bytes(content[: len(content) // 2])
    for name, message in (
        ('torn.pth', 'torn or no converted detector'),
        ('calibrated.pth', 'no integer backbone'),
        ('absent.pth', 'is not a file'),
    ):
        with pytest.raises(ValueError, match=message):
            read_detector(folder / name)


def test_an_output_that_is_the_config_is_refused(detector):
    with pytest.raises(SystemExit, match='choose another ending'):
        convert(detector[0], 'calibrated.pth', 'integer.py')
