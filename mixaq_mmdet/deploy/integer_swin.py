"""IntegerSwin: the converted backbone, in the place of TwoBranchSwin in a config."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.models.fast_layers import FastPatchMerging
from mixaq_mmdet.models.two_branch_attention import kind_masks
from mixaq_mmdet.models.two_branch_stage import Ranking, StageInput, TwoBranchStage
from mixaq_mmdet.registry import MODELS
from mixaq_mmdet.windows.assignment import Assignment, TierCounts
from mixaq_mmdet.windows.importance import L2, Importance

from .kernel_maps import KernelMaps
from .layers import NO_WEIGHTS, IntegerLinear, IntegerPatches, read_block, read_input_grid, read_linear
from .state import Header, State, check_tensors, read_header
from .stored_bits import StoredBits
from .tiers import TierPlan, check_names, plan_tiers


class IntegerSwinBlock(nn.Module):
    """A block in its stage: what the stage asks it for, and an engine that runs its windows.

    Args:
        block: the empty two-branch block whose place it takes.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention, ffn = block.attn, block.ffn
        heads = SimpleNamespace(num_heads=attention.w_msa.num_heads)
        self.attn = SimpleNamespace(window_size=attention.window_size, shift_size=attention.shift_size, w_msa=heads)
        self.ffn = SimpleNamespace(feedforward_channels=ffn.feedforward_channels, embed_dims=ffn.embed_dims)
        self.engine: Any = None

    def forward(self, x: Tensor, assignment: Assignment) -> Tensor:
        """Run the kept windows, (B, H * W, C) to the same, in place: a stage's stream is nobody else's."""
        if self.engine is None:
            raise ValueError(NO_WEIGHTS)
        batch, length, channels = x.shape
        stream = x.reshape(batch * length, channels)
        for run in assignment.runs:
            self.engine.run(stream, run)
        return stream.view(batch, length, channels)

    def _load_from_state_dict(self, *_: Any) -> None:
        """The backbone reads the file and fills its blocks."""


class IntegerMerge(FastPatchMerging):
    """Patch merging on integers: by a kernel if there is one, else norm and product apart."""

    @classmethod
    def convert(cls, stock: nn.Module) -> nn.Module:
        """Turn a layer into this class, its reduction empty."""
        stock.reduction = IntegerLinear()
        stock.run = None
        if isinstance(stock, FastPatchMerging):
            stock.__class__ = cls
        return stock

    def forward(self, x: Tensor, input_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Merge 2 x 2 tokens, (B, H * W, C) to (B, H' * W', out_channels), and the new size."""
        return super().forward(x, input_size) if self.run is None else self.run(x, input_size)


class IntegerStage(TwoBranchStage):
    """A stage that leaves to the kernels, where it has them, what stands around its blocks."""

    maps: KernelMaps | None = None

    @classmethod
    def convert(cls, stage: TwoBranchStage, index: int) -> IntegerStage:
        """Turn a stage into this class with empty blocks."""
        stage.__class__ = cls
        stage.index = index
        stage.blocks = nn.ModuleList(IntegerSwinBlock(block) for block in stage.blocks)
        if stage.downsample is not None:
            IntegerMerge.convert(stage.downsample)
        return stage

    def rank(
        self, x: Tensor, hw_shape: tuple[int, int], told: StageInput, importance: Importance
    ) -> dict[int, Ranking]:
        """As TwoBranchStage; the paper's score in the kernels, others in torch."""
        if self.maps is None or told.content is None or type(importance) is not L2:
            return super().rank(x, hw_shape, told, importance)
        tokens = x.view(x.shape[0], *hw_shape, x.shape[-1])
        found = self.maps.rank(tokens, told.content, self.window_size, importance.reverse)
        return {shift: Ranking(*values) for shift, values in found.items()}

    def _choose(
        self, x: Tensor, hw_shape: tuple[int, int], order: Tensor, shift: int, counts: TierCounts
    ) -> Assignment:
        if self.maps is None:
            return super()._choose(x, hw_shape, order, shift, counts)
        return self.maps.assign(order, counts, hw_shape, self.window_size, shift)

    def _windows_per_run(self, x: Tensor) -> int | None:
        """The kernels want all kept windows at once: they cut them to fit the cache themselves."""
        return super()._windows_per_run(x) if self.maps is None else None


@MODELS.register_module()
class IntegerSwin(TwoBranchSwin):
    """A converted TwoBranchSwin: integer weights and products, the same windows, tiers from the config.

    It has no parameters and cannot be trained. Its weights come from a file that ``tools/deploy.py convert`` wrote.

    Args:
        engine: 'auto' takes the kernels where they run, 'torch' is exact and portable, 'kernels' insists.
        high: what high windows run as, 'int8' or 'bf16'; see ``tiers.plan_tiers``.
        **kwargs: arguments of TwoBranchSwin except ``quant``, which the file knows.
    """

    def __init__(self, *args: Any, engine: str = 'auto', high: str = 'int8', **kwargs: Any) -> None:
        if kwargs.pop('quant', None) is not None:
            raise ValueError('IntegerSwin takes no quant: the grids are in the converted file; drop the key')
        check_names(engine, high)
        super().__init__(*args, **{**kwargs, 'init_cfg': None})
        self.engine, self.high = engine, high
        self.plan: TierPlan | None = None
        self.stored_bits: StoredBits | None = None
        self._state: State = {}
        self._embed: Any = None
        self.patch_embed.projection = IntegerPatches(self.patch_embed.projection)
        for index, stage in enumerate(self.stages):
            IntegerStage.convert(stage, index)
        self.requires_grad_(False)
        self.train(False)

    def init_weights(self) -> None:
        """Nothing to do: the weights are the file's."""

    def train(self, mode: bool = True) -> IntegerSwin:
        """It stays in eval mode: integers are not trained."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As TwoBranchSwin, on a CPU and in float32 between the integer products."""
        if x.device.type != 'cpu':
            raise ValueError(f'IntegerSwin runs on CPUs, and the images are on {x.device}; move them and the model')
        return super().forward(x.float())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Take over an integer state; float norms below this module load themselves."""
        state = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)}
        header = read_header(state)
        check_tensors(header, state)
        self._fill(header, state)
        self._state = state

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: value for name, value in self._state.items()})

    def _use_kernels(self, header: Header, state: State) -> None:
        """Take the kernels for whole maps too, where the plan has them."""
        maps = self.plan.maps
        for stage in self.stages:
            stage.maps = maps
        self._embed = None
        if maps is None:
            return
        path = 'patch_embed.projection'
        weights, grid = read_linear(header, state, path), read_input_grid(header, state, path)
        self._embed = maps.embedding(self.patch_embed, weights, grid)
        for number, stage in enumerate(self.stages):
            if stage.downsample is not None:
                path = f'stages.{number}.downsample.reduction'
                weights, grid = read_linear(header, state, path), read_input_grid(header, state, path)
                stage.downsample.run = maps.merging(stage.downsample, weights, grid)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, in_channels, H, W) to the residual stream (B, H' * W', C), with (H', W')."""
        if self._embed is None:
            return super().embed(x)
        x, hw_shape = self._embed(x)
        return (x + self.absolute_pos_embed if self.use_abs_pos_embed else x), hw_shape

    def output(self, index: int, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """A stage's residual stream (B, H * W, C) to the map (B, C, H, W) that goes to the neck."""
        if self.plan is None or self.plan.maps is None:
            return super().output(index, x, hw_shape)
        return self.plan.maps.output(x, getattr(self, f'norm{index}'), hw_shape)

    @torch.no_grad()
    def _fill(self, header: Header, state: State) -> None:
        self._check_architecture(header, state)
        blocks = {}
        for number, stage in enumerate(self.stages):
            for index, block in enumerate(stage.blocks):
                path = f'stages.{number}.blocks.{index}'
                blocks[path] = read_block(header, state, path, _biases(state[f'{path}.position_bias'], block.attn))
        self.plan = plan_tiers(list(blocks.values()), self.engine, self.high)
        for path, weights in blocks.items():
            self.get_submodule(path).engine = self.plan.make_block(weights)
        for name, parameter in self.named_parameters():  # norms: the kernels copy them
            parameter.copy_(state[name])
        for path, layer in self.named_modules():
            if isinstance(layer, IntegerLinear):
                layer.fill(read_linear(header, state, path), read_input_grid(header, state, path))
        self._use_kernels(header, state)
        self.stored_bits = StoredBits(header, self.plan.high)
        print_log(f'IntegerSwin: {self.plan.line}', 'current')

    def _check_architecture(self, header: Header, state: State) -> None:
        """Compare blocks, channels and windows of the config with those of the file."""
        channels = self.patch_embed.embed_dims
        for number, stage in enumerate(self.stages):
            blocks = {path for path in header['blocks'] if path.startswith(f'stages.{number}.')}
            window = stage.window_size**2
            here = (len(stage.blocks), channels * 2**number, window)
            paths = [f'stages.{number}.blocks.{index}' for index in range(len(stage.blocks))]
            found = [
                (len(blocks), header['layers'][f'{p}.proj']['shape'][0], state[f'{p}.position_bias'].shape[-1])
                for p in paths
                if p in blocks
            ]
            if not found or any(there != here for there in found):
                raise ValueError(
                    f'stage {number} of the config has (blocks, channels, tokens of a window) {here}, the file '
                    f'{found[0] if found else "no such stage"}; use the config that tools/deploy.py convert wrote'
                )


def _biases(bias: Tensor, attention: Any) -> Tensor:
    """Position bias (heads, tokens, tokens) plus shift mask: (1 or kinds, heads, tokens, tokens)."""
    if not attention.shift_size:
        return bias.unsqueeze(0)
    masks = kind_masks(attention.window_size, attention.shift_size, bias.device, bias.dtype)
    return bias.unsqueeze(0) + masks.unsqueeze(1)
