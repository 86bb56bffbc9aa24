"""Studies of a converted model, and of bits that stand in overrides: what is true of it, or where to go."""

from __future__ import annotations

import json

import pytest
from mmengine.config import Config
from tool_process import load_tool
from two_branch_files import write_quantized_files, write_two_branch_files

from mixaq_mmdet.analysis import visualization
from mixaq_mmdet.analysis.commands.sensitivity import low_bits
from mixaq_mmdet.analysis.report_sections import layers_section
from mixaq_mmdet.deploy.files import convert_detector
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.models import TwoBranchSwin


@pytest.fixture(scope='module')
def converted(tiny_coco, tmp_path_factory) -> tuple[str, str]:
    """(config, checkpoint) of a converted detector of two low bits that runs in torch."""
    folder = tmp_path_factory.mktemp('converted')
    config, checkpoint = write_quantized_files(tiny_coco, folder)
    written = convert_detector(Config.fromfile(config), checkpoint, folder / 'integer.pth')
    cfg = Config.fromfile(written)
    cfg.model.backbone.engine = 'torch'
    cfg.dump(written)
    return str(written), str(folder / 'integer.pth')


def analyze(*arguments) -> None:
    load_tool('analyze.py').main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        ('bops', 'give the config that it was converted from'),
        ('latency', 'latency --integer measures the converted path'),
        ('sqnr', 'has no run without rounding to compare with; give the config and checkpoint that it was converted'),
    ],
)
def test_what_a_converted_model_cannot_tell_names_the_one_that_can(converted, tmp_path, command, message):
    config, checkpoint = converted
    words = (checkpoint, '--work-dir', tmp_path) if command == 'sqnr' else ('--work-dir', tmp_path)
    with pytest.raises(SystemExit) as stop:
        analyze(command, config, *words)
    assert message in str(stop.value)
    assert "model.backbone.type='IntegerSwin'" in str(stop.value)


def test_sensitivity_names_the_bits_of_low_windows(converted, tmp_path):
    analyze('sensitivity', *converted, '--images', 1, '--ratios', 0.5, '--work-dir', tmp_path)
    assert set(json.loads((tmp_path / 'sensitivity/sensitivity.json').read_text())['arms']) == {'2 bits', 'pruned'}


def test_the_report_has_its_bits(converted):
    shown = layers_section(load_detector(Config.fromfile(converted[0]), converted[1])).replace('<wbr>', '')
    row = 'stages.0.blocks.0.ffn.layers.1</td><td class=n>8</td><td class=n>8</td><td class=n>2</td>'
    assert row in shown


def test_its_detections_are_shown_beside_float_ones(converted, tiny_coco, tmp_path, monkeypatch):
    _, plain = write_two_branch_files(tiny_coco, tmp_path)
    seen: list[str] = []
    monkeypatch.setattr(visualization, 'draw_detections', lambda figure, image, found, *rest: seen.extend(found))
    image = str(tiny_coco / 'images/000001.png')
    main = load_tool('visualize.py').main
    main([image, *converted, '-o', str(tmp_path), '--float', plain])
    main([image, *converted, '-o', str(tmp_path)])
    assert seen == ['float', 'this model', 'this model']


@pytest.mark.parametrize(
    ('quant', 'shown'),
    [
        (None, '32 bits'),
        (dict(method='RepQ', w_bits=4, a_bits=8, low_a_bits=4), '4 bits'),
        (dict(method='RepQ', w_bits=4, a_bits=8), '8 bits'),
        (dict(method='MixQViT', w_bits=8, a_bits=8, overrides=[dict(pattern='stages.0.*', a_bits=4)]), '4 to 8 bits'),
    ],
)
def test_bits_of_low_windows_count_overrides(quant, shown):
    size = dict(embed_dims=8, depths=(2, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), window_size=4)
    assert low_bits(TwoBranchSwin(**size, quant=quant)) == shown
