"""Without quantizers TwoBranchSwin is stock Swin, forward and backward, at every low ratio."""

import pytest
import torch
from stock_twin import TINY, assert_same, assert_twins_agree, images, twins

from mixaq_mmdet.models import TwoBranchSwin

SIZES = [(224, 224), (112, 137), (511, 511), (200, 333)]
MIXED = [0.8, 0.25, 0.6, 0.07, 0.5]


@pytest.mark.parametrize('window', [7, 4])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_equal_to_stock_at_every_size(size, window):
    stock, ours = twins(window_size=window)
    x = images(1, 3, *size)
    ours.set_ratios(MIXED)
    for training in (True, False):
        assert_twins_agree(stock, ours, x, training)
    with torch.no_grad():
        for found, expected in zip(ours(x), stock(x), strict=True):
            assert_same(found, expected, 1e-11, 'inference')


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('low', [0.0, 0.5, 1.0, MIXED], ids=str)
def test_equal_to_stock_at_every_low_ratio_for_a_batch(low, training):
    stock, ours = twins()
    ours.set_ratios(low)
    assert_twins_agree(stock, ours, images(3, 3, 112, 137), training)


@pytest.mark.parametrize(
    'changes',
    [
        dict(use_abs_pos_embed=True, pretrain_img_size=(96, 64)),
        dict(patch_norm=False),
        dict(frozen_stages=0),
        dict(frozen_stages=2),
        dict(out_indices=(0,)),
        dict(out_indices=(1, 2)),
        dict(out_indices=(3,)),
        dict(depths=(1, 3, 1, 1)),
        dict(depths=(2, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1)),
        dict(window_size=5),
        dict(window_size=2),
        dict(qkv_bias=False),
        dict(qk_scale=0.2),
        dict(mlp_ratio=2),
        dict(patch_size=2, strides=(2, 2, 2, 2)),
        dict(drop_path_rate=0.0),
        dict(with_cp=True),
        dict(act_cfg=dict(type='ReLU')),
    ],
    ids=str,
)
def test_equal_to_stock_for_every_argument(changes):
    stock, ours = twins(**changes)
    ours.set_ratios(0.4)
    for training in (True, False):
        assert_twins_agree(stock, ours, images(2, 3, 96, 64), training)


@pytest.mark.parametrize('low', [0.0, 0.5], ids=str)
def test_equal_to_stock_in_float32_at_full_width(low):
    swin_t = dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7)
    stock, ours = twins(torch.float32, spread=0.03, **swin_t)
    ours.set_ratios(low)
    x = images(1, 3, 112, 137, dtype=torch.float32)
    assert_twins_agree(stock, ours, x, training=True, tolerance=1e-5)
    ours.eval(), stock.eval()
    with torch.no_grad():
        for found, expected in zip(ours(x), stock(x), strict=True):
            assert_same(found, expected, 1e-5, 'inference')


@pytest.mark.nightly
@pytest.mark.parametrize(
    ('embed_dims', 'depths', 'num_heads', 'window'),
    [
        (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
        (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
        (128, (2, 2, 18, 2), (4, 8, 16, 32), 7),
        (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
    ],
    ids=['Swin-T', 'Swin-S', 'Swin-B', 'Swin-L'],
)
def test_equal_to_stock_for_published_architectures(embed_dims, depths, num_heads, window):
    architecture = dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads, window_size=window)
    stock, ours = twins(torch.float32, spread=0.02, **architecture)
    ours.set_ratios(0.5)
    assert_twins_agree(stock, ours, images(1, 3, 224, 224, dtype=torch.float32), training=True, tolerance=1e-5)


def test_dropout_is_as_strong_as_in_stock():
    """The random numbers differ from stock's, so that only the strength can be compared, over many images."""
    stock, ours = twins(drop_rate=0.2, attn_drop_rate=0.3, drop_path_rate=0.0, depths=(2, 2), num_heads=(1, 2),
                        strides=(4, 2), out_indices=(0, 1))  # fmt: skip
    x = images(1, 3, 32, 32).expand(64, -1, -1, -1)
    noise = []
    for model in (stock, ours):
        torch.manual_seed(0)
        model.train()
        with torch.no_grad():
            noise.append([out.std(0).mean() for out in model(x)])
    for found, expected in zip(noise[1], noise[0], strict=True):
        assert found == pytest.approx(expected.item(), rel=0.1)


def test_runs_of_windows_give_what_one_run_gives(monkeypatch):
    """Inference on a CPU works in runs; here each is a few windows, cut within branches and kinds of window."""
    _, ours = twins(own=dict(low_ratios=0.4, prune_ratios=0.1))
    x = images(2, 3, 112, 137)
    ours.eval()
    whole = ours(x)
    monkeypatch.setattr('mixaq_mmdet.models.two_branch_stage.RUN_VALUES', 0)
    monkeypatch.setattr('mixaq_mmdet.models.two_branch_stage.MIN_RUN_TOKENS', 3 * 4**2)
    with torch.no_grad():
        for found, expected in zip(ours(x), whole, strict=True):
            assert_same(found, expected, 1e-12, 'in runs')


def test_stock_files_load_strictly_and_fill_the_low_norms():
    stock, ours = twins()
    expected = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[name.replace('_low.', '.')]), name


def test_low_norms_of_its_own_files_are_kept():
    detector, other = torch.nn.Module(), torch.nn.Module()
    detector.backbone, other.backbone = TwoBranchSwin(**TINY), TwoBranchSwin(**TINY)
    torch.nn.init.constant_(detector.backbone.stages[2].blocks[1].norm2_low.bias, 7)
    other.load_state_dict(detector.state_dict(), strict=True)
    assert (other.backbone.stages[2].blocks[1].norm2_low.bias == 7).all()


def test_a_quantized_model_starts_with_the_high_norms_of_a_float_file():
    """Float training with all windows high leaves the low norms of its files behind."""
    trained, quantized = TwoBranchSwin(**TINY), TwoBranchSwin(**TINY, quant=dict(method='MinMax'))
    torch.nn.init.constant_(trained.stages[2].blocks[1].norm2.bias, 7)
    for start in (trained.state_dict(), quantized.state_dict()):
        quantized.load_state_dict(start, strict=True)
        assert (quantized.stages[2].blocks[1].norm2_low.bias == 7).all()
        torch.nn.init.constant_(quantized.stages[2].blocks[1].norm2.bias, 5)
