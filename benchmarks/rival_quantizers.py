"""Other toolkits' int8 of a float ONNX file, with the options that make it fast; and how their files are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixaq_mmdet.deploy.export.targets.openvino import openvino_core

Work = Callable[[Tensor], list[Tensor]]
PRODUCTS = ('MatMul', 'Gemm', 'Conv')


def onnx_static_int8(source: Path, target: Path, images: Tensor, float_outputs: Sequence[str] = PRODUCTS) -> None:
    """ONNX Runtime's static int8 of a file, calibrated on ``images``.

    Only products and convolutions are quantized, and only at their inputs; without these options most of the time goes
    into quantizing and dequantizing.

    Args:
        source: float ONNX with one input.
        target: where the quantized one goes.
        images: one batch (B, 3, H, W).
        float_outputs: operators whose outputs stay float. ONNX Runtime computes a convolution in float unless its
            output is quantized too, which matters where much of the work is convolutions.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    name = onnx.load(source, load_external_data=False).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{name: images.numpy()}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    quantize_static(
        source,
        target,
        Reader(),
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={'OpTypesToExcludeOutputQuantization': list(float_outputs)},
    )


def onnx_session(path: Path, **settings: Any) -> Work:
    """A file in ONNX Runtime; ``disabled_optimizers=['MatMulAddFusion']`` keeps quantized products integers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'], **settings)
    name = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(out) for out in session.run(None, {name: x.numpy()})]


def nncf_int8(source: Path, images: Tensor) -> Any:
    """NNCF's int8 of a file as an OpenVINO model, calibrated on ``images``.

    NNCF's preset for transformers without SmoothQuant, whose int8 model is slower.
    """
    import nncf

    off = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    return nncf.quantize(
        openvino_core().read_model(source),
        nncf.Dataset([images.numpy()]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=1,
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=off),
    )


def openvino_session(model: Any, precision: str = 'f32') -> Work:
    """A model in OpenVINO; what is not quantized runs in ``precision``."""
    options = {'INFERENCE_PRECISION_HINT': precision, 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    compiled = openvino_core().compile_model(model, 'CPU', {**options, 'PERFORMANCE_HINT': 'LATENCY'})
    return lambda x: [torch.from_numpy(out) for out in compiled(x.numpy()).values()]
