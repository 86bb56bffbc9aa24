"""Which engines converted models get on this machine, why not faster ones, and what those would gain."""

from __future__ import annotations

from ..kernels.portable import load_portable
from ..layouts import BlockWeights, Layer
from .base import by_preference

KINDS = {'Swin blocks': BlockWeights, 'neck and heads': Layer}


def engines_here() -> list[str]:
    """Lines for the doctor, one or two for each kind of part. Loads the engines, so it builds what is not built yet."""
    lines = []
    for what, part in KINDS.items():
        missed, reasons = '', list[str]()
        for kind in by_preference(part):
            backend, why_not = kind.load()
            if backend is not None:
                how = backend.describe('; '.join(reasons))
                lines.append(f'{what}: {how}')
                break
            reasons.append(why_not)
            missed = missed or kind.gain
        if missed:
            lines.append(f'{what} would gain: {missed}')
    portable, why = load_portable()
    how = 'C++ for this CPU' if portable is not None else f'torch and mmcv, because {why}'
    return [*lines, f'RoIAlign, NMS and masks: {how}']
