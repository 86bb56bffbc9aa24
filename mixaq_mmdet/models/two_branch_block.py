"""The two-branch Swin block: windows in, ranked; high | low | pruned; windows back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.utils.checkpoint
from mmcv.cnn.bricks import DropPath
from mmdet.models.backbones.swin import SwinBlock
from torch import Tensor, nn

from mixaq_mmdet.quantization import Fold, Split, WindowBlock, held_weights
from mixaq_mmdet.windows.assignment import Assignment, Run, TierCounts
from mixaq_mmdet.windows.rows import replace_rows, spread_rows, take_rows, with_zero_gradients
from mixaq_mmdet.windows.static import StaticRun

from .block_shape import BlockShape, stock_shape
from .fast_layers import FastLinear
from .two_branch_attention import TwoBranchWindowMSA, call_layer

LOW_NORMS = {'norm1_low': 'norm1', 'norm2_low': 'norm2'}


def start_low_norms_as_high(state_dict: dict[str, Any], prefix: str) -> None:
    """Let the low norms in a float file be the high ones: training in float without low windows left them behind."""
    for key in list(state_dict):
        for low, high in LOW_NORMS.items():
            source = key.replace(f'.{low}.', f'.{high}.')
            if key.startswith(prefix) and source != key and source in state_dict:
                state_dict[key] = state_dict[source]


class TwoBranchSwinBlock(WindowBlock, SwinBlock):
    """A stock block, converted in place: stock parameter names, plus a copy of both norms for the low branch.

    The block reads the residual stream (B, H * W, C), takes the rows of the kept windows (``Run.rows``: high windows
    first, then low ones), works on them and writes them back. So each branch is a contiguous slice, both share every
    matrix product, and pruned windows are simply never taken.

    Padding tokens exist only inside attention, where they are zero as in stock (``pad_value`` if a method needs
    another value); norms and the FFN see real tokens only.

    Quantizers: any Linear may be replaced by a branch-aware layer (see ``call_layer``) - attn.w_msa.qkv (qkv_in),
    attn.w_msa.proj (proj_in), ffn.layers.0.0 (fc1_in), ffn.layers.1 (fc2_in) - and attn.w_msa takes products.
    """

    @property
    def shape(self) -> BlockShape:
        """Its sizes."""
        return stock_shape(self)

    @classmethod
    def convert(cls, stock: SwinBlock) -> TwoBranchSwinBlock:
        """Turn a stock block into this class without touching its parameters."""
        stock.__class__ = cls
        for low, high in LOW_NORMS.items():
            stock.add_module(low, deepcopy(getattr(stock, high)))
        stock.register_buffer('pad_value', None)
        TwoBranchWindowMSA.convert(stock.attn.w_msa)
        for layer in (stock.ffn.layers[0][0], stock.ffn.layers[1]):
            FastLinear.convert(layer)
        return stock

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Fill what stock files lack: the low norms from the high ones, and the pad value with stock's zero."""
        if self.pad_value is not None:
            state_dict.setdefault(f'{prefix}pad_value', torch.zeros_like(self.pad_value))
        for low, high in LOW_NORMS.items():
            for name, _ in getattr(self, high).named_parameters():
                source = state_dict.get(f'{prefix}{high}.{name}')
                if source is not None:
                    state_dict.setdefault(f'{prefix}{low}.{name}', source)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor, assignment: Assignment | StaticRun) -> Tensor:
        """Run the kept windows through their branches.

        Args:
            x: (B, H * W, C) residual stream.
            assignment: which windows run where; from the padded, shifted grid of this block. In a static layout
                padding tokens run along.

        Returns:
            (B, H * W, C).
        """
        batch, length, channels = x.shape
        stream = x.reshape(batch * length, channels)
        biases = self.attn.w_msa.biases(self.attn.shift_size)
        drop_paths = [self._draw_drop_path(layer, x) for layer in (self.attn.drop, self.ffn.dropout_layer)]
        if isinstance(assignment, StaticRun):
            return self._run_static(stream, biases, assignment, drop_paths).view(batch, length, channels)

        def work(stream: Tensor, run: Run) -> Tensor:
            scales = [scale if scale is None else scale[run.rows // length] for scale in drop_paths]
            return self._work(take_rows(stream, run.rows), biases, run, scales)

        if torch.is_grad_enabled():
            stream = self._replace_with_gradients(work, stream, assignment)
        else:
            out = stream.clone() if assignment.counts.pruned else torch.empty_like(stream)
            # one run calls each layer once, so that holding would only cost
            with held_weights(self) if len(assignment.runs) > 1 else nullcontext():
                for run in assignment.runs:
                    out.index_copy_(0, run.rows, work(stream, run))
            stream = out
        return stream.view(batch, length, channels)

    def _replace_with_gradients(
        self, work: Callable[[Tensor, Run], Tensor], stream: Tensor, assignment: Assignment
    ) -> Tensor:
        for run in assignment.runs:
            if self.with_cp:
                tokens = torch.utils.checkpoint.checkpoint(work, stream, run, use_reentrant=False)
            else:
                tokens = work(stream, run)
            stream = replace_rows(stream, run.rows, tokens)
        return with_zero_gradients(stream, self._idle_parameters(assignment.counts))

    def _run_static(self, stream: Tensor, biases: Tensor, run: StaticRun, drop_paths: list[Tensor | None]) -> Tensor:
        """The flattened stream (B * H * W, C) after this block, by two gathers whose shapes are known beforehand."""
        if run.windows:
            if run.kinds is not None:
                biases = biases.index_select(0, run.kinds)
            scales = [scale if scale is None else self._by_token(scale, run) for scale in drop_paths]

            def work(stream: Tensor) -> Tensor:
                return self._work(stream.index_select(0, run.rows), biases, run, scales)

            if self.with_cp and torch.is_grad_enabled():
                tokens = torch.utils.checkpoint.checkpoint(work, stream, use_reentrant=False)
            else:
                tokens = work(stream)
            stream = (torch.cat((tokens, stream)) if run.counts.pruned else tokens).index_select(0, run.back)
        return with_zero_gradients(stream, self._idle_parameters(run.counts))

    def _by_token(self, scale: Tensor, run: StaticRun) -> Tensor:
        """A factor of each image (B, 1) for each token of a run (T, 1)."""
        return scale.index_select(0, run.images).repeat_interleave(self.window_tokens, 0)

    def _idle_parameters(self, counts: TierCounts) -> list[Tensor]:
        """Parameters that no window of this forward uses."""
        high, low, _ = counts
        if not high and not low:
            return list(self.parameters())
        idle: Iterable[str] = () if high and low else (LOW_NORMS if high else LOW_NORMS.values())
        return [parameter for name in idle for parameter in getattr(self, name).parameters()]

    @staticmethod
    def _draw_drop_path(layer: nn.Module, x: Tensor) -> Tensor | None:
        """Draw as stock does, once per image and residual: the same random numbers, shared by the branches.

        Returns:
            (B, 1) factor of each image's residual; None where nothing can be dropped.
        """
        rate = layer.drop_prob if isinstance(layer, DropPath) else 0.0
        if not rate or not layer.training:
            return None
        kept = (1 - rate + torch.rand((x.shape[0], 1, 1), dtype=x.dtype, device=x.device)).floor()
        return kept.squeeze(2) / (1 - rate)

    def _work(self, tokens: Tensor, biases: Tensor, run: Run | StaticRun, scales: list[Tensor | None]) -> Tensor:
        """Attention and FFN with their residuals, on the real tokens of a run, in a static layout on all of them.

        Args:
            tokens: (T, C).
            biases: see ``TwoBranchWindowMSA.biases``; in a static layout those of each window, or one for all.
            run: which windows these are.
            scales: DropPath factor of each token, (T, 1) or None, for both residuals.

        Returns:
            (T, C).
        """
        real = self.real_tokens(run)
        windows = self.to_windows(self.normalise('norm1', tokens, run), run, real)
        segments = None if isinstance(run, StaticRun) else run.segments
        update = self.attn.w_msa(windows, biases, segments, Split(run.high_windows, real=real))
        tokens = _add(self.residual('attention', tokens), self.to_tokens(update, run), scales[0])
        update = self.feed_forward(self.normalise('norm2', tokens, run), run)
        return _add(self.residual('ffn', tokens), update, scales[1])

    def residual(self, part: str, tokens: Tensor) -> Tensor:
        """Tokens (T, C) that the update of ``part`` ('attention' or 'ffn') is added to; an export may quantize them."""
        return tokens

    def normalise(self, name: str, tokens: Tensor, run: Run | StaticRun) -> Tensor:
        high, low = getattr(self, name), getattr(self, f'{name}_low')
        if run.high_windows == run.windows:
            return high(tokens)
        if run.high_windows == 0:
            return low(tokens)
        if torch.jit.is_tracing():  # a slice takes high_tokens where it is a tensor
            return torch.cat((high(tokens[: run.high_tokens]), low(tokens[run.high_tokens :])))
        # split, not two slices: one gradient is put together instead of two summed
        of_high, of_low = tokens.split((run.high_tokens, len(tokens) - run.high_tokens))
        return torch.cat((high(of_high), low(of_low)))

    def real_tokens(self, run: Run | StaticRun) -> Tensor | None:
        """(windows, tokens) bool, False for padding; None if there is none."""
        if isinstance(run, StaticRun):
            return run.real
        if run.slots is None:
            return None
        real = torch.zeros(run.windows * self.window_tokens, dtype=torch.bool, device=run.slots.device)
        real[run.slots] = True
        return real.view(run.windows, -1)

    def to_windows(self, tokens: Tensor, run: Run | StaticRun, real: Tensor | None) -> Tensor:
        """(T, C) tokens to (windows, tokens, C) with padding tokens at their value."""
        if real is not None:
            if run.slots is not None:
                tokens = spread_rows(tokens, run.slots, run.windows * self.window_tokens)
            if self.pad_value is not None:
                tokens = torch.where(real.view(-1, 1), tokens, self.pad_value.to(tokens.dtype))
            elif run.slots is None:
                tokens = tokens.masked_fill(~real.view(-1, 1), 0)
        return tokens.view(run.windows, -1, tokens.shape[-1])

    @property
    def window_tokens(self) -> int:
        """Tokens of a window."""
        return self.attn.window_size**2

    def folds(self) -> list[Fold]:
        """The norms of both branches in front of attention and of the FFN."""
        return [
            Fold([self.norm1, self.norm1_low], self.attn.w_msa.qkv, self),
            Fold([self.norm2, self.norm2_low], self.ffn.layers[0][0]),
        ]

    @torch.no_grad()
    def copy_low_norms(self) -> None:
        """Give the low branch the high one's norms."""
        for low, high in LOW_NORMS.items():
            for target, source in zip(getattr(self, low).parameters(), getattr(self, high).parameters(), strict=True):
                target.copy_(source)

    def low_norms_differ(self) -> bool:
        """Whether training moved the norms of one branch away from those of the other."""
        return any(
            not torch.equal(ours, theirs)
            for low, high in LOW_NORMS.items()
            for ours, theirs in zip(getattr(self, low).parameters(), getattr(self, high).parameters(), strict=True)
        )

    def to_tokens(self, windows: Tensor, run: Run | StaticRun) -> Tensor:
        """Undo :meth:`to_windows`."""
        tokens = windows.flatten(0, 1)
        return tokens if run.slots is None else take_rows(tokens, run.slots)

    def feed_forward(self, tokens: Tensor, run: Run | StaticRun) -> Tensor:
        """The FFN without its residual, (T, C) to (T, C)."""
        (fc1, activation, drop1), fc2, drop2 = self.ffn.layers
        if run.slots is None:
            split = Split(run.high_windows)
            x = tokens.view(run.windows, -1, tokens.shape[-1])
        else:
            split = Split(run.high_tokens, run.slots)
            x = tokens
        if isinstance(fc1, FastLinear) and fc1.can_fuse(activation, x):
            x = drop1(fc1.with_gelu(x))
        else:
            x = drop1(activation(call_layer(fc1, x, split)))
        return self.ffn.gamma2(drop2(call_layer(fc2, x, split))).view(tokens.shape)


def _add(tokens: Tensor, update: Tensor, scale: Tensor | None) -> Tensor:
    if scale is not None:
        return torch.addcmul(tokens, update, scale)
    return tokens + update if torch.is_grad_enabled() else tokens.add_(update)
