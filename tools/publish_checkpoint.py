"""Turn a training checkpoint into one to ship: weights alone, in half precision, with a card beside it.

    python tools/publish_checkpoint.py work_dirs/float/epoch_5.pth checkpoints/mask-rcnn_swin-mini_float.pth \\
        --scalars work_dirs/float/*/vis_data/scalars.json --command 'tools/train.py configs/mini/...'

Beside DST come DST's name with .json (command, seed, versions, last metrics, sha256) and with .log (losses and
metrics of every logged step, JSON lines).

``--on-grids`` is for quantized models. Rounding to half precision moves weights across the borders of their codes, so
that the published model is not quite the trained one. With it each weight is stored as its quantizer rounds it and
quantizers stay in float32: the codes are the same, and as files are compressed, this one is a third smaller.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path

import mmdet
import mmengine
import torch
from mmengine.config import Config

import mixaq_mmdet
from mixaq_mmdet.engine.checkpoints.files import write_checkpoint
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.quantization.layers import QuantWeight
from mixaq_mmdet.quantization.quantizers import Quantizer
from mixaq_mmdet.reporting.files import file_sha256, whole_file, write_whole

KEPT_META = ('epoch', 'iter', 'seed', 'dataset_meta', 'cfg')
LIMIT_MB = 10


def halve(state: dict[str, torch.Tensor], kept: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Floating-point tensors in float16; integers, flags and what is named by a prefix in ``kept`` as they are."""
    return {
        name: value.half() if value.is_floating_point() and not name.startswith(tuple(kept)) else value
        for name, value in state.items()
    }


@torch.no_grad()
def rounded(layer: QuantWeight) -> torch.Tensor | None:
    """The weight as its quantizer rounds it; None if half precision of that would be rounded to something else."""
    if layer.source_weight is not layer.weight:
        return None
    weight = layer.weight_quant(layer.weight)
    return weight if torch.equal(layer.weight_quant(weight.half().float()), weight) else None


def on_grids(config: str, source: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(weights rounded by their quantizers and halved, paths of quantizers) of a trained quantized model."""
    model = load_detector(Config.fromstring(config, '.py'), source)
    quantizers = {path: module for path, module in model.named_modules() if isinstance(module, Quantizer)}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for path, layer in model.named_modules():
        if isinstance(layer, QuantWeight) and isinstance(layer.weight_quant, Quantizer):
            weight = rounded(layer)
            if weight is None:
                raise SystemExit(f'--on-grids: {path} rounds a rounded weight to another one; publish without it')
            state[f'{path}.weight'] = weight
    if not quantizers:
        raise SystemExit(f'--on-grids: the model of {source} has no quantizers; publish without it')
    return state, sorted(f'{path}.' for path in quantizers)


def compress(path: Path) -> None:
    """Deflate a checkpoint in place; torch reads both kinds."""
    with (
        whole_file(path) as temporary,
        zipfile.ZipFile(path) as plain,
        zipfile.ZipFile(temporary, 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(f'archive/{name.partition("/")[2]}', plain.read(name))


def without_places(text: str) -> str:
    """The config of the training without the folders of the machine it ran on."""
    # an absolute data_root becomes data/<its folder>/, also in the paths below it
    for root in set(re.findall(r"data_root\w*\s*=\s*'(/[^']+)'", text)):
        text = text.replace(root, f'data/{Path(root).name}/')
    cfg = Config.fromstring(text, '.py')
    cfg.load_from, cfg.resume, cfg.work_dir = None, False, None
    return cfg.pretty_text


def last_metrics(lines: list[str]) -> dict[str, float]:
    """The metrics of the last validation in mmengine's scalars file."""
    found = [record for record in map(json.loads, lines) if any(key.startswith('coco/') for key in record)]
    return {key: value for key, value in found[-1].items() if key.startswith('coco/')} if found else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path)
    parser.add_argument('target', type=Path)
    parser.add_argument('--scalars', type=Path, nargs='*', default=[], help="mmengine's vis_data/scalars.json files")
    parser.add_argument('--command', default='', help='the command that trained it')
    parser.add_argument('--note', default='', help='what a reader of the card must know: interruptions, deviations')
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument('--full-precision', action='store_true', help='keep float32')
    precision.add_argument('--on-grids', action='store_true', help='weights as their quantizers round them (above)')
    arguments = parser.parse_args()
    if not arguments.source.is_file():
        raise SystemExit(f'source={arguments.source} is not a file; give a checkpoint that training wrote')

    checkpoint = torch.load(arguments.source, map_location='cpu', weights_only=True)
    if 'state_dict' not in checkpoint:
        raise SystemExit(f'{arguments.source} holds no state_dict but {sorted(checkpoint)}; give a training checkpoint')
    state, kept = checkpoint['state_dict'], []
    if arguments.on_grids:
        state, kept = on_grids(checkpoint['meta']['cfg'], arguments.source)
    if not arguments.full_precision:
        state = halve(state, kept)
    meta = {key: checkpoint['meta'][key] for key in KEPT_META if key in checkpoint.get('meta', {})}
    if 'cfg' in meta:
        meta['cfg'] = without_places(meta['cfg'])
    write_checkpoint({'meta': meta, 'state_dict': state}, arguments.target)
    compress(arguments.target)

    lines = [line for path in arguments.scalars for line in path.read_text().splitlines()]
    size = arguments.target.stat().st_size
    card = {
        'file': arguments.target.name,
        'sha256': file_sha256(arguments.target),
        'bytes': size,
        'parameters': sum(value.numel() for value in state.values()),
        'precision': 'float32' if arguments.full_precision else 'float16',
        'command': arguments.command,
        'note': arguments.note,
        'seed': meta.get('seed'),
        **{unit: meta[unit] for unit in ('epoch', 'iter') if meta.get(unit)},
        'metrics_at_the_end_of_training': last_metrics(lines),
        'versions': {
            'mixaq_mmdet': mixaq_mmdet.__version__,
            'torch': torch.__version__,
            'mmengine': mmengine.__version__,
            'mmdet': mmdet.__version__,
        },
    }
    write_whole(arguments.target.with_suffix('.json'), json.dumps(card, indent=2) + '\n')
    if lines:
        write_whole(arguments.target.with_suffix('.log'), '\n'.join(lines) + '\n')
    print(f'{arguments.target}: {size / 1e6:.2f} MB, sha256 {card["sha256"]}')
    if size > LIMIT_MB * 1e6:
        print(f'larger than {LIMIT_MB} MB: too large to ship in the repository', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
