"""Models in OpenVINO leave the process fit for signals."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mixaq_mmdet.deploy.export.targets import find_target

onnx = pytest.importorskip('onnx')
pytest.importorskip('openvino')
pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')


class SignalStack(ctypes.Structure):
    """C's ``stack_t``."""

    _fields_ = [('address', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t)]


def signal_stack() -> int | None:
    """Where this thread's signal handlers run; None on its own stack."""
    stack = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address


def is_mapped(address: int) -> bool:
    ranges = (line.split()[0].split('-') for line in Path('/proc/self/maps').read_text().splitlines())
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in ranges)


def test_models_whose_lives_overlap_leave_a_signal_stack(tmp_path):
    path = tmp_path / 'x.onnx'
    torch.onnx.export(nn.Linear(3, 2), (torch.ones(1, 3),), path, input_names=['x'], dynamo=True, verbose=False)
    session = find_target('openvino').session
    first, second = session(path), session(path)
    del first
    gc.collect()
    del second
    gc.collect()
    address = signal_stack()
    assert address is None or is_mapped(address)
