"""What each speed measure of the two-branch backbone gains: the time without it, relative to the time as shipped.

    python benchmarks/two_branch_steps.py [--size 800x1216] [--rounds 3] [--clock wall]
                                          [--json docs/results/two_branch_steps.json]

Swin-T, batch 1, half the windows low. Each measure is switched off alone, alternating with the shipped code.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import alternate, describe_device, ratios
from torch import Tensor
from two_branch import make_images

from mixaq_mmdet.models import (
    TwoBranchSwin,
    fast_layers,
    stage_windows,
    two_branch_attention,
    two_branch_block,
    two_branch_stage,
)
from mixaq_mmdet.models import window_attention as fused
from mixaq_mmdet.models.two_branch_block import TwoBranchSwinBlock
from mixaq_mmdet.reporting.files import write_whole
from mixaq_mmdet.reporting.markdown import markdown_table
from mixaq_mmdet.windows.geometry import window_grid
from mixaq_mmdet.windows.rows import spread_rows, take_rows

SHIPPED = 'as shipped'
WHAT = ('forward', 'step')


def plain_attention(
    qkv: Tensor, biases: Tensor, segments: tuple, num_heads: int, scale: float, dropout: float = 0.0
) -> Tensor:
    """Attention as stock computes it, product by product."""
    q, k, v = fused.split_heads(qkv, num_heads)
    logits = (q * scale) @ k.transpose(-2, -1)
    logits = torch.cat([logits[start:stop] + biases[kind] for start, stop, kind in segments])
    return fused.merge_heads(logits.softmax(-1) @ v)


def torch_attention(
    qkv: Tensor, biases: Tensor, segments: tuple, num_heads: int, scale: float, dropout: float = 0.0
) -> Tensor:
    """Torch's fused attention with torch's own backward."""
    return fused._attend_fused(qkv, biases, segments, num_heads, scale, dropout)


FEED_FORWARD = TwoBranchSwinBlock.feed_forward


def feed_forward_on_padding(self: TwoBranchSwinBlock, tokens: Tensor, run: Any) -> Tensor:
    """The FFN in window layout, padding included."""
    if run.slots is None:
        return FEED_FORWARD(self, tokens, run)
    windows = spread_rows(tokens, run.slots, run.windows * self.window_tokens)
    whole = run._replace(slots=None, high_tokens=run.high_windows * self.window_tokens)
    return take_rows(FEED_FORWARD(self, windows, whole), run.slots)


def uncached_grid(height: int, width: int, window: int, shift: int, device: torch.device) -> Any:
    """The window grid, computed at every call."""
    return window_grid(height, width, window, shift, device)


def indexed_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows by torch's indexing, whose backward adds up row by row."""
    return x[index]


# what is switched off -> (object, attribute, value), and where it matters
MEASURES: dict[str, tuple[Any, str, Any, tuple[str, ...]]] = {
    'fused attention': (two_branch_attention, 'attend', plain_attention, WHAT),
    'recomputing attention backward': (two_branch_attention, 'attend', torch_attention, ('step',)),
    'runs of windows that fit the cache': (two_branch_stage, 'RUN_VALUES', 2**60, ('forward',)),
    'oneDNN products': (fast_layers, 'ONEDNN_LINEAR', None, ('forward',)),
    'patch merging by stacking': (
        fast_layers.FastPatchMerging,
        'forward',
        fast_layers.PatchMerging.forward,
        WHAT,
    ),
    'FFN on real tokens only': (TwoBranchSwinBlock, 'feed_forward', feed_forward_on_padding, WHAT),
    'cached window grids': (stage_windows, 'cached_grid', uncached_grid, WHAT),
    'row moves with gradients by moves': (two_branch_block, 'take_rows', indexed_rows, ('step',)),
}


def works(what: str, size: str) -> dict[str, Callable[[], Any]]:
    """One work for the shipped code and one for each measure switched off."""
    torch.manual_seed(0)
    model, images = TwoBranchSwin(low_ratios=0.5).train(what == 'step'), make_images(1, size, 'cpu')

    @torch.no_grad()
    def forward() -> None:
        model(images)

    def step() -> None:
        sum(out.mean() for out in model(images)).backward()
        model.zero_grad(set_to_none=True)

    work = forward if what == 'forward' else step

    def without(owner: Any, attribute: str, value: Any) -> Callable[[], Any]:
        def run() -> None:
            with mock.patch.object(owner, attribute, value):
                work()

        return run

    off = {name: without(*change) for name, (*change, where) in MEASURES.items() if what in where}
    return {SHIPPED: work, **off}


def as_table(found: dict[str, Any]) -> str:
    """The figures as Markdown; every one is relative to the shipped code."""
    rows = []
    for name in MEASURES:
        cells = [found[what].get(name) for what in WHAT]
        rows.append([name, *(f'{r["median"]:.2f} ({r["least"]:.2f} - {r["most"]:.2f})' if r else '' for r in cells)])
    lines = [
        f'Time without the measure, relative to the shipped code: Swin-T at {found["size"]}, batch 1, half low, on '
        f'{found["device"]}, {found["threads"]} thread(s), torch {found["torch"]}, {found["rounds"]} rounds, '
        f'{found["clock"]} clock: median (least - most).',
        '',
        markdown_table(['without', 'forward', 'training step'], rows),
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='800x1216', metavar='HxW')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--clock', choices=['wall', 'cpu'], default='wall', help='cpu: on a machine others use, too')
    parser.add_argument('--json', type=Path, help='file for the figures; a table goes beside it')
    args = parser.parse_args()
    found: dict[str, Any] = {**describe_device(), 'clock': args.clock, 'size': args.size, 'rounds': args.rounds}
    for what in WHAT:
        found[what] = ratios(alternate(works(what, args.size), args.rounds, clock=args.clock), SHIPPED)
        for name, ratio in sorted(found[what].items()):
            print(f'{what} without {name}: {ratio["median"]:.3f} ({ratio["least"]:.3f}-{ratio["most"]:.3f})')
    if args.json:
        write_whole(args.json, json.dumps(found, indent=1) + '\n')
        write_whole(args.json.with_suffix('.md'), as_table(found))


if __name__ == '__main__':
    main()
