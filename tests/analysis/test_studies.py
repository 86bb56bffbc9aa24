"""The studies of tools/analyze.py, on a tiny detector: numbers, files, errors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from tool_process import load_tool
from two_branch_files import write_quantized_files

from mixaq_mmdet.analysis.inspection import load_detector, two_branch
from mixaq_mmdet.analysis.ood import coco_folder, degradation
from mixaq_mmdet.analysis.pair_sensitivity import draw_sensitivity
from mixaq_mmdet.engine.evaluate import evaluate  # noqa: F401  (registers the metric)
from mixaq_mmdet.engine.hooks import WindowMapHook
from mixaq_mmdet.windows.assignment import tier_counts

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')


@pytest.fixture(scope='module')
def calibrated(tiny_coco, tmp_path_factory):
    """(config file, checkpoint) of a tiny detector whose quantizers all have the range [-4, 4]."""
    return write_quantized_files(tiny_coco, tmp_path_factory.mktemp('studies'))


def analyze(*arguments) -> None:
    load_tool('analyze.py').main([str(argument) for argument in arguments])


def test_sensitivity_grows_with_the_ratio_and_vanishes_at_zero(calibrated, tmp_path):
    analyze('sensitivity', *calibrated, '--images', 2, '--ratios', 0.25, 1, '--work-dir', tmp_path)
    found = json.loads((tmp_path / 'sensitivity' / 'sensitivity.json').read_text())
    assert set(found['arms']) == {'2 bits', 'pruned'}
    assert all(small < large for small, large in found['arms']['2 bits'])
    assert len(found['image_ids']) == 2
    assert (tmp_path / 'sensitivity' / 'sensitivity.png').stat().st_size > 1000


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


def test_robustness_has_a_row_for_each_arm_and_ranking(calibrated, tiny_coco, tmp_path):
    twin = tmp_path / 'fog'
    (twin / 'annotations').mkdir(parents=True)
    shutil.copy(tiny_coco / 'annotations.json', twin / 'annotations' / 'instances_val.json')
    shutil.copytree(tiny_coco / 'images', twin / 'val')
    analyze('robustness', *calibrated, '--sets', twin, '--prune-ratios', 0.3, '--work-dir', tmp_path)
    rows = json.loads((tmp_path / 'robustness' / 'robustness.json').read_text())['rows']
    assert [(row['arm'], row['ranking']) for row in rows] == [
        ('all high', '-'),
        ('low bits', 'normal'),
        ('low bits', 'reversed'),
        ('pruning', 'normal'),
        ('pruning', 'reversed'),
    ]
    assert all(row['ap']['clean'] == row['ap']['fog'] for row in rows)


def test_relative_loss():
    found = degradation({'clean': 40.0, 'fog': 30.0, 'noise': 20.0})
    assert found == {'relative_loss': {'fog': 25.0, 'noise': 50.0}, 'mean_relative_loss': 37.5}
    assert degradation({'clean': 0.0, 'fog': 0.0})['mean_relative_loss'] is None


def test_a_folder_that_is_not_coco_style_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='no COCO-style folder'):
        coco_folder(tmp_path)


def test_a_backbone_without_ranking_is_an_error():
    with pytest.raises(ValueError, match=r"set model\.backbone\.type='TwoBranchSwin'"):
        two_branch(torch.nn.Module())


@pytest.fixture(scope='module')
def report(calibrated, tmp_path_factory):
    config, checkpoint = calibrated
    folder = tmp_path_factory.mktemp('report')
    point = {'low_ratios': [0.5] * 4, 'prune_ratios': [0.0] * 4, 'map': 41.0, 'bops': 0.8}
    (folder / 'search_bops.json').write_text(json.dumps({'front': [point, {**point, 'map': 43.0, 'bops': 1.0}]}))
    out = folder / 'report.html'
    analyze('report', folder, '-o', out, '--config', config, '--checkpoint', checkpoint, '--images', 1)
    return out


class Parsed(HTMLParser):
    """Every element is closed, and what the script looks up by id is there."""

    VOID = ('meta', 'img', 'input', 'br', 'wbr')

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.content: dict[str, str] = {}
        self.references: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found['id']] if 'id' in found else []
        self.references += [found[name] for name in ('src', 'href') if name in found]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.content[self.open[-1]] = self.content.get(self.open[-1], '') + data


def test_report_is_self_contained_and_says_how_to_make_what_is_missing(report):
    text = report.read_text()
    assert 'tools/analyze.py sensitivity' in text
    assert '"ap": 43.0' in text
    for reference in ('src="http', 'href="http', "'http://example", '@import'):
        assert reference not in text


def test_report_is_well_formed_and_holds_what_its_script_asks_for(report):
    page = Parsed(report.read_text())
    assert all(reference.startswith('data:image/png;base64,') for reference in page.references)
    assert len(set(page.ids)) == len(page.ids)
    script = page.content['script']
    # the list of points and the maps are there; the hovered note is made by the script
    assert set(re.findall(r"getElementById\('(\w+)'\)", script)) <= set(page.ids)
    data = json.loads(script[: script.index("'use strict'")])
    assert [point['ap'] for point in data['front']] == [41.0, 43.0]
    image = data['maps'][0]
    for stage in image['stages']:
        height, width = stage['tokens']
        windows = -(-height // stage['window']) * -(-width // stage['window'])
        assert sorted(stage['order']) == list(range(windows))


@pytest.mark.skipif(shutil.which('node') is None, reason='no node on this machine')
def test_script_of_the_report_draws_maps_and_front(report, tmp_path):
    """Run on a document that only remembers what was added: as far as one gets without a browser."""
    page = Parsed(report.read_text())
    data, script = page.content['script'].split("'use strict'", 1)
    (tmp_path / 'data.json').write_text(data)
    (tmp_path / 'page.js').write_text(f"'use strict'{script}")
    stub = Path(__file__).with_name('page_document.js')
    done = subprocess.run(['node', stub, tmp_path, *page.ids], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = json.loads(done.stdout)
    stages = json.loads(data)['maps'][0]['stages']
    windows = [len(stage['order']) for stage in stages]
    assert drawn['windows'] == sum(windows)
    assert drawn['circles'] == 2
    for shown in drawn['sliders']:
        low = [tier_counts(count, shown['ratio'], 0.0).low for count in windows]
        assert shown['text'] == f'low ratio {shown["ratio"]:.2f}'
        assert shown['low'] == sum(low)
        assert shown['labels'] == [
            f'stage {number + 1}: {part} of {count} windows low'
            for number, (part, count) in enumerate(zip(low, windows, strict=True))
        ]
    assert drawn['hovered'].startswith('box AP 41.00, relative cost 0.800')


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason='no Chromium or Chrome on this machine')
@pytest.mark.parametrize('width', [480, 1280])
def test_report_works_in_a_browser(report, width, tmp_path):
    browser = next(path for path in map(shutil.which, BROWSERS) if path)
    alone = ['--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
    flags = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}', *alone]
    flags += [f'--window-size={width},900', '--dump-dom']
    done = subprocess.run([browser, *flags, report.as_uri()], capture_output=True, text=True, timeout=120)
    assert '<circle' in done.stdout
    assert 'low ratio 0.50' in done.stdout


def test_hook_draws_and_leaves_the_training_as_it_was(calibrated):
    config, checkpoint = calibrated
    detector = load_detector(Config.fromfile(config), checkpoint)
    backbone = detector.backbone
    detector.train()
    backbone.sample_ratios(0.25)
    sample = __import__('mmdet.structures', fromlist=['DetDataSample']).DetDataSample()
    sample.set_metainfo({'img_shape': (64, 64), 'pad_shape': (64, 64)})
    batch = {'inputs': [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)], 'data_samples': [sample]}
    picture = WindowMapHook(interval=1).picture(detector, batch)
    assert picture.ndim == 3
    assert picture.std() > 5
    assert backbone.training
    assert backbone.low_ratios == (0.25,) * 4
    backbone.eval()
    assert backbone.low_ratios == (0.5,) * 4
    with pytest.raises(ValueError, match='interval=0'):
        WindowMapHook(interval=0)
