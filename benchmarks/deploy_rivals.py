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
from typing import Any, NamedTuple

import torch
from rival_quantizers import nncf_int8, onnx_session, onnx_static_int8, openvino_session
from torch import Tensor, nn

import mixaq_mmdet  # noqa: F401  (importing prepares the host)

Work = Callable[[Tensor], Any]


ARCHITECTURES: dict[str, dict[str, Any]] = {
    'tiny': {},
    'small': {'depths': (2, 2, 18, 2)},
    'base': {'embed_dims': 128, 'depths': (2, 2, 18, 2), 'num_heads': (4, 8, 16, 32)},
}


class Source(NamedTuple):
    """Which Swin is timed.

    Attributes:
        architecture: one of ``ARCHITECTURES``.
        weights: a checkpoint; None for random weights of a fixed seed.
    """

    architecture: str = 'tiny'
    weights: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What the backbone is built with."""
        return ARCHITECTURES[self.architecture]


def float_swin(source: Source) -> nn.Module:
    """Stock Swin."""
    from mmdet.models.backbones import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(**source.arguments)
    model.eval()  # returns None
    if source.weights:
        from mmengine.runner import load_checkpoint

        load_checkpoint(model, source.weights, map_location='cpu', revise_keys=[(r'^backbone\.', '')])
    return model


def stock(source: Source, images: Tensor) -> Work:
    """mmdet's Swin in float32."""
    return float_swin(source)


def autocast(source: Source, images: Tensor) -> Work:
    """The same under bfloat16 autocast."""
    model = float_swin(source)

    def work(x: Tensor) -> Any:
        with torch.autocast('cpu', torch.bfloat16):
            return model(x)

    return work


def compiled(source: Source, images: Tensor) -> Work:
    """The same compiled."""
    return torch.compile(autocast(source, images), dynamic=False)


def torchao(source: Source, images: Tensor) -> Work:
    """torchao's dynamic int8, compiled."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = float_swin(source)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(model, dynamic=False)


def onnx_float(source: Source, images: Tensor) -> Work:
    """ONNX Runtime, float32."""
    with tempfile.TemporaryDirectory() as folder:
        return onnx_session(_export(source, images, Path(folder)))


def onnx_dynamic(source: Source, images: Tensor) -> Work:
    """ONNX Runtime, dynamic int8, quantized per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        plain, target = _export(source, images, Path(folder)), Path(folder) / 'int8.onnx'
        quantize_dynamic(plain, target, per_channel=True, weight_type=QuantType.QInt8)
        return onnx_session(target)


def onnx_static(source: Source, images: Tensor) -> Work:
    """ONNX Runtime, static int8, calibrated on the timed images."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / 'int8.onnx'
        onnx_static_int8(_export(source, images, Path(folder)), target, images)
        return onnx_session(target, disabled_optimizers=['MatMulAddFusion'])


def openvino(source: Source, images: Tensor, precision: str = 'f32', quantized: bool = False) -> Work:
    """OpenVINO: float, with products in bf16, or NNCF's int8 calibrated on the timed images; the rest of it is bf16."""
    with tempfile.TemporaryDirectory() as folder:
        plain = _export(source, images, Path(folder))
        return openvino_session(nncf_int8(plain, images) if quantized else plain, precision)


MINMAX = {'method': 'MinMax', 'w_symmetric': True}


def ours(
    source: Source,
    images: Tensor,
    low: float = 0.0,
    prune: float = 0.0,
    high: str = 'int8',
    method: Mapping[str, Any] = MINMAX,
    matrices: bool = True,
    engine: str = 'auto',
    threads: int | None = None,
) -> Work:
    """IntegerSwin, W8A8 unless ``method`` says otherwise, calibrated on another random image of the same size."""
    from mixaq_mmdet.deploy import IntegerSwin
    from mixaq_mmdet.deploy.convert import convert_backbone
    from mixaq_mmdet.deploy.kernels import load

    kernels, _ = load()
    if kernels is not None:
        kernels.use_matrices(matrices)
    simulated = _simulated(source, images, method)
    model = IntegerSwin(**source.arguments, low_ratios=low, prune_ratios=prune, high=high, engine=engine)
    model.load_state_dict(convert_backbone(simulated))
    print(model.plan.line, file=sys.stderr)
    if threads is not None:
        torch.set_num_threads(threads)
    return model


def _simulated(source: Source, images: Tensor, method: Mapping[str, Any]) -> Any:
    """The quantized backbone, W8A8 unless ``method`` says otherwise, calibrated on another random image."""
    from mixaq_mmdet.engine.calibration import Calibrator
    from mixaq_mmdet.models import TwoBranchSwin

    simulated = TwoBranchSwin(**source.arguments, quant={'w_bits': 8, 'a_bits': 8, **method})
    simulated.load_state_dict(float_swin(source).state_dict())
    noise = torch.randn(1, *images.shape[1:], generator=torch.Generator().manual_seed(2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # while other rivals wait on the same cores, threads would wait for each other
    Calibrator(simulated).run([noise])
    torch.set_num_threads(threads)
    return simulated


def exported(source: Source, images: Tensor, target: str, prune: float = 0.0, **options: Any) -> Work:
    """Our W8A8 model as tools/deploy.py export writes it for a runtime, run there; batch 1 alone."""
    from mixaq_mmdet.deploy.export import export_model
    from mixaq_mmdet.deploy.export.targets import find_target

    if len(images) > 1:
        raise ValueError('an exported model takes one image at a time')
    simulated = _simulated(source, images, MINMAX)
    simulated.set_ratios(prune=prune)
    size = (images.shape[-2], images.shape[-1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'swin.onnx'
        print(
            export_model(simulated, path, target, size, 'backbone', [images], timed=False, **options), file=sys.stderr
        )
        session = find_target(target).session(path, torch.get_num_threads())
    return lambda x: [torch.from_numpy(out) for out in session({'image': x.numpy()})]


def ours_at(**options: Any) -> Callable[..., Work]:
    """:func:`ours` at other ratios, with another high tier or method's grids, without AMX, on another engine."""
    return partial(ours, **options)


RIVALS: dict[str, Callable[..., Work]] = {
    'stock mmdet float': stock,
    'autocast bf16': autocast,
    'compiled bf16': compiled,
    'ONNX Runtime float': onnx_float,
    'ONNX Runtime static int8': onnx_static,
    'ONNX Runtime dynamic int8': onnx_dynamic,
    'OpenVINO float': openvino,
    'OpenVINO bf16': partial(openvino, precision='bf16'),
    'OpenVINO int8': partial(openvino, precision='bf16', quantized=True),
    'torchao dynamic int8': torchao,
    'ours W8A8': ours,
    'ours W8A8, one thread': ours_at(threads=1),
    'ours VNNI W8A8': ours_at(matrices=False),
    'ours VNNI W8A8, half pruned': ours_at(matrices=False, prune=0.5),
    'ours onednn W8A8': ours_at(engine='onednn'),
    'ours onednn W8A8, half pruned': ours_at(engine='onednn', prune=0.5),
    'ours W8A8, half pruned': ours_at(prune=0.5),
    'ours W8A8, half low A4': ours_at(low=0.5, method={**MINMAX, 'low_a_bits': 4}),
    'ours W4A8': ours_at(method={**MINMAX, 'w_bits': 4}),
    'ours W4A8, half pruned': ours_at(prune=0.5, method={**MINMAX, 'w_bits': 4}),
    **{f'ours W8A8, {share} % pruned': ours_at(prune=share / 100) for share in (20, 80)},
    **{f'ours {name} W8A8': ours_at(method={'method': name}) for name in ('LSQ', 'OFQ')},
    **{
        f'ours exported, {name}{shown}': partial(exported, target=target, prune=prune)
        for name, target in (('ONNX Runtime', 'onnxruntime'), ('OpenVINO', 'openvino'))
        for prune, shown in ((0.0, ''), (0.5, ', half pruned'))
    },
    'ours exported, ONNX Runtime, int8 weights': partial(exported, target='onnxruntime', int8_weights=True),
    'ours bf16': ours_at(high='bf16'),
    'ours bf16, half int8': ours_at(high='bf16', low=0.5),
    'ours bf16, a third int8, a third skipped': ours_at(high='bf16', low=0.33, prune=0.33),
}


def make_images(batch: int, size: tuple[int, int]) -> Tensor:
    """Normalised noise, (batch, 3, H, W)."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def _export(source: Source, images: Tensor, folder: Path) -> Path:
    path = folder / 'swin.onnx'
    names = ['c2', 'c3', 'c4', 'c5']
    torch.onnx.export(float_swin(source), (images,), path, input_names=['x'], output_names=names, dynamo=False)
    return path


def serve(name: str, batch: int, size: tuple[int, int], threads: int, source: list[Any]) -> None:
    """Prepare, warm up, compare with float, then time one forward per line of standard input."""
    torch.set_num_threads(threads)
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    images = make_images(batch, size)
    answers, sys.stdout = sys.stdout, sys.stderr  # exporters print
    with torch.no_grad():
        start = time.perf_counter()
        work = RIVALS[name](Source(*source), images)
        prepared = time.perf_counter()
        out = work(images)
        first = time.perf_counter()
        reference = float_swin(Source(*source))(images)[-1]
        error = float((out[-1].float() - reference).norm() / reference.norm())
        ready = {'prepare': prepared - start, 'first': first - prepared, 'c5_error': error}
        print(json.dumps(ready), file=answers, flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            work(images)
            print(json.dumps(time.perf_counter() - start), file=answers, flush=True)


if __name__ == '__main__':
    serve(**json.loads(sys.argv[1]))
