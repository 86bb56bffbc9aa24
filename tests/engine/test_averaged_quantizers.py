"""EMAHook beside learned quantizers: validation and files use averaged steps, training goes on with its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import DefaultScope
from tiny_backbone import backbone, images

from mixaq_mmdet.engine import SparsityAwareOptimWrapper
from mixaq_mmdet.engine.calibration import Calibrator

MOMENTUM = 0.5


def quantized(method: str):
    quant = {'method': method, 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}
    return backbone(quant, drop_path_rate=0.0)


def values(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('method', ['LSQ', 'OFQ'])
def test_steps_are_averaged_and_given_back(method):
    model = quantized(method)
    runner = SimpleNamespace(model=model, iter=0, _resume=False)
    hook = EMAHook(momentum=MOMENTUM)
    with DefaultScope.overwrite_default_scope('mmengine'):
        hook.before_run(runner)  # before calibration, as in a Runner
    Calibrator(model).run(images())
    model.train()
    wrapper = SparsityAwareOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    average: dict[str, torch.Tensor] = {}
    for runner.iter in range(3):
        with wrapper.optim_context(model):
            loss = sum(out.square().mean() for out in model(torch.cat(images())))
        wrapper.update_params(loss)
        hook.after_train_iter(runner, runner.iter)
        average = {name: value.lerp(average.get(name, value), MOMENTUM) for name, value in values(model).items()}
    trained = values(model)
    moved = [name for name in average if name.endswith('.step') and not torch.equal(average[name], trained[name])]
    assert moved

    checkpoint = {'state_dict': model.state_dict()}
    hook.before_save_checkpoint(runner, checkpoint)
    restored = quantized(method)
    restored.load_state_dict(checkpoint['state_dict'])
    assert_equal(values(restored), average)

    model.eval()
    hook.before_val_epoch(runner)
    assert_equal(values(model), average)
    with torch.no_grad():
        for found, expected in zip(model(images()[0]), restored(images()[0]), strict=True):
            torch.testing.assert_close(found, expected)
    hook.after_val_epoch(runner)
    assert_equal(values(model), trained)
