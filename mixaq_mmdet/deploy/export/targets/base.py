"""What a runtime is: how it wants quantization written, what it refuses, and what it made of a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..lowering import Dialect

Session = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
"""Inputs by name to outputs in order."""


@dataclass
class Census:
    """What the runtime's own optimised graph computes its products with.

    Attributes:
        int8: kernels by name.
        in_float: likewise.
        int8_macs: multiply-accumulates in integers.
        float_macs: in float.
    """

    int8: dict[str, int] = field(default_factory=dict)
    in_float: dict[str, int] = field(default_factory=dict)
    int8_macs: int = 0
    float_macs: int = 0

    def add(self, kernel: str, macs: int, integer: bool) -> None:
        """Count one product."""
        kernels = self.int8 if integer else self.in_float
        kernels[kernel] = kernels.get(kernel, 0) + 1
        if integer:
            self.int8_macs += macs
        else:
            self.float_macs += macs

    @property
    def int8_share(self) -> float:
        """Of all multiply-accumulates."""
        return self.int8_macs / max(self.int8_macs + self.float_macs, 1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), 'int8_share': self.int8_share}


class Target(ABC):
    """A runtime."""

    dialect: ClassVar[Dialect]
    package: ClassVar[str | None]
    """What pip installs it as; None where it does not run here."""

    @property
    def name(self) -> str:
        """As users write it."""
        return self.dialect.name

    def violations(self, model: Any) -> list[str]:
        """What of an ``onnx.ModelProto`` breaks the runtime's rules, one line each."""
        return []

    @abstractmethod
    def session(self, path: Path, threads: int | None = None) -> Session:
        """Load a file."""

    @abstractmethod
    def census(self, path: Path) -> Census:
        """What the runtime computes the products of a file with."""
