"""What an export is worth: errors against the simulated model, kernels, size, time; printed and written."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixaq_mmdet.reporting.files import write_whole

from .saturation import Saturation
from .targets import Census

ROUNDS = 5


@dataclass
class ParityReport:
    """The report of one exported file.

    Attributes:
        path: of the file.
        target: name of the runtime.
        scope: what was exported.
        shape: (H, W).
        notes: what was dropped, emulated or left float, one line each.
        errors: relative error (Frobenius norm) of each output against the simulated model, one number per image.
        census: kernels; None where the runtime does not run here.
        saturation: how exact its products of codes are; likewise.
        size: bytes of the file.
        seconds: medians by name, where times were asked for.
        precision: box and mask AP of the simulated and the exported model, if they were evaluated.
        facts: versions, ratios and bits.
    """

    path: str
    target: str
    scope: str
    shape: tuple[int, int]
    notes: list[str] = field(default_factory=list)
    errors: dict[str, list[float]] = field(default_factory=dict)
    census: Census | None = None
    saturation: Saturation | None = None
    size: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    precision: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def mostly_float(self) -> bool:
        """Whether the runtime fell back to float for most of the products that the file quantizes.

        Heads that were never quantized are no fallback; a model whose grids are all emulated is one.
        """
        if self.census is None or not self.facts.get('bits'):
            return False
        quantized = 0 if self.saturation is None else self.saturation.total
        return 2 * sum(self.census.int8.values()) < max(quantized, 1)

    @property
    def failed(self) -> bool:
        """What ``--strict`` does not let pass: products in float, or products that saturate on this CPU."""
        return self.mostly_float or (self.saturation is not None and self.saturation.wrong)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = {key: value for key, value in vars(self).items() if key not in ('census', 'saturation')}
        own['saturation'] = None if self.saturation is None else asdict(self.saturation)
        return {**own, 'census': None if self.census is None else self.census.as_dict()}

    def __str__(self) -> str:
        height, width = self.shape
        lines = [f'{self.path}: {self.scope} for {self.target} at {height}x{width}, {self.size / 2**20:.1f} MiB']
        lines += self.notes
        for name, values in self.errors.items():
            lines.append(
                f'{name}: relative error {np.mean(values):.2e} on {len(values)} images, most {max(values):.2e}'
            )
        if self.census is not None:
            census = self.census
            lines.append(
                f'kernels: {_counted(census.int8)} in int8, {_counted(census.in_float)} in float; '
                f'{100 * census.int8_share:.1f} % of multiply-accumulates in int8'
            )
            if self.mostly_float:
                lines.append(f'WARNING: {self.target} computes most of the quantized products in float')
        if self.saturation is not None and (line := self.saturation.line(self.target)):
            lines.append(line)
        if self.seconds:
            own = self.seconds['exported']
            others = [
                f'{own / value:.2f} of the {name} model' for name, value in self.seconds.items() if name != 'exported'
            ]
            lines.append(f'time: {own:.3f} s' + (f'; {", ".join(others)}' if others else ''))
        for name, found in self.precision.items():
            lines.append(f'{name}: ' + ', '.join(f'{model} {value:.2f}' for model, value in found.items()))
        return '\n'.join(lines)

    def write(self, path: Path) -> None:
        """JSON, and Markdown beside it."""
        write_whole(path, json.dumps(self.as_dict(), indent=1) + '\n')
        heading, *rest = str(self).splitlines()
        write_whole(path.with_suffix('.md'), '\n'.join([f'# {heading}', '', *(f'- {line}' for line in rest), '']))


def _counted(kernels: Mapping[str, int]) -> str:
    return ', '.join(f'{count} {name}' for name, count in sorted(kernels.items())) or 'none'


def relative_errors(found: Sequence[np.ndarray], expected: Sequence[Tensor], names: Sequence[str]) -> dict[str, float]:
    """Frobenius norm of the difference over that of what is expected, by output."""
    errors = {}
    for name, a, b in zip(names, found, expected, strict=True):
        reference = b.detach().cpu().numpy().astype(np.float64)
        scale = max(float(np.linalg.norm(reference)), 1e-30)
        errors[name] = float(np.linalg.norm(a.astype(np.float64) - reference)) / scale
    return errors


@torch.no_grad()
def compare(
    session: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]],
    reference: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Mapping[str, Tensor]],
    names: Sequence[str],
) -> dict[str, list[float]]:
    """Errors of each output on each of the inputs."""
    errors: dict[str, list[float]] = {name: [] for name in names}
    for tensors in inputs:
        found = session({name: tensor.numpy() for name, tensor in tensors.items()})
        for name, error in relative_errors(found, reference(*tensors.values()), names).items():
            errors[name].append(error)
    return errors


def median_seconds(works: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each, after one warm-up, rounds interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
