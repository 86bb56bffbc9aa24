"""Relevance of every backbone layer to the classes of the objects (Mix-QViT), averaged over train images.

Writes importance.json, importance.md, importance.png and pictures of the relevance over the first images.
"""

from __future__ import annotations

import argparse
from typing import Any

import cv2
from mmengine.device import get_device

from mixaq_mmdet.analysis.layer_importance import layer_importance, original_image, relevance_picture
from mixaq_mmdet.analysis.layer_plot import plot_layers
from mixaq_mmdet.analysis.study import facts, study_folder, write_result
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.calibration.detectors import preprocessed
from mixaq_mmdet.engine.damaged_files import naming_annotations
from mixaq_mmdet.engine.detectors import every_window_high, load_detector
from mixaq_mmdet.reporting.files import write_whole
from mixaq_mmdet.reporting.markdown import markdown_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``analyze.py importance``."""
    parser.add_argument('config', help='config with a TwoBranchSwin backbone; its quant and ratios are left out')
    parser.add_argument('checkpoint', help='float checkpoint')
    parser.add_argument('--images', type=int, default=16, help='train images (default: 16)')
    parser.add_argument('--pictures', type=int, default=4, help='of how many images to draw the relevance')
    parser.add_argument('--seed', type=int, default=0, help='which images')
    command_line.add_config_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measure, write, and print the layers of most relevance."""
    cfg = every_window_high(command_line.load_config(options))
    folder = study_folder(cfg, 'importance')
    detector: Any = load_detector(cfg, options.checkpoint, get_device(), quant={})
    with naming_annotations(cfg):
        images, ids = preprocessed(cfg, detector, options.images, options.seed)
    importance, found = layer_importance(detector, images)
    for image, one, image_id in list(zip(images, found, ids, strict=True))[: options.pictures]:
        if one is not None:
            picture = relevance_picture(original_image(detector, image['inputs']), one.tokens)
            encoded = cv2.imencode('.png', picture[..., ::-1])[1]
            write_whole(folder / f'relevance_{image_id}.png', encoded.tobytes())
    content = {'importance': importance, **facts(options, ids)}
    write_result(folder / 'importance.json', content, markdown(importance, len(ids)))
    plot_layers(folder / 'importance.png', {'importance': importance})
    for name, value in sorted(importance.items(), key=lambda item: -item[1])[:5]:
        print(f'{value:6.3f}  {name}')
    print(f'importance of {len(importance)} layers over {len(ids)} images: {folder}')


def markdown(importance: dict[str, float], images: int) -> str:
    """The table."""
    rows = [(f'`{name}`', f'{value:.4f}') for name, value in importance.items()]
    return f"""# Importance of layers

Relevance of the class logits of matched RoIs at each layer's output, mean of {images} images, scaled to mean 1.

{markdown_table(['layer', 'importance'], rows)}"""
