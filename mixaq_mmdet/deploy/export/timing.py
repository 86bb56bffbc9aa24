"""How long an exported file takes, beside a float export of the same model and the converted backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.quantization.layers import QuantConvTranspose2d, QuantLinear, QuantMatmul, QuantWeight
from mixaq_mmdet.quantization.quantizers.base import Quantizer

from ..integer_swin import IntegerSwin
from .graph import save, to_onnx
from .parity import median_seconds
from .scopes import MapsGraph, build_graph
from .targets import Target


def time_export(
    model: nn.Module, reference: MapsGraph, target: Target, path: Path, feed: Mapping[str, Tensor], scope: str
) -> dict[str, float]:
    """Median seconds of the file, of a float export with every window high, and of the converted backbone.

    Args:
        model: the simulated model.
        reference: the graph of its scope.
        target: what runs the file.
        path: of the file.
        feed: its inputs.
        scope: of the export.
    """
    threads = torch.get_num_threads()
    arrays = {name: tensor.numpy() for name, tensor in feed.items()}
    works: dict[str, Callable[[], Any]] = {'exported': partial(target.session(path, threads), arrays)}
    float_path = path.with_name(f'.{path.stem}.float.onnx')
    try:
        twin = build_graph(float_twin(model), scope, reference.image).eval()
        save(to_onnx(twin, feed, reference.output_names()), float_path)
        works['float ONNX'] = partial(target.session(float_path, threads), arrays)
    finally:
        float_path.unlink(missing_ok=True)
    if scope == 'backbone' and (converted := _converted(model)) is not None:
        works['converted'] = partial(converted, reference.image(*feed.values())[0])
    with torch.no_grad():
        return median_seconds(works)


def float_twin(model: nn.Module) -> nn.Module:
    """A copy without quantizers, every window high."""
    twin = copy.deepcopy(model).eval().cpu()
    for path, module in list(twin.named_modules()):
        if isinstance(module, QuantWeight | QuantMatmul):
            parent, _, name = path.rpartition('.')
            setattr(twin.get_submodule(parent), name, _float_layer(module))
    for module in twin.modules():
        if isinstance(module, TwoBranchSwin):
            module.set_ratios(0.0, 0.0)
    return twin


def _float_layer(module: Any) -> nn.Module | None:
    if isinstance(module, QuantMatmul):
        return None
    if isinstance(module, QuantLinear):
        layer: Any = nn.Linear(module.in_features, module.out_features, device='meta')
    elif isinstance(module, QuantConvTranspose2d):
        kernel: Any = module.kernel_size
        layer = nn.ConvTranspose2d(module.in_channels, module.out_channels, kernel, kernel, device='meta')
    else:
        sizes = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
        layer = nn.Conv2d(*sizes, module.dilation, module.groups, device='meta')
    layer.weight, layer.bias = module.weight, module.bias
    return layer


def _converted(model: nn.Module) -> Any:
    """Our own integer backbone; None where a model has none."""
    own = model if isinstance(model, TwoBranchSwin) else getattr(model, 'backbone', None)
    if not isinstance(own, TwoBranchSwin) or not any(isinstance(module, Quantizer) for module in own.modules()):
        return None
    try:
        return IntegerSwin.of(own)
    except ValueError:
        return None
