"""The sparsity-aware wrapper: when ratios change, who decides them, what a checkpoint carries, what is logged."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from forked import on_two_ranks
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from tiny_backbone import backbone, images
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mixaq_mmdet.engine import SparsityAwareAmpOptimWrapper, SparsityAwareOptimWrapper
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.ratio_sampling import RatioSampler
from mixaq_mmdet.models.backbone_cost import backbone_bops
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.quantization.quantizers.base import quantizer_mode

BATCH = torch.cat(images(4))


class Net(nn.Module):
    """A backbone whose loss is a mean over images, so that halves of a batch add up to the batch."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.backbone = backbone(drop_path_rate=0.0, **options)
        self.train()

    def forward(self, batch: Tensor) -> Tensor:
        losses = [out.square().mean(dim=(1, 2, 3)) for out in self.backbone(batch)]
        return torch.stack(losses).sum(0).mean()


def sgd(net: nn.Module, **options) -> SparsityAwareOptimWrapper:
    return SparsityAwareOptimWrapper(torch.optim.SGD(net.parameters(), lr=0.05), **options)


def step(net: nn.Module, wrapper: OptimWrapper, batch: Tensor = BATCH) -> float:
    with wrapper.optim_context(net):
        loss = net(batch)
    wrapper.update_params(loss)
    return float(loss.detach())


def backbone_of(net: nn.Module) -> TwoBranchSwin:
    return getattr(net, 'module', net).backbone


def train(net: nn.Module, wrapper: OptimWrapper, updates: int) -> list[tuple[tuple[float, ...], float]]:
    """(low ratios, loss) of every step."""
    found = []
    for _ in range(updates):
        loss = step(net, wrapper)
        found.append((backbone_of(net).low_ratios, loss))
    return found


def test_every_update_draws_and_validation_uses_the_configured_ratios():
    net = Net(low_ratios=0.5)
    wrapper = sgd(net, seed=3)
    ratios = [ratios for ratios, _ in train(net, wrapper, 4)]
    assert ratios == [RatioSampler(seed=3).draw(2, update)[0] for update in range(4)]
    net.eval()
    assert backbone_of(net).low_ratios == (0.5, 0.5)


def test_fixed_trains_at_the_configured_ratios():
    net = Net(low_ratios=[0.2, 0.4], prune_ratios=0.1)
    assert [ratios for ratios, _ in train(net, sgd(net, sampling='fixed'), 2)] == [(0.2, 0.4)] * 2


@pytest.mark.parametrize('with_cp', [False, True])
def test_accumulation_is_a_large_batch(with_cp):
    """Both halves of an update see the same ratios, recomputed or not, so their gradients add up to the batch's."""
    whole = Net(low_ratios=0.5)
    halves = Net(low_ratios=0.5, with_cp=with_cp)
    large, small = sgd(whole, seed=1), sgd(halves, seed=1, accumulative_counts=2)
    for _ in range(3):
        step(whole, large)
        for half in BATCH.split(2):
            step(halves, small, half)
            assert backbone_of(halves).low_ratios == backbone_of(whole).low_ratios
    for expected, found in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_continues_the_draws():
    net = Net()
    wrapper = sgd(net)
    train(net, wrapper, 2)
    file = io.BytesIO()
    torch.save({'net': net.state_dict(), 'wrapper': wrapper.state_dict()}, file)
    expected = train(net, wrapper, 3)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Net()
    resumed.load_state_dict(saved['net'])
    continued = sgd(resumed)
    continued.load_state_dict(saved['wrapper'])
    assert train(resumed, continued, 3) == expected


def test_checkpoints_pass_between_stock_and_our_wrapper():
    net = Net()
    ours, stock = sgd(net), OptimWrapper(torch.optim.SGD(net.parameters(), lr=0.05))
    train(net, ours, 1)
    stock.load_state_dict(ours.state_dict())
    ours.load_state_dict(stock.state_dict())
    assert ours.updates == 0


def test_costs_are_logged():
    net = Net(quant={'method': 'MinMax', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2})
    wrapper = sgd(net, prune=True)
    hub = MessageHub.get_current_instance()
    with quantizer_mode(net, 'float'):
        step(net, wrapper)
    names = ('low_ratio', 'prune_ratio', 'mean_activation_bits', 'relative_bops')
    scalars = {name: hub.get_scalar(f'train/{name}').current() for name in names}
    backbone_of(net).set_ratios(*RatioSampler(prune=True).draw(2, 0))
    cost = backbone_bops(backbone_of(net), tuple(BATCH.shape[2:]))
    low, prune = cost.realised
    expected = (sum(low) / 2, sum(prune) / 2, cost.mean_activation_bits(), cost.relative())
    assert scalars == pytest.approx(dict(zip(names, expected, strict=True)))
    assert 0 < scalars['relative_bops'] < 1
    copy.deepcopy(net)  # EMA copies the model: nothing of the wrapper may hang on it
    assert not backbone_of(net)._forward_pre_hooks


def test_a_model_without_the_backbone_is_refused():
    model = nn.Linear(2, 2)
    wrapper = SparsityAwareOptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    with (
        pytest.raises(ValueError, match=r'Linear holds no TwoBranchSwin; set model\.backbone\.type'),
        wrapper.optim_context(model),
    ):
        pass


def built(net: nn.Module, **options) -> OptimWrapper:
    """As the Runner builds it, under mmdet's scope."""
    cfg = {
        'constructor': 'SparsityAwareOptimWrapperConstructor',
        'type': 'SparsityAwareOptimWrapper',
        'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.05},
        **options,
    }
    with DefaultScope.overwrite_default_scope('mmdet'):
        return build_optim_wrapper(net, ConfigDict(cfg))


@pytest.mark.parametrize('paramwise', [None, {'custom_keys': {'norm': {'decay_mult': 0.5}}}])
def test_scales_are_not_decayed(paramwise):
    """Low norms never, whatever the config says of norms; everything else as the config says."""
    net = Net()
    wrapper = built(net, paramwise_cfg=paramwise, max_ratio=0.5, seed=2)
    assert wrapper.sampler.top == 5
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decay = {names[id(group['params'][0])]: group['weight_decay'] for group in wrapper.optimizer.param_groups}
    assert len(decay) == len(names)
    for name, value in decay.items():
        norm = 0.05 if paramwise is None else 0.025
        assert value == (0 if '_low.' in name else norm if 'norm' in name else 0.05), name


@pytest.mark.parametrize('kind', ['AmpOptimWrapper', 'mmengine.AmpOptimWrapper', 'SparsityAwareAmpOptimWrapper'])
def test_amp_reaches_our_twin(monkeypatch, kind):
    """``--amp`` writes the stock type; on a CPU the stock class refuses, so that it is told there is a GPU."""
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    net = Net()
    wrapper = built(net, type=kind, loss_scale='dynamic', dtype='bfloat16', seed=3)
    assert isinstance(wrapper, SparsityAwareAmpOptimWrapper)
    assert [ratios for ratios, _ in train(net, wrapper, 2)] == [RatioSampler(seed=3).draw(2, n)[0] for n in range(2)]
    continued = built(Net(), type=kind, loss_scale='dynamic', seed=3)
    continued.load_state_dict(wrapper.state_dict())
    assert continued.updates == 2


@pytest.mark.parametrize(
    ('model', 'options', 'message'),
    [
        (nn.Linear(2, 2), {}, 'holds no TwoBranchSwin'),
        (None, {'max_ratio': [0.5] * 3}, 'max_ratio'),
        (None, {'sampling': 'gaussian'}, 'sampling'),
    ],
)
def test_the_constructor_refuses(model, options, message):
    with pytest.raises(ValueError, match=message):
        built(model or Net(), **options)


def quantized_net() -> Net:
    net = Net(quant={'method': 'OFQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2})
    Calibrator(net).run(images())
    return net.train()


NETS = {'float': Net, 'OFQ': quantized_net}


def train_rank(rank: int) -> dict[str, tuple[list[tuple[float, ...]], dict[str, Tensor]]]:
    """Ratios and final state of each net after three updates on this rank's half of the batch."""
    torch.manual_seed(100 + rank)  # ranks draw other numbers of everything else
    found = {}
    for name, make in NETS.items():
        net = DistributedDataParallel(make(), broadcast_buffers=False)
        wrapper = sgd(net, seed=1)
        ratios = []
        for _ in range(3):
            step(net, wrapper, BATCH.split(2)[rank])
            ratios.append(backbone_of(net).low_ratios)
        found[name] = ratios, net.module.state_dict()
    return found


def test_two_ranks_are_one_rank_with_the_doubled_batch(tmp_path):
    ranks = on_two_ranks(train_rank, tmp_path)
    for name, make in NETS.items():
        net = make()
        ratios = [ratios for ratios, _ in train(net, sgd(net, seed=1), 3)]
        (first_ratios, first), (second_ratios, second) = (rank[name] for rank in ranks)
        assert first_ratios == second_ratios == ratios
        for key, expected in net.state_dict().items():
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
            torch.testing.assert_close(first[key], expected, rtol=1e-5, atol=1e-5)


def test_what_the_low_branch_owns_learns_faster():
    """Its steps, offsets and norms, on top of what the config says of norms; weights and the high branch do not."""
    net = quantized_net()
    rates = {}
    for factor in (1, 10, 'default'):
        given = {} if factor == 'default' else {'branch_lr_mult': factor}
        wrapper = built(net, **given, paramwise_cfg={'custom_keys': {'norm': {'lr_mult': 0.5}}})
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        rates[factor] = {names[id(group['params'][0])]: group['lr'] for group in wrapper.optimizer.param_groups}
    for name, rate in rates[1].items():
        own = '.low.' in name or '_low.' in name
        assert rates[10][name] == pytest.approx(rate * (10 if own else 1)), name
    assert sum('.low.' in name for name in rates[1]) > 10
    assert rates['default'] == rates[10]
    with pytest.raises(ValueError, match=r'optim_wrapper\.branch_lr_mult=0 must'):
        built(net, branch_lr_mult=0)
