"""The method interface: the quantizer of each tensor, and the calibration of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import Tensor, nn

from mixaq_mmdet.checks import check_flag, check_list, check_mapping, constructor_arguments, plain

from ...registry import QUANT_METHODS, lookup
from ..functional import check_bits
from ..layers import BranchQuantizers, QuantWeight
from ..observers import MinMaxRange, Samples
from ..overrides import BIT_KEYS, GRID_KEYS, check_grid_flags, check_override, has_option, replaces_grid
from ..quantizers.base import Quantizer, RangeFinder, quantizer_mode
from ..roles import BRANCH_ROLES, EDGE_ROLES, ROLES, roles_of


class TensorList(Protocol):
    """A list of tensors, wherever they lie."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int) -> Tensor:
        """The tensor at ``index``."""

    def __setitem__(self, index: int, x: Tensor) -> None:
        """Put another tensor at ``index``."""

    def append(self, x: Tensor) -> None:
        """Add a tensor."""


Mix = Callable[[Tensor, Tensor], Tensor]


class BlockInputs(Protocol):
    """The stored inputs of one block, as a calibrator hands them to a method."""

    def __len__(self) -> int:
        """Images on this rank."""

    def outputs(self, block: nn.Module, index: int, mix: Mix | None = None) -> list[Tensor]:
        """What the block makes of the inputs of one image, once per branch: high, then low; with gradients if on.

        ``mix`` makes these inputs of what the quantized blocks before give and of what the float model gives; without
        it they are the former. For methods that say ``uses_float_inputs``.
        """

    def worked(self, index: int) -> list[Tensor | None]:
        """Which tokens of an image's output each branch works on, (1, tokens, 1) bool; None for all of them."""

    def output_gradients(self, index: int, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of a loss of the whole model by ``outputs``, each as :meth:`outputs` gives it for image ``index``.

        What lies before the block is quantized, what lies behind it float. For methods that say ``uses_gradients``.
        """

    def store(self) -> TensorList:
        """A new, empty list of tensors that spills to disk past a limit."""

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average tensors over the ranks that have images, in place; a rank without any brings zeros."""

    def tick(self) -> None:
        """Tell the progress bar that one of the ``calibration_steps`` is done; :meth:`replay` does by itself."""

    def replay(self, block: nn.Module) -> None:
        """Run the block over all of them: every window through the high branch, the lowest half through the low one."""

    def reduce(self, quantizers: Iterable[Quantizer]) -> None:
        """Merge the observers' statistics over ranks, in place."""


class Method:
    """Base of the methods: uniform quantizers everywhere, ranges found by ``range_finder``.

    A method overrides what it does differently: ``quantizer_config`` (the grid of a role), ``range_finder`` or
    ``calibrate`` (one block at a time, in forward order).

    Args:
        w_bits: bits of weights.
        a_bits: bits of activations; of the high branch inside two-branch blocks.
        low_a_bits: bits of activations in the low branch; those of the high one if None.
        patch_bits: bits of the patch embedding's input, the image.
        edge_bits: bits of the layers between the blocks: weights of the patch embedding, weights and inputs of patch
            merging. With None, the default, a merging has ``w_bits`` and ``a_bits`` and the embedding's weights have
            ``w_bits``, or 8 in methods that train.
        w_symmetric: centre weight grids on zero.
        w_per_channel: one weight grid per output channel instead of one per layer.
        a_symmetric: centre uniform activation grids on zero.
        deconvolution: quantize deconvolutions whose kernel is their stride, such as a mask head's, too; in the scope of
            detectors.
        overrides: dicts with a ``pattern`` for module paths (``stages.3.*``), optionally ``roles``, and what to change:
            ``w_bits``, ``a_bits``, ``low_a_bits``, ``symmetric``, ``per_channel``, ``grid`` (another quantizer for
            attention probabilities or the input of ``fc2``), or ``enabled=False`` to leave the tensors float. The last
            match wins.
    """

    name = 'Method'
    field = 'quant'
    """Where a user wrote the config, for messages."""
    trained = False
    """Whether the quantizers go on training with the model."""
    allocates_bits = False
    """Whether bits per layer are measured, and found, with this method."""
    converts = True
    """Whether the models have an integer form, as ``deploy`` makes it."""
    earlier: Mapping[str, Any] = {'edge_bits': None, 'deconvolution': False}
    """Options that files of earlier versions do not name, with the values that those were made with."""
    uses_gradients = False
    """Whether ``calibrate`` asks for ``output_gradients``."""
    uses_float_inputs = False
    """Whether ``calibrate`` asks for outputs on what the float model gives a block, in whole or in part."""
    quantizes_heads = True
    """Whether it quantizes layers outside the backbone, which are calibrated in groups and have one branch."""
    reparameterises_queries = False
    """Whether attention quantizes the product of query and key weights; keys are then the input of its layer."""
    backbone_options: Mapping[str, str] = {
        'low_a_bits': 'has a low branch',
        'edge_bits': 'is a patch embedding or patch merging',
    }
    """Options that only backbones have a use for, with what a layer of theirs is or has."""
    head_options: Sequence[str] = ('deconvolution',)
    """Options that backbones have no use for."""
    fits_low_alone = False
    """Whether ``calibrate_low`` can fit the low branch of a trained model, and leave the rest as it is."""

    def __init__(
        self,
        w_bits: int = 8,
        a_bits: int = 8,
        low_a_bits: int | None = None,
        patch_bits: int = 8,
        edge_bits: int | None = None,
        w_symmetric: bool = False,
        w_per_channel: bool = True,
        a_symmetric: bool = False,
        deconvolution: bool = False,
        overrides: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.w_bits = check_bits(w_bits, 'quant.w_bits')
        self.a_bits = check_bits(a_bits, 'quant.a_bits')
        self.low_a_bits = None if low_a_bits is None else check_bits(low_a_bits, 'quant.low_a_bits')
        self.patch_bits = check_bits(patch_bits, 'quant.patch_bits')
        self.edge_bits = None if edge_bits is None else check_bits(edge_bits, 'quant.edge_bits')
        self.w_symmetric = check_flag(w_symmetric, 'quant.w_symmetric')
        self.w_per_channel = check_flag(w_per_channel, 'quant.w_per_channel')
        self.a_symmetric = check_flag(a_symmetric, 'quant.a_symmetric')
        self.deconvolution = check_flag(deconvolution, 'quant.deconvolution')
        if self.low_a_bits is not None:
            _check_order(self.a_bits, self.low_a_bits, 'quant')
        listed = check_list(overrides, 'quant.overrides', "[dict(pattern='stages.3.*', w_bits=8)]")
        self.overrides = [check_override(index, override) for index, override in enumerate(listed)]
        self.kept_float: list[tuple[str, str]] = []
        """Path and class of the layers that could not be replaced."""

    @property
    def config(self) -> dict[str, Any]:
        """The full config, defaults spelled out: what checkpoints carry. Options are attributes of the same name."""
        options = constructor_arguments(type(self).__mro__)
        return {'method': self.name, **{option: getattr(self, option) for option in options}}

    def adopt(self, backbone: nn.Module) -> None:
        """Set up what the method needs beside quantizers, once the layers are replaced."""

    def roles(self, module_path: str) -> dict[str, dict[str, Any]]:
        """Quantizer config of every role of a layer; empty for a layer that stays float."""
        configs = {role: self._config_of(module_path, role) for role in roles_of(module_path)}
        return {role: config for role, config in configs.items() if config is not None}

    def bits_of(self, module_path: str) -> dict[str, int]:
        """Bits of a layer's weight and activations, before overrides."""
        edge = self.edge_bits_of(module_path)
        if edge is not None:
            return dict.fromkeys(BIT_KEYS, edge)
        low_a_bits = self.a_bits if self.low_a_bits is None else self.low_a_bits
        return {'w_bits': self.w_bits, 'a_bits': self.a_bits, 'low_a_bits': low_a_bits}

    def edge_bits_of(self, module_path: str) -> int | None:
        """``edge_bits`` of a layer between the blocks; None for other layers, and where they are not given."""
        return self.edge_bits if roles_of(module_path)[1] in EDGE_ROLES else None

    def quantizer_config(self, role: str) -> dict[str, Any]:
        """The grid of a role, without its bits: ``type`` and the options of that quantizer."""
        if role == 'weight':
            return {'type': 'Uniform', 'symmetric': self.w_symmetric, 'per_channel': self.w_per_channel}
        return {'type': 'Uniform', 'symmetric': self.a_symmetric}

    def grid_of(self, module_path: str, role: str) -> dict[str, Any]:
        """As :meth:`quantizer_config`, for one layer: where it has another grid than others of its role."""
        return self.quantizer_config(role)

    def range_finder(self, quantizer: Quantizer) -> RangeFinder:
        """What turns statistics into the range of a quantizer."""
        return MinMaxRange()

    def needs_bias(self, module_path: str) -> bool:
        """Whether the layer gets a bias it did not have, because this method folds something into it."""
        return False

    def calibrate(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        """Fit all quantizers of one block; everything before it is quantized already.

        Returns:
            Signal to quantization noise in dB of each activation quantizer, by its name.
        """
        self.fit_weights(block)
        return self.fit_activations(block, inputs)

    def calibration_steps(self, block: nn.Module, images: int) -> int:
        """How often ``calibrate`` ticks for a block: by default two passes over the images."""
        return 2 * images

    def calibrate_low(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        """Fit the low branch of one block alone; everything else stays as it is. Returns as :meth:`calibrate`."""
        raise ValueError(
            f'{self.field}.method={self.name} cannot calibrate the low branch alone: its branches are fitted together; '
            "use branches='all'"
        )

    def fit_weights(self, block: nn.Module) -> None:
        """Fit the weight quantizers of a block to its weights."""
        for layer in block.modules():
            if isinstance(layer, QuantWeight):
                quantizer = layer.weight_quant
                if not isinstance(quantizer, Quantizer):
                    continue
                samples = Samples.exact(layer.source_weight, quantizer.axis, quantizer.name)
                quantizer.fit(samples, self.range_finder(quantizer))
                layer.unfreeze()

    def fit_activations(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        """Observe the block's activations in two passes and fit their quantizers; returns dB by name."""
        quantizers = activation_quantizers(block)
        samples = observe(block, inputs, quantizers)
        return {quantizer.name: self.fit(quantizer, samples[quantizer.name]) for quantizer in quantizers}

    def fit(self, quantizer: Quantizer, samples: Samples) -> float:
        """Fit one activation quantizer; returns its dB."""
        if quantizer.axis is None:
            samples = samples.together()
        quantizer.fit(samples, self.range_finder(quantizer))
        return samples.sqnr(quantizer.values_of(samples))

    def _config_of(self, module_path: str, role: str) -> dict[str, Any] | None:
        """Grid and bits of a role in quantizer terms, or None where an override leaves it float."""
        chosen = {**self.bits_of(module_path), 'enabled': True}
        grid = self.grid_of(module_path, role)
        follows = self.low_a_bits is None
        for override in self.overrides:
            if not fnmatchcase(module_path, override['pattern']) or role not in override.get('roles', ROLES):
                continue
            chosen.update({key: override[key] for key in chosen if key in override})
            if 'low_a_bits' in override:
                follows = False
                _check_order(chosen['a_bits'], chosen['low_a_bits'], f'{self.field}.overrides {override["pattern"]!r}')
            low = chosen['a_bits'] if follows else chosen['low_a_bits']
            chosen['low_a_bits'] = min(low, chosen['a_bits'])
            if replaces_grid(override, role):
                grid = {'type': override['grid']}
            grid.update({key: override[key] for key in GRID_KEYS if key in override and has_option(grid, key)})
        if not chosen['enabled']:
            return None
        if role == 'weight':
            return {**grid, 'bits': chosen['w_bits']}
        if role == 'patch_in':
            return {**grid, 'bits': self.patch_bits}
        low_bits = {'low_bits': chosen['low_a_bits']} if role in BRANCH_ROLES else {}
        return {**grid, 'bits': chosen['a_bits'], **low_bits}


def build_method(config: Mapping[str, Any], field: str = 'quant') -> Method:
    """Turn ``quant=dict(method=..., ...)`` into a method; unknown names and options are ValueErrors."""
    options = plain(check_mapping(config, field, "dict(method='RepQ', w_bits=4, a_bits=8)"))
    cls = lookup(QUANT_METHODS, options.pop('method', None), f'{field}.method')
    known = constructor_arguments(cls.__mro__)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f'{field} has unknown keys {unknown} for method {cls.__name__}; use {["method", *known]}')
    try:
        method = cls(**options)
    except ValueError as error:
        raise ValueError(str(error).replace('quant.', f'{field}.', 1)) from error
    method.name, method.field = config['method'], field
    check_grid_flags(method)
    return method


def activation_quantizers(module: nn.Module) -> list[Quantizer]:
    """All activation quantizers inside a module, in order of definition."""
    branches = [child for child in module.modules() if isinstance(child, BranchQuantizers)]
    return [quantizer for child in branches for quantizer in child.branches().values()]


def observe(block: nn.Module, inputs: BlockInputs, quantizers: Sequence[Quantizer]) -> dict[str, Samples]:
    """What each quantizer sees while the block runs over the inputs with its activations float, by name."""
    with quantizer_mode(quantizers, 'observe'):
        for start in (Quantizer.start_ranges, Quantizer.start_histogram):
            for quantizer in quantizers:
                start(quantizer)
            inputs.replay(block)
            inputs.reduce(quantizers)
        return {quantizer.name: quantizer.finish() for quantizer in quantizers}


def _check_order(a_bits: int, low_a_bits: int, field: str) -> None:
    if low_a_bits > a_bits:
        raise ValueError(f'{field}.low_a_bits={low_a_bits} is above a_bits={a_bits}; low windows get fewer bits')
