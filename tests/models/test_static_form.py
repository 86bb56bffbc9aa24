"""The static form computes what the eager one does, and torch's exporter and compiler take it whole."""

import pytest
import torch
from stock_twin import TINY, assert_same, assert_twins_agree, images, randomise, twins
from tiny_backbone import backbone
from tiny_backbone import images as odd_images

from mixaq_mmdet.engine.calibration.calibrator import Calibrator
from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.models.static_form import cached_constants

RATIOS = [(0, 0), (0.5, 0), (1, 0), (0, 0.5), (0.3, 0.3), (0, 1), ([0.8, 0.25, 0.6, 0.07, 0.5], 0.1)]
QUANTS = {
    'float': None,
    **{m: {'method': m, 'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4} for m in ('RepQ', 'LSQ', 'OFQ')},
    'AIQViT': {'method': 'AIQViT', 'w_bits': 4, 'a_bits': 4, 'steps': 2, 'search_steps': 1},
}


def mixed_backbone(name: str) -> torch.nn.Module:
    """Quantized (or not), calibrated, with windows in every tier."""
    model = backbone(QUANTS[name])
    if QUANTS[name]:
        Calibrator(model).run(odd_images())
    model.set_ratios(0.4, 0.2)
    return model


def assert_forms_agree(found, expected, tolerance=1e-5):
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_same(a, b, tolerance, f'output {number}')


@pytest.mark.parametrize('size', [(64, 64), (112, 137), (50, 67)], ids=str)
@pytest.mark.parametrize('ratios', RATIOS, ids=str)
@torch.no_grad()
def test_static_is_eager_in_float(ratios, size):
    model = randomise(TwoBranchSwin(**TINY), spread=0.2).eval()
    model.set_ratios(*ratios)
    x = images(2, 3, *size, dtype=torch.float32)
    expected = model(x)
    model.form = 'static'
    assert_forms_agree(model(x), expected)


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('changes', [{}, {'with_cp': True}, {'out_indices': (1,)}], ids=str)
def test_static_is_stock_with_gradients(changes, training):
    stock, ours = twins(own={'form': 'static', 'low_ratios': 0.4}, **changes)
    assert_twins_agree(stock, ours, images(2, 3, 96, 67), training)


@pytest.mark.parametrize('name', QUANTS)
@torch.no_grad()
def test_blocks_agree_on_equal_inputs(name):
    """Block by block: one rounding that falls the other way would spread through everything behind it."""
    model = mixed_backbone(name)
    blocks = [block for stage in model.stages for block in stage.blocks]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda _, args, out: seen.append((args[0].clone(), out.clone())))
        for block in blocks
    ]
    model.form = 'eager'
    model(torch.cat(odd_images()))
    for hook in hooks:
        hook.remove()
    found: list[torch.Tensor] = []
    for block, (x, _) in zip(blocks, seen, strict=True):
        block.register_forward_pre_hook(lambda _, args, x=x: (x, *args[1:]))
        block.register_forward_hook(lambda _, __, out: found.append(out))
    model.form = 'static'
    model(torch.cat(odd_images()))
    for out, (_, expected) in zip(found, seen, strict=True):
        apart = (out - expected).abs() > 1e-5 * expected.abs().max()
        assert apart.float().mean() <= 1e-3


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch_mates():
    model = mixed_backbone('RepQ')
    model.form = 'static'
    small, large = odd_images()
    small = torch.nn.functional.pad(small[..., :40, :30], (0, 37, 0, 10))  # padded to the batch's size with zeros
    both = model(torch.cat((small, large)))
    for number, x in enumerate((small, large)):
        assert_forms_agree([out[number] for out in both], [out[0] for out in model(x)])


@pytest.mark.parametrize(('name', 'warm'), [*((name, False) for name in QUANTS), ('RepQ', True)], ids=str)
@torch.no_grad()
def test_torch_export_takes_it(name, warm):
    model = mixed_backbone(name)
    x, other = odd_images(size=(50, 67) if warm else (38, 59))
    if warm:
        model.form = 'static'
        model(x)
        model.form = 'auto'
    program = torch.export.export(model, (x,), strict=False)
    for image in (x, other):  # ranked anew
        assert_forms_agree(program.module()(image), model(image), 1e-4)
    assert_forms_agree(model(other), program.module()(other), 1e-4)  # no stand-in tensor was kept


@pytest.mark.parametrize('name', ['float', 'RepQ'])
@torch.no_grad()
def test_torch_compile_takes_it_whole(name):
    model = mixed_backbone(name)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager', dynamic=False)
    x, other = odd_images()
    for image in (x, other):
        assert_forms_agree(compiled(image), model(image), 1e-4)


def test_unknown_form_and_random_importance_are_named():
    with pytest.raises(ValueError, match=r"form='fast' is unknown; use one of \['auto', 'eager', 'static'\]"):
        TwoBranchSwin(**TINY, form='fast')
    model = TwoBranchSwin(**TINY, importance='Random', low_ratios=0.5).eval()
    with pytest.raises(ValueError, match="importance='Random'"):
        torch.export.export(model, (images(1, 3, 64, 64, dtype=torch.float32),), strict=False)


def test_nan_is_found_by_eager_inference_and_on_request():
    x = torch.full((1, 3, 64, 64), float('nan'))
    model = TwoBranchSwin(**TINY, form='static').eval()
    model(x)
    model.check_finite = True
    with pytest.raises(ValueError, match='NaN'):
        model(x)


def test_cached_constants_forget_the_oldest():
    built = []

    @cached_constants(2)
    def build(key):
        built.append(key)
        return torch.full((1,), float(key))

    for key in (1, 2, 1, 3, 1, 2):
        assert build(key).item() == key
    assert built == [1, 2, 3, 2]
