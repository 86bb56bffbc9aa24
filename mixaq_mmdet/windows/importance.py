"""How important a window is: a score per window, by name.

An importance looks at the residual stream once per stage (``token_map``) and turns the tokens of each window of it
into one number (``window_scores``): one map ranks regular and shifted windows alike (MixA-Q,
arXiv 2507.19131). A new importance is one class with ``@IMPORTANCE.register_module()``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaq_mmdet.registry import IMPORTANCE, lookup

CACHED_VALUES = 2**18  # 1 MB of float32


class Importance(ABC):
    """Base class of the importances.

    Args:
        reverse: rank the least important windows first (a control experiment).
    """

    needs_image_keys = False

    def __init__(self, reverse: bool = False) -> None:
        if not isinstance(reverse, bool):
            raise ValueError(f'importance.reverse={reverse!r} must be True or False')
        self.reverse = reverse

    @abstractmethod
    def token_map(self, x: Tensor, image_keys: list[int] | None = None) -> Tensor:
        """What the scores are made from, of every token.

        Args:
            x: (B, H, W, C) residual stream entering the stage, in any floating type.
            image_keys: one integer per image, the same for the same pixels; given if ``needs_image_keys``.

        Returns:
            (B, H, W, K) float32 (float64 for float64): half precision would overflow in a sum of squares.
        """

    @abstractmethod
    def window_scores(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Score windows; padding tokens are zero in ``tokens`` and False in ``real``.

        Args:
            tokens: (B, windows, tokens, K) windows of the token map.
            real: (windows, tokens) bool.

        Returns:
            (B, windows), larger is more important.
        """

    def __call__(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Scores in ranking direction, (B, windows)."""
        scores = self.window_scores(tokens, real)
        return -scores if self.reverse else scores


def _score_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _cache_sized(x: Tensor) -> tuple[Tensor, ...]:
    """Parts of a map (B, H, W, C) along H whose copies stay in a CPU's cache; elsewhere the map itself."""
    if x.device.type != 'cpu' or torch.compiler.is_compiling():
        return (x,)
    rows = max(CACHED_VALUES // x[:, 0].numel(), 1)
    return x.split(rows, dim=1)


@IMPORTANCE.register_module()
class L2(Importance):
    """L2 norm over a window's tokens of the mean absolute activation of each token (the paper's score)."""

    def token_map(self, x: Tensor, image_keys: list[int] | None = None) -> Tensor:
        means = [part.abs().mean(-1, keepdim=True, dtype=_score_type(x)) for part in _cache_sized(x)]
        return means[0] if len(means) == 1 else torch.cat(means, dim=1)

    def window_scores(self, tokens: Tensor, real: Tensor) -> Tensor:
        return torch.linalg.vector_norm(tokens[..., 0], dim=-1)


@IMPORTANCE.register_module()
class Std(Importance):
    """Standard deviation over a window's real tokens and channels."""

    def token_map(self, x: Tensor, image_keys: list[int] | None = None) -> Tensor:
        x = x.to(_score_type(x))
        mean = x.mean(-1, keepdim=True)
        return torch.cat((mean, (x - mean).square().mean(-1, keepdim=True)), dim=-1)

    def window_scores(self, tokens: Tensor, real: Tensor) -> Tensor:
        mean, variance = tokens.unbind(-1)
        weight = real.to(mean.dtype)
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        window_mean = (mean * weight).sum(-1, keepdim=True)
        # law of total variance: within tokens plus between tokens
        return ((variance + (mean - window_mean).square()) * weight).sum(-1).sqrt()


@IMPORTANCE.register_module()
class Random(Importance):
    """A ranking that ignores the features (a control experiment).

    It depends on the seed and on the image's own pixels, not on the images beside it in the batch.

    Args:
        seed: another seed ranks another way.
        reverse: kept for symmetry with the other importances.
    """

    needs_image_keys = True

    def __init__(self, seed: int = 0, reverse: bool = False) -> None:
        super().__init__(reverse)
        self.seed = seed

    def token_map(self, x: Tensor, image_keys: list[int] | None = None) -> Tensor:
        batch, height, width, channels = x.shape
        keys = image_keys if image_keys is not None else [0] * batch
        maps = []
        for key in keys:
            # the stage's shape is mixed in, so that the stages of one image are ranked independently
            mixed = hashlib.blake2b(repr((self.seed, key, height, width, channels)).encode(), digest_size=7)
            generator = torch.Generator().manual_seed(int.from_bytes(mixed.digest(), 'big'))
            maps.append(torch.rand(height, width, 1, generator=generator))
        return torch.stack(maps).to(x.device)

    def window_scores(self, tokens: Tensor, real: Tensor) -> Tensor:
        # one draw, not a sum: windows with padding would else score lower
        first_real = real.long().argmax(-1)
        return tokens[..., 0].gather(-1, first_real.expand(tokens.shape[:2]).unsqueeze(-1)).squeeze(-1)


def build_importance(spec: str | Mapping[str, Any] | Importance) -> Importance:
    """Turn a config value - a name, or a dict with ``type`` and options - into an importance."""
    if isinstance(spec, Importance):
        return spec
    options = dict(spec) if isinstance(spec, Mapping) else {'type': spec}
    cls = lookup(IMPORTANCE, options.pop('type', None), 'importance')
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(f'importance={spec!r}: {error}; use only options that {cls.__name__} takes') from error


def image_keys(images: Tensor) -> list[int]:
    """One integer per image that depends on its pixels only: neither on its batch mates nor on its zero padding.

    Integers are summed, because the order of a floating-point sum depends on the batch.

    Args:
        images: (B, 3, H, W) network input.
    """
    return (images.float() * 1024).round().long().flatten(1).sum(1).tolist()


def content_map(images: Tensor) -> Tensor:
    """Which pixels are content: mmdet pads after normalising, so that padding is exactly zero and content is not.

    Args:
        images: (B, channels, H, W) network input.

    Returns:
        (B, H, W), 0 at padding and positive at content.
    """
    return torch.maximum(images.amax(dim=1), -images.amin(dim=1))


def pool_content(content: Tensor, kernel: int, stride: int) -> Tensor:
    """Follow a content map through a patch embedding or merging that pads at the bottom and right.

    Args:
        content: (B, H, W), 0 where blank.
        kernel: side of the patch that becomes one token.
        stride: step between patches.

    Returns:
        (B, ceil(H / stride), ceil(W / stride)), 0 where a token sees no content.
    """
    missing = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in content.shape[-2:]]
    padded = F.pad(content, (0, missing[1], 0, missing[0])) if any(missing) else content
    if kernel == stride:  # the same as below, several times as fast on a CPU
        rows = padded.unflatten(1, (-1, kernel)).amax(2)
        return rows.unflatten(2, (-1, kernel)).amax(3)
    return F.max_pool2d(padded.unsqueeze(1), kernel, stride).squeeze(1)
