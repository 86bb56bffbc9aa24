"""Ratios by config and at run time, and what is refused with which words."""

import copy
import re

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS as MMDET
from mmengine.registry import MODELS as ROOT
from stock_twin import TINY, images

from mixaq_mmdet.models import TwoBranchSwin


def build(**changes) -> TwoBranchSwin:
    return TwoBranchSwin(**{**TINY, **changes})


@pytest.mark.parametrize(
    ('depths', 'pairs'), [((2, 2, 6, 2), 6), ((2, 2, 18, 2), 12), ((1, 1, 1, 1), 4), ((2, 1, 3, 2), 5)]
)
def test_an_odd_last_block_is_its_own_pair(depths, pairs):
    model = build(depths=depths, low_ratios=0.5)
    assert model.num_pairs == pairs
    assert model.low_ratios == (0.5,) * pairs
    assert model.prune_ratios == (0.0,) * pairs


def test_both_registries_build_it_from_a_config():
    config = dict(type='TwoBranchSwin', low_ratios=[0.8, 0.2, 0.6, 0.7, 0.3], importance=dict(type='L2'), **TINY)
    for registry in (ROOT, MMDET):
        assert registry.build(copy.deepcopy(config)).low_ratios == (0.8, 0.2, 0.6, 0.7, 0.3)


def test_ratios_are_kept_in_whole_hundredths():
    model = build(low_ratios=[0.333, 0.1 + 0.2, 1, 0, 0.005])
    assert model.low_ratios == (0.33, 0.3, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    'number', [np.array(0.3), np.float32(0.3), torch.tensor(0.3)], ids=lambda value: str(type(value))
)
def test_arrays_and_tensors_are_numbers_and_lists_of_numbers(number):
    model = build(low_ratios=number, prune_ratios=[number] * 5)
    assert model.low_ratios == model.prune_ratios == (0.3,) * 5
    model.set_ratios(low=number.reshape(1).repeat(5))
    assert model.low_ratios == (0.3,) * 5


def test_set_ratios_changes_what_is_given():
    model = build(low_ratios=0.2)
    model.set_ratios(prune=0.3)
    assert (model.low_ratios[0], model.prune_ratios[0]) == (0.2, 0.3)
    model.set_ratios(low=[0.1, 0.2, 0.3, 0.4, 0.5])
    assert model.low_ratios == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert model.prune_ratios[0] == 0.3


def test_other_ratios_hold_inside_a_context_in_both_modes():
    model = build(low_ratios=0.2, prune_ratios=0.1)
    model.sample_ratios(0.6)
    with model.at_ratios(low=0.4) as inside:
        assert inside is model
        for mode in (True, False):
            model.train(mode)
            assert (model.low_ratios[0], model.prune_ratios[0]) == (0.4, 0.1)
        with pytest.raises(KeyError), model.at_ratios(0.0, 0.0):
            raise KeyError
        assert (model.low_ratios[0], model.prune_ratios[0]) == (0.4, 0.1)
        with pytest.raises(ValueError, match='prune_ratios'), model.at_ratios(prune=7):
            pass
    assert (model.low_ratios[0], model.prune_ratios[0]) == (0.2, 0.1)
    model.train()
    assert (model.low_ratios[0], model.prune_ratios[0]) == (0.6, 0.0)


def test_sampled_ratios_hold_in_train_mode_only():
    model = build(low_ratios=0.2, prune_ratios=0.1)
    model.sample_ratios(0.6)
    assert model.training
    assert (model.low_ratios[0], model.prune_ratios[0]) == (0.6, 0.0)
    model.eval()
    assert (model.low_ratios[0], model.prune_ratios[0]) == (0.2, 0.1)
    model.train()
    assert model.low_ratios[0] == 0.6
    model.set_ratios(low=0.3)
    assert model.low_ratios[0] == 0.3


def test_the_next_forward_uses_the_ratios_of_its_mode():
    model = build()
    model.sample_ratios(0.5)
    model.set_ratios(prune=0.5)
    model.sample_ratios(0.25)
    x = images(1, 3, 64, 64, dtype=torch.float32)
    for mode, low, pruned in ((True, 4, 0), (False, 0, 8)):
        model.train(mode)
        with torch.no_grad(), model.record_windows() as records:
            model(x)
        assert records[0].counts[0][1:] == (low, pruned)


def test_refused_ratios_change_nothing():
    model = build(low_ratios=0.2)
    with pytest.raises(ValueError, match='prune_ratios'):
        model.set_ratios(low=0.5, prune=7)
    assert model.low_ratios == (0.2,) * 5


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(low_ratios=[0.1, 0.2]), 'low_ratios has 2 values; give one number or 5, one for each block pair'),
        (dict(prune_ratios=[0.1] * 6), 'prune_ratios has 6 values; give one number or 5'),
        (dict(low_ratios=1.5), r'low_ratios\[0\]=1.5 must be a number in \[0, 1\]'),
        (dict(low_ratios=[0, 0, -0.1, 0, 0]), r'low_ratios\[2\]=-0.1 must be a number in \[0, 1\]'),
        (dict(prune_ratios=float('nan')), r'prune_ratios\[0\]=nan must be a number in \[0, 1\]'),
        (dict(low_ratios='half'), "low_ratios='half' must be a number or a list of 5 numbers"),
        (dict(low_ratios={0: 0.5, 1: 0.2}), r'low_ratios=\{0: 0.5, 1: 0.2\} must be a number or a list of 5 numbers'),
        (dict(low_ratios=True), r'low_ratios\[0\]=True must be a number in \[0, 1\]'),
        (dict(prune_ratios=[0, 0, np.array(True), 0, 0]), r'prune_ratios\[2\]=True must be a number in \[0, 1\]'),
        (dict(low_ratios=['0.5'] * 5), r"low_ratios\[0\]='0.5' must be a number"),
        (dict(low_ratios=0.6, prune_ratios=0.5), r'low_ratios\[0\]=0.6 and prune_ratios\[0\]=0.5 add up.*lower one'),
        (dict(importance='Entropy'), "importance='Entropy' is unknown; use one of"),
        (dict(window_size=1), 'window_size=1 must be an integer of at least 2; stock Swin uses 7'),
        (dict(window_size=0), 'window_size=0 must be'),
        (dict(window_size=(7, 7)), r'window_size=\(7, 7\) must be'),
        (
            dict(low_ratio=0.5),
            r"model\.backbone has unknown keys \['low_ratio'\]; use some of .*'low_ratios'.*'embed_dims'",
        ),
        (dict(num_heads=(1, 2, 4)), r'num_heads=\(1, 2, 4\) must have a value for each of the 4 stages'),
        (dict(strides=[4]), r'strides=\[4\] must have a value for each of the 4 stages'),
        (dict(num_heads=2), r'num_heads=2 must be a list such as \(3, 6, 12, 24\)'),
        (dict(out_indices=(0, 5)), r'out_indices=\(0, 5\) must be some of the stages of depths, \[0, 1, 2, 3\]'),
        (dict(out_indices=()), r'out_indices=\(\) must be some of the stages'),
        (dict(frozen_stages=5), r'frozen_stages=5 must be -1 \(none\) to 4'),
    ],
    ids=str,
)
def test_bad_arguments_name_the_field_and_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize('shape', [(1, 3, 0, 64), (1, 3, 64, 0), (0, 3, 64, 64), (3, 64, 64)], ids=str)
def test_empty_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r'empty side.*give \(batch, channels, height, width\)'):
        build()(torch.zeros(shape))


@pytest.mark.parametrize('trained', [64, (96,), (96, 64)], ids=str)
def test_a_position_embedding_is_for_one_size(trained):
    model = build(use_abs_pos_embed=True, pretrain_img_size=trained).eval()
    height, width = model._pretrain_size
    model(torch.zeros(1, 3, height, width))
    model(torch.zeros(1, 3, height - 1, width - 3))  # patches are padded
    for shape in ((height + 4, width), (width - 8, height + 8)):
        with pytest.raises(ValueError, match=r'do not fit pretrain_img_size=.*use_abs_pos_embed=True'):
            model(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_non_finite_inputs_are_refused_in_eval_mode_and_on_request_in_training(value):
    x = images(2, 3, 64, 64, dtype=torch.float32)
    x[1, 2, 5, 7] = value
    for model in (build().eval(), build(check_finite=True)):
        with pytest.raises(ValueError, match='inputs hold NaN or infinite values; check the images'):
            model(x)
    build()(x)


def test_finite_inputs_pass_even_if_their_sum_overflows():
    build().eval()(torch.full((1, 3, 64, 64), 3e38))


def saved(**changes) -> dict[str, torch.Tensor]:
    return build(**changes).state_dict()


def test_files_of_another_architecture_are_refused_with_the_sizes():
    with pytest.raises(ValueError, match=r'another architecture.*patch_embed.projection.weight: \(16, 3, 4, 4\) in'):
        build().load_state_dict(saved(embed_dims=16), strict=False)
    with pytest.raises(ValueError, match=r'another architecture.*relative_position_bias_table'):
        build().load_state_dict(saved(window_size=5), strict=False)


def test_files_that_lack_parameters_are_refused_with_their_names():
    incomplete = {name: value for name, value in saved().items() if '.attn.' not in name}
    with pytest.raises(ValueError, match=r'lacks \d+ of \d+ backbone.*convert_checkpoint.*Missing: stages.0'):
        build().load_state_dict(incomplete, strict=False)


def test_output_norms_may_be_missing_as_in_classification_files():
    incomplete = {name: value for name, value in saved().items() if not name.startswith('norm')}
    build().load_state_dict(incomplete, strict=False)
    with pytest.raises(
        ValueError, match=r'another architecture.*norm1.weight: \(7,\) in the file, \(16,\) in the model'
    ):
        build().load_state_dict({**incomplete, 'norm1.weight': torch.ones(7)}, strict=False)


@pytest.mark.parametrize('depths', [(2, 2, 4, 2), (2, 2, 2, 2), (2, 2, 3)], ids=str)
def test_files_of_other_depths_are_refused(depths):
    file = saved(depths=depths, out_indices=(0, 1, 2))
    with pytest.raises(ValueError, match=re.escape(f'depths: {depths} in the file, (2, 2, 3, 2) in the model')):
        build(depths=(2, 2, 3, 2)).load_state_dict(file, strict=False)


def test_what_other_versions_store_and_fewer_outputs_are_no_fault():
    file = {f'backbone.{name}': value for name, value in saved().items()}
    file['backbone.stages.0.blocks.1.attn_mask'] = torch.zeros(4, 16, 16)
    file['backbone.stages.0.blocks.1.attn.w_msa.relative_position_index'] = torch.zeros(16, 16)
    detector = torch.nn.ModuleDict({'backbone': build(out_indices=(1, 2))})
    detector.load_state_dict(file, strict=False)
    assert torch.equal(detector.backbone.norm1.weight, file['backbone.norm1.weight'])


@pytest.mark.parametrize('state', ['calibrated', 'folded'])
def test_quantizer_state_without_its_config_is_refused_by_a_float_backbone(state):
    file = saved(quant=dict(method='RepQ', w_bits=4, a_bits=4))
    del file['quant_config']
    build().load_state_dict(file, strict=False)  # neither calibrated nor folded: the weights are float ones
    key = next(name for name in file if name.endswith(f'.{state}'))
    file[key] = torch.ones_like(file[key])
    with pytest.raises(ValueError, match=r'model\.backbone\.quant is absent.*Found: ' + re.escape(key)):
        build().load_state_dict(file, strict=False)
