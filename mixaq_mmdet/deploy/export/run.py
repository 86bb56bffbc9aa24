"""From a model to a file that a runtime loads, with a report of what it is worth."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmdet.models.backbones.swin import SwinTransformer
from torch import Tensor, nn

from mixaq_mmdet.engine.calibration.in_memory import single_images
from mixaq_mmdet.engine.damaged_files import check_output
from mixaq_mmdet.models.from_stock import to_two_branch
from mixaq_mmdet.models.quantize import is_converted
from mixaq_mmdet.quantization.quantizers.base import Quantizer

from ..convert import refuse_query_key
from .graph import check_opset, check_packages, save, to_onnx
from .image_input import BytesInput, FloatInput
from .lowering import Dialect, check_calibrated, drop_products, lower
from .metadata import add_metadata, bits_of, describe
from .nodes import OPSET
from .parity import ParityReport, compare
from .residuals import measure_residuals, quantize_residuals
from .saturation import asked, of_file
from .scopes import build_graph
from .targets import Target, find_target
from .timing import time_export


def export_model(
    model: nn.Module,
    path: str | Path,
    target: str = 'onnxruntime',
    shape: tuple[int, int] = (800, 1216),
    scope: str = 'detector',
    images: Iterable[Tensor] | None = None,
    as_bytes: bool = False,
    emulate: Collection[str] = (),
    opset: int = OPSET,
    timed: bool = True,
    cfg: Any = None,
    any_cpu: bool = False,
    residuals: bool = False,
    int8_weights: bool = False,
) -> ParityReport:
    """Write ``model`` as ONNX for a runtime, and compare the file with the simulated model.

    Args:
        model: calibrated, trained or float: a detector or a bare backbone, stock or two-branch. It stays as it is.
        path: where the file goes; the report goes beside it, with the endings .json and .md.
        target: 'onnxruntime', 'openvino' or 'tensorrt'.
        shape: (H, W) that the graph takes, padding included.
        scope: 'detector', 'neck' or 'backbone'.
        images: (1, 3, H, W) normalised images to compare on; noise without, and for bytes.
        as_bytes: take BGR bytes and the image's size instead of a normalised image.
        emulate: roles whose grids may be float operations where the target cannot say them.
        opset: of the operators.
        timed: measure seconds beside a float export, and of a backbone beside the converted one.
        cfg: config of the model, for the metadata.
        any_cpu: write products that would saturate on CPUs without VNNI so that they do not; ONNX Runtime's files never
            have such products, OpenVINO computes them in float then.
        residuals: quantize the residuals of Swin blocks too, on their ranges over ``images``; for TensorRT alone.
        int8_weights: int8 instead of uint8 weights in linear layers, for ONNX Runtime alone: faster on CPUs with AMX,
            wrong on CPUs without VNNI.

    Raises:
        ValueError: for a model, shape, path or option that does not fit; nothing is written then.
    """
    runtime = find_target(target)
    dialect = choose_dialect(runtime, any_cpu, int8_weights)
    check_packages([runtime.package] if runtime.package else [])
    check_opset(opset)
    path = Path(path)
    if path.suffix != '.onnx':
        raise ValueError(f'{str(path)!r} must end in .onnx')
    check_output(path, 'path')
    shape = check_shape(shape)
    refuse_query_key(model)
    check_calibrated(model)
    images = [] if images is None else [*images]
    if residuals:
        _check_residuals(dialect, model, bool(images))
    model = two_branch_copy(model)
    image = make_input(model, shape, as_bytes)
    fitting = [fit_image(x, shape) for x in images]
    inputs = _inputs(image, fitting)
    simulated = copy.deepcopy(model)
    dropped = drop_products(simulated, dialect)
    exported = copy.deepcopy(simulated)
    lowered = lower(exported, dialect, emulate)
    lowered.dropped |= dropped
    notes = lowered.lines(runtime.name)
    graph = build_graph(exported, scope, image).eval()
    reference = build_graph(simulated, scope, image).eval()
    if residuals:
        found = quantize_residuals(graph.backbone, measure_residuals(reference.backbone, fitting))
        notes.append(f'{runtime.name}: {found} residuals are quantized, as asked, on their ranges over the images')
    names = reference.output_names()
    metadata = describe(
        model, reference.backbone, shape, cfg, target=runtime.name, scope=scope, input='bytes' if as_bytes else 'float'
    )
    proto = to_onnx(graph, image.examples(), names, metadata)
    _refuse_violations(runtime, proto)
    saturation = of_file(proto, shifted_in_float=not dialect.as_gemm)
    add_metadata(proto, products=saturation.total, products_beyond_16_bits=saturation.beyond)
    save(proto, path)
    report = ParityReport(str(path), runtime.name, scope, shape, notes, size=path.stat().st_size)
    report.facts = {'bits': bits_of(reference.backbone), 'opset': opset, 'versions': versions(runtime)}
    del exported, graph
    if runtime.package:
        session = runtime.session(path)
        report.errors = compare(session, reference, inputs, names)
        report.census = runtime.census(path)
        report.saturation = asked(saturation, runtime.session, dialect.weights == 'uint8')
        if timed:
            report.seconds = time_export(model, reference, runtime, path, inputs[0], scope)
    else:
        notes.append(f'{runtime.name}: the file keeps its rules; it was not run')
    report.write(path.with_suffix('.json'))
    return report


def choose_dialect(target: Target, any_cpu: bool, int8_weights: bool) -> Dialect:
    """How the target's file is written; a ValueError for options that the target does not have."""
    if not int8_weights:
        return target.dialect.on_any_cpu() if any_cpu else target.dialect
    if any_cpu:
        raise ValueError('int8_weights=True saturates on CPUs without VNNI, and any_cpu=True forbids that; choose one')
    if target.dialect.weights != 'uint8':
        raise ValueError(f'int8_weights=True is for target="onnxruntime"; {target.name} has int8 weights already')
    return replace(target.dialect, weights='int8')


def two_branch_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU in eval mode; a stock Swin in it has become a two-branch one with every window high."""
    own: Any = copy.deepcopy(model).cpu()
    own.eval()  # stock Swin returns None
    backbone = getattr(own, 'backbone', own)
    if is_converted(backbone):
        raise ValueError('the model is converted already; export the calibrated (simulated) model')
    if type(backbone) is SwinTransformer:
        to_two_branch(backbone)
    return own


def normalised(model: Any, images: Any) -> Iterator[Tensor]:
    """Images (1, 3, H, W) as the backbone takes them, from what users have: tensors, file names, a dataloader."""
    for batch in single_images(model, images):
        yield batch if isinstance(batch, Tensor) else model.data_preprocessor(batch, False)['inputs']


def check_shape(shape: Any) -> tuple[int, int]:
    """(H, W) as integers; a ValueError for anything else."""
    sides = tuple(shape) if isinstance(shape, list | tuple) else ()
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f'shape={shape!r} must be two whole numbers, height and width, such as (800, 1216)')
    return sides[0], sides[1]


def make_input(model: Any, shape: tuple[int, int], as_bytes: bool) -> FloatInput | BytesInput:
    """The graph's input."""
    if not as_bytes:
        return FloatInput(shape)
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    if not getattr(preprocessor, '_enable_normalize', False):
        raise ValueError(
            'bytes need a detector whose data_preprocessor has mean and std; export without bytes, on normalised images'
        )
    mean, std = preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()
    return BytesInput(shape, mean, std, bool(preprocessor._channel_conversion))


def versions(target: Target) -> dict[str, str]:
    """Of what wrote the file and what ran it."""
    names = ['torch', 'onnx', 'onnxscript', *([target.package] if target.package else [])]
    return {name: version(name) for name in names}


def _refuse_violations(target: Target, model: Any) -> None:
    found = target.violations(model)
    if found:
        shown = '\n  '.join(found[:10]) + ('\n  ...' if len(found) > 10 else '')
        raise ValueError(f'target {target.name!r}: {len(found)} rules are broken, nothing was written:\n  {shown}')


def _inputs(image: FloatInput | BytesInput, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """Feeds by name; noise without images, and for bytes, because normalised images have none."""
    if not images or isinstance(image, BytesInput):
        return [image.examples()]
    return [{'image': x} for x in images]


def _check_residuals(dialect: Dialect, model: nn.Module, has_images: bool) -> None:
    if not dialect.residuals:
        raise ValueError(f'residuals=True is for target="tensorrt"; {dialect.name} fuses no quantized residuals')
    if not any(isinstance(module, Quantizer) for module in model.modules()):
        raise ValueError('residuals=True needs a quantized model, and this one is float; quantize and calibrate it')
    if not has_images:
        raise ValueError('residuals=True measures the ranges of residuals on images; give images (--images 32)')


def fit_image(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """An image (1, 3, H, W) or (3, H, W), padded with zeros to ``shape``.

    Raises:
        ValueError: for a larger one.
    """
    x = x if x.dim() == 4 else x.unsqueeze(0)
    height, width = x.shape[-2:]
    if height > shape[0] or width > shape[1]:
        raise ValueError(f'an image of {height}x{width} does not fit into shape={shape}; export a larger shape')
    return nn.functional.pad(x.float(), (0, shape[1] - width, 0, shape[0] - height))
