"""The parts of the report that are tables: cost, sensitivity, search, layers."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixaq_mmdet.engine.damaged_files import read_json
from mixaq_mmdet.models.backbone_cost import FLOAT_BITS, layer_bits, swin_spec
from mixaq_mmdet.models.quantize import is_converted
from mixaq_mmdet.quantization import Quantizer, QuantWeight
from mixaq_mmdet.reporting.figures import LOW_COLOUR
from mixaq_mmdet.windows.cost import backbone_layers

from .activation_histogram import quantized_layers
from .bops import GIGA, backbone_bops, cost_rows
from .page import absent, html_table, section

METRICS = {'kl': 'KL divergence of the predictions', 'ap': 'loss of box AP (points)'}
"""What ``--metric`` of ``analyze.py sensitivity --per-layer`` measures."""


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
    """Every quantized weight and activation; of a converted backbone the bits alone."""
    if is_converted(detector.backbone):
        return section('Layers', converted_bits(detector.backbone))
    weights = [
        [name, *_grid(module.weight_quant)]
        for name, module in detector.named_modules()
        if isinstance(module, QuantWeight)
    ]
    activations = [
        [name, branch, *_grid(quantizer)]
        for name, quantizers in quantized_layers(detector).items()
        for branch, quantizer in quantizers.branches().items()
    ]
    if not weights and not activations:
        return section('Layers', '<p class="absent">No layer is quantized: model.backbone.quant is absent.</p>')
    shown = html_table(['weight of', 'bits', 'grid'], weights)
    return section('Layers', shown + html_table(['activation', 'branch', 'bits', 'grid'], activations))


def _grid(quantizer: Any) -> tuple[int, str]:
    """Bits and grid of a quantizer, or of what stands in its place where a role stays float."""
    if not isinstance(quantizer, Quantizer):
        return FLOAT_BITS, 'float'
    return quantizer.bits, quantizer.describe() if quantizer.ready else 'not calibrated'


def converted_bits(backbone: Any) -> str:
    """Bits of every product of a converted backbone."""
    found = [(layer, layer_bits(backbone, layer)) for layer in backbone_layers(swin_spec(backbone), (32, 32))]
    rows = [
        [layer.name, '' if layer.kind == 'matmul' else bits.weight, bits.high, bits.low if layer.compressible else '']
        for layer, bits in found
    ]
    return '<p>Converted: integer weights and products.</p>' + html_table(
        ['product', 'weight bits', 'activation bits, high windows', 'low windows'], rows
    )


def newest(work_dir: Path, pattern: str) -> Path | None:
    """The file below a folder that was written last."""
    return max(work_dir.rglob(pattern), key=lambda path: path.stat().st_mtime, default=None)


@contextmanager
def stored_result(path: Path, command: str) -> Iterator[Any]:
    """The content of a JSON that ``command`` wrote; one that lacks what is taken from it is a ValueError."""
    remedy = f'delete it, or write it again with {command}'
    content = read_json(path, remedy)
    try:
        yield content
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise ValueError(f'{str(path)!r} is not what {command} writes ({error!r}); {remedy}') from error


def sensitivity_section(work_dir: Path) -> str:
    """The newest sensitivity studies below the folder, of pairs and of layers, with their pictures."""
    command = 'tools/analyze.py sensitivity'
    shown = ''
    if path := newest(work_dir, 'sensitivity.json'):
        with stored_result(path, command) as study:
            header = ['windows run', 'pair', *[f'ratio {ratio:g}' for ratio in study['ratios']]]
            rows = [[arm, pair + 1, *row] for arm, pairs in study['arms'].items() for pair, row in enumerate(pairs)]
            shown += f'<p>{html.escape(study["unit"])}</p>{_picture(path)}{html_table(header, rows)}'
    if path := newest(work_dir, 'layer_sensitivity.json'):
        with stored_result(path, f'{command} --per-layer') as study:
            bits = list(next(iter(study['sensitivity'].values())))
            rows = [[layer, *[float(losses[b]) for b in bits]] for layer, losses in study['sensitivity'].items()]
            what = f'One layer alone quantized: {METRICS.get(study["metric"], study["metric"])}'
            shown += f'<p>{html.escape(what)}</p>{_picture(path)}'
            shown += html_table(['layer', *[f'{b} bits' for b in bits]], rows)
    missing = f'python {command} CONFIG CHECKPOINT --work-dir {work_dir}'
    return section('Sensitivity', shown or absent('No sensitivity.json below the work folder.', missing))


def _picture(path: Path) -> str:
    picture = path.with_suffix('.png')
    if not picture.is_file():
        return ''
    encoded = base64.b64encode(picture.read_bytes()).decode()
    return f'<img alt="{path.stem}" src="data:image/png;base64,{encoded}">'


def front_points(work_dir: Path) -> tuple[list[dict[str, Any]], str]:
    """The newest search's front as cost and AP, and what the quality is called."""
    path = newest(work_dir, 'search_*.json')
    if path is None:
        return [], 'box AP'
    with stored_result(path, 'tools/search.py') as study:
        front = study.get('front', [])
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
        f'<span class="key" style="background:{LOW_COLOUR}"></span>low bits</p>'
        '<p>Regular grid of each stage; the ranking does not depend on its own ratio.</p><div id="maps"></div>',
    )
