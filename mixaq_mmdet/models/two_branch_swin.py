"""TwoBranchSwin: stock Swin Transformer whose less important windows run in a second branch, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmdet.models.backbones.swin import SwinTransformer
from torch import Tensor

from mixaq_mmdet.quantization import CONFIG_BUFFER, DETECTOR_BUFFER, check_saved_config, prepare
from mixaq_mmdet.quantization.checks import check_list
from mixaq_mmdet.registry import MODELS
from mixaq_mmdet.windows.importance import build_importance, content_map, image_keys, pool_content
from mixaq_mmdet.windows.rows import with_zero_gradients

from .checkpoint_guard import refuse_foreign_weights, refuse_quantizer_state
from .distillation import FeatureDistiller
from .kept_float import tell_kept_float
from .ratios import RatioPair, Ratios, checked_ratios
from .stock_arguments import checked_arguments, pretrain_size
from .two_branch_block import start_low_norms_as_high
from .two_branch_stage import StageInput, StageRecord, TwoBranchStage


@MODELS.register_module()
class TwoBranchSwin(SwinTransformer):
    """Swin Transformer with a high and a low branch per block (MixA-Q, arXiv 2507.19131).

    Without quantizers it is stock Swin at any low ratio: parameters have stock names, stock files load strictly.

    In eval mode the configured ratios hold, in train mode the last sampled ones if any. A quantized backbone remembers
    in the buffer ``low_trained`` that its low branch was trained: that a training step ran windows in it.

    Args:
        quant: quantization config (method, bits); None for float.
        low_ratios: share of windows in the low branch, for each block pair or one for all.
        prune_ratios: share of windows that are skipped, for each block pair or one for all.
        importance: how windows are ranked: a name, or a dict with ``type`` and options.
        check_finite: check the input in train mode too (in eval mode it always is).
        unshifted_stages: stages whose windows are never shifted. Classifiers do not shift where one window covers the
            map - the last stage, (3,), at 224 pixels - while detectors do.
        distill: ``dict(checkpoint=..., weight=...)``: train towards the outputs of a float backbone; None does not.
        **kwargs: every argument of mmdet's SwinTransformer.
    """

    def __init__(
        self,
        *args: Any,
        quant: Mapping[str, Any] | None = None,
        low_ratios: Ratios = 0.0,
        prune_ratios: Ratios = 0.0,
        importance: str | Mapping[str, Any] = 'L2',
        check_finite: bool = False,
        unshifted_stages: Iterable[int] = (),
        distill: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        given = checked_arguments(type(self), args, kwargs)
        super().__init__(*args, **kwargs)
        self._pretrain_size = pretrain_size(given)
        self._stock_names = [name for name, _ in self.named_parameters()]
        for index, stage in enumerate(self.stages):
            TwoBranchStage.convert(stage, index)
        unshifted_stages = check_list(unshifted_stages, 'unshifted_stages', '(3,)')
        self._stop_shifting(unshifted_stages)
        self.num_pairs = sum(stage.num_pairs for stage in self.stages)
        self.importance = build_importance(importance)
        self.check_finite = check_finite
        self._configured: RatioPair = ((), ())
        self._sampled: RatioPair | None = None
        self._records: list[StageRecord] | None = None
        self.set_ratios(low_ratios, prune_ratios)
        self.register_buffer('low_trained', None)
        if quant is not None:
            tell_kept_float(prepare(self, quant))
            self.low_trained = torch.zeros((), dtype=torch.uint8)
        teacher = {name: value for name, value in given.items() if name != 'init_cfg'}
        build = partial(TwoBranchSwin, **teacher, unshifted_stages=unshifted_stages)
        self.distiller = None if distill is None else FeatureDistiller(distill, build)

    def _stop_shifting(self, stages: Iterable[int]) -> None:
        unknown = [stage for stage in stages if stage not in range(len(self.stages))]
        if unknown:
            raise ValueError(f'unshifted_stages={unknown} are no stages; use some of {list(range(len(self.stages)))}')
        for stage in stages:
            for block in self.stages[stage].blocks:
                block.attn.shift_size = 0

    @property
    def low_ratios(self) -> tuple[float, ...]:
        """Share of low windows per block pair that the next forward in the present mode uses."""
        return self._active_ratios[0]

    @property
    def prune_ratios(self) -> tuple[float, ...]:
        """Share of pruned windows per block pair that the next forward in the present mode uses."""
        return self._active_ratios[1]

    @property
    def _active_ratios(self) -> RatioPair:
        return self._sampled if self.training and self._sampled is not None else self._configured

    def set_ratios(self, low: Ratios | None = None, prune: Ratios | None = None) -> None:
        """Change the configured ratios (None keeps them) and drop sampled ones."""
        kept_low, kept_prune = self._configured
        self._configured = checked_ratios(
            kept_low if low is None else low, kept_prune if prune is None else prune, self.num_pairs
        )
        self._sampled = None

    def sample_ratios(self, low: Ratios, prune: Ratios = 0.0) -> None:
        """Set the ratios of train mode until the next call of this or of :meth:`set_ratios`."""
        self._sampled = checked_ratios(low, prune, self.num_pairs)

    @contextmanager
    def record_windows(self) -> Iterator[list[StageRecord]]:
        """Collect one :class:`StageRecord` per stage and forward while the context is open."""
        outer, self._records = self._records, []
        try:
            yield self._records
        finally:
            self._records = outer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            x: (B, in_channels, H, W) images.

        Returns:
            One (B, C_i, H_i, W_i) map for each of ``out_indices``.
        """
        self._check_input(x)
        learns = self.training and torch.is_grad_enabled()
        told = list(self.tell_stages(x, rank_all=self._records is not None))
        tokens, hw_shape = self.embed(x)
        outs = []
        last = max(self.out_indices)
        for index, stage in enumerate(self.stages[: last + 1]):
            if learns and self.low_trained is not None and any(c.low for c in stage.counts(hw_shape, told[index])):
                self.low_trained.fill_(1)
            tokens, hw_shape, out, out_hw_shape = stage(tokens, hw_shape, told[index], self.importance, self._records)
            if index in self.out_indices:
                outs.append(self.output(index, out, out_hw_shape))
        outs[-1] = with_zero_gradients(outs[-1], list(self._parameters_behind(last)))
        if learns and self.distiller is not None:
            self.distiller.compare(x, outs)
        return tuple(outs)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, in_channels, H, W) to the residual stream (B, H' * W', C), with (H', W')."""
        x, hw_shape = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = x + self.absolute_pos_embed
        return self.drop_after_pos(x), hw_shape

    def output(self, index: int, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """A stage's residual stream (B, H * W, C) to the map (B, C, H, W) that goes to the neck."""
        x = getattr(self, f'norm{index}')(x)
        return x.view(-1, *hw_shape, self.num_features[index]).permute(0, 3, 1, 2).contiguous()

    def _parameters_behind(self, last: int) -> Iterator[Tensor]:
        """Parameters that the outputs do not depend on, because no later stage is among ``out_indices``."""
        if self.stages[last].downsample is not None:
            yield from self.stages[last].downsample.parameters()
        for stage in self.stages[last + 1 :]:
            yield from stage.parameters()

    def tell_stages(self, images: Tensor, rank_all: bool = False) -> Iterator[StageInput]:
        """Give each stage its pairs' ratios and, if it has to rank, where the images have content.

        Args:
            images: (B, in_channels, H, W).
            rank_all: rank in stages whose ratios are all zero, too.
        """
        ratios = list(zip(*self._active_ratios, strict=True))
        rank = rank_all or any(low or prune for low, prune in ratios)
        with torch.no_grad():
            keys = image_keys(images) if rank and self.importance.needs_image_keys else None
            content = content_map(images) if rank else None
            kernel, stride = self.patch_embed.projection.kernel_size[0], self.patch_embed.projection.stride[0]
            for stage in self.stages:
                if content is not None:
                    content = pool_content(content, kernel, stride)
                own, ratios = ratios[: stage.num_pairs], ratios[stage.num_pairs :]
                needed = rank_all or any(low or prune for low, prune in own)
                yield StageInput(tuple(own), content if needed else None, keys)
                if stage.downsample is not None:
                    sampler = stage.downsample.sampler
                    kernel, stride = sampler.kernel_size[0], sampler.stride[0]

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or 0 in x.shape:
            raise ValueError(
                f'inputs of shape {tuple(x.shape)} have an empty side or are no batch of images; '
                'give (batch, channels, height, width), all at least 1'
            )
        if self.use_abs_pos_embed and not self._has_pretrain_size(x):
            raise ValueError(
                f'inputs of {tuple(x.shape[2:])} pixels do not fit pretrain_img_size={self._pretrain_size}, the only '
                'size that use_abs_pos_embed=True knows; resize and pad all images to it, or drop use_abs_pos_embed'
            )
        if (not self.training or self.check_finite) and not _is_finite(x):
            raise ValueError(
                'inputs hold NaN or infinite values; check the images and data_preprocessor.std '
                '(check_finite=True checks in train mode too)'
            )

    def _has_pretrain_size(self, x: Tensor) -> bool:
        """Whether the patches of images (B, in_channels, H, W), the last ones padded, are those of the embedding."""
        sides = zip(x.shape[2:], self._pretrain_size, self.patch_embed.projection.stride, strict=True)
        return all(-(-side // step) == trained // step for side, trained, step in sides)

    def train(self, mode: bool = True) -> TwoBranchSwin:
        """Set the mode and, unlike stock, return self as every module does."""
        super().train(mode)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Refuse files of another architecture or quantization; mmengine would only warn and go on with nonsense."""
        refuse_foreign_weights(self, self._stock_names, state_dict, prefix)
        if self.low_trained is not None and prefix + CONFIG_BUFFER not in state_dict:
            start_low_norms_as_high(state_dict, prefix)
        check_saved_config(self, state_dict, prefix)
        check_saved_config(self, state_dict, prefix, DETECTOR_BUFFER)
        if self.low_trained is None:
            refuse_quantizer_state(state_dict, prefix)
        else:
            state_dict.setdefault(f'{prefix}low_trained', torch.zeros_like(self.low_trained))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _is_finite(x: Tensor) -> bool:
    # a sum is cheaper than a mask of the input's size, and not finite if any summand is not
    return bool(torch.isfinite(x.detach().sum())) or bool(torch.isfinite(x).all())
