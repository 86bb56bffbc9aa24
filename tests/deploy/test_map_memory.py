"""Memory of maps: used again when nobody holds it, and never before."""

from __future__ import annotations

import torch

from mixaq_mmdet.deploy.kernels.memory import Memory


def test_memory_comes_back_when_the_tensor_is_gone():
    memory = Memory()
    first = memory.take(2, 30, 8)
    address = first.data_ptr()
    del first
    again = memory.take(10, 4)  # smaller: fits
    assert again.shape == (10, 4)
    assert again.data_ptr() == address


def test_a_view_keeps_the_memory():
    memory = Memory()
    held = memory.take(4, 6).fill_(1).permute(1, 0)[2]
    other = memory.take(4, 6).fill_(2)
    assert (held == 1).all()
    assert (other == 2).all()


def test_growing_maps_leave_one_buffer():
    memory = Memory()
    for side in (3, 50, 20, 80, 80, 10):
        assert memory.take(side, side).numel() == side * side
        assert len(memory._free) == 1
    assert memory._free[0].numel() == 6400


def test_what_is_held_at_once_lies_apart():
    memory = Memory()
    for _ in range(3):
        held = [memory.take(100).fill_(number) for number in range(4)]
        assert [tensor.unique().tolist() for tensor in held] == [[0.0], [1.0], [2.0], [3.0]]
        del held
    assert len(memory._free) == 4


def test_memory_of_inference_mode_serves_training():
    memory = Memory()
    with torch.inference_mode():
        memory.take(8)
    weight = torch.ones(8, requires_grad=True)
    (weight * memory.take(8).fill_(3)).sum().backward()
    assert (weight.grad == 3).all()
