"""Row moves against plain indexing, gradients included."""

import torch
from torch.autograd import gradcheck, gradgradcheck

from mixaq_mmdet.windows.rows import replace_rows, spread_rows, take_rows, with_zero_gradients

INDEX = torch.tensor([4, 0, 3])


def stream(rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)


def test_values_are_those_of_plain_indexing():
    x, part = stream(), stream(3)
    assert torch.equal(take_rows(x, INDEX), x[INDEX])
    expected = torch.zeros(5, 2, dtype=torch.float64)
    expected[INDEX] = part.detach()
    assert torch.equal(spread_rows(part, INDEX, 5), expected)
    expected = x.detach().clone()
    expected[INDEX] = part.detach()
    assert torch.equal(replace_rows(x, INDEX, part), expected)


def test_gradients_are_right_and_differentiable():
    x, part = stream(), stream(3)
    permutation = torch.tensor([2, 0, 1])
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x: take_rows(x, INDEX), x)
        assert check(lambda part: spread_rows(part, INDEX, 5), part)
        assert check(lambda part: spread_rows(part, permutation, 3), part)
        assert check(lambda x, part: replace_rows(x, INDEX, part), (x, part))
        assert check(lambda x, part: replace_rows(x, permutation, part), (stream(3), part))


def test_unused_parameters_get_a_gradient_of_zero():
    x, unused = stream(), stream(3)
    with_zero_gradients(x, [unused]).sum().backward()
    assert torch.equal(unused.grad, torch.zeros(3, 2))
    assert torch.equal(x.grad, torch.ones(5, 2))
