"""Calibration on two ranks: ranges are those of one; what is solved or trained ends with the same numbers on both."""

import pytest
import torch
from forked import on_two_ranks
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator

BITS = {'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4}
STATISTICS = ['MinMax', 'Percentile', 'MSE', 'RepQ']
SEARCHED = {
    'AdaLog': {'keep': 2, 'expansions': 0, 'rounds': 1, 'output_expansions': 0, 'rows': 8},
    'PTQ4ViT': {'candidates': 4, 'rounds': 1, 'rows': 8},
    'NoisyQuant': {'shift_steps': 2, 'noise_steps': 2, 'rows': 8},
}
AIQVIT = {'method': 'AIQViT', **BITS, 'ranks': [0, 2, 4], 'steps': 4, 'search_steps': 3}

FIMAQ = {'method': 'FIMAQ', **BITS, 'steps': 3, 'rows': 2, 'lr': 0.5}


def calibrated_state(quant, batches):
    model = backbone(quant)
    Calibrator(model).run(batches)
    return model.state_dict()


def mixed_sizes():
    return [*images(2), *images(1, (32, 40), seed=8)]


def calibrate_all(rank):
    """Everything that this file looks at, as one rank sees it."""
    own = mixed_sizes()[rank::2]
    states = {method: calibrated_state({'method': method, **BITS}, own) for method in STATISTICS}
    states['ERQ'] = calibrated_state({'method': 'ERQ', **BITS}, own)
    states['solved by one'] = calibrated_state({'method': 'ERQ', **BITS}, mixed_sizes()[:1][rank::2])
    for method, options in SEARCHED.items():
        states[method] = calibrated_state({'method': method, **BITS, **options}, mixed_sizes()[:1][rank::2])
    states['uneven'] = calibrated_state(AIQVIT, own)
    states['one image'] = calibrated_state(AIQVIT, mixed_sizes()[:1][rank::2])
    states['rounded'] = calibrated_state(FIMAQ, own)
    states['rounded by one'] = calibrated_state(FIMAQ, mixed_sizes()[:1][rank::2])
    with pytest.raises(ValueError, match='diverged') as error:
        # the second step diverges on the rank that has images; the other one must not wait for it
        calibrated_state({**AIQVIT, 'ranks': [4], 'lr': 1e30}, mixed_sizes()[:1][rank::2])
    states['diverged'] = str(error.value)
    return states


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    return on_two_ranks(calibrate_all, tmp_path_factory.mktemp('ranks'))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize('method', STATISTICS)
def test_two_ranks_give_exactly_the_quantizers_of_one(ranks, method):
    reference = calibrated_state({'method': method, **BITS}, mixed_sizes())
    for rank in ranks:
        assert_same(rank[method], reference)


def test_closed_forms_give_both_ranks_what_one_rank_finds(ranks):
    """Equal bits on both; sums of float64 in another order differ from one rank's by their last digits."""
    assert_same(ranks[0]['ERQ'], ranks[1]['ERQ'])
    for state, reference in (
        (ranks[0]['ERQ'], calibrated_state({'method': 'ERQ', **BITS}, mixed_sizes())),
        (ranks[1]['solved by one'], calibrated_state({'method': 'ERQ', **BITS}, mixed_sizes()[:1])),
    ):
        for name, value in reference.items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize('method', SEARCHED)
def test_searches_by_outputs_choose_the_same_on_both_ranks(ranks, method):
    """Also where one of them has no images."""
    assert_same(ranks[0][method], ranks[1][method])


def test_reconstruction_gives_both_ranks_the_same_parameters(ranks):
    """Not those of one rank: a step averages the gradients of an image from each."""
    assert_same(ranks[0]['uneven'], ranks[1]['uneven'])
    alone = calibrated_state(AIQVIT, mixed_sizes())
    learned = [name for name in alone if name.endswith('compensation.up')]
    assert learned
    assert any(not torch.equal(ranks[0]['uneven'][name], alone[name]) for name in learned)
    assert_same(ranks[0]['rounded'], ranks[1]['rounded'])


def test_a_rank_without_images_has_no_say_in_a_reconstruction(ranks):
    alone = calibrated_state(AIQVIT, mixed_sizes()[:1])
    rounded_alone = calibrated_state(FIMAQ, mixed_sizes()[:1])
    for rank in ranks:
        assert_same(rank['one image'], alone)
        assert_same(rank['rounded by one'], rounded_alone)


def test_divergence_ends_every_rank(ranks):
    assert ranks[0]['diverged'] == ranks[1]['diverged']
