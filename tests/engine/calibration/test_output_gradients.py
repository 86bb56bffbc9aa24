"""Output gradients that methods may ask for: those of the whole model's loss, by finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import quantizer_mode
from mixaq_mmdet.quantization.methods import Method
from mixaq_mmdet.registry import QUANT_METHODS

IMAGE = images(1)[0].double()


@pytest.fixture
def seen():
    """(block, its outputs, gradients by them) of every block, as a method sees them."""
    found: list[tuple[Any, list[torch.Tensor], list[torch.Tensor]]] = []

    @QUANT_METHODS.register_module()
    class Curious(Method):
        uses_gradients = True

        def calibrate(self, block, inputs):
            noise = super().calibrate(block, inputs)
            outputs = inputs.outputs(block, 0)
            found.append((block, outputs, inputs.output_gradients(0, outputs)))
            return noise

    yield found
    del QUANT_METHODS.module_dict['Curious']


def loss_with(model, block, output):
    """The loss when a block gives ``output``: everything behind it float."""
    plain = block.forward

    def forward(*given):
        found = plain(*given)
        return (output, found[1]) if isinstance(found, tuple) else output

    block.forward = forward
    try:
        with torch.no_grad(), quantizer_mode(model, 'float'):
            return sum((out - target).square().sum() / target.square().sum() for out, target in pairs(model)) / 2
    finally:
        del block.forward


def pairs(model):
    return zip(model(IMAGE), backbone().double()(IMAGE), strict=True)


def test_they_are_the_slopes_of_the_error_of_the_maps(seen):
    model = backbone({'method': 'Curious', 'w_bits': 4, 'a_bits': 4}).double()
    Calibrator(model).run([IMAGE])
    assert [len(outputs) for _, outputs, _ in seen] == [1, 2, 2, 1, 2]  # embedding, blocks by branch, merging, block
    generator = torch.Generator().manual_seed(0)
    for block, outputs, gradients in seen:
        for output, gradient in zip(outputs, gradients, strict=True):
            assert gradient.shape == output.shape
            direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            step = 1e-5 * direction
            slope = (loss_with(model, block, output + step) - loss_with(model, block, output - step)) / 2e-5
            torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-9)


def test_another_loss_may_be_given(seen):
    model = backbone({'method': 'Curious'}).double()
    Calibrator(model, loss=lambda maps, index: maps[-1].sum() + 0 * index).run([IMAGE])
    block, (output, _), (gradient, _) = seen[-1]
    norm = model.norm1
    x = output.detach().requires_grad_()
    expected = torch.autograd.grad(norm(x).sum(), x)[0]
    torch.testing.assert_close(gradient, expected)
    assert block is model.stages[1].blocks[0]


def test_a_calibration_that_spills_gives_the_same(seen):
    for limit in (4 << 30, 0):
        model = backbone({'method': 'Curious', 'w_bits': 4}).double()
        Calibrator(model, store_limit=limit).run([IMAGE])
    half = len(seen) // 2
    for (_, _, kept), (_, _, spilled) in zip(seen[:half], seen[half:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, spilled, strict=True))


def test_who_does_not_say_so_gets_none(seen):
    QUANT_METHODS.get('Curious').uses_gradients = False
    with pytest.raises(ValueError, match='only methods that say uses_gradients'):
        Calibrator(backbone({'method': 'Curious'}).double()).run([IMAGE])
