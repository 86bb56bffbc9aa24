"""The Python API: from a stock MMDetection detector to an integer one, in memory.

Everything here takes a detector or a bare backbone, stock or two-branch. Importing this module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor, nn

    from .analysis.bops import CostTable
    from .deploy.export import ParityReport
    from .engine.calibration.summary import Summary

__all__ = ['calibrate', 'convert', 'cost', 'export', 'load', 'quantize']

SCOPES = ('backbone', 'detector')


def load(config: str | Path | Config, checkpoint: str | Path, device: str = 'cpu') -> nn.Module:
    """Build the detector of a config and load a checkpoint into it; returns it in eval mode.

    Args:
        config: a config file or a config object, of a float, quantized or converted detector.
        checkpoint: a file or a URL that fits the config.
        device: where the detector goes. Converted detectors run on CPUs only.

    Raises:
        ValueError: if a file is missing or damaged, or does not fit the config.
    """
    from .deploy.files import check_integer_checkpoint
    from .engine.damaged_files import read_config
    from .engine.detectors import load_detector

    cfg = read_config(config) if isinstance(config, str | Path) else config
    check_integer_checkpoint(cfg, str(checkpoint))
    return load_detector(cfg, checkpoint, device)


def quantize(
    model: nn.Module,
    method: str = 'RepQ',
    w_bits: int = 4,
    a_bits: int = 8,
    low_a_bits: int | None = None,
    scope: str = 'backbone',
    **options: Any,
) -> nn.Module:
    """Put quantizers into a float model, in place. Stock Swin becomes a TwoBranchSwin with the same weights.

    The model then simulates quantization, and you must calibrate it. ``model.backbone.set_ratios(low=0.5)`` runs half
    of the windows of each block pair in the low branch.

    Args:
        model: a detector with a Swin backbone, or such a backbone.
        method: the name of a quantization method.
        w_bits: bits of weights.
        a_bits: bits of activations, in high windows.
        low_a_bits: bits of activations in low windows; None takes ``a_bits``.
        scope: 'backbone', or 'detector' to quantize neck, RPN and heads too.
        **options: other options of the method, and ``overrides``. The patterns of overrides name modules of the
            backbone (``stages.3.*``) or, with ``scope='detector'``, of the other parts (``roi_head.*``).

    Returns:
        ``model``.

    Raises:
        ValueError: if the model has no Swin backbone or has quantizers already, and for unknown names or options.
    """
    from .models.quantize import quantize_model

    bits = {'w_bits': w_bits, 'a_bits': a_bits, **({} if low_a_bits is None else {'low_a_bits': low_a_bits})}
    return quantize_model(model, {'method': method, **bits, **options}, whole=_scope(scope) == 'detector')


def calibrate(model: nn.Module, images: Tensor | Iterable[Any]) -> Summary:
    """Fit the quantizers of a quantized model on images, in place.

    Args:
        model: the result of :func:`quantize`, or a quantized model from a config.
        images: normalised images as tensors (one of (N, 3, H, W), or several of (3, H, W)); or names of image files,
            which the test pipeline of ``model.cfg`` reads; or a dataloader with the test pipeline.

    Returns:
        A table with a line for each quantizer: bits, range, signal to quantization noise.

    Raises:
        ValueError: if the model has no quantizers, or if ``images`` is empty or of another kind.
    """
    from .engine.calibration.in_memory import calibrate_model

    return calibrate_model(_checked(model), images)


def convert(model: nn.Module, engine: str = 'auto', high: str = 'int8') -> nn.Module:
    """Make a new model of the same class that computes with integers on a CPU; ``model`` does not change.

    Args:
        model: a calibrated model.
        engine: the name of the engine that runs the integers; 'auto' takes the fastest one that runs here.
        high: what high windows run as, 'int8' or 'bf16'.

    Raises:
        ValueError: if the model is not quantized, or if its method or bits do not convert.
        NotCalibratedError: if the model is not calibrated.
    """
    from .deploy import convert_model

    return convert_model(_checked(model), engine, high)


def export(
    model: nn.Module,
    path: str | Path,
    target: str = 'onnxruntime',
    shape: tuple[int, int] = (800, 1216),
    scope: str = 'detector',
    images: Tensor | Iterable[Any] | None = None,
    bytes: bool = False,
    **options: Any,
) -> ParityReport:
    """Write a model as ONNX for a runtime, with a report beside the file; ``model`` does not change.

    Args:
        model: a calibrated, trained or float model, with its current ratios; in a stock model every window is high.
        path: the file to write; it must end in .onnx.
        target: 'onnxruntime', 'openvino' or 'tensorrt'.
        shape: (height, width) that the file takes, padding included.
        scope: 'detector', 'neck' or 'backbone'.
        images: images to compare the file and the model on, as for :func:`calibrate`; None takes noise.
        bytes: whether the file takes BGR bytes and the size of the image instead of normalised images.
        **options: ``emulate``, ``timed``, ``opset``, ``any_cpu``, ``residuals`` and ``int8_weights``, see
            ``mixaq_mmdet.deploy.export.export_model``.

    Returns:
        A report that prints as text: errors, kernels, size and times.

    Raises:
        ValueError: if the model, shape or path does not export; then nothing is written.
        NotCalibratedError: if the model is not calibrated.
    """
    from .deploy.export import export_model
    from .deploy.export.run import normalised

    read = None if images is None else normalised(_checked(model), images)
    return export_model(_checked(model), path, target, shape, scope, read, as_bytes=bytes, **options)


def cost(model: nn.Module, shape: tuple[int, int], level: str = 'block') -> CostTable:
    """Count multiply-accumulates and bit operations of the backbone for one image. These are counts, not speed.

    Args:
        model: a float (counted as 32 bit), quantized or converted model, with its current ratios; it is not run.
        shape: (height, width) of the image in pixels.
        level: the depth of the table: 'stage', 'block' or 'layer'.

    Returns:
        A table that prints as text; its ``cost`` holds the numbers.
    """
    from .analysis.bops import cost_table

    return cost_table(_checked(model), shape, level)


def _checked(model: Any) -> Any:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ValueError(f'model={model!r} is not a torch module; give a detector, such as mixaq_mmdet.load returns')
    return model


def _scope(scope: str) -> str:
    if scope not in SCOPES:
        raise ValueError(f'scope={scope!r} is unknown; use one of {list(SCOPES)}')
    return scope
