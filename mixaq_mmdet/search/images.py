"""Which images candidates are compared on: a held-out set, never the one that results are reported on."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mixaq_mmdet.engine.calibration.data import plain_dataset, reading_pipeline
from mixaq_mmdet.engine.evaluate import annotation_file

SPLIT = 'search'
_REPORTED = re.compile(r'(^|[^a-z])(mini)?(val|test)([^a-z]|$)')


def search_dataset(cfg: Config, ann_file: str | None = None, image_prefix: str | None = None) -> dict[str, Any]:
    """The dataset config that candidates are compared on.

    The first of: ``ann_file`` (below the test set's data_root), ``search_dataloader`` of the config, an annotation
    file ``instances_search.json`` beside the test set's, the train set.
    """
    pipeline = reading_pipeline(cfg)
    test = copy.deepcopy(dict((cfg.get('test_dataloader') or {}).get('dataset') or {}))
    if ann_file is not None:
        if image_prefix is None:
            raise ValueError("--ann-file needs --image-prefix too, the images' folder below data_root")
        return plain_dataset({**test, 'ann_file': ann_file, 'data_prefix': dict(img=image_prefix)}, pipeline)
    if cfg.get('search_dataloader'):
        return plain_dataset(cfg.search_dataloader['dataset'], pipeline)
    beside = f'annotations/instances_{SPLIT}.json'
    if 'ann_file' in test and (Path(test.get('data_root') or '') / beside).is_file():
        return plain_dataset({**test, 'ann_file': beside, 'data_prefix': dict(img=f'{SPLIT}/')}, pipeline)
    if not cfg.get('train_dataloader'):
        raise ValueError('no images to search on; set search_dataloader in the config, or give --ann-file')
    print_log('search: no search split is configured; images of train_dataloader are used', 'current')
    return plain_dataset(cfg.train_dataloader['dataset'], pipeline)


def refuse_reported(cfg: Config, dataset: Mapping[str, Any], force: bool) -> None:
    """A ValueError if the set is the one results are reported on, unless forced."""
    path = annotation_file(dataset)
    reported = set()
    for name in ('val_dataloader', 'test_dataloader'):
        if (cfg.get(name) or {}).get('dataset'):
            reported.add(Path(annotation_file(cfg[name]['dataset'])).absolute())
    named = _REPORTED.search(Path(path).stem.lower())
    if (Path(path).absolute() in reported or named) and not force:
        raise ValueError(
            f'--ann-file: the search would select on {path}, which results are reported on; give a held-out part of '
            'the train set, or --force if nothing will be reported on it'
        )


def search_loader(cfg: Config, dataset: Mapping[str, Any], images: int, seed: int) -> tuple[DataLoader, list[Any]]:
    """This rank's share of ``images`` images drawn by ``seed``, with the ids of all of them; batch size 1."""
    if images < 1:
        raise ValueError(f'--images {images} leaves nothing to compare on; give at least 1')
    path = annotation_file(dataset)
    if not Path(path).is_file():
        raise ValueError(f'the annotation file {path} is missing; check data_root, or give --ann-file')
    built = DATASETS.build(dict(dataset))
    if images > len(built):
        print_log(f'search: the set holds {len(built)} images, --images {images}; all are used', 'current')
    order = np.random.default_rng(seed).permutation(len(built))[:images]
    built.get_subset_(sorted(int(index) for index in order))
    ids = [built.get_data_info(index).get('img_id') for index in range(len(built))]
    own = dict(cfg.get('test_dataloader') or {})
    loader = {
        'batch_size': 1,
        'num_workers': own.get('num_workers', 0),
        'persistent_workers': own.get('num_workers', 0) > 0,
        'sampler': dict(type='DefaultSampler', shuffle=False),
        'dataset': built,
    }
    return Runner.build_dataloader(loader), ids


def usual_size(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The most common of some sizes; of equally common ones the first."""
    return Counter(sizes).most_common(1)[0][0]


def image_sizes(cfg: Config, loader: DataLoader) -> list[tuple[int, int]]:
    """(height, width) of the images as the backbone will see them: resized and padded by the test pipeline."""
    divisor = ((cfg.get('model') or {}).get('data_preprocessor') or {}).get('pad_size_divisor', 1)
    resizes = [step for step in reading_pipeline(cfg) if step.get('type') == 'Resize']
    dataset: Any = loader.dataset
    sizes = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        width, height = info['width'], info['height']
        for step in resizes:
            if step.get('scale') and not step.get('keep_ratio'):
                width, height = step['scale']
            else:
                width, height = mmcv.rescale_size((width, height), step.get('scale') or step.get('scale_factor', 1.0))
        sizes.append((-(-height // divisor) * divisor, -(-width // divisor) * divisor))
    return sizes
