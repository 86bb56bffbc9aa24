"""What every study of tools/analyze.py shares: its data, its facts, its folder of JSON, Markdown and picture."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from mixaq_mmdet.engine.atomic_file import write_whole
from mixaq_mmdet.engine.environment import device, versions
from mixaq_mmdet.engine.evaluate import build_dataloader

from .visualization import save_figure

COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00')
MARKERS = 'osv^Dx'


def evaluation_loader(cfg: Config, edits: Mapping[str, Any] | None = None, limit: int | None = None) -> DataLoader:
    """The config's test set, or another one by ``edits`` of its dataset, as evaluations read it."""
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    return build_dataloader(cfg.get('test_dataloader') or {}, edits, limit)


def facts(options: argparse.Namespace, loader: DataLoader) -> dict[str, Any]:
    """Where numbers come from: files, edits, seed, images, versions, device."""
    content = Path(options.checkpoint).read_bytes()
    return {
        'config': options.config,
        'cfg_options': options.cfg_options or {},
        'checkpoint': options.checkpoint,
        'checkpoint_sha256': hashlib.sha256(content).hexdigest(),
        'seed': getattr(options, 'seed', 0),
        'image_ids': image_ids(loader),
        'versions': versions(),
        'device': device(),
    }


def image_ids(loader: DataLoader) -> list[Any]:
    """Ids of the images that a loader reads."""
    dataset: Any = loader.dataset
    return [dataset.get_data_info(index)['img_id'] for index in range(len(dataset))]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers with two decimals, None as a dash."""

    def cell(value: Any) -> str:
        if value is None:
            return '-'
        return f'{value:.2f}' if isinstance(value, float) else str(value)

    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(cell(value) for value in line) + ' |' for line in lines)


def write_study(folder: Path, name: str, content: dict[str, Any], text: str, draw: Callable[[Any], None]) -> None:
    """``folder``/``name``.json, .md and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f'{name}.json', json.dumps(content, indent=1, default=str) + '\n')
    save_figure(folder / f'{name}.png', draw)
    write_whole(folder / f'{name}.md', f'{text}\n\n![{name}]({name}.png)\n')
    print(f'{name}: {folder / name}.json, .md, .png')
