"""A module with fixed input shapes as an ONNX model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.reporting.files import whole_file

from .nodes import OLDEST_OPSET, OPSET

REQUIRED = ('onnx', 'onnxscript')


def check_packages(extra: Sequence[str] = ()) -> None:
    """A ValueError that says how to install what is missing of the ``export`` extra."""
    missing = [name for name in (*REQUIRED, *extra) if find_spec(name) is None]
    if missing:
        raise ValueError(f'export needs {", ".join(missing)}: pip install "mixaq_mmdet[export]"')


def check_opset(opset: int) -> int:
    """``opset`` itself; a ValueError for one that this export cannot write."""
    if opset != OPSET:
        raise ValueError(
            f'opset={opset} is not supported; export writes opset {OPSET}, and quantization as it is written needs at '
            f'least {OLDEST_OPSET}'
        )
    return opset


def to_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], metadata: Mapping[str, str] | None = None
) -> Any:
    """The ``onnx.ModelProto`` of a module in eval mode; dynamic sizes exist in outputs only, if at all.

    Args:
        module: its forward takes the inputs in order.
        inputs: examples by name, of the shapes that the graph will have.
        outputs: names.
        metadata: strings to keep in the file.
    """
    import onnx

    from .translations import translations

    example = tuple(inputs.values())
    exported: Any
    with torch.no_grad(), _static(module), _quiet():
        module(*example)  # constants are made here, so that the graph finds them
        program = torch.export.export(module, example, strict=False)
        exported = torch.onnx.export(
            program,
            opset_version=OPSET,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table=translations(),
            verbose=False,
            optimize=False,
        )
        _simplify(exported.model)
        model = exported.model_proto
    _strip(model)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    model.producer_name = 'mixaq_mmdet'
    onnx.checker.check_model(model)
    return model


def _simplify(model: Any) -> None:
    """What torch's own optimization does to an ``onnx_ir.Model``, in place, in a third of its time.

    It looks for patterns to rewrite among all nodes; here constants are folded, and no nodes any more, before that.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter

    common.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    rewriter.rewrite(model)  # leaves out what is unused
    for simplify in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        simplify(model)


def save(model: Any, path: Path) -> None:
    """Write an ``onnx.ModelProto`` whole or not at all."""
    import onnx

    with whole_file(path) as temporary:
        onnx.save(model, str(temporary))


def _strip(model: Any) -> None:
    """Forget what an exporter notes about its source: paths and stack traces of this machine."""
    del model.metadata_props[:]
    model.graph.doc_string = ''
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ''
        del node.metadata_props[:]
    for function in model.functions:
        function.doc_string = ''
        for node in function.node:
            node.doc_string = ''
            del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.doc_string = ''
        del value.metadata_props[:]


@contextmanager
def _static(module: nn.Module) -> Iterator[None]:
    """Backbones in their static form."""
    backbones = [child for child in module.modules() if isinstance(child, TwoBranchSwin)]
    forms = [backbone.form for backbone in backbones]
    try:
        for backbone in backbones:
            backbone.form = 'static'
        yield
    finally:
        for backbone, form in zip(backbones, forms, strict=True):
            backbone.form = form


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell every step, and warn of what is meant."""
    loggers = [logging.getLogger(name) for name in ('onnxscript', 'torch.onnx', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
