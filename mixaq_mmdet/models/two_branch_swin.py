"""TwoBranchSwin: stock Swin Transformer whose less important windows run in a second branch, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar

import torch
from mmdet.models.backbones.swin import SwinTransformer
from torch import Tensor

from mixaq_mmdet.checks import check_list
from mixaq_mmdet.quantization import CONFIG_BUFFER, DETECTOR_BUFFER, Method, check_saved_config, prepare
from mixaq_mmdet.registry import MODELS
from mixaq_mmdet.windows.importance import build_importance, content_map, image_keys, pool_content
from mixaq_mmdet.windows.rows import with_zero_gradients

from .checkpoint_guard import refuse_foreign_weights, refuse_integers, refuse_quantizer_state
from .distillation import Distilled, FeatureDistiller
from .finite import is_finite, refuse_infinite
from .kept_float import tell_kept_float
from .ratios import RatioPair, Ratios, checked_ratios
from .stage_windows import StageInput, StageRecord, StageWindows
from .static_form import check_form, is_static
from .steps import BlockStep, EmbedStep, MergingStep, OutputStep, RankStep, Step, Stream
from .stock_arguments import checked_arguments, pretrain_size
from .two_branch_block import start_low_norms_as_high
from .two_branch_stage import TwoBranchStage


@MODELS.register_module()
class TwoBranchSwin(Distilled, SwinTransformer):
    """Swin Transformer with a high and a low branch per block (MixA-Q, arXiv 2507.19131).

    Without quantizers it computes the same as stock Swin at any low ratio. Parameters have stock names, and stock files
    load strictly.

    In eval mode it uses the configured ratios, in train mode the last sampled ones if there are any. In a quantized
    backbone the buffer ``low_trained`` records whether a training step has run windows in the low branch.

    Args:
        quant: quantization config (method, bits); None for float.
        low_ratios: share of windows in the low branch, for each block pair or one for all.
        prune_ratios: share of windows that are skipped, for each block pair or one for all.
        importance: how windows are ranked: a name, or a dict with ``type`` and options.
        check_finite: also check the input for NaN and infinity in train mode. In eval mode it is always checked, except
            in the static form, which reads nothing back from the device.
        unshifted_stages: stages whose windows are never shifted. If one window covers the map, as in the last stage,
            (3,), at 224 pixels, classifiers do not shift and detectors do.
        distill: ``dict(checkpoint=..., weight=...)`` trains towards the outputs of a float backbone; None does not.
        form: how windows are laid out. 'eager' counts windows of a kind and real tokens, which reads numbers back from
            the device. 'static' knows every shape beforehand and also computes padding tokens. 'auto' is static on
            accelerators and while torch exports or compiles.
        **kwargs: every argument of mmdet's SwinTransformer.
    """

    quant_method: Method | None = None
    """How the backbone is quantized; None for float."""
    stored_bits: Any = None
    """What a converted backbone knows of the bits of its layers."""
    takes_bytes: ClassVar[bool] = False
    """Whether it takes ``ByteImages``, too."""
    plan: Any = None
    """What runs a converted backbone, and how."""

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
        form: str = 'auto',
        **kwargs: Any,
    ) -> None:
        given = checked_arguments(type(self), args, kwargs)
        super().__init__(*args, **kwargs)
        self.branch_out(pretrain_size(given), importance, check_finite, form)
        unshifted_stages = check_list(unshifted_stages, 'unshifted_stages', '(3,)')
        self._stop_shifting(unshifted_stages)
        self._configured: RatioPair = checked_ratios(low_ratios, prune_ratios, self.num_pairs)
        if quant is not None:
            self.quantize(quant)
        teacher = {name: value for name, value in given.items() if name != 'init_cfg'}
        build = partial(TwoBranchSwin, **teacher, unshifted_stages=unshifted_stages)
        self.distiller = None if distill is None else FeatureDistiller(distill, build)

    def branch_out(
        self,
        pretrain_img_size: tuple[int, int],
        importance: str | Mapping[str, Any] = 'L2',
        check_finite: bool = False,
        form: str = 'auto',
    ) -> None:
        """Give what stock built its second branch, without windows in it; parameters stay as they are."""
        self._pretrain_size = pretrain_img_size
        self._stock_names = [name for name, _ in self.named_parameters()]
        for index, stage in enumerate(self.stages):
            TwoBranchStage.convert(stage, index)
        self.num_pairs = sum(stage.num_pairs for stage in self.stages)
        self.importance = build_importance(importance)
        self.check_finite = check_finite
        self.form = check_form(form)
        self._configured = ((0.0,) * self.num_pairs,) * 2
        self._sampled: RatioPair | None = None
        self._records: list[StageRecord] | None = None
        self.register_buffer('low_trained', None)
        self.distiller = None

    def quantize(self, quant: Mapping[str, Any]) -> None:
        """Put quantizers into a float backbone; they stay uncalibrated."""
        tell_kept_float(prepare(self, quant))
        self.low_trained = torch.zeros((), dtype=torch.uint8)

    def _stop_shifting(self, stages: Iterable[int]) -> None:
        unknown = [stage for stage in stages if stage not in range(len(self.stages))]
        if unknown:
            raise ValueError(f'unshifted_stages={unknown} are not stages; use some of {list(range(len(self.stages)))}')
        for stage in stages:
            for block in self.stages[stage].blocks:
                block.attn.shift_size = 0

    @property
    def low_ratios(self) -> tuple[float, ...]:
        """Share of low windows of each block pair that the next forward uses, in the current mode."""
        return self._active_ratios[0]

    @property
    def prune_ratios(self) -> tuple[float, ...]:
        """Share of pruned windows of each block pair that the next forward uses, in the current mode."""
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
        """Set the ratios of train mode, until this method or :meth:`set_ratios` is called again."""
        self._sampled = checked_ratios(low, prune, self.num_pairs)

    @contextmanager
    def at_ratios(self, low: Ratios | None = None, prune: Ratios | None = None) -> Iterator[TwoBranchSwin]:
        """Use other ratios (None keeps the configured ones) in both modes while the context is open."""
        before = self._configured, self._sampled
        self.set_ratios(low, prune)
        try:
            yield self
        finally:
            self._configured, self._sampled = before

    @contextmanager
    def record_windows(self) -> Iterator[list[StageRecord]]:
        """Collect one :class:`StageRecord` for each stage of each forward while the context is open."""
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
        learns = self.training and torch.is_grad_enabled()
        embed, *rest = self.steps()
        stream = embed(self.begin(x, rank_all=self._records is not None))
        outs = []
        for index, (rank, *steps) in groupby(rest, key=attrgetter('stage')):
            stream = rank(stream)
            self._note(stream.windows, learns)
            outputs = [step for step in steps if isinstance(step, OutputStep)]
            # the stage is called, so that hooks on it see what they would see in stock
            tokens, size, out, out_size = self.stages[index](
                stream.x, stream.size, stream, [step for step in steps if step not in outputs]
            )
            outs += [step.map(stream._replace(x=out, size=out_size)) for step in outputs]
            stream = stream._replace(x=tokens, size=size)
        outs[-1] = with_zero_gradients(outs[-1], list(self._parameters_unread(max(self.out_indices))))
        if learns and self.distiller is not None:
            self.distiller.compare(x, outs)
        return tuple(outs)

    def begin(self, images: Tensor, rank_all: bool = False) -> Stream:
        """The stream of checked images (B, in_channels, H, W) before the first of :meth:`steps`.

        Args:
            images: of one batch.
            rank_all: rank in stages whose ratios are all zero, too.
        """
        self._check_shape(images.shape)
        height, width = images.shape[2:]
        ratios = list(zip(*self._active_ratios, strict=True))
        ranks = rank_all or any(low or prune for low, prune in ratios)
        if ranks and self.importance.needs_image_keys and torch.compiler.is_compiling():
            raise ValueError(
                f'importance={type(self.importance).__name__!r} reads pixels in Python, which no exporter or compiler '
                "can follow; use one that works on tensors, such as importance='L2'"
            )
        with torch.no_grad():
            content = self.examine(images, ranks)
            keys = image_keys(images) if ranks and self.importance.needs_image_keys else None
            told = tuple(self._tell_stages(ratios, content, keys, is_static(self.form, images), rank_all))
        return Stream(images, (height, width), told)

    def steps(self) -> Iterator[Step]:
        """Every step of a forward, in order: the embedding, then of each stage the ranking, blocks, output, merging."""
        yield EmbedStep(self, 'patch_embed', self.patch_embed, -1)
        for index, stage in enumerate(self.stages[: max(self.out_indices) + 1]):
            path = f'stages.{index}'
            yield RankStep(self, path, stage, index)
            for number, block in enumerate(stage.blocks):
                yield BlockStep(self, f'{path}.blocks.{number}', block, index, number)
            if index in self.out_indices:
                yield OutputStep(self, f'norm{index}', getattr(self, f'norm{index}'), index)
            if stage.downsample is not None:
                yield MergingStep(self, f'{path}.downsample', stage.downsample, index)

    def _note(self, windows: StageWindows | None, learns: bool) -> None:
        """Remember what a stage does with its windows."""
        if windows is None:
            return
        if self._records is not None:
            self._records.append(windows.record())
        if learns and self.low_trained is not None and any(counts.low for counts in windows.counts):
            self.low_trained.fill_(1)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, in_channels, H, W) to the residual stream (B, H' * W', C), with (H', W')."""
        x, hw_shape = self.patch_embed(x)
        return self.add_position(x), hw_shape

    def add_position(self, x: Tensor) -> Tensor:
        """Tokens of the patch embedding (B, H' * W', C) to the residual stream."""
        return self.drop_after_pos(x + self.absolute_pos_embed if self.use_abs_pos_embed else x)

    def output(self, index: int, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """A stage's residual stream (B, H * W, C) to the map (B, C, H, W) that goes to the neck."""
        x = getattr(self, f'norm{index}')(x)
        return x.view(-1, *hw_shape, self.num_features[index]).permute(0, 3, 1, 2).contiguous()

    def _parameters_unread(self, last: int) -> Iterator[Tensor]:
        """Parameters that the last map does not depend on: of later parts, and norms of maps that necks may ignore."""
        for index in self.out_indices:
            if index != last:  # FCOS, for example, reads no map of the first stage
                yield from getattr(self, f'norm{index}').parameters()
        if self.stages[last].downsample is not None:
            yield from self.stages[last].downsample.parameters()
        for stage in self.stages[last + 1 :]:
            yield from stage.parameters()

    def _tell_stages(
        self,
        ratios: list[tuple[float, float]],
        content: Tensor | None,
        keys: list[int] | None,
        static: bool,
        rank_all: bool,
    ) -> Iterator[StageInput]:
        """Give each stage its pairs' ratios and, if it has to rank, where its tokens see content."""
        for stage in self.stages:
            own, ratios = ratios[: stage.num_pairs], ratios[stage.num_pairs :]
            needed = rank_all or any(low or prune for low, prune in own)
            yield StageInput(tuple(own), content if needed else None, keys, static)
            if stage.downsample is not None and content is not None:
                sampler = stage.downsample.sampler
                content = pool_content(content, sampler.kernel_size[0], sampler.stride[0])

    @property
    def patches(self) -> tuple[int, int]:
        """Side of the patches that become tokens, and the step between them."""
        projection = self.patch_embed.projection
        return projection.kernel_size[0], projection.stride[0]

    def examine(self, images: Tensor, ranks: bool) -> Tensor | None:
        """Look at images (B, in_channels, H, W) before anything is computed of them; ``ranks``: windows will be ranked.

        Returns:
            Where the tokens of the embedding see content, (B, H', W'), 0 where they see only padding; None without
            ranking.

        Raises:
            ValueError: for NaN and infinity, where they are looked for.
        """
        if self._reads_input(images):
            refuse_infinite(is_finite(images))
        return pool_content(content_map(images), *self.patches) if ranks else None

    def _check_shape(self, shape: torch.Size) -> None:
        if len(shape) != 4 or 0 in shape:
            raise ValueError(
                f'inputs of shape {tuple(shape)} have an empty side or are no batch of images; '
                'give (batch, channels, height, width), all at least 1'
            )
        if self.use_abs_pos_embed and not self._has_pretrain_size(shape):
            raise ValueError(
                f'inputs of {tuple(shape[2:])} pixels do not fit pretrain_img_size={self._pretrain_size}, the only '
                'size that use_abs_pos_embed=True knows; resize and pad all images to it, or drop use_abs_pos_embed'
            )

    def _reads_input(self, x: Tensor) -> bool:
        """Whether non-finite values are looked for: always where nobody waits for it, elsewhere when asked."""
        if torch.compiler.is_compiling():
            return False
        return self.check_finite or not (self.training or is_static(self.form, x))

    def _has_pretrain_size(self, shape: torch.Size) -> bool:
        """Whether the patches of such images, the last ones padded, are those of the position embedding."""
        sides = zip(shape[2:], self._pretrain_size, self.patch_embed.projection.stride, strict=True)
        return all(-(-side // step) == trained // step for side, trained, step in sides)

    def train(self, mode: bool = True) -> TwoBranchSwin:
        """Set the mode and, unlike stock, return self as every module does."""
        super().train(mode)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Refuse files of another architecture or quantization; mmengine would only warn and go on with nonsense."""
        refuse_integers(state_dict, prefix)
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
