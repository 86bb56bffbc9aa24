"""One self-contained HTML page of a work folder: config, layers, cost, sensitivity, search front, window maps.

Reads the newest config (*.py) and checkpoint of the folder unless they are given, ``sensitivity.json`` and
``layer_sensitivity.json`` of ``analyze.py sensitivity`` and ``search_*.json`` of tools/search.py wherever they lie
below it.
"""

from __future__ import annotations

import argparse
import html
from pathlib import Path
from typing import Any

from mmengine.runner import find_latest_checkpoint

from mixaq_mmdet.analysis.inspection import inspect
from mixaq_mmdet.analysis.model_config import usual_shape
from mixaq_mmdet.analysis.page import maps_data, page, section
from mixaq_mmdet.analysis.report_sections import (
    cost_section,
    front_points,
    front_section,
    layers_section,
    maps_section,
    sensitivity_section,
)
from mixaq_mmdet.analysis.study import evaluation_loader
from mixaq_mmdet.engine.damaged_files import check_output, read_config
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.engine.tool_errors import add_traceback_flag
from mixaq_mmdet.reporting.files import write_whole

ALLOCATED = '_allocated'
"""How tools/search.py --allocate ends the names of the configs that it writes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``analyze.py report``."""
    parser.add_argument('work_dir', type=Path, help='folder of a training, calibration or analysis')
    parser.add_argument('-o', '--out', type=Path, default=Path('report.html'))
    parser.add_argument('--config', type=Path, help="default: the work folder's newest config")
    parser.add_argument('--checkpoint', type=Path, help="default: the work folder's newest checkpoint")
    parser.add_argument('--images', type=int, default=3, help='images with window maps (default: 3)')
    add_traceback_flag(parser)


def run(options: argparse.Namespace) -> None:
    """Gather and write the page."""
    if not options.work_dir.is_dir():
        raise ValueError(f'work_dir {str(options.work_dir)!r} is not a folder')
    check_output(options.out, '-o')
    cfg = read_config(options.config or newest_config(options.work_dir), '--config')
    checkpoint = options.checkpoint or find_latest_checkpoint(str(options.work_dir))
    if not checkpoint:
        raise ValueError(f'no checkpoint in {str(options.work_dir)!r}; give --checkpoint')
    points, quality = front_points(options.work_dir)
    sensitivity = sensitivity_section(options.work_dir)
    detector = load_detector(cfg, checkpoint)
    dataset: Any = evaluation_loader(cfg, limit=options.images).dataset
    paths = [Path(dataset.get_data_info(index)['img_path']) for index in range(len(dataset))]
    inspections = [(path.name, inspect(detector, path)) for path in paths]
    sections = [
        cost_section(detector.backbone, usual_shape(cfg)),
        sensitivity,
        front_section(points),
        maps_section(),
        layers_section(detector),
        section('Config', f'<pre>{html.escape(cfg.pretty_text)}</pre>'),
    ]
    data = {'maps': maps_data(inspections), 'front': points, 'quality': quality}
    write_whole(options.out, page(f'MixA-Q report: {options.work_dir.name}', sections, data))
    print(options.out)


def newest_config(work_dir: Path) -> Path:
    """The config that was written last; one with bits per layer only where there is no other.

    An allocation beside a training describes another model than the folder's checkpoint, which is calibrated anew.
    """
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ValueError(f'no config (*.py) in {str(work_dir)!r}; give --config')
    return ([path for path in configs if not path.stem.endswith(ALLOCATED)] or configs)[-1]
