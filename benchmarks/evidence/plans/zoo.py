"""Every training-free method on equal terms: rows, claims and stages of docs/results/zoo.md (``zoo_page.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..comparisons import Comparison, OnBothStyles, Reading, differences
from ..experiment import Experiment
from ..intervals import Interval, bootstrap
from ..reader import Reader
from ..splits import SEALED
from ..stage import Stage
from .float_models import CONFIG, LONGER
from .ptq import QUANT, RATIOS, RECIPE

START: Experiment | str = LONGER
"""The float model of every row."""
PROBE = 'evidence.measures.conversion:realised_and_converted'
HEADS = 'model.detector_quant.method'
EVALUATION = 1.0  # minutes of one core for val
TEST_EVALUATION = 4.0  # and for one of the test splits


@dataclass(frozen=True)
class Entry:
    """A method of the table.

    Attributes:
        minutes: to expect of one calibration on one core; of reconstruction without a result of its own, estimated from
            40 updates of each block.
        heads: whether it quantizes neck and heads by itself; RepQ does where it does not.
        options: beside its name and bits.
    """

    minutes: float
    heads: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


SMALL = {'budget': 'small'}
METHODS = {
    'MinMax': Entry(1),
    'Percentile': Entry(1),
    'MSE': Entry(1),
    'RepQ': Entry(1),
    'MixQViT': Entry(1),
    'ERQ': Entry(2, heads=False),
    'AdaLog': Entry(10),
    'PTQ4ViT': Entry(10, heads=False),
    'NoisyQuant': Entry(8),
    'AIQViT': Entry(6, heads=False),
    'FIMAQ': Entry(20, heads=False, options=SMALL),
    'APHQ': Entry(20, heads=False, options=SMALL),
    'GLFQ': Entry(70, heads=False, options=SMALL),
}
RECONSTRUCTED = ('FIMAQ', 'APHQ', 'GLFQ')
RIVALS = ('ERQ', 'AdaLog', *RECONSTRUCTED)
"""The methods that publish more than RepQ."""
W3A3 = {f'{QUANT}w_bits': 3, f'{QUANT}a_bits': 3}
HALF_LOW = {f'{QUANT}low_a_bits': 2, RATIOS: 0.5}
EDGES = {f'{QUANT}edge_bits': 8}


def calibrated(method: str, name: str, recipe: str = 'ptq-w4a4', **overrides: Any) -> Experiment:
    """Calibrate the float model by a method, then evaluate it on val."""
    options = {f'{QUANT}{option}': value for option, value in METHODS[method].options.items()}
    edits = {f'{QUANT}method': method, **options, **overrides}
    return Experiment(
        f'{method} {name}', 'train', config=RECIPE.format(recipe), overrides=edits, starts_from=START, probe=PROBE
    )


def whole(method: str) -> Experiment:
    """Neck and heads quantized, too, by the method itself or by RepQ."""
    heads = method if METHODS[method].heads else 'RepQ'
    scope = 'whole detector' if heads == method else 'heads by RepQ'
    return calibrated(method, f'W4A4, {scope}', 'ptq-w4a4-detector', **{HEADS: heads})


FLOAT = Experiment('float, start of the zoo', 'evaluate', config=CONFIG, starts_from=START)
FOUR = {method: calibrated(method, 'W4A4') for method in METHODS}
THREE = {method: calibrated(method, 'W3A3', **W3A3) for method in METHODS}
LOW = {method: calibrated(method, 'W4A4/A2, half low', **HALF_LOW) for method in METHODS}
DETECTORS = {method: whole(method) for method in METHODS}
SETTINGS = {'four': FOUR, 'three': THREE, 'low': LOW, 'detectors': DETECTORS}
FINE = calibrated('RepQ', 'W4A8', 'ptq-w4a8')
FINE_EDGES = calibrated('RepQ', 'W4A8, edges at 8', 'ptq-w4a8', **EDGES)
FOUR_EDGES = calibrated('RepQ', 'W4A4, edges at 8', **EDGES)
EDGE_ROWS = [FINE, FINE_EDGES, FOUR_EDGES]
UNSEEN = [*(THREE[method] for method in ('RepQ', 'ERQ', 'AdaLog', 'FIMAQ', 'APHQ')),
          *(LOW[method] for method in ('RepQ', 'ERQ', 'FIMAQ'))]  # fmt: skip
"""Chosen before anything was run: where a loss is to be expected, and the methods of different kinds."""


def against_repq(rows: Mapping[str, Experiment], claims: Mapping[str, str]) -> dict[str, tuple[Experiment, Experiment]]:
    """(treatment, control) by claim, from the method that each claim is about."""
    return {claim: (rows[method], rows['RepQ']) for claim, method in claims.items()}


# claim: the method that it is about
OF_FOUR = dict(zip(('Z3', 'Z4', 'Z5', 'Z6', 'Z7', 'Z8', 'Z9'), (*RIVALS, 'PTQ4ViT', 'NoisyQuant'), strict=True))
OF_THREE = dict(zip(('Z11', 'Z12', 'Z13', 'Z14', 'Z15'), RIVALS, strict=True))
OF_LOW = dict(zip(('Z16', 'Z17', 'Z18', 'Z19', 'Z20'), RIVALS, strict=True))
OF_DETECTORS = dict(zip(('Z21', 'Z22', 'Z23', 'Z24', 'Z25'), RIVALS, strict=True))
PAIRS: dict[str, tuple[Experiment, Experiment]] = {
    'Z1': (THREE['RepQ'], FLOAT),
    'Z2': (LOW['RepQ'], FOUR['RepQ']),
    **against_repq(FOUR, OF_FOUR),
    **against_repq(THREE, OF_THREE),
    **against_repq(LOW, OF_LOW),
    **against_repq(DETECTORS, OF_DETECTORS),
    'Z26': (FINE_EDGES, FINE),
    'Z27': (FOUR_EDGES, FOUR['RepQ']),
}
ON_TEST = {
    **against_repq(THREE, {'Z31': 'ERQ', 'Z32': 'AdaLog', 'Z33': 'FIMAQ', 'Z34': 'APHQ'}),
    **against_repq(LOW, {'Z35': 'ERQ', 'Z36': 'FIMAQ'}),
}


def largest_gain(reader: Reader) -> Interval | None:
    """What the best of the compared methods has more than RepQ at W4A4; of each resample its own best."""
    arms = {method: reader.matches(FOUR[method]) for method in ('RepQ', *OF_FOUR.values())}
    found = {method: matches for method, matches in arms.items() if matches is not None}
    if len(found) < len(arms):
        return None

    def statistic(**ap: Any) -> Any:
        return np.max([values for method, values in ap.items() if method != 'RepQ'], axis=0) - ap['RepQ']

    return bootstrap([found], statistic)


CLAIMS: dict[str, Comparison] = {
    **differences(PAIRS),
    'Z10': Reading(largest_gain),
    **{name: OnBothStyles(*arms) for name, arms in ON_TEST.items()},
}


def expected_hours(methods: Sequence[str]) -> float:
    """Of the four rows of each method on one core."""
    return sum(len(SETTINGS) * (METHODS[method].minutes + EVALUATION) for method in methods) / 60


def rows_of(methods: Sequence[str]) -> list[Experiment]:
    """The methods' rows in every setting."""
    return [rows[method] for rows in SETTINGS.values() for method in methods]


def claims_about(methods: Sequence[str]) -> list[str]:
    """The claims on val whose treatment is a row of one of the methods."""
    rows = rows_of(methods)
    return [claim for claim, (treatment, _) in PAIRS.items() if treatment in rows]


QUICK = [method for method in METHODS if method not in RECONSTRUCTED]
STAGES = [
    Stage(
        'zoo',
        'the methods without long reconstruction at W4A4, W3A3, half low, and in whole detectors, on val',
        [FLOAT, *rows_of(QUICK), *EDGE_ROWS],
        hours=round(expected_hours(QUICK) + len(EDGE_ROWS) * (METHODS['RepQ'].minutes + EVALUATION) / 60, 1),
        tier='full',
        claims=[*claims_about(QUICK), 'Z26', 'Z27'],
        topics=['zoo'],
        rank=70,
    ),
    *(
        Stage(
            f'zoo-{method.lower()}',
            f'{method} at its small budget, in the settings of the stage zoo',
            rows_of([method]),
            hours=round(expected_hours([method]), 1),
            tier='full',
            claims=[*claims_about([method]), 'Z10'],
            topics=['zoo'],
            rank=71 + number,
        )
        for number, method in enumerate(RECONSTRUCTED)
    ),
    Stage(
        'zoo-test',
        'eight rows that were chosen before, on the test splits of both styles',
        [row.on(split) for row in UNSEEN for split in SEALED],
        hours=round(len(UNSEEN) * len(SEALED) * TEST_EVALUATION / 60, 1),
        tier='full',
        claims=list(ON_TEST),
        topics=['zoo'],
        rank=75,
    ),
]
