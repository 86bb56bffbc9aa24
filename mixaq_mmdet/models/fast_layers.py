"""Stock layers, converted in place, that give the same result in less time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.layers import PatchMerging
from torch import Tensor, nn

from mixaq_mmdet.quantization import Fold, FoldingBlock, SameProduct


def _onednn_linear() -> Any:
    """oneDNN's linear layer, which torch has but does not use for float32; None in builds without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, '_linear_pointwise', None)


ONEDNN_LINEAR = _onednn_linear()


class FastLinear(SameProduct, nn.Linear):
    """``nn.Linear`` that asks oneDNN in float32 inference on a CPU: some 10 % faster than the BLAS product."""

    @classmethod
    def convert(cls, stock: nn.Linear) -> FastLinear:
        """Turn a stock layer into this class without touching its parameters."""
        stock.__class__ = cls
        return stock  # type: ignore[return-value]  # its class has just been changed

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if not self._can_ask_onednn(x):
            return F.linear(x, self.weight, self.bias)
        return ONEDNN_LINEAR(x, self.weight, self.bias, 'none', [], '')

    def can_fuse(self, activation: nn.Module, x: Tensor) -> bool:
        """Whether :meth:`with_gelu` gives what the layer and then the activation would, hooks of either included."""
        return (
            type(activation) is nn.GELU
            and activation.approximate == 'none'
            and not any(hooks for module in (self, activation) for hooks in _hooks(module))
            and self._can_ask_onednn(x)
        )

    def with_gelu(self, x: Tensor) -> Tensor:
        """(..., in_features) to GELU of (..., out_features), without a pass through memory in between."""
        return ONEDNN_LINEAR(x, self.weight, self.bias, 'gelu', [], 'none')

    def _can_ask_onednn(self, x: Tensor) -> bool:
        return (
            ONEDNN_LINEAR is not None
            # exporters know nn.Linear, not oneDNN
            and not (torch.jit.is_tracing() or torch.compiler.is_compiling())
            and not torch.is_grad_enabled()
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == 'cpu'
            and x.numel() > 0
            and not torch.is_autocast_enabled('cpu')
        )


def _hooks(module: nn.Module) -> tuple[dict, dict]:
    return module._forward_hooks, module._forward_pre_hooks


class FastPatchMerging(FoldingBlock, PatchMerging):
    """``PatchMerging`` that stacks four strided views; stock's Unfold goes through two transposes."""

    stacks: bool
    """Whether it merges 2 x 2 tokens; other samplers go stock's way."""

    @classmethod
    def convert(cls, stock: PatchMerging) -> FastPatchMerging:
        """Turn a stock layer into this class without touching its parameters."""
        FastLinear.convert(stock.reduction)
        sampler = stock.sampler
        stock.__class__ = cls
        stock.stacks = (
            sampler.kernel_size == sampler.stride == (2, 2) and sampler.dilation == (1, 1) and sampler.padding == (0, 0)
        )
        return stock

    def folds(self) -> list[Fold]:
        """The norm and the reduction."""
        return [] if self.norm is None else [Fold([self.norm], self.reduction)]

    def forward(self, x: Tensor, input_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Merge tokens, odd sizes padded with zeros at the bottom and right.

        Args:
            x: (B, H * W, C).
            input_size: (H, W).

        Returns:
            (B, ceil(H / 2) * ceil(W / 2), out_channels), and the new size.
        """
        if not self.stacks:
            return super().forward(x, input_size)
        height, width = input_size
        batch, _, channels = x.shape
        x = x.view(batch, height, width, channels)
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        height, width = x.shape[1] // 2, x.shape[2] // 2
        corners = x.view(batch, height, 2, width, 2, channels)
        # per channel: top left, top right, bottom left, bottom right - the order of Unfold, which weights rely on
        x = torch.stack([corners[:, :, row, :, column] for row in (0, 1) for column in (0, 1)], dim=-1)
        x = x.view(batch, height * width, 4 * channels)
        return self.reduction(self.norm(x) if self.norm else x), (height, width)
