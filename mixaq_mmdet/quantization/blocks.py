"""What the modules of a model say of themselves to those that quantize them.

Models declare it by these base classes. Their modules are stock ones converted in place, so that no constructor of
theirs runs: what is missing is an error where the class is defined.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn


class Declared:
    """Base of declarations: a class that leaves an abstract method out cannot be defined."""

    def __init_subclass__(cls, declares: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        missing = [name for name in dir(cls) if getattr(getattr(cls, name, None), '__isabstractmethod__', False)]
        if missing and not declares:
            raise TypeError(f'{cls.__name__} must define {", ".join(missing)}')


class Fold(NamedTuple):
    """LayerNorms (one per branch) and the linear layer that reads them: scales may move from one to the other.

    ``padded`` is the block whose ``pad_value`` replaces the zeros with which stock Swin pads the norm's output.
    """

    norms: list[nn.LayerNorm]
    linear: Any
    padded: WindowBlock | None = None


class FoldingBlock(Declared, declares=True):
    """A block with LayerNorms in front of linear layers."""

    @abstractmethod
    def folds(self) -> list[Fold]:
        """The places where a method may fold scales."""


class WindowBlock(FoldingBlock, declares=True):
    """A block whose layers work on windows.

    Attributes:
        pad_value: (C,) what padding tokens are inside attention; None for zeros.
    """

    pad_value: Tensor | None

    @property
    @abstractmethod
    def window_tokens(self) -> int:
        """Tokens of a window."""


class ProductAttention(Declared, declares=True):
    """Attention whose two products may be replaced by modules ``(left, right, split) -> left @ right``.

    Attributes:
        query_key: query times transposed key; None for the plain product.
        attention_value: attention probabilities times value; None for the plain product.
    """

    query_key: Any
    attention_value: Any

    @property
    @abstractmethod
    def product_sizes(self) -> tuple[int, int, int]:
        """Tokens of a window, channels of a head, and heads."""


class SameProduct:
    """A Linear or Conv2d that computes what its base class does by another way: a quantized layer may replace it."""


class BranchAware:
    """A layer or product that is called with a ``Split``, which entries belong to which branch, as last argument."""
