"""tools/search.py on a tiny calibrated detector: files, resuming after a kill, ranks, user errors."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from forked import start_script
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_detector import tiny_config, write_tiny_coco
from tool_process import TOOLS, load_tool, run_on_two_ranks, run_tool

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.reporting.environment import versions

ARGUMENTS = ('--population', '3', '--generations', '2', '--images', '3', '--budget', '0.85')


@pytest.fixture(scope='module')
def searched(tmp_path_factory) -> tuple[Path, Path]:
    """A config file and a checkpoint calibrated on noise; the train set is another file than the test set."""
    folder = tmp_path_factory.mktemp('searched')
    cfg = tiny_config(write_tiny_coco(folder / 'tested'), folder / 'work_dir')
    quant = dict(method='MinMax', w_bits=8, a_bits=8, low_a_bits=4)
    cfg.model.backbone.update(type='TwoBranchSwin', quant=quant, drop_path_rate=0.0)
    cfg.train_dataloader.dataset.data_root = str(write_tiny_coco(folder / 'train', 4, seed=3))
    cfg.dump(folder / 'tiny.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).eval()
    Calibrator(model.backbone).run([torch.randn(1, 3, 64, 64)])
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, folder / 'tiny.pth')
    return folder / 'tiny.py', folder / 'tiny.pth'


@pytest.fixture(scope='module')
def whole(searched, tmp_path_factory) -> Path:
    """The work folder of an uninterrupted search."""
    folder = tmp_path_factory.mktemp('whole')
    process = run_tool('search.py', *searched, *ARGUMENTS, '--work-dir', folder, cwd=folder)
    assert process.returncode == 0, process.stdout
    assert 'every window high' in process.stdout
    return folder


def scores(folder: Path) -> list[dict]:
    """The evaluated rows of a finished search."""
    return json.loads((folder / 'search_tiny.json').read_text())['evaluated']


def test_killed_search_resumes_to_the_same_end(searched, whole, tmp_path):
    arguments = [*searched, *ARGUMENTS, '--work-dir', tmp_path / 'killed']
    killed = start_script(TOOLS / 'search.py', arguments, tmp_path, {}, tmp_path / 'output')
    history = tmp_path / 'killed' / 'history.jsonl'
    while killed.is_alive() and not (history.exists() and history.read_bytes().count(b'\n') >= 3):
        time.sleep(0.02)
    killed.kill()
    killed.join()
    kept = history.read_bytes().rsplit(b'\n', 1)[0]
    resumed = run_tool('search.py', *arguments, '--resume', cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout
    assert history.read_bytes().startswith(kept)
    assert scores(tmp_path / 'killed') == scores(whole)


def test_ready_config_is_within_the_budget_and_tells_its_cost(searched, whole, tmp_path):
    chosen = json.loads((whole / 'search_tiny.json').read_text())['chosen']
    assert chosen['bops'] <= 0.85
    ready = whole / 'tiny_searched.py'
    assert list(Config.fromfile(ready).model.backbone.low_ratios) == chosen['low_ratios']
    assert (whole / 'pareto_tiny.png').stat().st_size > 1000
    tested = run_tool('test.py', ready, searched[1], '--work-dir', 'tested', cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout
    line = [line for line in tested.stdout.splitlines() if 'backbone cost over 4 inputs' in line]
    assert len(line) == 1
    assert f'relative BOPs {chosen["bops"]:.3f}' in line[0]


def test_the_result_says_where_it_was_made(whole):
    found = json.loads((whole / 'search_tiny.json').read_text())
    assert found['versions'] == versions()
    assert found['device']['processor']
    text = (whole / 'search_tiny.md').read_text()
    assert len([line for line in text.splitlines() if line.startswith('|')]) == len(found['front']) + 3
    for shown in (found['chosen']['config'], f'seed {found["seed"]}', found['device']['processor']):
        assert shown in text


def test_latency_is_measured_at_the_usual_size_of_the_images(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(searched[0])
    data = tmp_path / 'data'
    shutil.copytree(cfg.train_dataloader.dataset.data_root, data)
    content = json.loads((data / 'annotations.json').read_text())
    content['images'][0]['width'] = 32
    (data / 'annotations.json').write_text(json.dumps(content))
    cfg.train_dataloader.dataset.data_root = str(data)
    cfg.dump('sizes.py')
    few = [*ARGUMENTS, '--generations', '1', '--images', '4', '--objectives', 'proxy,latency']
    load_tool('search.py').main(['sizes.py', str(searched[1]), *few])
    table = json.loads(Path('work_dirs/search_sizes/latency.json').read_text())
    assert table['shape'] == [64, 64]
    assert table['environment']['versions'] == versions()
    assert table['environment']['device']['processor']


def test_latency_may_be_the_whole_detectors(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = [*map(str, searched), '--population', '2', '--generations', '1', '--images', '2', '--prune']
    few += ['--objectives', 'proxy,latency', '--work-dir', 'found']
    search = load_tool('search.py').main
    search([*few, '--detector', '--target-latency', '100000'])
    table = json.loads(Path('found/latency.json').read_text())
    assert table['scope'] == 'detector'
    outside = sum(entry['ms'] for entry in table['entries'] if entry['piece'] in {'neck', 'RPN, layers'})
    found = json.loads(Path('found/search_tiny.json').read_text())
    assert found['budget'] == 'predicted latency of the detector <= 100000 ms'
    assert all(row['latency'] > outside > 0 for row in found['evaluated'])
    with pytest.raises(SystemExit, match='is of the detector; give --detector as before'):
        search([*few, '--target-latency', '100000', '--resume'])


def test_two_ranks_find_the_same(searched, whole, tmp_path):
    two = run_on_two_ranks('search.py', *searched, *ARGUMENTS, '--work-dir', 'two', cwd=tmp_path)
    assert two.returncode == 0, two.stdout
    assert scores(tmp_path / 'two') == scores(whole)
    assert two.stdout.count('chosen (*)') == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--ann-file', 'annotations.json', '--image-prefix', 'images/'], 'results are reported on'),
        (['--ann-file', 'annotations.json'], '--image-prefix'),
        (['--budget', '0.2'], 'add --prune'),
        (['--detector'], 'add --objectives map,latency or --target-latency MS'),
        (['--budget', '1.5'], '--budget 1.5'),
        (['--objectives', 'map'], '--objectives'),
        (['--population', '1'], '--population 1'),
        (['--images', '0'], '--images 0'),
        (['--cfg-options', 'model.backbone.quant.w_bits=4'], 'w_bits'),
        (['--bits', '4'], '--bits: only --allocate'),
        (['--size-budget', '0.5', '--calibration-images', '2'], '--size-budget, --calibration-images: only --allocate'),
    ],
)
def test_user_errors_are_one_line(searched, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        load_tool('search.py').main([*(str(path) for path in searched), '--images', '2', *arguments])
    assert message in str(stop.value)


def test_uncalibrated_checkpoint_is_refused(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(searched[1], weights_only=False)
    stock = {k: v for k, v in content['state_dict'].items() if not ('quant' in k or 'folded' in k or 'operands' in k)}
    torch.save({'meta': {}, 'state_dict': stock}, tmp_path / 'float.pth')
    with pytest.raises(SystemExit) as stop:
        load_tool('search.py').main([str(searched[0]), str(tmp_path / 'float.pth'), '--images', '2'])
    assert str(stop.value).startswith('error: not calibrated: ')
    assert 'float.pth' in str(stop.value)


def test_feature_error_is_zero_without_quantization_and_grows_with_low_windows(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_tool('search.py').main([*(str(path) for path in searched), *ARGUMENTS, '--objectives', 'proxy,bops'])
    found = json.loads((tmp_path / 'work_dirs' / 'search_tiny' / 'search_tiny.json').read_text())
    assert 0 < found['every_window_high']['proxy'] < min(row['proxy'] for row in found['evaluated'])
