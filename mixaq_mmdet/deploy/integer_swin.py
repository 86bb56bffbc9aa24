"""IntegerSwin: the converted backbone, in the place of TwoBranchSwin in a config."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.models.finite import refuse_infinite
from mixaq_mmdet.models.two_branch_attention import kind_masks
from mixaq_mmdet.quantization import CONFIG_BUFFER, DETECTOR_BUFFER
from mixaq_mmdet.registry import MODELS

from .backends.base import OutputMap
from .codes import to_codes
from .convert import convert_backbone
from .layouts import Grid
from .linear import IntegerLinear
from .parts.bytes import ByteImages
from .plan import Plan, check_names, plan_blocks
from .state import BLOCK_LAYERS, State
from .stored_bits import StoredBits
from .swin_parts import IntegerEmbed, IntegerStage
from .table import Table
from .tensor_checks import checked

CANNOT_TRAIN = (
    'a converted model cannot be trained: train or calibrate the simulated one (type="TwoBranchSwin" with quant=...) '
    'and convert it again'
)


@MODELS.register_module()
class IntegerSwin(TwoBranchSwin):
    """A converted TwoBranchSwin: integer weights and products, the same windows, tiers from the config.

    Its weights come from a file that ``tools/deploy.py convert`` wrote, or from a calibrated backbone (:meth:`of`). It
    cannot be trained. It can be copied, pickled and sent to other processes, which make its kernels anew.

    Args:
        engine: 'auto' takes the kernels where they run, else torch's int8 operators ('onednn') where they are exact,
            else 'torch', which is exact and portable; a name insists.
        high: what high windows run as, 'int8' or 'bf16'; see ``plan.plan_blocks``.
        **kwargs: arguments of TwoBranchSwin except ``quant``, which the file knows.
    """

    takes_bytes = True
    plan: Plan | None

    def __init__(self, *args: Any, engine: str = 'auto', high: str = 'int8', **kwargs: Any) -> None:
        if kwargs.pop('quant', None) is not None:
            raise ValueError('IntegerSwin takes no quant: the grids are in the converted file; drop the key')
        if kwargs.pop('form', 'eager') == 'static':
            raise ValueError("form='static' is of the simulated model; a converted one runs eagerly, so drop the key")
        check_names(engine, high)
        super().__init__(*args, **{**kwargs, 'init_cfg': None})
        self._empty(engine, high)

    @classmethod
    def of(cls, simulated: TwoBranchSwin, engine: str = 'auto', high: str = 'int8') -> IntegerSwin:
        """A new integer backbone with the grids, weights and ratios of a calibrated one, which stays as it is."""
        check_names(engine, high)
        state = convert_backbone(simulated)
        twin: Any = copy.deepcopy(simulated)
        for name, _ in list(twin.named_buffers(recurse=False)):
            if name in (CONFIG_BUFFER, DETECTOR_BUFFER):
                delattr(twin, name)
        twin.quant_method, twin.distiller, twin.low_trained, twin.init_cfg = None, None, None, None
        twin.__class__ = cls
        twin._empty(engine, high)
        twin.load_state_dict(state)
        return twin

    def _empty(self, engine: str, high: str) -> None:
        """Put empty integer parts in the places of the two-branch ones."""
        self.engine, self.high, self.form = engine, high, 'eager'
        self._asked_to_train = False
        self.plan = None
        self.stored_bits: StoredBits | None = None
        self._state: State = {}
        self._outputs: dict[int, OutputMap | None] = {}
        self._output_grids: dict[int, Grid] = {}
        IntegerEmbed.convert(self.patch_embed)
        for index, stage in enumerate(self.stages):
            IntegerStage.convert(stage, index)
        self.requires_grad_(False)
        self.train(False)

    def init_weights(self) -> None:
        """Nothing to do: the weights are the file's."""

    def train(self, mode: bool = True) -> IntegerSwin:
        """It stays in eval mode: integers are not trained, and a forward that would be part of a training fails."""
        self._asked_to_train = mode
        super().train(False)
        return self

    def forward(self, x: Tensor | ByteImages) -> tuple[Tensor, ...]:
        """As TwoBranchSwin, on a CPU and in float32 between the integer products; also of images as bytes."""
        if self._asked_to_train and torch.is_grad_enabled():
            raise ValueError(CANNOT_TRAIN)
        if isinstance(x, ByteImages) and (not self.patch_embed.takes_bytes or self.importance.needs_image_keys):
            x = x.floats()
        if x.device.type != 'cpu':
            raise ValueError(f'IntegerSwin runs on CPUs, and the images are on {x.device}; move them and the model')
        if not isinstance(x, ByteImages):
            channels = self.patch_embed.projection.in_channels
            x = checked(x, 'images', ('batch', channels, 'height', 'width'))
        with torch.no_grad():
            return super().forward(x)  # type: ignore[arg-type]

    def examine(self, images: Tensor | ByteImages, ranks: bool) -> Tensor | None:
        """As TwoBranchSwin, in one pass where the engine looks; bytes are finite and know the size of their image."""
        patch, step = self.patches
        if isinstance(images, ByteImages):
            return images.content(patch) if ranks else None
        windows = None if self.plan is None else self.plan.backend.windows
        if windows is None or patch != step:
            return super().examine(images, ranks)
        content, finite = windows.look(images, patch)
        refuse_infinite(finite)
        return content if ranks else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Take over an integer state; float norms below this module load themselves."""
        table = Table({name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)})
        plan = self._fill(table)
        self._state = table.state
        print_log(f'IntegerSwin: {plan.line}', 'current')

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'plan': None, 'stored_bits': None, '_outputs': {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._state:
            self._fill(Table(self._state))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: value for name, value in self._state.items()})

    def output(self, index: int, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """A stage's residual stream (B, H * W, C) to the map (B, C, H, W) that goes to the neck."""
        faster, grid = self._outputs.get(index), self._output_grids.get(index)
        if faster is not None:
            return faster(x, hw_shape)
        out = super().output(index, x, hw_shape)
        return out if grid is None else to_codes(out, grid)

    def hand_over(self, output: int, grid: Grid | None) -> None:
        """Give codes of ``grid``, channels last, as this of ``out_indices`` from now on; floats for None."""
        index = self.out_indices[output]
        self._output_grids.pop(index, None)
        if grid is not None:
            self._output_grids[index] = grid
        if self.plan is not None:
            self._outputs[index] = self.plan.backend.output(getattr(self, f'norm{index}'), grid)

    @torch.no_grad()
    def _fill(self, table: Table) -> Plan:
        """Plan, and let the engine make what runs each part."""
        self._check_architecture(table)
        blocks = {path: table.block(path, self._biases(table, path)) for path in table.blocks}
        plan = plan_blocks(list(blocks.values()), self.engine, self.high)
        for path, weights in blocks.items():
            self.get_submodule(path).engine = plan.block(weights)
        for name, parameter in self.named_parameters():  # norms: engines copy them
            parameter.copy_(table.state[name])
        for path, layer in self.named_modules():
            if isinstance(layer, IntegerLinear):
                layer.fill(table.weights(path), table.flat_grid(path))
        self._make_faster(table, plan)
        self.plan, self.stored_bits = plan, StoredBits(table.header, plan.high)
        return plan

    def _make_faster(self, table: Table, plan: Plan) -> None:
        """What the engine does around the blocks."""
        backend, path = plan.backend, 'patch_embed.projection'
        self.patch_embed.faster = backend.embedding(self.patch_embed, table.weights(path), table.flat_grid(path))
        for number, stage in enumerate(self.stages):
            stage.engine = backend.windows
            if stage.downsample is not None:
                path = f'stages.{number}.downsample.reduction'
                stage.downsample.faster = backend.merging(stage.downsample, table.weights(path), table.grid(path))
        for index in self.out_indices:
            norm, grid = getattr(self, f'norm{index}'), self._output_grids.get(index)
            self._outputs[index] = backend.output(norm, grid)

    def _biases(self, table: Table, path: str) -> Tensor:
        """Position bias (heads, tokens, tokens) plus shift mask: (1 or kinds, heads, tokens, tokens)."""
        bias, shape = table.state[f'{path}.position_bias'], self.get_submodule(path).shape
        if not shape.shift:
            return bias.unsqueeze(0)
        masks = kind_masks(shape.window, shape.shift, bias.device, bias.dtype)
        return bias.unsqueeze(0) + masks.unsqueeze(1)

    def _check_architecture(self, table: Table) -> None:
        """Compare blocks, channels and windows of the config with those of the file."""
        channels = self.patch_embed.embed_dims
        for number, stage in enumerate(self.stages):
            here = (len(stage.blocks), channels * 2**number, stage.window_size**2)
            paths = [path for path in table.blocks if path.startswith(f'stages.{number}.')]
            proj = BLOCK_LAYERS['proj']
            found = [(len(paths), table.layers[f'{p}.{proj}']['shape'][0], table.blocks[p]['tokens']) for p in paths]
            if not found or any(there != here for there in found):
                raise ValueError(
                    f'stage {number} of the config has (blocks, channels, tokens of a window) {here}, the file '
                    f'{found[0] if found else "no such stage"}; use the config that tools/deploy.py convert wrote'
                )
