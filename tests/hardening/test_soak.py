"""Two thousand changes of ratios: memory stays where it was, and a model gives at the end what it gave at first."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import pytest
import torch
from tiny_backbone import backbone, images

from mixaq_mmdet.engine import SparsityAwareOptimWrapper
from mixaq_mmdet.engine.calibration import Calibrator

pytestmark = pytest.mark.nightly
QUANT = {'method': 'LSQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}
SIZES = [(32, 32), (50, 67), (23, 41), (64, 48)]
CHANGES = 1000  # of each kind
SETTLED = 300  # changes after which allocators and caches have what they want
ALLOWED = 16 << 20  # bytes


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.fixture
def model() -> torch.nn.Module:
    quantized = backbone(QUANT)
    Calibrator(quantized).run(images())
    return quantized


def test_training_with_new_ratios_does_not_leak(model):
    wrapper = SparsityAwareOptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-4), prune=True)
    model.train()
    generator, drawn, settled = torch.Generator().manual_seed(0), set(), 0
    for change in range(CHANGES):
        with wrapper.optim_context(model):
            image = torch.randn(1, 3, *SIZES[change % len(SIZES)], generator=generator)
            loss = sum(out.square().mean() for out in model(image))
        wrapper.update_params(loss)
        assert torch.isfinite(loss)
        drawn.add((model.low_ratios, model.prune_ratios))
        if change == SETTLED:
            settled = resident()
    assert len(drawn) > 20
    assert resident() - settled < ALLOWED


def test_evaluation_at_changing_ratios_neither_leaks_nor_drifts(model):
    choices, first, settled = random.Random(0), {}, 0
    pictures = {size: images(1, size)[0] for size in SIZES}
    with torch.no_grad():
        for change in range(CHANGES):
            size = choices.choice(SIZES)
            low = (choices.randint(0, 4) / 5, choices.randint(0, 4) / 5)
            prune = tuple(min(choices.randint(0, 2) / 5, 1 - ratio) for ratio in low)
            model.set_ratios(low, prune)
            found = [out.clone() for out in model(pictures[size])]
            expected = first.setdefault((size, low, prune), found)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            if change == SETTLED:
                settled = resident()
    assert len(first) < CHANGES, 'nothing was met twice'
    kept = sum(out.numel() * 4 for outs in first.values() for out in outs)
    assert resident() - settled < ALLOWED + kept
