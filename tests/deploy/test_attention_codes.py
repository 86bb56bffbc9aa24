"""Values weighed with codes of probabilities: sums of integers, exact up to the codes of proj's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_kernels import KERNELS, UNIFORM, Maker, needs_kernels

from mixaq_mmdet.deploy import kernels as package
from mixaq_mmdet.deploy.kernels.trace import trace_block


@needs_kernels
@pytest.mark.parametrize('attn', [UNIFORM, UNIFORM._replace(scale=1 / 15, bits=4), UNIFORM._replace(zero_point=3)])
@pytest.mark.parametrize('window', [3, 4, 7, 10])  # of 9, 16, 49 and 100 tokens: not all are whole fours
def test_weighed_codes_are_sums_of_integers(attn, window):
    channels, heads = 64, 2
    make = Maker()
    weights = make.block(channels, heads, window, attn, 8, False)
    grids = weights.grids[0]
    v_grid = grids.v._replace(zero_point=101)
    weights = weights._replace(grids=(grids._replace(v=v_grid),) * 2)
    run = make.run((2 * window, 3 * window), window, 0, 0.0, 0.0, batch=1)
    seen = trace_block(package.IntegerBlock(KERNELS, weights), make.normal(6 * window**2, channels), run)
    values = (seen['v'].long() - v_grid.zero_point).unflatten(2, (heads, -1)).transpose(1, 2)
    sums = (seen['attn'].long() @ values).transpose(1, 2).flatten(2)  # (windows, tokens, channels)
    multiplier = np.float32(v_grid.scale / grids.proj_in.scale * attn.scale)
    codes = (sums.double() * float(multiplier) + grids.proj_in.zero_point).float().round().clamp(0, 255)
    assert torch.equal(seen['proj_in'].long(), codes.long().flatten(0, 1))
    assert seen['attn'].float().amax() > 1
