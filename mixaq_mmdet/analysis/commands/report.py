"""One self-contained HTML page of a work folder: config, layers, cost, sensitivity, search front, window maps.

Reads the newest config (*.py) and checkpoint of the folder unless they are given, ``sensitivity.json`` of
``analyze.py sensitivity`` and ``search_*.json`` of tools/search.py wherever they lie below it.
"""

from __future__ import annotations

import argparse
import base64
import html
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from mixaq_mmdet.analysis.activation_histogram import quantized_layers
from mixaq_mmdet.analysis.bops import backbone_bops, cost_rows
from mixaq_mmdet.analysis.inspection import inspect, load_detector
from mixaq_mmdet.analysis.model_config import usual_shape
from mixaq_mmdet.analysis.page import absent, html_table, maps_data, page, section
from mixaq_mmdet.analysis.study import evaluation_loader
from mixaq_mmdet.engine.atomic_file import write_whole
from mixaq_mmdet.engine.damaged_files import read_json

GIGA = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``analyze.py report``."""
    parser.add_argument('work_dir', type=Path, help='folder of a training, calibration or analysis')
    parser.add_argument('-o', '--out', type=Path, default=Path('report.html'))
    parser.add_argument('--config', type=Path, help="default: the work folder's newest config")
    parser.add_argument('--checkpoint', type=Path, help="default: the work folder's newest checkpoint")
    parser.add_argument('--images', type=int, default=3, help='images with window maps (default: 3)')


def run(options: argparse.Namespace) -> None:
    """Gather and write the page."""
    if not options.work_dir.is_dir():
        raise ValueError(f'work_dir {str(options.work_dir)!r} is not a folder')
    cfg = Config.fromfile(options.config or newest_config(options.work_dir))
    checkpoint = options.checkpoint or find_latest_checkpoint(str(options.work_dir))
    if checkpoint is None:
        raise ValueError(f'no checkpoint in {str(options.work_dir)!r}; give --checkpoint')
    detector = load_detector(cfg, checkpoint)
    dataset: Any = evaluation_loader(cfg, limit=options.images).dataset
    paths = [Path(dataset.get_data_info(index)['img_path']) for index in range(len(dataset))]
    inspections = [(path.name, inspect(detector, path)) for path in paths]
    points, quality = front_points(options.work_dir)
    sections = [
        cost_section(detector.backbone, usual_shape(cfg)),
        sensitivity_section(options.work_dir),
        front_section(points),
        maps_section(),
        layers_section(detector),
        section('Config', f'<pre>{html.escape(cfg.pretty_text)}</pre>'),
    ]
    data = {'maps': maps_data(inspections), 'front': points, 'quality': quality}
    write_whole(options.out, page(f'MixA-Q report: {options.work_dir.name}', sections, data))
    print(options.out)


def newest_config(work_dir: Path) -> Path:
    """The config that mmengine wrote last."""
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ValueError(f'no config (*.py) in {str(work_dir)!r}; give --config')
    return configs[-1]


def cost_section(backbone: Any, shape: tuple[int, int]) -> str:
    """Mean bits and bit operations at the configured ratios."""
    cost = backbone_bops(backbone, shape)
    rows = [
        ['input (height x width, pixels)', f'{shape[0]} x {shape[1]}'],
        ['mean activation bits', f'{cost.mean_activation_bits():.2f}'],
        ['relative bit operations (paper; all windows high = 1)', f'{cost.relative("paper"):.3f}'],
        ['bit operations, paper: MACs x 32 x activation bits (G)', f'{cost.bit_operations("paper") / GIGA:.2f}'],
        [
            'bit operations, standard: MACs x weight x activation bits (G)',
            f'{cost.bit_operations("standard") / GIGA:.2f}',
        ],
        ['realised low ratios', ', '.join(f'{ratio:.2f}' for ratio in cost.realised[0])],
        ['realised prune ratios', ', '.join(f'{ratio:.2f}' for ratio in cost.realised[1])],
    ]
    blocks = [
        [row['name'], '/'.join(map(str, row['windows'] or [])), 100 * row['share'], row['relative']]
        for row in cost_rows(cost, 'block')
    ]
    table = html_table(['part', 'windows high/low/pruned', 'share of cost (%)', 'relative cost'], blocks)
    return section('Mean bits and cost', html_table(['what', 'value'], rows) + '<p>A count, not a speed.</p>' + table)


def layers_section(detector: Any) -> str:
    """Every quantized activation."""
    rows = [
        [name, branch, quantizer.bits, quantizer.describe() if quantizer.ready else 'not calibrated']
        for name, quantizers in quantized_layers(detector).items()
        for branch, quantizer in quantizers.branches().items()
    ]
    if not rows:
        return section('Layers', '<p class="absent">No layer is quantized: model.backbone.quant is absent.</p>')
    return section('Layers', html_table(['activation', 'branch', 'bits', 'grid'], rows))


def sensitivity_section(work_dir: Path) -> str:
    """The newest sensitivity study below the folder, with its picture."""
    found = sorted(work_dir.rglob('sensitivity.json'), key=lambda path: path.stat().st_mtime)
    if not found:
        command = f'python tools/analyze.py sensitivity CONFIG CHECKPOINT --work-dir {work_dir}'
        return section('Sensitivity', absent('No sensitivity.json below the work folder.', command))
    study = read_json(found[-1], 'delete it, or write it again with tools/analyze.py sensitivity')
    header = ['windows run', 'pair', *[f'ratio {ratio:g}' for ratio in study['ratios']]]
    rows = [[arm, pair + 1, *row] for arm, pairs in study['arms'].items() for pair, row in enumerate(pairs)]
    picture = found[-1].with_suffix('.png')
    shown = ''
    if picture.is_file():
        encoded = base64.b64encode(picture.read_bytes()).decode()
        shown = f'<img alt="sensitivity" src="data:image/png;base64,{encoded}">'
    return section('Sensitivity', f'<p>{html.escape(study["unit"])}</p>{shown}{html_table(header, rows)}')


def front_points(work_dir: Path) -> tuple[list[dict[str, Any]], str]:
    """The newest search's front as cost and AP, and what the quality is called."""
    found = sorted(work_dir.rglob('search_*.json'), key=lambda path: path.stat().st_mtime)
    front = read_json(found[-1], 'delete it, or search again').get('front', []) if found else []
    key, name = ('map', 'box AP') if all('map' in row for row in front) else ('proxy', 'feature error')
    points = [
        {'cost': row['bops'], 'ap': row[key], 'low': row['low_ratios'], 'prune': row['prune_ratios']}
        for row in front
        if 'bops' in row and key in row
    ]
    return points, name


def front_section(points: list[dict[str, Any]]) -> str:
    """Where the script draws the front."""
    if not points:
        command = 'python tools/search.py CONFIG CHECKPOINT --work-dir WORK_DIR'
        return section('Pareto front', absent('No search_*.json with a front below the work folder.', command))
    return section('Pareto front', '<div class="chart" id="front"></div>')


def maps_section() -> str:
    """Where the script draws the maps, and the slider."""
    return section(
        'Window maps',
        '<p class="slider"><input type="range" id="ratio" min="0" max="80" step="5" value="50" '
        'aria-label="low ratio"> <output id="shown"></output>'
        '<span class="key" style="background:#fff"></span>high bits'
        '<span class="key" style="background:#E69F00"></span>low bits</p>'
        '<p>Regular grid of each stage; the ranking does not depend on its own ratio.</p><div id="maps"></div>',
    )
