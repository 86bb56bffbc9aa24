"""What the oneDNN block does between its products: probabilities, memory that runs share, what it leaves to torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from integer_twin import integer, simulated

from mixaq_mmdet.deploy.backends import OnednnBackend
from mixaq_mmdet.deploy.layouts import ProbabilityGrid
from mixaq_mmdet.deploy.onednn_block import OnednnBlock, probabilities, uint8
from mixaq_mmdet.deploy.products import probability_values
from mixaq_mmdet.deploy.torch_block import TorchBlock
from mixaq_mmdet.windows.assignment import assign, tier_counts
from mixaq_mmdet.windows.geometry import window_grid

BACKEND, REASON = OnednnBackend.load()
needs_onednn = pytest.mark.skipif(BACKEND is None, reason=f'no oneDNN int8 operators here: {REASON}')


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('spread', [1.0, 30.0, 500.0])
@pytest.mark.parametrize('offset', [0.0, -300.0, 300.0])
@pytest.mark.parametrize('grid', [ProbabilityGrid(0, 1 / 255, 0, 8), ProbabilityGrid(0, 0.002, 0, 8)])
def test_probabilities_without_the_largest_logit_subtracted(spread, offset, grid):
    """Where exponentials leave float32's range, they are taken the usual way."""
    logits = spread * drawn(6, 49, 49) + offset
    expected, _ = probability_values(logits.softmax(-1), grid)
    found = probabilities(logits.clone, grid)
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-3


@pytest.mark.parametrize('bits', [8, 4, 2])
def test_codes_are_rounded_and_cut(bits):
    steps = torch.arange(-300, 600).float() / 2 + 0.1
    expected = steps.round().clamp(0, 2**bits - 1).to(torch.uint8)
    assert torch.equal(uint8(steps - 128, bits), expected)


@needs_onednn
def test_threads_do_not_share_memory():
    weights = integer(simulated('MinMax', low_ratios=0.4)).stages[0].blocks[1].engine.weights
    grid = window_grid(13, 17, 4, 2)
    run = assign(None, tier_counts(len(grid.rows), 0.0, 0.0), grid, 1).runs[0]
    block = BACKEND.block(weights)
    assert isinstance(block, OnednnBlock)

    def work(seed: int) -> torch.Tensor:
        stream = drawn(13 * 17, 32, seed=seed)
        block.run(stream, run)
        return stream

    expected = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(8)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_onednn
@pytest.mark.parametrize(('method', 'kind'), [('MinMax', OnednnBlock), ('LSQ', OnednnBlock), ('OFQ', TorchBlock)])
def test_a_step_for_each_token_leaves_floats_between_the_products(method, kind):
    weights = integer(simulated(method)).stages[0].blocks[0].engine.weights
    assert type(BACKEND.block(weights)) is kind


@needs_onednn
def test_branches_share_packed_weights():
    high, low = BACKEND.block(integer(simulated('RepQ', low_a_bits=4)).stages[0].blocks[0].engine.weights).branches
    assert all(high.packed[name] is low.packed[name] for name in high.packed)
