#!/usr/bin/env python
"""Turn a calibrated detector into one whose backbone computes with integers, or export it to ONNX.

    python tools/deploy.py convert CONFIG CKPT -o FILE
    python tools/deploy.py export CONFIG CKPT -o FILE.onnx --target onnxruntime|openvino|tensorrt --shape H W

``convert``: FILE holds the whole detector, and a config of the same name (FILE with the ending .py) runs it:
python tools/test.py FILE.py FILE. ``export``: tools/run_onnx.py runs FILE.onnx without PyTorch; a report of errors,
kernels and times lies beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mixaq_mmdet  # noqa: F401  (importing registers, and prepares the host)
from mixaq_mmdet.deploy.export.command import add_arguments, export_from
from mixaq_mmdet.deploy.files import convert_detector
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.tool_errors import one_line_errors, quoted


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest='command', required=True)
    convert = subparsers.add_parser('convert', help='integer weights and products for the backbone')
    convert.add_argument('config', help='config that the checkpoint was calibrated or trained with')
    convert.add_argument('checkpoint', help='calibrated checkpoint')
    convert.add_argument('-o', '--out', required=True, type=Path, metavar='FILE', help='where to write the detector')
    command_line.add_config_arguments(convert)
    add_arguments(subparsers.add_parser('export', help='ONNX for a runtime, with a parity report'))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors(args):
        cfg = command_line.load_config(args)
        if args.command == 'export':
            reports = export_from(args, cfg)
        else:
            checkpoint = command_line.check_checkpoint(args.checkpoint, 'checkpoint')
            config = convert_detector(cfg, checkpoint, args.out)
    if args.command == 'export':
        print('\n\n'.join(str(report) for report in reports))
        if args.strict and any(report.failed for report in reports):
            sys.exit(1)
        return
    print(
        f'wrote {args.out} ({args.out.stat().st_size / 2**20:.1f} MiB)\n'
        f'run: {quoted("python", "tools/test.py", config, args.out)}'
    )


if __name__ == '__main__':
    main()
