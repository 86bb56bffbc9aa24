"""The fused attention against its definition, gradients included."""

import pytest
import torch
from torch.autograd import gradcheck

from mixaq_mmdet.models import window_attention
from mixaq_mmdet.models.window_attention import attend
from mixaq_mmdet.windows.assignment import Segment

HEADS, TOKENS, CHANNELS = 2, 4, 6
SEGMENTS = (Segment(0, 3, 0), Segment(3, 4, 2), Segment(4, 7, 0))


def definition(qkv: torch.Tensor, biases: torch.Tensor, scale: float) -> torch.Tensor:
    q, k, v = qkv.view(len(qkv), TOKENS, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    kinds = torch.cat([torch.full((stop - start,), kind) for start, stop, kind in SEGMENTS])
    attention = (scale * q @ k.transpose(-2, -1) + biases[kinds]).softmax(-1)
    return (attention @ v).transpose(1, 2).reshape(len(qkv), TOKENS, CHANNELS)


@pytest.fixture
def operands() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(7, TOKENS, 3 * CHANNELS, generator=generator, dtype=torch.float64)
    return qkv, torch.randn(3, HEADS, TOKENS, TOKENS, generator=generator, dtype=torch.float64)


def test_inference_and_training_follow_the_definition(operands):
    expected = definition(*operands, 0.3)
    torch.testing.assert_close(attend(*operands, SEGMENTS, HEADS, 0.3), expected)
    trained = attend(*(x.requires_grad_() for x in operands), SEGMENTS, HEADS, 0.3)
    torch.testing.assert_close(trained, expected)


@pytest.mark.parametrize('chunk', [1, 2 * HEADS * TOKENS**2, 10**6])
def test_gradients_are_right_whatever_the_chunk(operands, chunk, monkeypatch):
    monkeypatch.setattr(window_attention, 'CHUNK_VALUES', chunk)
    operands = tuple(x.requires_grad_() for x in operands)
    assert gradcheck(lambda qkv, biases: attend(qkv, biases, SEGMENTS, HEADS, 0.3), operands)


def test_gradients_of_a_bias_no_window_needs_are_zero(operands):
    qkv, biases = (x.requires_grad_() for x in operands)
    attend(qkv, biases, SEGMENTS, HEADS, 0.3).sum().backward()
    assert biases.grad[1].count_nonzero() == 0
    assert qkv.grad.isfinite().all()


def test_half_precision_gradients_are_computed_in_float32(operands):
    """bfloat16 operands alone limit the accuracy, not the attention matrices of the backward."""
    exact = [x.to(torch.bfloat16).double().requires_grad_() for x in operands]
    half = [x.detach().to(torch.bfloat16).requires_grad_() for x in exact]
    for qkv, biases in (exact, half):
        attend(qkv, biases, SEGMENTS, HEADS, 0.3).square().sum().backward()
    error = (half[0].grad.double() - exact[0].grad).norm() / exact[0].grad.norm()
    assert error < 6e-3


def test_dropout_drops(operands):
    qkv, biases = (x.requires_grad_() for x in operands)
    torch.manual_seed(0)
    dropped = attend(qkv, biases, SEGMENTS, HEADS, 0.3, dropout=0.5)
    assert not torch.allclose(dropped, attend(qkv, biases, SEGMENTS, HEADS, 0.3))
    dropped.sum().backward()
    assert biases.grad is not None
