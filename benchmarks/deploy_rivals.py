"""What the integer backbone is timed against: each rival prepares itself, then turns images into feature maps.

A rival is run in a process of its own by ``deploy.py``: it says when it is ready, then times one forward per line that
it is sent, so that the rounds of all rivals interleave.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mixaq_mmdet  # noqa: F401  (importing prepares the host)

Work = Callable[[Tensor], Any]


def float_swin(weights: str | None) -> nn.Module:
    """Stock Swin-T, random weights of a fixed seed unless a file is given."""
    from mmdet.models.backbones import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer()
    model.eval()  # returns None
    if weights:
        from mmengine.runner import load_checkpoint

        load_checkpoint(model, weights, map_location='cpu', revise_keys=[(r'^backbone\.', '')])
    return model


def stock(weights: str | None, images: Tensor) -> Work:
    """mmdet's Swin in float32."""
    return float_swin(weights)


def autocast(weights: str | None, images: Tensor) -> Work:
    """The same under bfloat16 autocast."""
    model = float_swin(weights)

    def work(x: Tensor) -> Any:
        with torch.autocast('cpu', torch.bfloat16):
            return model(x)

    return work


def compiled(weights: str | None, images: Tensor) -> Work:
    """The same compiled."""
    return torch.compile(autocast(weights, images), dynamic=False)


def torchao(weights: str | None, images: Tensor) -> Work:
    """torchao's dynamic int8, compiled."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = float_swin(weights)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(model, dynamic=False)


def onnx_float(weights: str | None, images: Tensor) -> Work:
    """ONNX Runtime, float32."""
    with tempfile.TemporaryDirectory() as folder:
        return _session(_export(weights, images, Path(folder)))


def onnx_dynamic(weights: str | None, images: Tensor) -> Work:
    """ONNX Runtime, dynamic int8, quantized per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source = _export(weights, images, Path(folder))
        target = Path(folder) / 'int8.onnx'
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
        return _session(target)


def onnx_static(weights: str | None, images: Tensor) -> Work:
    """ONNX Runtime, static int8, calibrated on the timed images."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{'x': images.numpy()}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        source = _export(weights, images, Path(folder))
        target = Path(folder) / 'int8.onnx'
        quantize_static(source, target, Reader(), per_channel=True)
        return _session(target)


MINMAX = {'method': 'MinMax', 'w_symmetric': True}


def ours(
    weights: str | None,
    images: Tensor,
    low: float = 0.0,
    prune: float = 0.0,
    high: str = 'int8',
    method: Mapping[str, Any] = MINMAX,
    matrices: bool = True,
) -> Work:
    """IntegerSwin, W8A8, calibrated on another random image of the same size."""
    from mixaq_mmdet.deploy import IntegerSwin
    from mixaq_mmdet.deploy.convert import convert_backbone
    from mixaq_mmdet.deploy.tiers import load_kernels
    from mixaq_mmdet.engine.calibration import Calibrator
    from mixaq_mmdet.models import TwoBranchSwin

    loaded, _ = load_kernels()
    if loaded:
        loaded[1].use_matrices(matrices)
    simulated = TwoBranchSwin(quant={'w_bits': 8, 'a_bits': 8, **method})
    simulated.load_state_dict(float_swin(weights).state_dict())
    noise = torch.randn(1, *images.shape[1:], generator=torch.Generator().manual_seed(2))
    Calibrator(simulated).run([noise])
    model = IntegerSwin(low_ratios=low, prune_ratios=prune, high=high)
    model.load_state_dict(convert_backbone(simulated))
    print(model.plan.line, file=sys.stderr)
    return model


def ours_at(**options: Any) -> Callable[..., Work]:
    """:func:`ours` at other ratios, with another high tier, another method's grids or without AMX."""
    return partial(ours, **options)


RIVALS: dict[str, Callable[..., Work]] = {
    'stock mmdet float': stock,
    'autocast bf16': autocast,
    'compiled bf16': compiled,
    'ONNX Runtime float': onnx_float,
    'ONNX Runtime static int8': onnx_static,
    'ONNX Runtime dynamic int8': onnx_dynamic,
    'torchao dynamic int8': torchao,
    'ours W8A8': ours,
    'ours VNNI W8A8': ours_at(matrices=False),
    'ours W8A8, half pruned': ours_at(prune=0.5),
    **{f'ours W8A8, {share} % pruned': ours_at(prune=share / 100) for share in (20, 80)},
    **{f'ours {name} W8A8': ours_at(method={'method': name}) for name in ('LSQ', 'OFQ')},
    'ours bf16': ours_at(high='bf16'),
    'ours bf16, half int8': ours_at(high='bf16', low=0.5),
    'ours bf16, a third int8, a third skipped': ours_at(high='bf16', low=0.33, prune=0.33),
}


def make_images(batch: int, size: tuple[int, int]) -> Tensor:
    """Normalised noise, (batch, 3, H, W)."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def _export(weights: str | None, images: Tensor, folder: Path) -> Path:
    path = folder / 'swin.onnx'
    names = ['c2', 'c3', 'c4', 'c5']
    torch.onnx.export(float_swin(weights), (images,), path, input_names=['x'], output_names=names, dynamo=False)
    return path


def _session(path: Path) -> Work:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda x: [torch.from_numpy(out) for out in session.run(None, {'x': x.numpy()})]


def serve(name: str, batch: int, size: tuple[int, int], threads: int, weights: str | None) -> None:
    """Prepare, warm up, compare with float, then time one forward per line of standard input."""
    torch.set_num_threads(threads)
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    images = make_images(batch, size)
    answers, sys.stdout = sys.stdout, sys.stderr  # exporters print
    with torch.no_grad():
        start = time.perf_counter()
        work = RIVALS[name](weights, images)
        prepared = time.perf_counter()
        out = work(images)
        first = time.perf_counter()
        reference = float_swin(weights)(images)[-1]
        error = float((out[-1].float() - reference).norm() / reference.norm())
        ready = {'prepare': prepared - start, 'first': first - prepared, 'c5_error': error}
        print(json.dumps(ready), file=answers, flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            work(images)
            print(json.dumps(time.perf_counter() - start), file=answers, flush=True)


if __name__ == '__main__':
    serve(**json.loads(sys.argv[1]))
