"""From importance and sensitivity per layer to a config with bits per layer and ratios, on a tiny detector."""

from __future__ import annotations

import json

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tool_process import load_tool

from mixaq_mmdet.analysis.divergence import Divergence, bernoulli_divergence, categorical_divergence
from mixaq_mmdet.analysis.layer_importance import relevance_picture
from mixaq_mmdet.analysis.layer_sensitivity import alone, layer_names
from mixaq_mmdet.engine.calibration.detectors import calibrated_detector, preprocessed
from mixaq_mmdet.engine.evaluate import evaluate
from mixaq_mmdet.models.backbone_cost import backbone_bops
from mixaq_mmdet.quantization import quantizer_mode

UNIFORM = dict(method='RepQ', w_bits=4, a_bits=4)


@pytest.fixture
def files(tiny_cfg, tmp_path):
    """A config and a float checkpoint."""
    tiny_cfg.model.backbone.update(type='TwoBranchSwin', drop_path_rate=0.0, depths=(2, 1, 1, 1))
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(tiny_cfg.model).eval()
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'tiny.pth')
    tiny_cfg.model.backbone.quant = UNIFORM
    tiny_cfg.dump(tmp_path / 'tiny.py')
    return str(tmp_path / 'tiny.py'), str(tmp_path / 'tiny.pth')


def test_from_importance_to_a_config_that_runs(files, tmp_path, capsys):
    work = ['--work-dir', str(tmp_path / 'work')]
    load_tool('analyze.py').main(['importance', *files, '--images', '2', '--pictures', '1', *work])
    importance = json.loads((tmp_path / 'work/importance/importance.json').read_text())['importance']
    assert sum(importance.values()) == pytest.approx(len(importance))
    assert list((tmp_path / 'work/importance').glob('relevance_*.png'))
    few = ['--images', '1', '--calibration-images', '2', '--bits', '2', '4']
    load_tool('analyze.py').main(['sensitivity', *files, '--per-layer', *few, *work])
    found = json.loads((tmp_path / 'work/sensitivity/layer_sensitivity.json').read_text())['sensitivity']
    assert set(found) == set(importance) - {'patch_embed.projection'}
    assert all(losses['2'] >= losses['4'] >= 0 for losses in found.values())
    assert sum(losses['2'] for losses in found.values()) > 0

    stored = ['--importance', str(tmp_path / 'work/importance/importance.json')]
    stored += ['--sensitivity', str(tmp_path / 'work/sensitivity/layer_sensitivity.json')]
    load_tool('search.py').main([*files, '--allocate', 'both', '--budget', '0.8', *few, *stored, *work])
    ready = tmp_path / 'work/tiny_allocated.py'
    result = json.loads((tmp_path / 'work/allocation_tiny.json').read_text())
    assert 'test it: python tools/test.py' in capsys.readouterr().out
    cfg = Config.fromfile(ready)
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(cfg.model).backbone
        reference = MODELS.build(Config.fromfile(files[0]).model).backbone
    operations = backbone_bops(backbone, (64, 64)).bit_operations('standard')
    whole = backbone_bops(reference, (64, 64)).bit_operations('standard')
    assert operations / whole == pytest.approx(result['relative_operations'])
    assert operations <= 0.8 * whole
    assert list(backbone.low_ratios) == result['low_ratios']
    assert evaluate(cfg, files[1], limit=1).images == 1


def test_written_config_is_what_was_measured(files, tmp_path):
    cfg = Config.fromfile(files[0])
    cfg.model.backbone.update(low_ratios=0.5, prune_ratios=0.2)
    cfg.custom_imports.imports = ['tiny_backbone']
    cfg.dump(tmp_path / 'mixed.py')
    few = ['--images', '1', '--calibration-images', '1', '--bits', '4', '8', '--work-dir', str(tmp_path / 'work')]
    arguments = [str(tmp_path / 'mixed.py'), files[1], '--allocate', 'layers', '--budget', '1.5', *few]
    load_tool('search.py').main(arguments)
    ready = Config.fromfile(tmp_path / 'work/mixed_allocated.py')
    assert ready.model.backbone.low_ratios == ready.model.backbone.prune_ratios == 0.0
    edits = ['--cfg-options', 'model.backbone.drop_path_rate=0.25']
    load_tool('search.py').main([*arguments, *edits])
    edited = Config.fromfile(tmp_path / 'work/mixed_allocated.py')
    assert edited.model.backbone.drop_path_rate == 0.25
    assert edited.model.backbone.quant == ready.model.backbone.quant
    assert edited.model.backbone.prune_ratios == 0.0
    assert any(hook.type == 'CalibrationHook' for hook in edited.custom_hooks)
    assert ready.custom_imports == edited.custom_imports
    assert ready.custom_imports.imports == ['tiny_backbone', 'mixaq_mmdet']


def test_stored_values_of_another_model_are_refused(files, tmp_path):
    (tmp_path / 'importance.json').write_text(json.dumps({'importance': {'layer1.conv': 1.0}}))
    arguments = [*files, '--allocate', 'layers', '--images', '1', '--work-dir', str(tmp_path / 'work')]
    with pytest.raises(SystemExit, match=r'--importance .* belongs to another model: .* stages\.0'):
        load_tool('search.py').main([*arguments, '--importance', str(tmp_path / 'importance.json')])


@pytest.mark.parametrize(
    'flags',
    [
        ['--target-latency', '5'], ['--objectives', 'map,latency'], ['--prune'], ['--resume'], ['--surrogate'],
        ['--ann-file', 'a.json'], ['--population', '3'], ['--budget', '-1'], ['--budget', 'nan'],
        ['--size-budget', '0'], ['--bits', '99'], ['--images', '0'], ['--calibration-images', '0'],
    ],
)  # fmt: skip
def test_flags_that_an_allocation_cannot_follow_are_named(files, tmp_path, flags):
    with pytest.raises(SystemExit, match=f'^error: {flags[0]}'):
        load_tool('search.py').main([*files, '--allocate', 'layers', '--work-dir', str(tmp_path / 'work'), *flags])


def test_alone_quantizes_one_layer(files):
    cfg = Config.fromfile(files[0])
    detector = calibrated_detector(cfg, files[1], dict(method='MixQViT', w_bits=2, a_bits=2), num_images=2)
    images, _ = preprocessed(cfg, detector, 1)
    measure = Divergence(detector, images, 20, 5)
    with quantizer_mode(detector, 'float'):
        assert measure(detector) == pytest.approx(0, abs=1e-9)
    name = layer_names(detector.backbone)[0]
    with alone(detector.backbone, name):
        one = measure(detector)
    assert 0 < one < measure(detector)
    with pytest.raises(ValueError, match="layer 'nothing' is not in the backbone"), alone(detector.backbone, 'nothing'):
        pass


def test_unequal_widths_are_refused(files, tmp_path):
    arguments = [*files, '--allocate', 'layers', '--work-dir', str(tmp_path)]
    with pytest.raises(SystemExit, match='gives a layer one width'):
        load_tool('search.py').main([*arguments, '--cfg-options', 'model.backbone.quant.a_bits=8'])


def test_divergences_are_zero_for_equals_and_positive_otherwise():
    logits, others = torch.randn(5, 4), torch.randn(5, 4)
    for divergence in (categorical_divergence, bernoulli_divergence):
        assert divergence(logits, logits) == pytest.approx(0, abs=1e-12)
        assert divergence(logits, others) > 0


def test_relevance_shows_where_it_is():
    tokens = torch.zeros(4, 4)
    tokens[0, 0] = 1
    picture = relevance_picture(torch.full((3, 16, 16), 100.0), tokens)
    assert picture.shape == (16, 16, 3)
    assert picture[0, 0, 0] > picture[0, 0, 1]
    assert picture[15, 15].tolist() == [100, 100, 100]
