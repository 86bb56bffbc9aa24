"""The codes of a block, from the simulated model, from plain torch, oneDNN and the kernels, in one layout.

{role: numbers}: qkv_in, proj_in, fc1_in (T, C) and fc2_in (T, hidden) by real token, q, k, v (windows, tokens, C),
attn (windows, heads, tokens, tokens); high windows first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixaq_mmdet.deploy import onednn_block, torch_block
from mixaq_mmdet.deploy.kernels import trace_block
from mixaq_mmdet.deploy.kernels.learned import weight_unit
from mixaq_mmdet.deploy.layouts import BlockWeights
from mixaq_mmdet.deploy.onednn_block import OnednnBlock
from mixaq_mmdet.deploy.torch_block import TorchBlock
from mixaq_mmdet.quantization.functional import log_quantize, quantize
from mixaq_mmdet.quantization.quantizers.base import Quantizer
from mixaq_mmdet.quantization.quantizers.learned import LearnedQuantizer
from mixaq_mmdet.quantization.quantizers.logarithmic import Log2Quantizer
from mixaq_mmdet.quantization.quantizers.noisy import NoisyQuantizer
from mixaq_mmdet.windows.assignment import Run

Codes = dict[str, Tensor]
FAINT = 200  # codes of probabilities below 2^-100: nothing is left of them after weighing values


@torch.no_grad()
def simulated_codes(block: Any, stream: Tensor, assignment: Any) -> Codes:
    """Of a TwoBranchSwinBlock on (B, H * W, C), all windows in one run."""
    seen = defaultdict(list)
    handles = [
        quantizer.register_forward_hook(lambda module, inputs, _: seen[module.role].append(_codes_of(module, *inputs)))
        for quantizer in block.modules()
        if isinstance(quantizer, Quantizer) and quantizer.role != 'weight'
    ]
    try:
        block(stream, assignment)
    finally:
        for handle in handles:
            handle.remove()
    return _one_layout({role: torch.cat(parts) for role, parts in seen.items()}, assignment.runs[0], keys_last=True)


def _codes_of(quantizer: Quantizer, x: Tensor, *rest: Any) -> Tensor:
    if isinstance(quantizer, LearnedQuantizer):
        group = quantizer._group(x, rest[1] if len(rest) > 1 else None)
        shifted = x if group.before is None else x + group.before
        return (shifted / group.step.clamp(min=1e-5)).clamp(quantizer.lowest, quantizer.highest).round()
    if isinstance(quantizer, Log2Quantizer):
        return log_quantize(x, quantizer.scale, quantizer.bits, quantizer.steps_per_octave).float().clamp(max=FAINT)
    if isinstance(quantizer, NoisyQuantizer):
        x = x + quantizer.noise
    return quantize(x, quantizer.scale, quantizer.zero_point, quantizer.bits).float() - quantizer.zero_point


@torch.no_grad()
def torch_codes(block: TorchBlock, stream: Tensor, run: Run) -> Codes:
    """Of a TorchBlock on (B * H * W, C), in place."""
    seen = defaultdict(list)
    roles = {id(grid): role for grids in block.weights.grids for role, grid in zip(grids._fields, grids, strict=True)}
    with _watched(seen, roles):
        block.run(stream, run)
    return _one_layout({role: torch.cat(parts) for role, parts in seen.items()}, run)


@contextmanager
def _watched(seen: dict[str, list[Tensor]], roles: dict[int, str]) -> Iterator[None]:
    steps_of, probability_values = torch_block.steps_of, torch_block.probability_values

    def watch_steps(x: Tensor, grid: Any, *rest: Any) -> Tensor:
        steps = steps_of(x, grid, *rest)
        seen[roles[id(grid)]].append(steps.clone())
        return steps

    def watch_probabilities(x: Tensor, grid: Any) -> Any:
        values = probability_values(x, grid)
        seen['attn'].append(_probability_codes(values[0].clone(), grid))
        return values

    torch_block.steps_of, torch_block.probability_values = watch_steps, watch_probabilities
    try:
        yield
    finally:
        torch_block.steps_of, torch_block.probability_values = steps_of, probability_values


@torch.no_grad()
def onednn_codes(block: OnednnBlock, stream: Tensor, run: Run) -> Codes:
    """Of an OnednnBlock on (B * H * W, C), in place."""
    seen = defaultdict(list)
    places = (-1, block.weights.num_heads, block.tokens, block.tokens)

    def watch_probabilities(logits: Any, grid: Any) -> Tensor:
        values = probabilities(logits, grid)
        seen['attn'].append(_probability_codes(values.clone(), grid).view(places))
        return values

    for branch in block.branches:
        branch.layers = {
            name: _WatchedLayer(layer, getattr(branch.grids, f'{name}_in'), seen[f'{name}_in'])
            for name, layer in branch.layers.items()
        }
        branch._attend = partial(_watch_attention, branch, branch._attend, seen)
        branch.run = partial(_watch_run, branch.run, seen)
    probabilities, onednn_block.probabilities = onednn_block.probabilities, watch_probabilities
    try:
        block.run(stream, run)
    finally:
        onednn_block.probabilities = probabilities
    codes = {role: torch.cat(parts) for role, parts in seen.items()}
    return _one_layout(codes, run)


def _watch_attention(branch: Any, attend: Any, seen: dict[str, list[Tensor]], codes: Tensor, run: Run) -> Tensor:
    for number, role in enumerate('qkv'):
        steps = codes[:, :, number].float() - getattr(branch.grids, role).zero_point
        seen[role].append(steps.transpose(1, 2))
    return attend(codes, run)


def _watch_run(run_branch: Any, seen: dict[str, list[Tensor]], stream: Tensor, run: Run) -> None:
    run_branch(stream, run)
    seen['qkv_in'][-1] = seen['qkv_in'][-1][: len(run.rows)]  # without the row of padding tokens


class _WatchedLayer:
    def __init__(self, layer: Any, grid: Any, seen: list[Tensor]) -> None:
        self.layer, self.grid, self.seen = layer, grid, seen

    def __call__(self, codes: Tensor) -> Tensor:
        self.seen.append(codes.float() - self.grid.zero_point)
        return self.layer(codes)

    def add(self, codes: Tensor, onto: Tensor) -> None:
        self.seen.append(codes.float() - self.grid.zero_point)
        self.layer.add(codes, onto)


def _probability_codes(values: Tensor, grid: Any) -> Tensor:
    """Codes from values in units of the grid's scale."""
    if not grid.steps_per_octave:
        return values
    codes = (values.log2() * -grid.steps_per_octave).round()
    return codes.masked_fill(values == 0, 2**grid.bits).clamp(max=FAINT)


@torch.no_grad()
def kernel_codes(block: Any, weights: BlockWeights, stream: Tensor, run: Run) -> Codes:
    """Of an IntegerBlock of the kernels on (B * H * W, C), in place."""
    traced = trace_block(block, stream, run)
    attn = traced.pop('attn').float()
    codes = {role: value.float() for role, value in traced.items()}
    for role, value in codes.items():
        counts_windows = role in ('q', 'k', 'v')
        high = run.high_windows if counts_windows else run.high_tokens
        for branch, part in ((0, value[:high]), (1, value[high:])):
            part -= getattr(weights.grids[branch], role).zero_point
    high = run.high_windows
    grids = [branch.attn for branch in weights.grids]
    parts = [
        _probability_codes(p / weight_unit(grid), grid)
        for p, grid in zip((attn[:high], attn[high:]), grids, strict=True)
    ]
    return {**codes, 'attn': torch.cat(parts)}


def _one_layout(codes: Codes, run: Run, keys_last: bool = False) -> Codes:
    found = {}
    for role, value in codes.items():
        if role in ('q', 'k', 'v'):
            value = value.transpose(-1, -2) if role == 'k' and keys_last else value
            value = value.transpose(1, 2).flatten(2)
        elif role != 'attn' and value.dim() == 3:
            value = value.flatten(0, 1)
        tokens = codes['q'].shape[2]
        if role in ('qkv_in', 'proj_in') and run.slots is not None and len(value) == run.windows * tokens:
            value = value[run.slots]
        found[role] = value
    return found


def comparable(expected: Codes, found: Codes, run: Run, heads: int) -> dict[str, Tensor]:
    """Which codes were made from equal codes, as bool of their shapes.

    Only these can be compared: what reads another code upstream may differ by any number of steps.
    """
    windows, tokens, channels = expected['q'].shape

    def same(role: str) -> Tensor:
        return expected[role] == found[role]

    def by_token(value: Tensor, empty: bool) -> Tensor:
        """(T, ...) by real token to (windows, tokens, ...)."""
        if run.slots is None:
            return value.view(windows, tokens, *value.shape[1:])
        spread = torch.full((windows * tokens, *value.shape[1:]), empty)
        spread[run.slots] = value
        return spread.view(windows, tokens, *value.shape[1:])

    def by_head(value: Tensor) -> Tensor:
        """(windows, tokens, C) to (windows, heads, tokens), True where all channels of the head are."""
        return value.view(windows, tokens, heads, -1).all(-1).transpose(1, 2)

    token = by_token(same('qkv_in').all(-1), empty=True).unsqueeze(-1).expand(-1, -1, channels)
    real = by_token(torch.ones(len(expected['qkv_in']), dtype=torch.bool), empty=False)
    logits = by_head(same('q')) & by_head(same('k')).all(-1, keepdim=True) & real.unsqueeze(1)
    weighed = logits & same('attn').all(-1) & by_head(same('v')).all(-1, keepdim=True)
    proj_in = weighed.transpose(1, 2).repeat_interleave(channels // heads, dim=-1).flatten(0, 1)
    proj_in = proj_in if run.slots is None else proj_in[run.slots]
    return {
        'qkv_in': torch.ones_like(same('qkv_in')),
        'q': token,
        'k': token,
        'v': token,
        'attn': logits.unsqueeze(-1).expand_as(expected['attn']),
        'proj_in': proj_in,
        'fc1_in': same('proj_in').all(-1, keepdim=True).expand_as(expected['fc1_in']),
        'fc2_in': same('fc1_in').all(-1, keepdim=True).expand_as(expected['fc2_in']),
    }
