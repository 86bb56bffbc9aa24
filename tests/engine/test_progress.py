"""engine/progress.py: a bar at a terminal on rank 0, as many steps as it was told; and where long work has one."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from two_branch_files import write_quantized_files, write_two_branch_files

from mixaq_mmdet.analysis.divergence import Divergence
from mixaq_mmdet.analysis.layer_importance import layer_importance
from mixaq_mmdet.analysis.layer_sensitivity import layer_sensitivity
from mixaq_mmdet.analysis.ood import Arm, robustness
from mixaq_mmdet.analysis.pair_sensitivity import pair_sensitivity
from mixaq_mmdet.analysis.study import evaluation_loader
from mixaq_mmdet.analysis.window_sqnr import sqnr_by_stage
from mixaq_mmdet.engine import progress
from mixaq_mmdet.engine.calibration.detectors import calibrated_detector, preprocessed
from mixaq_mmdet.engine.detectors import load_detector


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    shown = Terminal()
    monkeypatch.setattr(progress, 'sys', SimpleNamespace(stdout=shown))
    return shown


def bars(shown: Terminal) -> list[str]:
    """The last state of every bar."""
    return re.findall(r'\] (\d+/\d+),[^\r]*\n', shown.getvalue())


def test_one_step_for_each_item(terminal):
    assert list(progress.watched('counting', ['a', 'b', 'c'])) == ['a', 'b', 'c']
    assert terminal.getvalue().startswith('counting\n')
    assert bars(terminal) == ['3/3']


def test_nothing_is_shown_on_other_ranks(terminal, monkeypatch):
    monkeypatch.setattr(progress, 'is_main_process', lambda: False)
    assert list(progress.watched('counting', [1, 2])) == [1, 2]
    assert terminal.getvalue() == ''


def test_nothing_is_shown_in_a_file(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(progress, 'sys', SimpleNamespace(stdout=file))
    with progress.progress('counting', 1) as tick:
        tick()
    assert file.getvalue() == ''


def test_an_error_ends_the_line(terminal):
    with pytest.raises(KeyError), progress.progress('counting', 2):
        raise KeyError
    assert terminal.getvalue().endswith('\n')


def test_studies_of_a_quantized_model_count_what_they_do(tiny_coco, tmp_path, terminal):
    config, checkpoint = write_quantized_files(tiny_coco, tmp_path)
    cfg = Config.fromfile(config)
    detector, loader = load_detector(cfg, checkpoint), evaluation_loader(cfg, limit=1)
    pair_sensitivity(detector, loader, [0.5], 'ap', pruned=False)
    sqnr_by_stage(detector, loader)
    robustness(detector, {'clean': loader, 'fog': loader}, [Arm('a', 0, 0), Arm('b', 0.5, 0)], ['normal', 'reversed'])
    assert bars(terminal) == ['5/5', '1/1', '6/6']


def test_studies_of_a_float_model_count_what_they_do(tiny_coco, tmp_path, terminal):
    config, checkpoint = write_two_branch_files(tiny_coco, tmp_path, depths=(2, 1, 1, 1))
    cfg = Config.fromfile(config)
    reference = load_detector(cfg, checkpoint, quant={})
    images, _ = preprocessed(cfg, reference, 2)
    layer_importance(reference, images)
    quant = {'method': 'MixQViT', 'w_bits': 8, 'a_bits': 8}
    found = layer_sensitivity(
        lambda bits: calibrated_detector(cfg, checkpoint, quant, num_images=1), [8], Divergence(reference, images[:1])
    )
    importance, calibration, layers = bars(terminal)
    assert importance == '2/2'
    done, steps = calibration.split('/')
    assert done == steps
    assert layers == f'{len(found)}/{len(found)}'
