"""Code by code: what plain torch, oneDNN and the kernels compute is what the simulated model computes.

Sums of codes are integers and equal. What follows is float - a result times its step, softmax, GELU, norms - and ends
in a code again. There a value that lies on the border of two codes may take either, so that codes made from *equal*
codes are at most one step apart, and few are:

- plain torch: one float32 rounding at another place than the simulated product's;
- oneDNN: norms with step and zero point in their weights, and so products behind which codes stand;
- kernels, besides: norm, step and zero point in one multiplication; sqrt 2 as 239 / 169 in log-sqrt2 probabilities
  (9e-6 relative, at most 0.003 of a step of proj's input); GELU to 4e-6 absolute (0.0003 of a step of fc2's input in
  the models here, so that about as many of its codes take the other side).

Behind a code that took the other side everything may differ: those codes are not compared.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import tiny_backbone
import torch
from code_watch import comparable, kernel_codes, onednn_codes, simulated_codes, torch_codes
from integer_twin import integer, simulated

from mixaq_mmdet.deploy.backends import OnednnBackend
from mixaq_mmdet.deploy.kernels import IntegerBlock, load
from mixaq_mmdet.deploy.onednn_block import OnednnBlock
from mixaq_mmdet.deploy.state import BLOCK_LAYERS
from mixaq_mmdet.deploy.table import Table
from mixaq_mmdet.deploy.torch_block import TorchBlock

TORCH_FLIPS = defaultdict(lambda: 2e-4)  # share of compared codes that may take the other side, by role
KERNEL_FLIPS = defaultdict(lambda: 5e-4)
ONEDNN_FLIPS = defaultdict(lambda: 5e-4)
KERNELS, REASON = load()
ONEDNN, NO_ONEDNN = OnednnBackend.load()
CASES = {
    'MinMax W8A8': dict(method='MinMax', low_ratios=0.5),
    'RepQ W4A8, A4 low, pruned': dict(method='RepQ', w_bits=4, low_a_bits=4, low_ratios=0.4, prune_ratios=0.2),
    'RepQ A4, A2 low': dict(method='RepQ', a_bits=4, low_a_bits=2, low_ratios=0.5),
    'ERQ W4A4, A3 low': dict(method='ERQ', w_bits=4, a_bits=4, low_a_bits=3, low_ratios=0.5),
    'NoisyQuant W4A4, A3 low': dict(
        method='NoisyQuant',
        w_bits=4,
        a_bits=4,
        low_a_bits=3,
        low_ratios=0.5,
        quant_options={'shift_steps': 2, 'noise_steps': 2, 'rows': 8},
    ),
    'FIMAQ W3A4, A3 low': dict(
        method='FIMAQ',
        w_bits=3,
        a_bits=4,
        low_a_bits=3,
        low_ratios=0.5,
        quant_options={'steps': 4, 'lr': 1.0, 'scale_lr': 1e-2},
    ),
    'LSQ W4A8, A4 low': dict(method='LSQ', w_bits=4, low_a_bits=4, low_ratios=0.4, prune_ratios=0.2),
    'OFQ W4A4, A2 low': dict(method='OFQ', w_bits=4, a_bits=4, low_a_bits=2, low_ratios=0.5),
    'OFQ W4A4, A2 low, values by position': dict(
        method='OFQ', w_bits=4, a_bits=4, low_a_bits=2, low_ratios=0.5, v_per_channel=False
    ),
    'OFQ W8A8': dict(method='OFQ', low_ratios=0.3),
    'symmetric weights, W3A5': dict(method='MinMax', w_bits=3, a_bits=5, low_a_bits=2, w_symmetric=True),
}


@pytest.fixture(scope='module', params=CASES.values(), ids=CASES.keys())
def pair(request):
    """A calibrated backbone and its integer twin."""
    model = simulated(**request.param)
    return model, integer(model)


@torch.no_grad()
def blocks_of(model, twin, size=(50, 67)):
    """(simulated block, weights of its twin, stream that enters it, assignment) of every block."""
    stream = model.begin(torch.cat(tiny_backbone.images(2, size)))
    for step in model.steps():
        if step.kind == 'block':
            assignment = step.windows(stream).of_block(step.number)
            assert len(assignment.runs) == 1
            yield step.module, twin.get_submodule(step.path).engine.weights, stream.x, assignment
        stream = step(stream)


def check(expected, found, run, heads, flips):
    assert expected.keys() == found.keys()
    wanted = comparable(expected, found, run, heads)
    for role, mask in wanted.items():
        steps = (expected[role] - found[role])[mask].abs()
        assert steps.numel() > 0.4 * mask.numel() * (run.slots is None or 0.5), f'{role}: too few codes were compared'
        assert steps.max() <= 1, f'{role}: {steps.max()} steps apart'
        assert (steps > 0).float().mean() <= flips[role], f'{role}: {(steps > 0).float().mean():.2g} differ'


def test_plain_torch_makes_the_simulated_codes(pair):
    for block, weights, stream, assignment in blocks_of(*pair):
        run = assignment.runs[0]
        expected = simulated_codes(block, stream, assignment)
        found = torch_codes(TorchBlock(weights), stream.flatten(0, 1).clone(), run)
        assert torch.equal(expected['qkv_in'], found['qkv_in']), 'the same norm, the same division'
        check(expected, found, run, weights.num_heads, TORCH_FLIPS)


@pytest.mark.skipif(ONEDNN is None, reason=f'no oneDNN int8 operators here: {NO_ONEDNN}')
def test_onednn_makes_the_simulated_codes(pair):
    for block, weights, stream, assignment in blocks_of(*pair):
        run, engine = assignment.runs[0], ONEDNN.block(weights)
        expected = simulated_codes(block, stream, assignment)
        watch = onednn_codes if isinstance(engine, OnednnBlock) else torch_codes
        found = watch(engine, stream.flatten(0, 1).clone(), run)
        check(expected, found, run, weights.num_heads, ONEDNN_FLIPS)


@pytest.mark.skipif(KERNELS is None, reason=f'no integer kernels here: {REASON}')
def test_kernels_make_the_simulated_codes(pair):
    for block, weights, stream, assignment in blocks_of(*pair):
        run = assignment.runs[0]
        expected = simulated_codes(block, stream, assignment)
        kernel = IntegerBlock(KERNELS, weights)
        found = kernel_codes(kernel, weights, stream.flatten(0, 1).clone(), run)
        check(expected, found, run, weights.num_heads, KERNEL_FLIPS)


def test_weights_are_the_simulated_ones(pair):
    model, twin = pair
    table = Table(twin._state)
    for number, stage in enumerate(model.stages):
        for index, block in enumerate(stage.blocks):
            for name in BLOCK_LAYERS.values():
                read, layer = table.weights(f'stages.{number}.blocks.{index}.{name}'), block.get_submodule(name)
                steps = read.codes.int() - read.zero_point.unsqueeze(1)
                assert torch.equal(steps * read.scale.unsqueeze(1), layer.quantized_weight())
