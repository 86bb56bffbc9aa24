"""IntegerDetector: a stock detector whose neck and heads compute with integers, where the file has them.

Classes and module paths stay stock; layers are replaced when a file is loaded that has rows for them. RoIAlign, NMS and
the pasting of masks are those of the portable kernels.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from mmcv.cnn import ConvModule
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.logging import print_log
from torch import nn

from mixaq_mmdet.registry import MODELS

from .backends import engines
from .chains import ends_in_relu, links
from .integer_layer import IntegerLayer, geometry_of, same_grid, shape_of, side_of
from .integer_swin import IntegerSwin
from .layouts import Layer
from .parts import KernelRoIExtractor, use_bytes, use_kernels
from .state import HEADER, new_header, write_header
from .table import Table


@MODELS.register_module(name='IntegerDetector')
def build_integer_detector(base: str | type | None = None, engine: str = 'auto', **model: Any) -> nn.Module:
    """Build detector ``base``, to be filled with integers by the file that it loads.

    A function, not a class: classes and module paths stay stock.

    Args:
        base: type of the detector, e.g. 'MaskRCNN', or its class, as in pure Python configs.
        engine: what runs layers of neck and heads: 'auto', 'onednn', 'kernels', or 'torch', which is exact and slow.
        **model: the other keys of the detector's config.
    """
    is_class = isinstance(base, type) and issubclass(base, nn.Module)
    if not is_class and (not isinstance(base, str) or MMDET_MODELS.get(base) is None):
        raise ValueError(
            f"model.base={base!r} is not a detector that mmdet knows; give its type, such as base='MaskRCNN'"
        )
    return become_integer(MMDET_MODELS.build({'type': base, **model}), engine)


def become_integer(detector: nn.Module, engine: str) -> nn.Module:
    """Let a stock detector take its layers from converted files, in place."""
    if engine not in engines():
        raise ValueError(f'model.engine={engine!r} is unknown; use one of {engines()}')
    detector.integer_engine = engine  # type: ignore[assignment]
    detector.register_buffer(HEADER, write_header(new_header()))
    detector.register_load_state_dict_pre_hook(_read_layers)
    use_kernels(detector)
    use_bytes(detector)
    return detector


def _read_layers(detector: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Put the layers of a file in their places before anything is loaded; a backbone alone leaves them float."""
    if prefix + HEADER not in state_dict:
        state_dict[prefix + HEADER] = write_header(new_header())
    own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    table = Table(own)
    detector.register_buffer(HEADER, table.state[HEADER].clone())
    fill(detector, table)


def fill(detector: Any, table: Table) -> None:
    """Replace the layers that the table has rows of, let codes pass between them, and say what runs as what."""
    for path, row in table.layers.items():
        _replace(detector, table, path, row)
    _leave_out_norms(detector, table)
    _take_over_relus(detector)
    _connect(detector)
    layers = [module for module in detector.modules() if isinstance(module, IntegerLayer)]
    if layers:
        counts = Counter(layer.make_runner() for layer in layers)
        parts = ', '.join(f'{count} layers of neck and heads as {how}' for how, count in counts.items())
        kept = _float_layers(detector)
        print_log(f'IntegerDetector: {parts}; float: {", ".join(kept) or "none"}', 'current')


def _replace(detector: Any, table: Table, path: str, row: dict[str, Any]) -> None:
    try:
        stock: Any = detector.get_submodule(path)
    except AttributeError as error:
        raise ValueError(
            f'the file has a layer {path!r}, the config has none; use the config beside the file'
        ) from error
    if isinstance(stock, IntegerLayer):
        geometry, side, shape = stock.layer.geometry, stock.layer.side, stock.shape
    else:
        geometry, side, shape = geometry_of(stock, path), side_of(stock, path), shape_of(stock)
    if shape != row['shape']:
        raise ValueError(
            f'{path} has weights of shape {row["shape"]} in the file and {shape} in the config; num_classes and widths '
            'of the config must be those of the file, use the config beside it'
        )
    tensors = {
        name.removeprefix(f'{path}.'): value for name, value in table.state.items() if name.startswith(f'{path}.')
    }
    layer = Layer(table.weights(path), table.grid(path), geometry, side=side)
    parent, _, name = path.rpartition('.')
    setattr(detector.get_submodule(parent), name, IntegerLayer(layer, tensors, row['shape'], detector.integer_engine))


def _leave_out_norms(detector: nn.Module, table: Table) -> None:
    """Of ConvModules whose convolution has their norm in it."""
    for path, row in table.layers.items():
        if row.get('norm'):
            module: Any = detector.get_submodule(path.rpartition('.')[0])
            if not isinstance(module, ConvModule) or module.norm is None:
                raise ValueError(
                    f'{path} has a norm behind it in the file and none in the config; use the config beside the file'
                )
            module.with_norm = False
            setattr(module, module.norm_name, nn.Identity())


def _take_over_relus(detector: nn.Module) -> None:
    for module in detector.modules():
        if not isinstance(module, ConvModule) or module.with_norm or not ends_in_relu(module):
            continue
        if isinstance(module.conv, IntegerLayer):
            module.conv.layer = module.conv.layer._replace(relu=True)
            module.with_activation = False


def _connect(detector: Any) -> None:
    """Let producers make codes where all their consumers read the same grid."""
    for link in links(detector):
        consumers = [layer for layer in link.consumers if isinstance(layer, IntegerLayer)]
        grid = consumers[0].layer.grid if len(consumers) == len(link.consumers) else None
        if grid is not None and not all(same_grid(grid, layer.layer.grid) for layer in consumers):
            grid = None
        producer = link.producer
        if isinstance(producer, IntegerLayer):
            producer.layer = producer.layer._replace(relu=producer.layer.relu or link.relu, out_grid=grid)
        elif isinstance(producer, KernelRoIExtractor):
            producer.hand_over(grid, link.channels_last)
        elif isinstance(producer, int) and isinstance(detector.backbone, IntegerSwin):
            detector.backbone.hand_over(producer, grid)


def _float_layers(detector: Any) -> list[str]:
    """Paths of layers with weights of their own in neck and heads that stay float."""
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    paths = [path for path, module in detector.named_modules() if isinstance(module, kinds)]
    return [path for path in paths if not path.startswith('backbone.')]
