"""What will be made: arguments, their checks, the splits and their random streams."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .corruptions import CORRUPTIONS, SEVERITIES
from .styles import STYLES

MIN_COUNT = 4
MIN_SIZE = 64
MAX_SIZE = 1024

# The number of a split names its random streams: append, never renumber.
SPLIT_STREAMS = {'train': 0, 'calib': 1, 'search': 2, 'val': 3, 'test': 4, 'test_b': 5, 'val_wide': 6}
TWIN_STREAM = 100
# Training and calibration come first so that work on them can begin while the rest is drawn.
SPLITS = ('train', 'val', 'calib', 'search', 'val_wide', 'test', 'test_b')
TWINS = 'ood'


@dataclass(frozen=True)
class Plan:
    """Arguments of one run; counts are images per split."""

    train: int = 4000
    calib: int = 256
    search: int = 300
    val: int = 500
    test: int = 2000
    size: int = 256
    seed: int = 0
    style: str = 'A'
    severities: tuple[int, ...] = (1, 3, 5)
    splits: tuple[str, ...] = field(default=(*SPLITS, TWINS))

    def __post_init__(self) -> None:
        for name in ('train', 'calib', 'search', 'val', 'test'):
            if getattr(self, name) < MIN_COUNT:
                raise ValueError(f'--{name} is {getattr(self, name)}: ask for at least {MIN_COUNT} images')
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ValueError(f'--size is {self.size}: choose {MIN_SIZE} to {MAX_SIZE} pixels')
        if self.seed < 0:
            raise ValueError(f'--seed is {self.seed}: choose 0 or more')
        if self.style not in STYLES:
            raise ValueError(f'--style is {self.style!r}: choose one of {", ".join(STYLES)}')
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise ValueError(f'--severities is {list(self.severities)}: choose from {", ".join(map(str, SEVERITIES))}')
        unknown = [name for name in self.splits if name not in (*SPLITS, TWINS)]
        if unknown or not self.splits:
            raise ValueError(f'--splits has {unknown or "no entry"}: choose from {", ".join((*SPLITS, TWINS))}')
        if TWINS in self.splits and 'val' not in self.splits:
            raise ValueError('--splits has ood without val: the twins are made from val, so add val')


@dataclass(frozen=True)
class Split:
    """One split: how many pictures of which size and style."""

    name: str
    count: int
    height: int
    width: int
    style: str

    def stream(self, seed: int, index: int) -> np.random.Generator:
        """The random stream of one picture; it depends on nothing but seed, split and index."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=self.key(index))))

    def key(self, index: int) -> tuple[int, ...]:
        return (SPLIT_STREAMS[self.name], index)


def wide_size(size: int) -> tuple[int, int]:
    """(height, width) of val_wide: 224 x 300 at size 256, other sizes in proportion."""
    return round(size * 224 / 256), round(size * 300 / 256)


def planned_splits(plan: Plan) -> list[Split]:
    """The splits of a plan without the twins, in the order they are made."""
    every = {
        'train': Split('train', plan.train, plan.size, plan.size, plan.style),
        'val': Split('val', plan.val, plan.size, plan.size, plan.style),
        'calib': Split('calib', plan.calib, plan.size, plan.size, plan.style),
        'search': Split('search', plan.search, plan.size, plan.size, plan.style),
        'val_wide': Split('val_wide', plan.val, *wide_size(plan.size), plan.style),
        'test': Split('test', plan.test, plan.size, plan.size, plan.style),
        'test_b': Split('test_b', plan.test, plan.size, plan.size, 'B'),
    }
    return [every[name] for name in SPLITS if name in plan.splits]


def twin_names(plan: Plan) -> list[tuple[str, int]]:
    """(kind, severity) of every corrupted twin of val."""
    if TWINS not in plan.splits:
        return []
    return [(kind, severity) for kind in CORRUPTIONS for severity in sorted(set(plan.severities))]


def twin_stream(seed: int, kind: str, severity: int, index: int) -> np.random.Generator:
    key = (TWIN_STREAM + list(CORRUPTIONS).index(kind), severity, index)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
