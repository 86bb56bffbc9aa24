"""A traced backbone ranks every image anew: nothing that depends on scores is written down as a number."""

import pytest
import torch
from stock_twin import assert_same, images, randomise

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.quantization import Quantizer

TWO_STAGES = dict(embed_dims=8, depths=(2, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), window_size=4)
QUANT = dict(method='MinMax', w_bits=8, a_bits=8, low_a_bits=2)


def uneven(seed: int, size: tuple[int, int]) -> torch.Tensor:
    """(1, 3, H, W), its important windows at one side."""
    ramp = torch.linspace(0, 4, size[1]).expand(1, 1, *size)
    return images(1, 3, *size, dtype=torch.float32, seed=seed) * (ramp.flip(3) if seed % 2 else ramp)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('quant', [None, QUANT], ids=['float', 'quantized'])
@pytest.mark.parametrize(('size', 'ratios'), [((64, 64), (0.5, 0.0)), ((52, 84), (0.4, 0.3))], ids=str)
def test_a_trace_is_right_for_another_image(size, ratios, quant):
    model = randomise(TwoBranchSwin(**TWO_STAGES, quant=quant), spread=0.3).eval()
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.set_range(torch.full(module.shape, -4.0), torch.full(module.shape, 4.0))
    model.set_ratios(*ratios)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        traced = torch.jit.trace(model, uneven(0, size), check_trace=False)
        for x in (uneven(0, size), uneven(1, size)):
            for found, expected in zip(traced(x), model(x), strict=True):
                assert_same(found, expected, 1e-4, 'traced')
