"""tools/deploy.py convert: from a calibrated checkpoint to a detector that tools/test.py runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_detector import tiny_mask_rcnn
from tool_process import load_tool

from mixaq_mmdet.deploy.convert import check_convertible
from mixaq_mmdet.deploy.files import check_integer_checkpoint, integer_config, read_detector
from mixaq_mmdet.deploy.state import FORMAT, VERSION, write_header
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


def test_a_whole_detector_on_integers_is_refused_by_a_config_for_its_backbone_alone(tmp_path):
    init_default_scope('mmdet')
    model = tiny_mask_rcnn(**BACKBONE)
    model.update(type='QuantDetector', base=model.type, detector_quant=dict(method='MinMax', w_bits=4, a_bits=8))
    cfg = Config(dict(model=model, default_scope='mmdet'))
    cfg.dump(tmp_path / 'config.py')
    detector = MODELS.build(cfg.model).eval()
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0)))
    Calibrator(detector).run([{'inputs': [torch.zeros(3, 64, 64).byte()], 'data_samples': [sample]}])
    torch.save({'state_dict': detector.state_dict(), 'meta': {}}, tmp_path / 'calibrated.pth')
    convert(tmp_path, 'calibrated.pth', 'integer.pth')
    written, path = Config.fromfile(tmp_path / 'integer.py'), str(tmp_path / 'integer.pth')
    assert (written.model.type, written.model.base) == ('IntegerDetector', 'MaskRCNN')
    check_integer_checkpoint(written, path)
    written.model.type = 'MaskRCNN'
    with pytest.raises(ValueError, match=r"integer.pth' holds neck and heads as integers.*use the config beside"):
        check_integer_checkpoint(written, path)


def test_uncalibrated_checkpoints_are_refused_and_nothing_is_written(detector):
    folder, _ = detector
    with pytest.raises(SystemExit, match=r'^error: not calibrated: patch_embed\.'):
        convert(folder, 'float.pth', 'none.pth')
    assert not list(folder.glob('*none*'))


@pytest.mark.parametrize(
    ('out', 'what'), [('calibrated.pth', 'checkpoint'), ('config.pth', 'config'), ('calibrated.pt', None)]
)
def test_nothing_that_is_read_is_overwritten(detector, out, what):
    folder, _ = detector
    before = {name: (folder / name).read_bytes() for name in ('config.py', 'calibrated.pth')}
    if what is None:
        convert(folder, 'calibrated.pth', out)
    else:
        with pytest.raises(SystemExit, match=f'error: -o .* would overwrite the {what}'):
            convert(folder, 'calibrated.pth', out)
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.parametrize('out', ['config.py/x.pth', 'folder.pth', 'taken.pth'])
def test_outputs_that_cannot_be_written_are_refused_first(detector, out):
    folder, _ = detector
    for taken in ('folder.pth', 'taken.py'):
        (folder / taken).mkdir(exist_ok=True)
    with pytest.raises(SystemExit, match=f'^error: -o.*{folder.name}'):
        convert(folder, 'float.pth', out)  # that it is not calibrated is found later


@pytest.mark.parametrize(
    ('own', 'imports'),
    [
        (None, ['mixaq_mmdet']),
        ({'imports': 'mine'}, ['mine', 'mixaq_mmdet']),
        ({'imports': ['mixaq_mmdet', 'mine'], 'allow_failed_imports': True}, ['mixaq_mmdet', 'mine']),
    ],
)
def test_custom_imports_of_the_config_stay(own, imports):
    cfg = Config(dict(model=dict(backbone=dict(BACKBONE)), custom_imports=own))
    written = integer_config(cfg).custom_imports
    assert written.imports == imports
    assert written.allow_failed_imports == (own or {}).get('allow_failed_imports', False)


def test_a_backbone_that_stops_early_is_refused_by_its_field(detector, tmp_path):
    cfg = Config(dict(model=tiny_mask_rcnn(**BACKBONE), default_scope='mmdet'))
    cfg.model.backbone.out_indices = (0,)
    backbone = MODELS.build(cfg.model.backbone)
    Calibrator(backbone).run([torch.randn(1, 3, 64, 64)])
    with pytest.raises(ValueError, match=r'model\.backbone\.out_indices=\(0,\) leaves the last stage unused'):
        check_convertible(backbone)


def test_an_interruption_keeps_the_old_file(detector, monkeypatch):
    folder, _ = detector
    (folder / 'kept.pth').write_bytes(b'old')

    def torn(checkpoint, file):
        Path(file).write_bytes(b'half')
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, 'save', torn)
        with pytest.raises(SystemExit, match='interrupted'):
            convert(folder, 'calibrated.pth', 'kept.pth')
    assert (folder / 'kept.pth').read_bytes() == b'old'
    assert not list(folder.glob('.kept*'))


def test_a_config_is_written_whole(detector, monkeypatch):
    folder, _ = detector
    (folder / 'beside.py').write_text('old = True\n')

    def torn(path, text, **_):
        path.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, 'write_text', torn)
        with pytest.raises(SystemExit, match='interrupted'):
            convert(folder, 'calibrated.pth', 'beside.pth')
    assert (folder / 'beside.py').read_text() == 'old = True\n'


@pytest.fixture(scope='module')
def damaged(detector):
    """Folder with whole.pth, its config and what may become of it, by message of the error."""
    folder, _ = detector
    convert(folder, 'calibrated.pth', 'whole.pth')
    content = (folder / 'whole.pth').read_bytes()
    (folder / 'torn.pth').write_bytes(content[: len(content) // 2])
    (folder / 'text.pth').write_text('no weights')
    for name, edit in (
        ('lacking', lambda state: state.pop('backbone.stages.0.blocks.0.norm1.weight')),
        ('short', lambda state: state.update({'backbone.stages.1.blocks.0.attn.w_msa.qkv.scale': torch.ones(3)})),
        ('future', lambda state: state.update({'backbone.integer_header': future_header()})),
    ):
        loaded = torch.load(folder / 'whole.pth', weights_only=True)
        edit(loaded['state_dict'])
        torch.save(loaded, folder / f'{name}.pth')
    return folder


def future_header():
    return write_header({'format': FORMAT, 'version': VERSION + 1})


DAMAGES = {
    'torn.pth': 'torn or not a converted detector; run tools/deploy.py convert again',
    'text.pth': 'torn or not a converted detector',
    'calibrated.pth': 'no integer backbone; run tools/deploy.py convert',
    'lacking.pth': "lacks 'stages.0.blocks.0.norm1.weight'",
    'short.pth': r"'stages.1.blocks.0.attn.w_msa.qkv.scale' of the integer file is \(3,\), its header says \(48,\)",
    'future.pth': f'version {VERSION + 1}, this package knows up to {VERSION}; update',
    'absent.pth': 'is not a file',
}


@pytest.mark.parametrize(('name', 'message'), DAMAGES.items())
def test_damaged_and_foreign_files_are_refused_by_name(damaged, name, message):
    assert read_detector(damaged / 'whole.pth')
    with pytest.raises(ValueError, match=message) as caught:
        read_detector(damaged / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'message'),
    [('torn.pth', ''), ('calibrated.pth', DAMAGES['calibrated.pth']), ('short.pth', DAMAGES['short.pth'])],
)
def test_the_test_tool_names_the_file_and_the_remedy(damaged, name, message, monkeypatch):
    monkeypatch.chdir(damaged)
    with pytest.raises(SystemExit, match=f'error: .*{name}.*{message}'):
        load_tool('test.py').main(['whole.py', name])


def test_an_output_that_is_the_config_is_refused(detector):
    with pytest.raises(SystemExit, match='choose another ending'):
        convert(detector[0], 'calibrated.pth', 'integer.py')
