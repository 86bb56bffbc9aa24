"""The integer backbone gives the simulated one's numbers, and refuses what is not for it."""

from __future__ import annotations

import pytest
import tiny_backbone
import torch
from integer_twin import integer, relative_error, simulated

from mixaq_mmdet.deploy import IntegerSwin
from mixaq_mmdet.deploy.backends import BACKENDS
from mixaq_mmdet.deploy.codes import to_codes
from mixaq_mmdet.deploy.convert import convert_backbone
from mixaq_mmdet.deploy.layouts import Grid
from mixaq_mmdet.deploy.packing import pack_codes, unpack_codes
from mixaq_mmdet.deploy.state import HEADER, VERSION, write_header
from mixaq_mmdet.deploy.table import Table
from mixaq_mmdet.quantization import NotCalibratedError

ROUNDING = 2e-3  # relative: a few codes that lie on a rounding boundary
# Relative error of whole maps, by low bits. Code by code a block of the kernels is at most a step off (test_codes.py),
# and its update 1e-3. The blocks behind read that: where a value of theirs crosses a border, a code moves by a step,
# 1 / 255 of the range with eight bits, 1 / 15 with four, and so on to the output. What is bounded here is this growth.
GROWTH = {8: 1e-2, 4: 3e-2}
SHORT = {
    'AdaLog': {'keep': 2, 'expansions': 1, 'rounds': 1, 'output_expansions': 0, 'rows': 16},
    'NoisyQuant': {'shift_steps': 2, 'noise_steps': 2, 'rows': 16},
    'APHQ': {'budget': 'small', 'steps': 4, 'lr': 1e-2},
}
ONEDNN, NO_ONEDNN = BACKENDS.get('onednn').load()
needs_onednn = pytest.mark.skipif(ONEDNN is None, reason=f'no oneDNN int8 operators here: {NO_ONEDNN}')


@pytest.fixture(scope='module')
def repq():
    return simulated('RepQ', w_bits=4, low_a_bits=4, low_ratios=0.4, prune_ratios=0.2)


@pytest.mark.parametrize('bits', range(2, 9))
def test_packed_codes_come_back(bits):
    codes = torch.randint(0, 2**bits, (5, 7), generator=torch.Generator().manual_seed(bits))
    packed = pack_codes(codes, bits)
    assert packed.numel() == -(-35 * bits // 8)
    assert torch.equal(unpack_codes(packed, bits, (5, 7)).long(), codes)


def test_packed_codes_of_another_count_are_refused():
    with pytest.raises(ValueError, match='do not make 36 codes'):
        unpack_codes(pack_codes(torch.zeros(35), 4)[:-1], 4, (6, 6))


@pytest.mark.parametrize('method', ['MinMax', 'Percentile', 'MSE', 'RepQ', 'ERQ', 'LSQ', 'OFQ'])
@pytest.mark.parametrize('size', [(50, 67), (64, 64), (23, 41)])
def test_numbers_are_the_simulated_ones(method, size):
    model = simulated(method, low_a_bits=4, low_ratios=0.5)
    x = tiny_backbone.images(1, size)[0]
    with torch.no_grad():
        assert relative_error(model(x), integer(model)(x)) < ROUNDING


@pytest.mark.parametrize(('method', 'options'), SHORT.items())
def test_numbers_of_searched_and_trained_grids_are_the_simulated_ones(method, options):
    model = simulated(method, a_bits=4, low_a_bits=3, low_ratios=0.5, quant_options=options)
    x = tiny_backbone.images(1)[0]
    with torch.no_grad():
        assert relative_error(model(x), integer(model)(x)) < ROUNDING


@pytest.mark.parametrize('method', ['RepQ', 'OFQ'])
def test_layers_between_the_blocks_convert_at_bits_of_their_own(method):
    model = simulated(method, w_bits=4, a_bits=4, edge_bits=8)
    rows = Table(convert_backbone(model)).layers
    assert [rows[path]['bits'] for path in ('patch_embed.projection', 'stages.0.downsample.reduction')] == [8, 8]
    assert rows['stages.0.blocks.0.attn.w_msa.proj']['bits'] == 4
    x = tiny_backbone.images(1)[0]
    with torch.no_grad():
        assert relative_error(model(x), integer(model)(x)) < ROUNDING


@pytest.mark.parametrize(('low', 'prune'), [(0.0, 0.0), (1.0, 0.0), (0.3, 0.3), (0.0, 0.5), (0.0, 1.0)])
def test_every_ratio_of_a_batch(repq, low, prune):
    repq.set_ratios(low, prune)
    x = torch.cat(tiny_backbone.images(2))
    with torch.no_grad():
        assert relative_error(repq(x), integer(repq)(x)) < ROUNDING


@pytest.mark.parametrize('engine', ['kernels', 'onednn'])
@pytest.mark.parametrize('method', ['MinMax', 'RepQ', 'LSQ', 'OFQ'])
@pytest.mark.parametrize(('bits', 'low', 'prune'), [(8, 0.0, 0.0), (8, 0.4, 0.3), (4, 0.4, 0.3)])
@pytest.mark.parametrize('size', [(50, 67), (64, 64)])
def test_faster_engines_agree_with_torch(engine, method, bits, low, prune, size):
    loaded, reason = BACKENDS.get(engine).load()
    if loaded is None:
        pytest.skip(reason)
    model = simulated(method, low_a_bits=bits, low_ratios=low, prune_ratios=prune)
    x = torch.cat(tiny_backbone.images(2, size))
    assert relative_error(integer(model)(x), integer(model, engine)(x)) < GROWTH[bits]


@needs_onednn
@pytest.mark.parametrize('method', ['AdaLog', 'NoisyQuant', 'APHQ'])
def test_searched_and_trained_grids_on_onednn(method):
    model = simulated(method, a_bits=4, low_a_bits=3, low_ratios=0.5, quant_options=SHORT[method])
    x = tiny_backbone.images(1)[0]
    with torch.no_grad():
        assert relative_error(integer(model)(x), integer(model, 'onednn')(x)) < GROWTH[4]


@needs_onednn
def test_onednn_makes_codes_for_the_neck():
    """Channels last, and the floats are those of torch as they lie."""
    twin, x = integer(simulated('MinMax'), 'onednn'), torch.cat(tiny_backbone.images(2))
    floats, grid = twin(x), Grid(0.05, 100, 8)
    twin.hand_over(0, grid)
    codes = twin(x)[0]
    assert floats[0].is_contiguous()
    assert codes.is_contiguous(memory_format=torch.channels_last)
    assert (codes.int() - to_codes(floats[0], grid).int()).abs().max() <= 1


def test_symmetric_weights_and_few_bits():
    model = simulated('MinMax', w_bits=3, a_bits=5, low_a_bits=2, w_symmetric=True, low_ratios=0.5)
    x = tiny_backbone.images(1)[0]
    with torch.no_grad():
        assert relative_error(model(x), integer(model)(x)) < ROUNDING


def test_windows_are_those_of_the_simulated_backbone(repq):
    repq.set_ratios(0.3, 0.3)
    twin, x = integer(repq), tiny_backbone.images(1)[0]
    with torch.no_grad(), repq.record_windows() as there, twin.record_windows() as here:
        repq(x)
        twin(x)
    assert [record.counts for record in here] == [record.counts for record in there]
    assert torch.equal(here[0].regular.order, there[0].regular.order)


def test_state_can_be_saved_and_loaded_again(repq):
    twin = integer(repq)
    other = integer(repq)
    other.load_state_dict(twin.state_dict())
    x = tiny_backbone.images(1)[0]
    assert relative_error(twin(x), other(x)) == 0


def test_training_mode_and_gradients_do_not_exist(repq):
    twin = integer(repq).train()
    assert not twin.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_float_and_uncalibrated_models_are_refused():
    with pytest.raises(ValueError, match='is not a quantized TwoBranchSwin'):
        convert_backbone(tiny_backbone.backbone())
    with pytest.raises(NotCalibratedError, match=r'^not calibrated: patch_embed.*PTQLoop'):
        convert_backbone(tiny_backbone.backbone({'method': 'MinMax'}))


def test_float_roles_are_refused():
    model = simulated('MinMax')
    model.stages[0].blocks[0].attn.w_msa.query_key = None
    with pytest.raises(ValueError, match='q, k stay float; remove the override'):
        convert_backbone(model)


def test_compensated_weights_are_refused():
    model = simulated('RepQ')
    model.stages[0].blocks[0].attn.w_msa.proj.compensation = torch.nn.Identity()
    with pytest.raises(
        ValueError, match=r'stages.0.blocks.0.attn.w_msa.proj: a low-rank compensation has no integer form'
    ):
        convert_backbone(model)


def test_foreign_states_are_refused(repq):
    twin = IntegerSwin(**tiny_backbone.ARCHITECTURE, engine='torch')
    with pytest.raises(ValueError, match=r'no integer backbone; run tools/deploy.py convert'):
        twin.load_state_dict(repq.state_dict())
    with pytest.raises(ValueError, match='stage 0 of the config'):
        twin.load_state_dict(convert_backbone(repq))
    with pytest.raises(ValueError, match='no weights yet'):
        twin(tiny_backbone.images(1)[0])


def test_a_version_from_the_future_is_refused(repq):
    state = convert_backbone(repq)
    state[HEADER] = write_header({**Table(state).header, 'version': VERSION + 1})
    with pytest.raises(ValueError, match=f'version {VERSION + 1}.*update'):
        integer(repq).load_state_dict(state)


def test_incomplete_states_are_refused(repq):
    state = convert_backbone(repq)
    del state['stages.0.blocks.1.ffn.layers.0.0.codes']
    with pytest.raises(ValueError, match=r"lacks 'stages.0.blocks.1.ffn.layers.0.0.codes'"):
        integer(repq).load_state_dict(state)


def test_wrong_options_are_refused(repq):
    with pytest.raises(ValueError, match='engine'):
        IntegerSwin(engine='fpga')
    with pytest.raises(ValueError, match='takes no quant'):
        IntegerSwin(quant={'method': 'MinMax'})


def test_the_plan_is_one_line(repq):
    line = integer(repq).plan.line
    assert line.startswith('high windows A8 and low windows A4 run as')
    assert '\n' not in line
