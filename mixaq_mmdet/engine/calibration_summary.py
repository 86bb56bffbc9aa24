"""What calibration found, for people and for files: a table with one line per quantizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from mixaq_mmdet.quantization import Quantizer, QuantWeight
from mixaq_mmdet.quantization.compensation import LowRank
from mixaq_mmdet.quantization.observers import Samples

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


def summarize(model: nn.Module, noise: dict[str, float]) -> list[QuantizerLine]:
    """One line per calibrated quantizer, in the order of the model.

    Args:
        model: a calibrated model.
        noise: dB of the activation quantizers by name, from the calibrator.
    """
    noise = {**noise, **_weight_noise(model)}
    lines = []
    for path, quantizer in model.named_modules():
        if isinstance(quantizer, LowRank):
            layer, role = _split_name(path.removeprefix('backbone.'))
            lines.append(QuantizerLine(layer, role, 32, 'LowRank', quantizer.describe(), None))
        if isinstance(quantizer, Quantizer) and quantizer.ready:
            layer, role = _split_name(quantizer.name)
            kind = type(quantizer).__name__.removesuffix('Quantizer')
            grid = quantizer.describe() + (' per channel' if quantizer.axis is not None else '')
            lines.append(QuantizerLine(layer, role, quantizer.bits, kind, grid, noise.get(quantizer.name)))
    return lines


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
            samples = Samples.exact(layer.weight.cpu(), quantizer.axis, quantizer.name)
            noise[quantizer.name] = samples.sqnr(quantizer.values_of(samples))
    return noise


def _split_name(name: str) -> tuple[str, str]:
    """'stages.0.blocks.1.ffn.layers.1.fc2_in.low' to its layer and 'fc2_in low'."""
    parts = name.split('.')
    tail = 2 if parts[-1] in ('high', 'low') else 1
    return '.'.join(parts[:-tail]), ' '.join(parts[-tail:])
