"""The studies of tools/analyze.py, on a tiny detector: numbers and files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.visualization import Visualizer
from tool_process import load_tool
from two_branch_files import write_quantized_files, write_two_branch_files

from mixaq_mmdet.analysis import ood
from mixaq_mmdet.analysis.commands.robustness import named_sets, set_loader
from mixaq_mmdet.analysis.inspection import two_branch
from mixaq_mmdet.analysis.ood import coco_folder, degradation
from mixaq_mmdet.analysis.pair_sensitivity import draw_sensitivity, pair_sensitivity
from mixaq_mmdet.analysis.study import evaluation_loader
from mixaq_mmdet.analysis.window_sqnr import important_half
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.engine.hooks import WindowMapHook
from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.models.stage_windows import Ranking


@pytest.fixture(scope='module')
def calibrated(tiny_coco, tmp_path_factory):
    """(config file, checkpoint) of a tiny detector whose quantizers all have the range [-4, 4]."""
    return write_quantized_files(tiny_coco, tmp_path_factory.mktemp('studies'))


def analyze(*arguments) -> None:
    load_tool('analyze.py').main([str(argument) for argument in arguments])


def test_sensitivity_grows_with_the_ratio(calibrated, tmp_path):
    analyze('sensitivity', *calibrated, '--images', 2, '--ratios', 0.25, 1, '--work-dir', tmp_path)
    found = json.loads((tmp_path / 'sensitivity' / 'sensitivity.json').read_text())
    assert set(found['arms']) == {'2 bits', 'pruned'}
    assert all(small < large for small, large in found['arms']['2 bits'])
    assert len(found['image_ids']) == 2
    assert (tmp_path / 'sensitivity' / 'sensitivity.png').stat().st_size > 1000
    text = (tmp_path / 'sensitivity' / 'sensitivity.md').read_text()
    assert 'Images (ids): 1, 2.' in text
    assert f'torch {found["versions"]["torch"]}' in text
    assert f'processor {found["device"]["processor"]}' in text


def test_no_window_low_costs_nothing(calibrated):
    cfg = Config.fromfile(calibrated[0])
    found = pair_sensitivity(load_detector(cfg, calibrated[1]), evaluation_loader(cfg, limit=1), [0.0], 'error')
    assert found == {'low': [[0.0]] * 4, 'pruned': [[0.0]] * 4}


@pytest.mark.parametrize('arms', [1, 3])
def test_the_legend_of_sensitivity_covers_no_line(arms):
    """Twelve pairs, as Swin-S has them."""
    figure = Figure()
    rows = [[0.1 * pair, 1.0, 12.0 - pair] for pair in range(12)]
    draw_sensitivity(figure, {f'{bits} bits': rows for bits in range(2, 2 + arms)}, (0.2, 0.5, 0.8), 'error')
    figure.draw_without_rendering()
    legend = figure.axes[-1].get_legend().get_window_extent()
    assert not any(legend.overlaps(axis.get_window_extent()) for axis in figure.axes)
    assert figure.bbox.x1 >= legend.x1
    assert figure.bbox.y0 <= legend.y0 <= legend.y1 <= figure.bbox.y1


def test_sqnr_is_the_same_for_the_same_checkpoint(calibrated, tmp_path):
    config, checkpoint = calibrated
    analyze('sqnr', config, checkpoint, '--after', checkpoint, '--images', 2, '--work-dir', tmp_path)
    stages = json.loads((tmp_path / 'sqnr' / 'sqnr.json').read_text())['stages']
    assert stages['before'] == stages['after']
    assert len(stages['before']) == 4
    for stage in stages['before']:
        assert min(stage['foreground'], stage['background']) <= stage['all'] + 1e-6
        assert stage['all'] <= max(stage['foreground'], stage['background']) + 1e-6
        halves = [stage[half] for half in ('important half', 'other half') if not math.isnan(stage[half])]
        assert min(halves) - 1e-6 <= stage['all'] <= max(halves) + 1e-6, 'a map of one window has no other half'


def test_important_half_is_the_better_ranked_half_of_the_windows_with_content():
    scores = torch.tensor([[3.0, 9.0, 1.0, 5.0, 0.0]])
    blank = torch.tensor([[False, False, False, False, True]])
    ranking = Ranking(scores, blank, scores.argsort(dim=1, descending=True))
    assert important_half(ranking).tolist() == [[0.0, 1.0, 0.0, 1.0, 0.0]]
    assert important_half(Ranking(scores, ~blank, torch.tensor([[4, 0, 1, 2, 3]]))).tolist() == [[0, 0, 0, 0, 1]]


@pytest.fixture
def twin(tiny_coco, tmp_path) -> Path:
    """The tiny set again, as a COCO-style folder."""
    folder = tmp_path / 'fog'
    (folder / 'annotations').mkdir(parents=True)
    shutil.copy(tiny_coco / 'annotations.json', folder / 'annotations' / 'instances_val.json')
    shutil.copytree(tiny_coco / 'images', folder / 'val')
    return folder


def test_robustness_runs_every_arm_under_every_ranking_on_every_set(tiny_coco, twin, tmp_path, monkeypatch):
    """Random weights find nothing: the AP is made up, from how the backbone ran and on what."""
    ranked = {'importance': {'type': 'Std', 'reverse': True}, 'low_ratios': [0.5, 0.25, 0.5, 0.5]}
    files = write_quantized_files(tiny_coco, tmp_path, **ranked)
    ran = []
    whole = ood.evaluate

    def evaluated(detector, dataloader):
        assert whole(detector, dataloader=dataloader).images == 1
        backbone = detector.backbone
        kind, reverse = type(backbone.importance).__name__, backbone.importance.reverse
        foggy = str(twin) in dataloader.dataset.get_data_info(0)['img_path']
        ran.append((kind, reverse, backbone.low_ratios[:2], backbone.prune_ratios[0], foggy))
        return SimpleNamespace(metrics={'coco/bbox_mAP': (0.3 if foggy else 0.4) + 0.1 * reverse})

    monkeypatch.setattr(ood, 'evaluate', evaluated)
    options = ('--prune-ratios', 0.3, '--rankings', 'normal', 'reversed', 'random', '--images', 1)
    analyze('robustness', *files, '--sets', twin, *options, '--work-dir', tmp_path)
    directions = [('Std', True), ('Std', False), ('Random', False)]
    low = [(*direction, (0.5, 0.25), 0.0) for direction in directions]
    pruned = [(*direction, (0.0, 0.0), 0.3) for direction in directions]
    plan = [('Std', True, (0.0, 0.0), 0.0), *low, *pruned]
    assert ran == [(*arm, foggy) for arm in plan for foggy in (False, True)]
    found = json.loads((tmp_path / 'robustness' / 'robustness.json').read_text())
    assert [(row['arm'], row['ranking'], row['ap']['clean']) for row in found['rows']] == [
        ('all high', '-', pytest.approx(50)),
        ('low bits', 'normal', pytest.approx(50)),
        ('low bits', 'reversed', pytest.approx(40)),
        ('low bits', 'random', pytest.approx(40)),
        ('pruning', 'normal', pytest.approx(50)),
        ('pruning', 'reversed', pytest.approx(40)),
        ('pruning', 'random', pytest.approx(40)),
    ]
    assert [row['mean_relative_loss'] for row in found['rows'][:3]] == [pytest.approx(20)] * 2 + [pytest.approx(25)]
    assert found['set_image_ids'] == {'fog': [1]}


def test_sets_of_any_layout_are_named_by_file_and_image_folder(calibrated, twin, tmp_path):
    words = ['--ann-file', twin / 'annotations' / 'instances_val.json', '--image-prefix', f'{twin}/val/']
    words = ['robustness', *calibrated, *words, '--work-dir', tmp_path]
    options = load_tool('analyze.py').parse_args([str(word) for word in words])
    cfg = command_line.load_config(options)
    (named,) = named_sets(options)
    loader = set_loader(cfg, named, limit=2)
    assert named.name == 'instances_val'
    assert [str(twin) in loader.dataset.get_data_info(i)['img_path'] for i in range(len(loader.dataset))] == [True] * 2


def test_relative_loss():
    found = degradation({'clean': 40.0, 'fog': 30.0, 'noise': 20.0})
    assert found == {'relative_loss': {'fog': 25.0, 'noise': 50.0}, 'mean_relative_loss': 37.5}
    assert degradation({'clean': 0.0, 'fog': 0.0})['mean_relative_loss'] is None


def test_a_folder_that_is_not_coco_style_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='is not a COCO-style folder'):
        coco_folder(tmp_path)


def test_a_backbone_without_ranking_is_an_error():
    with pytest.raises(ValueError, match=r"set model\.backbone\.type='TwoBranchSwin'"):
        two_branch(torch.nn.Module())


@pytest.mark.parametrize('command', [('importance', '--pictures', 0), ('sensitivity', '--per-layer', '--bits', 8)])
def test_layers_are_measured_with_every_window_high(tiny_coco, tmp_path, monkeypatch, command):
    """The ratios of the config, quantized or float, are no part of what a layer alone costs."""
    files = write_two_branch_files(tiny_coco, tmp_path, low_ratios=0.5, prune_ratios=0.25, depths=(2, 1, 1, 1))
    ran, embed = set(), TwoBranchSwin.embed

    def watch(backbone, x):
        ran.add((*backbone.low_ratios, *backbone.prune_ratios))
        return embed(backbone, x)

    monkeypatch.setattr(TwoBranchSwin, 'embed', watch)
    name, *options = command
    few = ('--images', 1, *(('--calibration-images', 1) if name == 'sensitivity' else ()))
    analyze(name, *files, *options, *few, '--work-dir', tmp_path / 'work')
    assert ran == {(0.0,) * 8}
    result = next((tmp_path / 'work').rglob('*.json'))
    assert f'torch {torch.__version__}' in result.with_suffix('.md').read_text()


@pytest.fixture
def training(calibrated):
    """(detector in train mode, batch of one image)."""
    detector = load_detector(Config.fromfile(calibrated[0]), calibrated[1])
    detector.train()
    sample = DetDataSample(metainfo={'img_shape': (64, 64), 'pad_shape': (64, 64)})
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    return detector, {'inputs': [image], 'data_samples': [sample]}


def test_hook_draws_and_leaves_the_training_as_it_was(training):
    detector, batch = training
    backbone = detector.backbone
    backbone.sample_ratios(0.25)
    picture = WindowMapHook(interval=1).picture(detector, batch)
    assert picture.ndim == 3
    assert picture.std() > 5
    assert backbone.training
    assert backbone.low_ratios == (0.25,) * 4
    backbone.eval()
    assert backbone.low_ratios == (0.5,) * 4
    with pytest.raises(ValueError, match='interval=0'):
        WindowMapHook(interval=0)


@pytest.mark.parametrize('backend', ['LocalVisBackend', 'TensorboardVisBackend'])
def test_hook_hands_its_pictures_to_the_backend(training, tmp_path, backend):
    if backend == 'TensorboardVisBackend':
        pytest.importorskip('tensorboard')
    detector, batch = training
    visualizer = Visualizer(name=str(tmp_path), vis_backends=[dict(type=backend)], save_dir=str(tmp_path))
    hook, runner = WindowMapHook(interval=2, dpi=30), SimpleNamespace(model=detector, visualizer=visualizer)
    for runner.iter in range(5):
        hook.after_train_iter(runner, runner.iter, batch)
    visualizer.close()
    assert drawn_steps(tmp_path, backend) == [2, 4]


def drawn_steps(folder: Path, backend: str) -> list[int]:
    """At which iterations a backend got a window map."""
    if backend == 'LocalVisBackend':
        return sorted(int(path.stem.removeprefix('window_map_')) for path in folder.rglob('window_map_*.png'))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(folder.rglob('events.*')).parent))
    events.Reload()
    return [event.step for event in events.Images('window_map')]
