"""``tools/search.py --allocate``: from a float checkpoint and a budget to a config with bits per layer."""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Mapping, Set
from math import inf
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device

from mixaq_mmdet.analysis.divergence import Divergence
from mixaq_mmdet.analysis.layer_importance import layer_importance
from mixaq_mmdet.analysis.layer_plot import plot_layers
from mixaq_mmdet.analysis.layer_sensitivity import layer_sensitivity
from mixaq_mmdet.deploy.files import custom_imports
from mixaq_mmdet.engine.calibration.detectors import calibrated_detector, preprocessed
from mixaq_mmdet.engine.damaged_files import read_json
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.engine.tool_errors import quoted
from mixaq_mmdet.quantization import methods_that
from mixaq_mmdet.quantization.functional import check_bits
from mixaq_mmdet.reporting.environment import device, versions
from mixaq_mmdet.reporting.files import write_whole
from mixaq_mmdet.reporting.markdown import markdown_table

from .allocation import bit_overrides
from .layer_costs import LayerCosts, mean_bits
from .layer_search import SCOPES, LayerPlan, plan_quant, ratio_losses, search_layers
from .report import write_spelled_out

METHOD = methods_that('allocates_bits')[0]
RATIOS = ('low_ratios', 'prune_ratios')
FLAGS = ('bits', 'size_budget', 'importance', 'sensitivity', 'calibration_images')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that only ``--allocate`` reads."""
    parser.add_argument(
        '--allocate',
        choices=SCOPES,
        help='bits per layer (layers), or bits per layer and low ratios per pair (both), instead of ratios alone; '
        '--budget is then a share of the standard bit operations of the uniform model that the config describes',
    )
    parser.add_argument('--bits', type=int, nargs='+', default=[2, 3, 4, 6, 8], help='bits a layer may get')
    parser.add_argument('--size-budget', type=float, default=1.0, help='share of the uniform weight size (default: 1)')
    parser.add_argument('--importance', type=Path, help='importance.json of `analyze.py importance`, to reuse it')
    parser.add_argument('--sensitivity', type=Path, help='layer_sensitivity.json of `analyze.py sensitivity`')
    parser.add_argument('--calibration-images', type=int, default=32, help='images that each model is calibrated on')


def check_options(options: argparse.Namespace) -> None:
    """A ValueError that names the flag which is out of its range."""
    for bits in options.bits:
        check_bits(bits, '--bits')
    for flag, share in (('--budget', options.budget), ('--size-budget', options.size_budget)):
        if share is not None and not 0 < share < inf:
            raise ValueError(f'{flag} {share} must be a share above 0 of what the uniform model takes, such as 0.8')
    for flag, number in (('--images', options.images), ('--calibration-images', options.calibration_images)):
        if number < 1:
            raise ValueError(f'{flag} {number} leaves nothing to measure on; give at least 1')


def run(cfg: Config, options: argparse.Namespace) -> LayerPlan:
    """Allocate, write the files into the work folder, and print where they are."""
    check_options(options)
    quant = cfg.model.backbone.get('quant') or {}
    bits = quant.get('w_bits')
    if bits is None or bits != quant.get('a_bits'):
        raise ValueError(
            f'model.backbone.quant has w_bits={bits} and a_bits={quant.get("a_bits")}; --allocate gives a layer one '
            'width for both, so start from a config with equal ones, such as w_bits=4, a_bits=4'
        )
    budget = 1.0 if options.budget is None else options.budget
    # what is written says again which of the config's own ratios count no more
    ratios: dict[str, Any] = {name: 0.0 for name in RATIOS if cfg.model.backbone.pop(name, None) is not None}
    reference: Any = load_detector(cfg, options.checkpoint, get_device(), quant={})
    images, ids = preprocessed(cfg, reference, options.images, options.seed)
    measure = Divergence(reference, images)

    def calibrated(own: Mapping[str, Any]) -> Any:
        return calibrated_detector(cfg, options.checkpoint, own, options.calibration_images, options.seed)

    def uniform(width: int) -> Any:
        return calibrated({'method': METHOD, 'w_bits': width, 'a_bits': width})

    def losses_of(found: Mapping[str, int]) -> dict[int, dict[float, float]]:
        base = {'method': METHOD, 'w_bits': bits, 'a_bits': bits}
        return ratio_losses(calibrated({**base, 'overrides': bit_overrides(found, low=True)}), measure)

    shape = tuple(images[0]['inputs'].shape[2:])
    costs = LayerCosts(reference.backbone, shape)
    costs.fixed_bits(bits)
    importance = _stored(options.importance, 'importance', set(costs.chosen)) or layer_importance(reference, images)[0]
    stored = _stored(options.sensitivity, 'sensitivity', set(costs.chosen))
    if stored:
        sensitivity = {name: {int(b): loss for b, loss in losses.items()} for name, losses in stored.items()}
    else:
        sensitivity = layer_sensitivity(uniform, options.bits, measure)
    plan = search_layers(
        costs,
        importance,
        sensitivity,
        bits,
        budget,
        options.size_budget,
        losses_of if options.allocate == 'both' else None,
    )
    method = quant['method'] if quant['method'] in methods_that('trained') else METHOD
    if plan.low_ratios is not None:
        ratios['low_ratios'] = plan.low_ratios
    _write(options, cfg, plan, costs, importance, sensitivity, ids, plan_quant(plan, method, bits), ratios, budget)
    return plan


def _stored(path: Path | None, key: str, layers: Set[str]) -> Any:
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f'--{key} {str(path)!r} is not a file; write it with tools/analyze.py {key}')
    content = read_json(path, f'write it again with tools/analyze.py {key}')
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f'--{key} {str(path)!r} holds no {key!r}; give what tools/analyze.py {key} wrote')
    missing = sorted(layers - set(content[key]))
    if missing:
        raise ValueError(
            f'--{key} {str(path)!r} belongs to another model: {len(missing)} layers of this one are missing, '
            f'among them {missing[0]}; write it with tools/analyze.py {key} and this config'
        )
    return content[key]


def _write(
    options: argparse.Namespace,
    cfg: Config,
    plan: LayerPlan,
    costs: LayerCosts,
    importance: dict[str, float],
    sensitivity: dict[str, dict[int, float]],
    ids: list[Any],
    quant: dict[str, Any],
    ratios: dict[str, Any],
    budget: float,
) -> None:
    folder, name = Path(cfg.work_dir), Path(options.config).stem
    ready = folder / f'{name}_allocated.py'
    mean = mean_bits(costs, plan.bits)
    content = {
        'config': options.config,
        'checkpoint': options.checkpoint,
        'allocate': options.allocate,
        'budget': budget,
        'size_budget': options.size_budget,
        'seed': options.seed,
        'image_ids': ids,
        'bits': plan.bits,
        'low_ratios': plan.low_ratios,
        'mean_bits': mean,
        'relative_operations': plan.relative_operations,
        'relative_size': plan.relative_size,
        'rounds': plan.history,
        'importance': importance,
        'sensitivity': sensitivity,
        'versions': versions(),
        'device': device(),
    }
    write_whole(folder / f'allocation_{name}.json', json.dumps(content, indent=1) + '\n')
    write_whole(folder / f'allocation_{name}.md', _markdown(plan, importance, sensitivity, mean))
    lowest = min(next(iter(sensitivity.values())))
    panels: dict[str, Mapping[str, float]] = {
        'bits': plan.bits,
        'importance': importance,
        f'loss at {lowest} bits': {layer: losses[lowest] for layer, losses in sensitivity.items()},
    }
    plot_layers(folder / f'allocation_{name}.png', panels)
    remark = f'Bits of each layer, {mean:.2f} on average, at {plan.relative_operations:.3f} of the uniform operations.'
    write_config(ready, options, cfg, quant, ratios, remark)
    command = quoted('python', 'tools/test.py', ready, options.checkpoint)
    print(f'{remark}\nwritten to {folder}\ntest it: {command}')


def write_config(
    path: Path,
    options: argparse.Namespace,
    cfg: Config,
    quant: dict[str, Any],
    ratios: dict[str, Any],
    remark: str,
) -> None:
    """A config that tools/test.py runs with the float checkpoint, calibrating in place, and tools/train.py saves."""
    hooks = copy.deepcopy(cfg.get('custom_hooks') or [])
    if not any(hook.get('type') == 'CalibrationHook' for hook in hooks):
        hooks.append({'type': 'CalibrationHook', 'num_images': options.calibration_images})
    if options.cfg_options:
        whole = Config(cfg.to_dict())
        whole.model.backbone.quant = quant
        whole.model.backbone.update(ratios)
        whole.custom_hooks = hooks
        whole.custom_imports = custom_imports(cfg)
        write_spelled_out(path, whole, options.checkpoint, remark)
        return
    base = os.path.relpath(Path(options.config).absolute(), path.absolute().parent)
    overrides = '\n'.join(f'    {override},' for override in quant['overrides'])
    written = ''.join(f'\n        {name}={value},' for name, value in ratios.items())
    fields = ', '.join(f'{key}={value!r}' for key, value in quant.items() if key != 'overrides')
    write_whole(
        path,
        f"""# {remark}
_base_ = [{base!r}]
custom_imports = {custom_imports(cfg)}

load_from = {str(options.checkpoint)!r}
overrides = [
{overrides}
]
model = dict(
    backbone=dict(
        quant=dict(_delete_=True, {fields}, overrides=overrides),{written}
    ),
)
custom_hooks = {[dict(hook) for hook in hooks]}
""",
    )


def _markdown(plan: LayerPlan, importance: Any, sensitivity: Any, mean: float) -> str:
    rows = [
        (f'`{name}`', bits, f'{importance[name]:.3f}', f'{sensitivity[name].get(bits, 0):.3g}')
        for name, bits in plan.bits.items()
    ]
    ratios = '' if plan.low_ratios is None else f'\nLow ratios per block pair: {plan.low_ratios}.\n'
    return f"""# Bits per layer

{mean:.2f} bits on average over the multiply-accumulates; {plan.relative_operations:.3f} of the uniform model's standard
bit operations, {plan.relative_size:.3f} of its weight size.
{ratios}
{markdown_table(['layer', 'bits', 'importance', 'loss alone at these bits'], rows)}
"""
