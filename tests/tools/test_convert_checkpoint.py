"""tools/convert_checkpoint.py from file to file: what is kept, dropped, refused, and how."""

from __future__ import annotations

import runpy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from swin_dialects import MicrosoftSwin, mmcv_names, randomise
from tiny_detector import tiny_mask_rcnn
from tool_process import load_tool, run_tool
from torch import nn

from mixaq_mmdet.engine.checkpoints.conversion import build_model, convert_checkpoint
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin

ROOT = Path(__file__).resolve().parents[2]
META = dict(CLASSES=('box', 'disc', 'bar'), PALETTE=[(1, 2, 3), (4, 5, 6), (7, 8, 9)], mmdet_version='2.11.0', epoch=36)
TINY = dict(embed_dims=8, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), window_size=4)
executed = []


class Foreign:
    """Leaves a trace wherever it is unpickled as itself."""

    def __init__(self) -> None:
        self.value = 1

    def __setstate__(self, state: dict) -> None:
        executed.append(state)


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file of a tiny Mask R-CNN on TwoBranchSwin."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)
    Config(
        dict(custom_imports=imports, default_scope='mmdet', model=tiny_mask_rcnn(type='TwoBranchSwin').to_dict())
    ).dump(path)
    return path


@pytest.fixture(scope='module')
def swin() -> MicrosoftSwin:
    return randomise(MicrosoftSwin(output_norms=True))


@pytest.fixture(scope='module')
def detector(config: Path, swin: MicrosoftSwin) -> dict[str, torch.Tensor]:
    """The state dict of a trained detector in the names of Swin-Transformer-Object-Detection."""
    heads = randomise(build_model(config)).state_dict()
    heads = {key: value for key, value in heads.items() if not key.startswith('backbone.')}
    return OrderedDict({f'backbone.{key}': value for key, value in swin.state_dict().items()} | heads)


def saved(path: Path, **content) -> Path:
    torch.save(content, path)
    return path


def test_detector_checkpoint_fits_and_computes_the_same(tmp_path, config, swin, detector):
    optimizer = dict(state={0: dict(exp_avg=torch.zeros(10))}, param_groups=[dict(lr=1e-4)])
    source = saved(tmp_path / 'src.pth', meta=META, state_dict=detector, optimizer=optimizer)
    report = convert_checkpoint(source, tmp_path / 'dst.pth', config)
    assert (report.dialect, report.missing, report.fresh, report.dropped) == ('swin-object-detection', [], [], [])

    written = torch.load(tmp_path / 'dst.pth', weights_only=True)
    assert sorted(written) == ['meta', 'state_dict']
    assert written['meta'] == dict(
        converted_from='swin-object-detection', dataset_meta=dict(classes=META['CLASSES'], palette=META['PALETTE'])
    )
    model = build_model(config)
    load_checkpoint(model, str(tmp_path / 'dst.pth'), strict=True)
    model.eval()
    images = torch.randn(2, 3, 64, 75)
    for ours, theirs in zip(model.backbone(images), swin(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.roi_head.mask_head.conv_logits.weight, detector['roi_head.mask_head.conv_logits.weight'])


def test_cascade_checkpoint_fits_the_shipped_cascade_recipe(tmp_path, swin):
    cfg = Config.fromfile(ROOT / 'configs/mixaq/cascade-mask-rcnn_swin-t_float.py')
    cfg.merge_from_dict({'model.backbone': dict(**TINY, init_cfg=None), 'model.neck.in_channels': [8, 16, 32, 64]})
    for head in cfg.model.roi_head.bbox_head:
        head.update(conv_out_channels=8, fc_out_channels=8)
    cfg.dump(tmp_path / 'cascade.py')
    model = build_model(tmp_path / 'cascade.py')
    heads = {key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    # the box head as that code base writes it: four normalised convolutions, one linear layer, a box for every class
    for name in ('shared_convs.3.bn.running_var', 'shared_fcs.0.weight', 'fc_reg.weight'):
        assert f'roi_head.bbox_head.2.{name}' in heads
    assert 'roi_head.bbox_head.2.shared_fcs.1.weight' not in heads
    assert heads['roi_head.bbox_head.2.fc_reg.weight'].shape[0] == 4 * 80
    weights = {f'backbone.{key}': value for key, value in swin.state_dict().items()} | heads
    source = saved(tmp_path / 'src.pth', state_dict=weights)
    report = convert_checkpoint(source, tmp_path / 'dst.pth', tmp_path / 'cascade.py')
    assert (report.missing, report.fresh, report.dropped) == ([], [], [])
    load_checkpoint(model, str(tmp_path / 'dst.pth'), strict=True)


def test_without_a_config_the_geometry_comes_from_the_file(tmp_path, swin, detector):
    report = convert_checkpoint(saved(tmp_path / 'src.pth', state_dict=detector), tmp_path / 'dst.pth')
    weights = torch.load(tmp_path / 'dst.pth')['state_dict']
    backbone = TwoBranchSwin(**report.backbone)
    backbone.load_state_dict({key[9:]: value for key, value in weights.items() if key.startswith('backbone.')})
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(backbone.eval()(images)[-1], swin(images)[-1], rtol=1e-4, atol=1e-5)
    assert report.written == len(weights) == len(detector)


def test_classifier_starts_a_detector(tmp_path, config):
    classifier = randomise(MicrosoftSwin())
    source = saved(tmp_path / 'src.pth', model=classifier.state_dict())
    report = convert_checkpoint(source, tmp_path / 'dst.pth', config)
    assert report.missing == []
    assert report.fresh == ['neck', 'roi_head', 'rpn_head']
    assert report.dropped == ['head.fc.weight', 'head.fc.bias']
    model = build_model(config)
    load_checkpoint(model, str(tmp_path / 'dst.pth'))
    qkv = model.backbone.stages[1].blocks[1].attn.w_msa.qkv.weight
    assert torch.equal(qkv, classifier.layers[1].blocks[1].attn.qkv.weight)


@pytest.mark.parametrize('converted', [False, True])
def test_classifier_as_the_init_cfg_of_a_stock_config(tmp_path, converted):
    """Stock configs start from Microsoft's file by init_cfg; that way and the converted file must both stay open."""
    classifier = randomise(MicrosoftSwin())
    source = saved(tmp_path / 'src.pth', model=classifier.state_dict())
    if converted:
        convert_checkpoint(source, tmp_path / 'dst.pth')
    checkpoint = str(tmp_path / 'dst.pth' if converted else source)
    init_cfg = ConfigDict(type='Pretrained', checkpoint=checkpoint)
    backbone = TwoBranchSwin(**TINY, convert_weights=not converted, init_cfg=init_cfg)
    backbone.init_weights()
    images = torch.randn(1, 3, 128, 128)
    expected = nn.functional.layer_norm(classifier.stages(images)[2], (32,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone.eval()(images)[2], expected, rtol=1e-4, atol=1e-4)


class TestAveragedWeights:
    def converted(self, tmp_path: Path, ema: bool, **content) -> torch.Tensor:
        classifier = randomise(MicrosoftSwin(output_norms=True))
        names = {f'backbone.{key}': value for key, value in mmcv_names(classifier.state_dict()).items()}
        content = {key: make(names) for key, make in content.items()}
        convert_checkpoint(saved(tmp_path / 'src.pth', **content), tmp_path / 'dst.pth', ema=ema)
        weight = torch.load(tmp_path / 'dst.pth')['state_dict']['backbone.norm0.weight']
        return (weight / names['backbone.norm0.weight']).mean()

    @pytest.mark.parametrize('ema', [False, True])
    def test_mmengine_saves_them_under_the_ordinary_names(self, tmp_path, ema):
        model = nn.ModuleDict(dict(backbone=TwoBranchSwin(**TINY)))
        randomise(model)
        hook = EMAHook(momentum=0.5)
        hook.src_model, hook.ema_model = model, ExponentialMovingAverage(model, momentum=0.5)
        hook.ema_model.steps += 1
        before = model.backbone.norm0.weight.clone()
        with torch.no_grad():
            model.backbone.norm0.weight.zero_()
        hook.ema_model.update_parameters(model)
        checkpoint = dict(state_dict=model.state_dict())
        hook.before_save_checkpoint(None, checkpoint)
        convert_checkpoint(saved(tmp_path / 'src.pth', **checkpoint), tmp_path / 'dst.pth', ema=ema)
        weight = torch.load(tmp_path / 'dst.pth')['state_dict']['backbone.norm0.weight']
        torch.testing.assert_close(weight, before / 2)

    @pytest.mark.parametrize(('ema', 'expected'), [(False, 1), (True, 2)])
    def test_others_save_them_beside(self, tmp_path, ema, expected):
        result = self.converted(
            tmp_path,
            ema,
            model=lambda names: names,
            model_ema=lambda names: {key: value * 2 for key, value in names.items()},
        )
        assert result == pytest.approx(expected)

    def test_mmdet_2_keeps_training_weights_in_buffers_that_are_dropped(self, tmp_path):
        def with_buffers(names):
            return names | {f'ema_{key.replace(".", "_")}': value * 2 for key, value in names.items()}

        assert self.converted(tmp_path, True, state_dict=with_buffers) == 1
        assert not any(key.startswith('ema_') for key in torch.load(tmp_path / 'dst.pth')['state_dict'])

    def test_a_file_without_them_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match='--ema: SRC has no averaged weights'):
            self.converted(tmp_path, True, state_dict=lambda names: names)


class TestFit:
    def test_size_mismatches_are_listed(self, tmp_path, config, detector):
        detector = {key: value[:2] if 'fc_cls' in key else value for key, value in detector.items()}
        with pytest.raises(ValueError, match='2 tensors differ in size') as error:
            convert_checkpoint(saved(tmp_path / 'src.pth', state_dict=detector), tmp_path / 'dst.pth', config)
        assert 'roi_head.bbox_head.fc_cls.bias: (2,) in SRC, (4,) in the model' in str(error.value)
        assert not (tmp_path / 'dst.pth').exists()

    def test_more_than_one_percent_missing_is_listed(self, tmp_path, config, detector):
        kept = {key: value for key, value in detector.items() if not key.startswith('rpn_head.')}
        with pytest.raises(ValueError, match=r'6 of .* float tensors are missing') as error:
            convert_checkpoint(saved(tmp_path / 'src.pth', state_dict=kept), tmp_path / 'dst.pth', config)
        assert str(error.value).count('rpn_head.') == 6

    def test_one_missing_tensor_is_reported_only(self, tmp_path, config, detector):
        kept = {key: value for key, value in detector.items() if key != 'rpn_head.rpn_cls.bias'}
        report = convert_checkpoint(saved(tmp_path / 'src.pth', state_dict=kept), tmp_path / 'dst.pth', config)
        assert report.missing == ['rpn_head.rpn_cls.bias']

    def test_missing_backbone_tensors_without_a_config(self, tmp_path, detector):
        kept = {key: value for key, value in detector.items() if 'fc1' not in key or 'layers.0' in key}
        with pytest.raises(ValueError, match='10 of 112 float tensors are missing') as error:
            convert_checkpoint(saved(tmp_path / 'src.pth', state_dict=kept), tmp_path / 'dst.pth')
        assert str(error.value).count('.ffn.layers.0.0.') == 10


class TestReading:
    def test_foreign_objects_are_neither_needed_nor_run(self, tmp_path, detector):
        wrapped = {f'module.{key}': nn.Parameter(v) if v.is_floating_point() else v for key, v in detector.items()}
        source = saved(tmp_path / 'src.pth', state_dict=wrapped, config=Foreign(), meta=dict(CLASSES=Foreign()))
        report = convert_checkpoint(source, tmp_path / 'dst.pth')
        assert report.written == len(detector)
        assert executed == []
        assert torch.load(tmp_path / 'dst.pth')['meta'] == dict(converted_from='swin-object-detection')
        torch.load(source, weights_only=False)
        assert executed, 'the trap itself must work'

    def test_old_file_format_and_half_precision(self, tmp_path, detector):
        half = {key: value.half() if value.is_floating_point() else value for key, value in detector.items()}
        torch.save(half, tmp_path / 'src.pth', _use_new_zipfile_serialization=False)
        convert_checkpoint(tmp_path / 'src.pth', tmp_path / 'dst.pth')
        weight = torch.load(tmp_path / 'dst.pth')['state_dict']['backbone.norm0.weight']
        assert torch.equal(weight, half['backbone.norm0.weight'])

    @pytest.mark.parametrize(
        ('content', 'message'),
        [
            (None, 'is not a file'),
            (b'not a checkpoint', 'cannot be read as a PyTorch checkpoint'),
            ([1, 2], 'holds a list'),
            (dict(epoch=3), r"no weights under .* it has \['epoch'\]"),
        ],
    )
    def test_unusable_files(self, tmp_path, content, message):
        source = tmp_path / 'src.pth'
        if isinstance(content, bytes):
            source.write_bytes(content)
        elif content is not None:
            torch.save(content, source)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(source, tmp_path / 'dst.pth')


def test_the_result_is_whole_or_absent(tmp_path, detector, monkeypatch):
    source = saved(tmp_path / 'src.pth', state_dict=detector)
    with pytest.raises(ValueError, match='is SRC itself'):
        convert_checkpoint(source, tmp_path / '.' / 'src.pth')

    def torn(_checkpoint, file):
        Path(file).write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', torn)
    with pytest.raises(OSError, match='disk full'):
        convert_checkpoint(source, tmp_path / 'dst.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['src.pth']


@pytest.mark.parametrize(
    ('dst', 'options', 'message'),
    [
        ('dst.pth', ['--config', 'nowhere.py'], "error: --config 'nowhere.py' is not a file"),
        ('dst.pth', ['--config', str(ROOT / 'configs/_base_/mini_runtime.py')], 'has no model'),
        ('.', [], r"error: DST='.*' is a folder; give the file"),
        ('src.pth/dst.pth', [], r"error: DST='.*src\.pth/dst\.pth' cannot be written"),
        ('/proc/dst.pth', [], r"error: DST='/proc/dst\.pth' cannot be written"),
        ('/proc/new/dst.pth', [], r"error: DST='/proc/new/dst\.pth' cannot be written"),
    ],
)
def test_user_errors_are_one_line(tmp_path, detector, dst, options, message):
    source = saved(tmp_path / 'src.pth', state_dict=detector)
    with pytest.raises(SystemExit, match=message):
        load_tool('convert_checkpoint.py').main([str(source), str(tmp_path / dst), *options])
    assert [path.name for path in tmp_path.iterdir()] == ['src.pth']


def test_command_line(tmp_path, config, detector):
    source = saved(tmp_path / 'src.pth', state_dict=detector)
    script, arguments = ROOT / 'tools/convert_checkpoint.py', [str(source), str(tmp_path / 'dst.pth')]
    done = run_tool(script.name, *arguments, '--config', config, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert 'swin-object-detection checkpoint, weights from state_dict' in done.stdout
    assert 'window_size=4' in done.stdout
    assert f'wrote {len(detector)} tensors' in done.stdout
    with pytest.raises(SystemExit, match='error: --ema: SRC has no averaged weights'):
        runpy.run_path(str(script))['main']([*arguments, '--ema'])
