"""What every study of tools/analyze.py shares: its data, its facts, its folder of JSON, Markdown and picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from mixaq_mmdet.engine.damaged_files import check_output, check_work_dir, naming_annotations
from mixaq_mmdet.engine.evaluate import annotation_file, build_dataloader, edited
from mixaq_mmdet.reporting.environment import device, versions
from mixaq_mmdet.reporting.figures import save_figure
from mixaq_mmdet.reporting.files import file_sha256, write_whole

MOST_IDS = 40


def evaluation_loader(cfg: Config, edits: Mapping[str, Any] | None = None, limit: int | None = None) -> DataLoader:
    """The config's test set, or another one by ``edits`` of its dataset, as evaluations read it."""
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    own = edited(cfg.get('test_dataloader'), edits, limit)
    try:
        with naming_annotations({'test_dataloader': own}):
            return build_dataloader(own)
    except FileNotFoundError as error:
        raise ValueError(f'test_dataloader.dataset.ann_file {annotation_file(own["dataset"])!r} is missing') from error


def facts(options: argparse.Namespace, ids: Sequence[Any] | None = None, used: str | None = None) -> dict[str, Any]:
    """Where numbers come from: files, edits, seed, images, versions, device.

    Args:
        options: of the command line.
        ids: of the images, where images are used.
        used: type of the torch device that did the work.
    """
    found = {'config': options.config, 'cfg_options': options.cfg_options or {}}
    if checkpoint := getattr(options, 'checkpoint', None):
        file = Path(checkpoint).expanduser()
        digest = file_sha256(file) if file.is_file() else None
        found |= {'checkpoint': checkpoint, 'checkpoint_sha256': digest}
    if ids is not None or hasattr(options, 'seed'):
        found['seed'] = getattr(options, 'seed', 0)
    if ids is not None:
        found['image_ids'] = list(ids)
    return {**found, 'versions': versions(), 'device': device(used)}


def study_folder(cfg: Config, name: str) -> Path:
    """The folder of a study below the work folder; a ValueError, before the work, unless it can be written."""
    folder = Path(cfg.work_dir) / name
    check_work_dir(folder)
    return folder


def image_ids(loader: DataLoader) -> list[Any]:
    """Ids of the images that a loader reads."""
    dataset: Any = loader.dataset
    return [dataset.get_data_info(index)['img_id'] for index in range(len(dataset))]


def provenance(content: Mapping[str, Any], name: str) -> str:
    """Seed, images, versions and device of a result in a paragraph; many images are left to the JSON ``name``."""
    lines = []
    if 'seed' in content:
        lines.append(f'Seed: {content["seed"]}.')
    if (ids := content.get('image_ids')) is not None:
        shown = ', '.join(map(str, ids)) if len(ids) <= MOST_IDS else f'{len(ids)}, listed in {name}'
        lines.append(f'Images (ids): {shown}.')
    lines.append(f'Versions: {spelled_out(content["versions"])}.')
    lines.append(f'Device: {spelled_out(content["device"])}.')
    return '\n'.join(lines)


def spelled_out(values: Mapping[str, Any]) -> str:
    """Names and values in a line."""
    return ', '.join(f'{name} {value}' for name, value in values.items())


def write_result(path: Path, content: Mapping[str, Any], text: str) -> None:
    """``path`` (.json), and the same name as .md: ``text``, and where the numbers come from."""
    write_whole(path, json.dumps(content, indent=1, default=str) + '\n')
    write_whole(path.with_suffix('.md'), f'{text}\n\n{provenance(content, path.name)}\n')


def check_result(path: Path, field: str) -> None:
    """A ValueError unless :func:`write_result` can write ``path``."""
    if path.suffix == '.md':
        raise ValueError(f'{field}={str(path)!r} is the name of the Markdown that is written beside; give FILE.json')
    check_output(path, field)


def write_study(folder: Path, name: str, content: Mapping[str, Any], text: str, draw: Callable[[Any], None]) -> None:
    """``folder``/``name``.json, .md and .png."""
    save_figure(folder / f'{name}.png', draw)
    write_result(folder / f'{name}.json', content, f'{text}\n\n![{name}]({name}.png)')
    print(f'{name}: {folder / name}.json, .md, .png')
