#!/usr/bin/env python
"""Convert a Swin checkpoint into one for mmdet 3.x and TwoBranchSwin.

SRC may be written by Microsoft's Swin classification, Swin-Transformer-Object-Detection, mmpretrain, or mmdet 2.x/3.x;
which one is found out from the file. DST holds the weights and the class names, no optimizer state.
"""

from __future__ import annotations

import argparse

import mixaq_mmdet  # noqa: F401  (registers TwoBranchSwin)
from mixaq_mmdet.engine.checkpoints.conversion import Conversion, convert_checkpoint
from mixaq_mmdet.engine.tool_errors import add_traceback_flag, one_line_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', metavar='SRC', help='the checkpoint to convert')
    parser.add_argument('dst', metavar='DST', help='the file to write')
    parser.add_argument('--config', help='a config whose model the result must fit (default: its backbone alone)')
    parser.add_argument('--ema', action='store_true', help='take the averaged weights')
    add_traceback_flag(parser)
    return parser.parse_args(argv)


def describe(conversion: Conversion, dst: str) -> str:
    """The report a user reads after a conversion."""
    arguments = ', '.join(f'{name}={value!r}' for name, value in conversion.backbone.items())
    lines = [
        f'{conversion.dialect} checkpoint, weights from {conversion.weights}',
        f"backbone: dict(type='TwoBranchSwin', {arguments})",
    ]
    lines += [f'{len(conversion.missing)} tensors missing: {conversion.missing}'] if conversion.missing else []
    lines += [f'start untrained: {conversion.fresh}'] if conversion.fresh else []
    lines += [f'not used: {len(conversion.dropped)} tensors, {conversion.dropped}'] if conversion.dropped else []
    return '\n'.join([*lines, f'wrote {conversion.written} tensors to {dst}'])


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors(args):
        conversion = convert_checkpoint(args.src, args.dst, config=args.config, ema=args.ema)
    print(describe(conversion, args.dst))


if __name__ == '__main__':
    main()
