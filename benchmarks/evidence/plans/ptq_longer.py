"""The claims of ``ptq.py`` once more, of the float model that was trained longer: docs/results/ptq_longer.md."""

from __future__ import annotations

from dataclasses import replace

from ..comparisons import Comparison, OnBothStyles, differences
from ..experiment import Experiment
from ..page import BITS, BOPS, BOX, MASK, Models, Page
from ..stage import Stage
from . import preconditions, ptq, zoo
from .converged import ALIGNED, LAST_LEG, LEGS, SEALED_IMAGES
from .float_models import LONGER
from .unseen import PAIRS as UNSEEN
from .unseen import on_both


def longer(row: Experiment) -> Experiment:
    """The same, from the longer trained model; calibrations are those of the table of methods where it has them."""
    before = row.starts_from
    start = longer(before) if isinstance(before, Experiment) else LONGER
    probe = zoo.PROBE if row.kind == 'train' else row.probe
    return replace(row, name=f'{row.name}, trained longer', starts_from=start, probe=probe)


def first_thousand(row: Experiment) -> Experiment:
    """The row's model, to be put on a test split of which a thousand images count."""
    model = row.on('val')
    return longer(replace(model, name=row.name, overrides={**row.overrides, **SEALED_IMAGES}))


WINDOWS = longer(preconditions.WINDOWS)
WINDOWS_BEFORE = replace(WINDOWS, name='float-windows, last leg', starts_from=LAST_LEG)
FLOAT = longer(ptq.FLOAT)
ROWS = [longer(row) for row in ptq.ROWS]
PREMISE: dict[str, Comparison] = {
    **{f'L13-{stage}': preconditions.share_of_stage(stage, WINDOWS) for stage in range(1, 5)},
    'L14': preconditions.largest_range(WINDOWS),
}
# claim: (treatment, control)
ON_VAL = {name.replace('T', 'L'): (longer(treated), longer(control)) for name, (treated, control) in ptq.PAIRS.items()}
ALIGNMENT = {'L18': (ALIGNED.on('val'), LEGS[-1].on('val'))}
ON_TEST = {
    claim: tuple(first_thousand(arm) for arm in UNSEEN[before])
    for claim, before in (('L15', 'U1'), ('L16', 'U2'), ('L17', 'U3'))
}
SEALED_ROWS = [first_thousand(row) for row in (ptq.FLOAT, ptq.W4A8, ptq.MIXED, ptq.W4A6, ptq.HARD, ptq.HARD_REVERSED)]

STAGES = [
    Stage(
        'ptq-longer',
        'training-free quantization of the longer trained float model, on val',
        [WINDOWS_BEFORE, WINDOWS, *ROWS],
        hours=0.8,
        claims=[*ON_VAL, *PREMISE, *ALIGNMENT],
        topics=['ptq_longer'],
        rank=12,
    ),
    Stage(
        'ptq-longer-test',
        'the same on a thousand images of each test split',
        on_both(*SEALED_ROWS),
        hours=0.8,
        tier='full',
        claims=list(ON_TEST),
        topics=['ptq_longer'],
        rank=16,
    ),
]

TEXT = """\
The small Mask R-CNN after [eight legs of training](converged.md) on 16 000 images and 500 steps of window alignment:
the float model that the recipes and the demo start from. Otherwise as [the page of the first one](ptq.md): val (500
images), calibrated on 32 images of `calib`, one seed, intervals over images. Unseen images: the first 1000 of each test
split.
*BOPs*: relative bit operations of the backbone by the paper's count (MACs x 32 x activation bits) against the same bits
with every window high, at realised ratios; a count, not a speed. All of this is *simulated* (fake quantization)."""
BEFORE = '## The same before alignment: the last leg'
TOPICS = [
    Page(
        'ptq_longer',
        'Training-free quantization, from the model that was trained longer',
        TEXT,
        {
            **differences({**ON_VAL, **ALIGNMENT}),
            **PREMISE,
            **{name: OnBothStyles(*arms) for name, arms in ON_TEST.items()},
        },
        [
            Models(ROWS, (BOX, ptq.AGAINST_FLOAT, MASK, BITS, BOPS), more=ptq.lost_of(FLOAT)),
            preconditions.object_shares(WINDOWS),
            preconditions.object_shares(WINDOWS_BEFORE, 'object_share_before', BEFORE),
        ],
        ptq.plot,
        size=(8.5, 5),
    )
]
