"""What calibration found, for people and for files: a table with one line per quantizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from mixaq_mmdet.quantization import Quantizer, QuantWeight
from mixaq_mmdet.quantization.compensation import LowRank
from mixaq_mmdet.quantization.observers import Samples

from .parts import calibrated_parts

COLUMNS = ('layer', 'role', 'bits', 'quantizer', 'range', 'SQNR')


@dataclass(frozen=True)
class QuantizerLine:
    """One quantizer: ``sqnr`` in dB on the calibration images, or on the weight itself.

    A low-rank compensation has a line, too: float factors, their rank and cost in the place of a range.
    """

    layer: str
    role: str
    bits: int
    quantizer: str
    range: str
    sqnr: float | None


class Summary(list[QuantizerLine]):
    """The lines of all quantizers; printing it shows a table."""

    def __str__(self) -> str:
        return as_table(self)

    __repr__ = __str__


def summarize(model: nn.Module, noise: dict[str, float]) -> Summary:
    """One line per calibrated quantizer, in the order of the model.

    Args:
        model: a calibrated model.
        noise: dB of the activation quantizers by name, from the calibrator.
    """
    lines = Summary()
    for part in calibrated_parts(model):
        own = {**noise, **{part.prefix + name: value for name, value in _weight_noise(part.model).items()}}
        for path, module in part.model.named_modules():
            if module in part.others:
                continue
            if isinstance(module, LowRank):
                layer, _, role = path.removeprefix('backbone.').rpartition('.')
                lines.append(QuantizerLine(part.prefix + layer, role, 32, 'LowRank', module.describe(), None))
            if isinstance(module, Quantizer) and module.ready:
                lines.append(_line(module, part.prefix, own.get(part.prefix + module.name)))
    return lines


def _line(quantizer: Quantizer, prefix: str, sqnr: float | None) -> QuantizerLine:
    layer = prefix + quantizer.name.removesuffix('.'.join(['', *quantizer.place]))
    kind = type(quantizer).__name__.removesuffix('Quantizer')
    grid = quantizer.describe() + (' per channel' if quantizer.axis is not None else '')
    return QuantizerLine(layer, ' '.join(quantizer.place), quantizer.bits, kind, grid, sqnr)


def as_table(lines: list[QuantizerLine]) -> str:
    """The lines as aligned text."""
    rows = [COLUMNS] + [
        (x.layer, x.role, str(x.bits), x.quantizer, x.range, '' if x.sqnr is None else f'{x.sqnr:.1f} dB')
        for x in lines
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def as_json(lines: list[QuantizerLine]) -> list[dict[str, object]]:
    """The lines as plain dicts."""
    return [asdict(line) for line in lines]


def _weight_noise(model: nn.Module) -> dict[str, float]:
    noise = {}
    for layer in model.modules():
        if isinstance(layer, QuantWeight) and isinstance(layer.weight_quant, Quantizer) and layer.weight_quant.ready:
            quantizer = layer.weight_quant
            samples = Samples.exact(layer.source_weight.detach().cpu(), quantizer.axis, quantizer.name)
            noise[quantizer.name] = samples.sqnr(quantizer.values_of(samples))
    return noise
