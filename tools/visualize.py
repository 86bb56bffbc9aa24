#!/usr/bin/env python
"""See what a MixA-Q model does with one image: window maps, scores, detections, the grid of a layer."""

from __future__ import annotations

import argparse
from pathlib import Path

import mixaq_mmdet  # noqa: F401  (importing registers, and prepares the host)
from mixaq_mmdet.analysis import visualization
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.tool_errors import one_line_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='image file')
    parser.add_argument('config', help='config file with a TwoBranchSwin backbone')
    parser.add_argument('checkpoint', help='checkpoint of that config')
    parser.add_argument('-o', '--out', type=Path, default=Path('outputs/visualize'), metavar='DIR')
    parser.add_argument(
        '--float',
        metavar='CKPT',
        help='float checkpoint whose detections are shown beside (default: the same weights with quantizers off)',
    )
    parser.add_argument('--layer', help='also the histogram of what enters this layer, with its quantization levels')
    parser.add_argument('--score-thr', type=float, default=0.5, help='least score of a detection that is drawn')
    parser.add_argument('--device', default='cpu')
    command_line.add_config_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors(args):
        for path in visualization.run(args):
            print(path)


if __name__ == '__main__':
    main()
