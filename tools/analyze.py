#!/usr/bin/env python
"""Look into a MixA-Q model: what it costs, what its windows do, what it is sensitive to."""

from __future__ import annotations

import argparse
from importlib import import_module

import mixaq_mmdet  # noqa: F401  (importing registers, and prepares the host)
from mixaq_mmdet.engine.tool_errors import one_line_errors

# each is a module mixaq_mmdet/analysis/commands/<name>.py with ``add_arguments(parser)`` and ``run(options)``
COMMANDS = {
    'bops': 'multiply-accumulates and bit operations of the backbone; needs no checkpoint',
    'latency': 'measured latency of the backbone, or the whole detector, on this device, by block and tier',
    'sensitivity': 'what it costs to run one block pair low or pruned, or (--per-layer) to quantize one layer',
    'sqnr': 'quantization noise of windows by stage, by objects and by importance',
    'robustness': 'loss of AP on other sets, by ranking, low bits beside pruning',
    'report': 'one self-contained HTML page of a work folder',
    'importance': 'relevance of every layer to the classes of the objects, and pictures of it',
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    subparsers = parser.add_subparsers(dest='command', required=True)
    for name, summary in COMMANDS.items():
        module = import_module(f'mixaq_mmdet.analysis.commands.{name}')
        command = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors(args):
        args.run(args)


if __name__ == '__main__':
    main()
