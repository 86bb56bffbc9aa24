"""The training benchmark: rivals that compute the same, rounds that a stopped run keeps, verdicts."""

from __future__ import annotations

import json

import pytest
import qat
import torch

from mixaq_mmdet.quantization.learned_grid import Parameters, Part, learned_fake_quantize

PARTS = [Part(0, 3, -8, 7, 0.5), Part(3, 5, -2, 1, 0.25)]


def leaves(per_token: bool) -> list[torch.Tensor]:
    """An input (5, 4, 6), then step and offsets of both parts."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 4, 6)] + [(1, 4, 1) if per_token else (), (1, 1, 6), (1, 1, 6)] * 2
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    for position in (1, 4):
        tensors[position] = tensors[position].abs() + 0.3
    return [tensor.requires_grad_() for tensor in tensors]


def with_gradients(function, tensors, offsets: bool):
    x, *rest = tensors
    groups = [Parameters(*(rest[i : i + 3] if offsets else (rest[i], None, None))) for i in (0, 3)]
    out = function(x, PARTS, groups)
    used = [x, *[tensor for group in groups for tensor in group if tensor is not None]]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad((out * weights).sum(), used)]


def test_the_composition_computes_what_our_operation_does():
    for found, expected in zip(
        with_gradients(qat.naive, leaves(True), True),
        with_gradients(learned_fake_quantize, leaves(True), True),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_torch_computes_the_same_where_it_can():
    """One step for the tensor, no offsets. (Its gradients stop half a step further out, where codes are clipped.)"""
    found, expected = (
        with_gradients(function, leaves(False), False) for function in (qat.torch_operation, learned_fake_quantize)
    )
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert [grad.shape for grad in found] == [grad.shape for grad in expected]


def test_a_stopped_run_goes_on(tmp_path):
    path, calls = tmp_path / 'qat.unfinished', []

    def step(arm, draw):
        if len(calls) == 12:
            raise KeyboardInterrupt
        calls.append((arm, draw))

    def steps():
        return {arm: lambda draw, arm=arm: step(arm, draw) for arm in qat.ARMS}

    with pytest.raises(KeyboardInterrupt):
        qat.time_rounds(steps, qat.Record(path, {'batch': 2}), 7, 'cpu')
    kept = json.loads(path.read_text())['rounds']
    assert [sorted(entry) for entry in kept] == [sorted(qat.ARMS), ['ours', 'stock'], ['ours', 'stock']]
    calls = [None] * 13  # no further interruption
    record = qat.Record(path, {'batch': 2})
    qat.time_rounds(steps, record, 7, 'cpu')
    assert len(record.rounds) == 7
    assert record.rounds[:3] == kept
    assert [draw for arm, draw in calls[17:] if arm == 'ours'] == [3, 4, 5, 6]
    assert [draw for arm, draw in calls[17:] if arm == 'naive'] == [5]
    assert qat.Record(path, {'batch': 4}).rounds == [], 'other settings begin anew'


def test_figures_and_verdicts():
    rounds = [{'stock': 1.0, 'ours': 1.2, 'naive': 3.0, 'torch': 2.0}, {'stock': 2.0, 'ours': 3.2}]
    rows = qat.summary(rounds, {'stock': 100, 'ours': 150, 'naive': 300, 'torch': 200})
    assert rows['ours'] == pytest.approx({'time': 1.4, 'least': 1.2, 'most': 1.6, 'draws': 2, 'memory': 1.5})
    assert rows['naive'] == {'time': 3.0, 'least': 3.0, 'most': 3.0, 'draws': 1, 'memory': 3.0}
    assert [line.split()[-1] for line in qat.verdicts(rows)] == ['holds', 'MISSED']
