"""analyze.py report: the page is whole and self-contained, its script runs, and damaged inputs are named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mmengine.registry import MODELS, init_default_scope
from tiny_detector import tiny_mask_rcnn
from tool_process import load_tool
from two_branch_files import write_quantized_files

from mixaq_mmdet.analysis.commands.report import newest_config
from mixaq_mmdet.analysis.report_sections import layers_section, sensitivity_section
from mixaq_mmdet.windows.assignment import tier_counts

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')


def analyze(*arguments) -> None:
    load_tool('analyze.py').main([str(argument) for argument in arguments])


@pytest.fixture(scope='module')
def calibrated(tiny_coco, tmp_path_factory):
    """(config file, checkpoint) of a tiny detector whose quantizers all have the range [-4, 4]."""
    return write_quantized_files(tiny_coco, tmp_path_factory.mktemp('reported'))


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
def test_a_browser_runs_the_script_of_the_report(report, tmp_path):
    browser = next(path for path in map(shutil.which, BROWSERS) if path)
    alone = ['--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
    flags = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}', *alone]
    flags += ['--dump-dom']
    done = subprocess.run([browser, *flags, report.as_uri()], capture_output=True, text=True, timeout=120)
    assert '<circle' in done.stdout
    assert 'low ratio 0.50' in done.stdout


def test_a_config_of_an_allocation_is_no_config_of_the_folder(tmp_path):
    """tools/search.py --allocate writes it, later than the training, for another model than the checkpoint."""
    for age, name in enumerate(['dumped_allocated.py', 'dumped.py', 'older.py']):
        (tmp_path / name).write_text('')
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert newest_config(tmp_path).name == 'dumped.py'
    for name in ('dumped.py', 'older.py'):
        (tmp_path / name).unlink()
    assert newest_config(tmp_path).name == 'dumped_allocated.py'


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of the page's tables."""
    rows = re.findall('<tr>(.*?)</tr>', text.replace('<wbr>', ''))
    return [re.findall('<t[dh][^>]*>(.*?)</t[dh]>', row) for row in rows]


def test_bits_per_layer_can_be_read():
    overrides = [
        dict(pattern='stages.0.blocks.0.ffn.layers.1', w_bits=3, a_bits=6),
        dict(pattern='stages.0.blocks.0.attn.w_msa.proj', roles=['weight'], enabled=False),
    ]
    quant = dict(method='MixQViT', w_bits=4, a_bits=4, low_a_bits=2, overrides=overrides)
    init_default_scope('mmdet')
    detector = MODELS.build(tiny_mask_rcnn(type='TwoBranchSwin', quant=quant))
    bits = {row[0]: row[1] for row in rows_of(layers_section(detector)) if len(row) == 3}
    assert bits['backbone.stages.0.blocks.0.ffn.layers.1'] == '3'
    assert bits['backbone.stages.0.blocks.0.attn.w_msa.proj'] == '32'
    assert bits['backbone.stages.0.blocks.1.ffn.layers.1'] == '4'
    assert len(bits) == 1 + 1 + 7 * 4 + 3, 'head of the table, patch embedding, layers of blocks, mergings'


def test_sensitivity_of_layers_is_shown(tmp_path):
    found = {'stages.0.blocks.0.attn.w_msa.qkv': {'2': 0.5, '4': 0.125}}
    (tmp_path / 'layer_sensitivity.json').write_text(json.dumps({'metric': 'kl', 'sensitivity': found}))
    assert rows_of(sensitivity_section(tmp_path)) == [
        ['layer', '2 bits', '4 bits'],
        ['stages.0.blocks.0.attn.w_msa.qkv', '0.5', '0.125'],
    ]


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('search_x.json', [1, 2]),
        ('search_x.json', {'front': [3]}),
        ('sensitivity.json', {}),
        ('sensitivity.json', {'ratios': ['a'], 'arms': {}, 'unit': ''}),
        ('layer_sensitivity.json', {'sensitivity': {}}),
        ('layer_sensitivity.json', []),
    ],
)
def test_a_result_that_is_none_is_named(calibrated, tmp_path, name, content):
    config, checkpoint = calibrated
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        analyze('report', tmp_path, '-o', tmp_path / 'x.html', '--config', config, '--checkpoint', checkpoint)
    assert re.search(rf"error: '.*{name}' is not what tools/\S+.* writes .*; delete it", str(stop.value))


def test_a_report_needs_a_config_that_is_there(tmp_path):
    with pytest.raises(SystemExit, match=r"error: --config 'nowhere\.py' is not a file"):
        analyze('report', tmp_path, '-o', tmp_path / 'x.html', '--config', 'nowhere.py')
