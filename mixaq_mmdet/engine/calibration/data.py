"""Which images a model is calibrated on: train images with the test pipeline, one by one, drawn by a seed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from mixaq_mmdet.checks import check_count, check_positive

from ..argument_checks import type_name

WRAPPERS = ('RepeatDataset', 'ClassBalancedDataset', 'MultiImageMixDataset')


def check_draw(num_images: int, seed: int) -> None:
    """A ValueError unless ``num_images`` and ``seed`` say which images to draw."""
    check_positive(num_images, 'num_images', usual=32)
    check_count(seed, 'seed')


def calibration_loader(
    train_dataloader: Mapping[str, Any], pipeline: list[Any], num_images: int, seed: int
) -> DataLoader:
    """This rank's share of the calibration images, batch size 1.

    Args:
        train_dataloader: config whose dataset the images are taken from; repeating and mixing wrappers are looked
            through.
        pipeline: the test pipeline.
        num_images: images over all ranks; a smaller dataset is used whole.
        seed: which images.
    """
    check_draw(num_images, seed)
    if not isinstance(train_dataloader, Mapping) or 'dataset' not in train_dataloader:
        raise ValueError('train_dataloader.dataset is missing; give the train set as a config to calibrate on')
    dataset = _build(plain_dataset(train_dataloader['dataset'], pipeline))
    if len(dataset) < num_images:
        print_log(
            f'calibration: the set holds {len(dataset)} images, num_images={num_images}; all are used',
            'current',
            level=logging.WARNING,
        )
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:num_images].tolist()
    own = chosen[get_rank() :: get_world_size()]
    return DataLoader(dataset, batch_size=1, sampler=own, num_workers=0, collate_fn=pseudo_collate)


def _build(config: dict[str, Any]) -> Any:
    try:
        dataset = DATASETS.build(config)
        size = len(dataset)
    except ValueError as error:
        # how mmengine's datasets end when they try to pack an empty list
        if 'need at least one array to concatenate' not in str(error):
            raise
        size = 0
    if size == 0:
        raise ValueError('train_dataloader.dataset is empty; calibration needs at least one image')
    return dataset


def plain_dataset(dataset: Mapping[str, Any], pipeline: list[Any]) -> dict[str, Any]:
    """A dataset config without wrappers that repeat or mix images, reading through ``pipeline``."""
    config = copy.deepcopy(dict(dataset))
    kind = type_name(config.get('type', ''))
    if kind in WRAPPERS:
        return plain_dataset(config['dataset'], pipeline)
    if kind == 'ConcatDataset':
        config['datasets'] = [plain_dataset(part, pipeline) for part in config['datasets']]
        return config
    return {**config, 'pipeline': pipeline, 'test_mode': True}


def reading_pipeline(cfg: Mapping[str, Any], annotated: bool = False) -> list[Any]:
    """The pipeline of the config's test set, or of its val set.

    Args:
        cfg: the config.
        annotated: read annotations, those that training reads, before the image is resized: they follow it through
            every transform. Test pipelines read them afterwards, in pixels of the file, or not at all.
    """
    for name in ('test_dataloader', 'val_dataloader'):
        pipeline = next(_pipelines(cfg, name), None)
        if pipeline is not None:
            return _with_annotations(cfg, pipeline) if annotated else copy.deepcopy(pipeline)
    raise ValueError('test_dataloader.dataset.pipeline is missing; calibration reads images through the test pipeline')


def _with_annotations(cfg: Mapping[str, Any], pipeline: list[Any]) -> list[Any]:
    readers = [step for source in (*_pipelines(cfg, 'train_dataloader'), pipeline) for step in source if _reads(step)]
    steps = [step for step in pipeline if not _reads(step)]
    loaded = next((i for i, step in enumerate(steps) if not type_name(step['type']).startswith('Load')), len(steps))
    return copy.deepcopy([*steps[:loaded], *readers[:1], *steps[loaded:]])


def _reads(step: Mapping[str, Any]) -> bool:
    """Whether a transform is LoadAnnotations, LoadPanopticAnnotations or one of their kind."""
    name = type_name(step['type'])
    return name.startswith('Load') and name.endswith('Annotations')


def _pipelines(cfg: Mapping[str, Any], dataloader: str) -> Iterator[list[Any]]:
    """Pipelines of a dataloader's dataset and of those that it wraps, the outermost first."""
    dataset = (cfg.get(dataloader) or {}).get('dataset')
    while dataset is not None:
        if 'pipeline' in dataset:
            yield dataset['pipeline']
        dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or []), None)


def image_ids(loader: DataLoader) -> list[Any]:
    """Ids of the images of this rank, as the dataset tells them."""
    dataset: Any = loader.dataset
    infos = [dataset.get_data_info(index) for index in loader.sampler]
    return [info.get('img_id', info.get('img_path')) for info in infos]
