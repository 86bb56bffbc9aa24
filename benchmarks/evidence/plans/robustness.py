"""Low windows and pruning on corrupted twins, sensitivity of pairs, window noise before and after SAQA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mixaq_mmdet.reporting.figures import COLOURS

from ..comparisons import IMAGES, PAIR, Comparison, Reading, is_pair_of_trainings
from ..experiment import Experiment
from ..intervals import Interval, bootstrap, exactly
from ..page import Listing, Page, Summary, interval_cells
from ..pictures import MARKERS, legend, upright
from ..reader import Reader
from ..splits import KINDS
from ..stage import Stage
from .qat import ADAPTED, CONTROL, PRUNED, QAT, SAQA

RATIO = 0.4
CORE_SEVERITY = 3
SEVERITIES = (1, 3, 5)
PLACES = ('all', 'foreground', 'background')
HALF_NAMES = ('important half', 'other half')
LAST = -1


def ranked(experiment: Experiment, name: str, **importance: Any) -> Experiment:
    """The same model and ratios under another ranking."""
    return replace(
        experiment, name=name, overrides={**experiment.overrides, 'model.backbone.importance': importance}
    )  # fmt: skip


LOW, SKIP = ADAPTED[RATIO], PRUNED[RATIO]
ARMS = {
    'SAQA, low windows': LOW,
    'SAQA, low windows, reversed': ranked(LOW, 'SAQA, reversed', type='L2', reverse=True),
    'SparseViT': SKIP,
    'SparseViT, reversed': ranked(SKIP, 'SparseViT, reversed', type='L2', reverse=True),
}
RANDOM = {
    'SAQA, low windows, random': ranked(LOW, 'SAQA, random', type='Random', seed=0),
    'SparseViT, random': ranked(SKIP, 'SparseViT, random', type='Random', seed=0),
}


def twins(severity: int) -> list[str]:
    """The corrupted sets of one severity."""
    return [f'ood/{kind}-{severity}' for kind in KINDS]


def on_twins(arms: dict[str, Experiment], severity: int) -> list[Experiment]:
    """Every arm on every corrupted set."""
    return [arm.on(split) for arm in arms.values() for split in twins(severity)]


def measured(name: str, of: Experiment, measure: str, split: str, **settings: Any) -> Experiment:
    """A measure on a trained model at ratio 0, calibrated as it is."""
    overrides = {**of.overrides, 'custom_hooks': []}
    return Experiment(
        name,
        'measure',
        config=of.config,
        overrides=overrides,
        starts_from=of,
        split=split,
        measure=f'evidence.measures.noise:{measure}',
        settings=settings,
    )


SENSITIVITY = measured(
    'pair sensitivity', SAQA, 'sensitivity', 'search', images=60, ratios=[0.25, 0.5, 0.8], score='error'
)
NOISE = {
    'before SAQA': measured('window SQNR before SAQA', QAT, 'sqnr', 'val', images=100),
    'after SAQA': measured('window SQNR after SAQA', SAQA, 'sqnr', 'val', images=100),
}


def by_importance(name: str, of: Experiment) -> Experiment:
    """Window SQNR in both halves of the windows, too."""
    return replace(measured(f'window SQNR by importance, {name}', of, 'sqnr', 'val', images=100), revision=2)


HALVES = {
    name: by_importance(name, model)
    for name, model in {'before SAQA': QAT, 'trained for as long': CONTROL, 'after SAQA': SAQA}.items()
}
# claim: arms that lose more, arms that lose less
LOSSES = {
    'R1': ('SparseViT', 'SAQA, low windows'),
    'R2': ('SparseViT, reversed', 'SAQA, low windows, reversed'),
    'R3': ('SAQA, low windows, reversed', 'SAQA, low windows'),
}
STAGES = [
    Stage(
        'robustness',
        'SAQA and SparseViT at equal cost on corrupted twins; sensitivity of pairs; window noise',
        [*ARMS.values(), *on_twins(ARMS, CORE_SEVERITY), SENSITIVITY, *NOISE.values()],
        hours=0.7,
        claims=[*LOSSES, 'R4'],
        topics=['robustness'],
        rank=40,
    ),
    Stage(
        'robustness-noise',
        'window noise by importance, before SAQA, after it and after as much uniform training',
        list(HALVES.values()),
        hours=0.2,
        tier='full',
        claims=['R5', 'R6'],
        topics=['robustness'],
        rank=56,
    ),
    Stage(
        'robustness-all',
        'the other severities, and a random ranking',
        [
            *RANDOM.values(),
            *(experiment for severity in (1, 5) for experiment in on_twins(ARMS, severity)),
            *(experiment for severity in SEVERITIES for experiment in on_twins(RANDOM, severity)),
        ],
        hours=2,
        tier='full',
        topics=['robustness'],
        rank=60,
    ),
]


def matches_of(reader: Reader, arm: Experiment, severity: int) -> Summary | None:
    """Matches on val ('clean') and on each corrupted set; None unless all were run."""
    found = {'clean': reader.matches(arm)}
    found |= {f'twin{number}': reader.matches(arm.on(split)) for number, split in enumerate(twins(severity))}
    return None if any(matches is None for matches in found.values()) else found


def relative_loss(ap: Summary) -> Any:
    """Mean over corrupted sets of the share of the clean AP that is lost, in percent."""
    lost = [100 * (1 - value / ap['clean']) for name, value in ap.items() if name != 'clean']
    return sum(lost) / len(lost)


def loss_difference(more: Summary, less: Summary) -> Interval:
    """Relative loss of one arm minus that of another, paired by picture."""
    arms = {f'more_{name}': part for name, part in more.items()} | {f'less_{name}': p for name, p in less.items()}

    def statistic(**ap: Any) -> Any:
        split = [{n.removeprefix(s): v for n, v in ap.items() if n.startswith(s)} for s in ('more_', 'less_')]
        return relative_loss(split[0]) - relative_loss(split[1])

    return bootstrap([arms], statistic)


def loses_more(more: str, less: str) -> Comparison:
    """Whether one arm loses more on the twins than another."""

    def read(reader: Reader) -> Interval | None:
        found = [matches_of(reader, ARMS[name], CORE_SEVERITY) for name in (more, less)]
        return None if None in found else loss_difference(*found)

    return Reading(read, PAIR if is_pair_of_trainings(ARMS[more], ARMS[less]) else IMAGES)


def at_stage(reader: Reader, experiment: Experiment, stage: int) -> Summary | None:
    """SQNR of a stage by place."""
    result = reader.result(experiment)
    return result and result['extras']['stages'][stage]


def gain(reader: Reader, model: Experiment, before: Experiment, place: str, stage: int = LAST) -> float | None:
    """What the SQNR of a stage gains from one model to another."""
    found = [at_stage(reader, experiment, stage) for experiment in (model, before)]
    return None if None in found else found[0][place] - found[1][place]


def counted(value: float | None) -> Interval | None:
    """A number without an interval."""
    return None if value is None else exactly(value)


def gain_of_the_important(reader: Reader) -> Interval | None:
    """What SAQA's gain over as much training is more in the important half than in the other."""
    arms = HALVES['after SAQA'], HALVES['trained for as long']
    found = [gain(reader, *arms, place) for place in HALF_NAMES]
    return None if None in found else exactly(found[0] - found[1])


CLAIMS: dict[str, Comparison] = {
    **{claim: loses_more(*arms) for claim, arms in LOSSES.items()},
    'R4': Reading(lambda reader: counted(gain(reader, NOISE['after SAQA'], NOISE['before SAQA'], 'all'))),
    'R5': Reading(
        lambda reader: counted(gain(reader, HALVES['after SAQA'], HALVES['trained for as long'], 'all')),
    ),
    'R6': Reading(gain_of_the_important),
}
TEXT = """\
Relative loss: the share of the AP on val that is lost on its corrupted twins, in percent, mean over fog, noise, blur
and contrast. SAQA runs 40 % of the windows low; SparseViT prunes at the same realised cost. Intervals are over images;
SAQA and SparseViT are one training each."""
NOISE_TEXT = """\
## Noise of windows

SQNR in dB at the end of each stage, every window high, mean over windows; foreground and background are weighted by the
share of a window that objects cover. The reference is the same model without rounding."""
PAIRS_TEXT = """\
## Sensitivity of pairs

Squared error of features (% of signal), one pair alone, on the search split."""
AGAINST_THE_PREDICTION = """\
In the last stage SAQA gains {foreground:+.2f} dB in the foreground and {background:+.2f} in the background. The
mechanism predicts a larger gain where windows are important. R4 compares with the model before SAQA, so what longer
training gains is in it; R5 and R6 compare with as much uniform training, and split the windows by importance."""


def losses(reader: Reader) -> list[Summary]:
    """Every arm at every severity."""
    rows = []
    for severity in SEVERITIES:
        for name, arm in {**ARMS, **RANDOM}.items():
            found = matches_of(reader, arm, severity)
            loss = bootstrap([found], lambda **ap: relative_loss(ap)).as_dict() if found else None
            rows.append({'arm': name, 'severity': severity, 'loss': loss})
    return rows


def stages_of(arms: dict[str, Experiment]) -> Callable[[Reader], Summary]:
    """SQNR by model, stage and place."""

    def read(reader: Reader) -> Summary:
        found = {name: reader.result(experiment) for name, experiment in arms.items()}
        return {name: result and result['extras']['stages'] for name, result in found.items()}

    return read


def by_stage(*places: str) -> Callable[[Summary], list[list[Any]]]:
    """Cells of those models that were measured."""
    return lambda found: [
        [name, number, *(stage[place] for place in places)]
        for name, stages in found.items()
        for number, stage in enumerate(stages or [], 1)
    ]


def where_it_gains(found: Summary) -> str:
    """What the last stage gains, and what the mechanism predicts."""
    before, after = (found[name] for name in NOISE)
    if not (before and after):
        return ''
    return AGAINST_THE_PREDICTION.format(**{place: after[-1][place] - before[-1][place] for place in PLACES})


def sensitivity(reader: Reader) -> Summary | None:
    """The study of one pair alone."""
    result = reader.result(SENSITIVITY)
    return result and result['extras']


def pairs(study: Summary | None) -> list[list[Any]]:
    """Cells of the study."""
    arms = study['arms'] if study else {}
    return [[arm, number, *row] for arm, rows in arms.items() for number, row in enumerate(rows, 1)]


def plot(summary: Summary, figure: Any) -> None:
    """Relative loss of every arm, at the severities that were run."""
    axes = figure.subplots()
    names = list(dict.fromkeys(row['arm'] for row in summary['losses']))
    for number, name in enumerate(names):
        shown = [row for row in summary['losses'] if row['arm'] == name and row['loss']]
        at = [row['severity'] + 0.12 * (number - len(names) / 2) for row in shown]
        style = {'fmt': MARKERS[number], 'color': COLOURS[number], 'label': name}
        if shown:
            upright(axes, at, [row['loss'] for row in shown], **style)
    axes.set(
        title='loss on corrupted twins', xlabel='severity', ylabel='relative loss of box AP (%)', xticks=SEVERITIES
    )
    legend(axes)


TOPICS = [
    Page(
        'robustness',
        'Robustness',
        TEXT,
        CLAIMS,
        [
            Listing(
                'losses',
                losses,
                ['arm', 'severity', 'relative loss (%)', '95 %'],
                lambda found: [[r['arm'], r['severity'], *interval_cells(r['loss'])] for r in found if r['loss']],
                missing=lambda found: [f'{r["arm"]}, severity {r["severity"]}' for r in found if not r['loss']],
            ),
            Listing(
                'noise',
                stages_of(NOISE),
                ['model', 'stage', *PLACES],
                by_stage(*PLACES),
                text=NOISE_TEXT,
                missing=lambda found: [f'SQNR {name}' for name, stages in found.items() if not stages],
                below=where_it_gains,
            ),
            Listing(
                'noise_by_importance',
                stages_of(HALVES),
                ['model', 'stage', *HALF_NAMES],
                by_stage(*HALF_NAMES),
                missing=lambda found: [HALVES[name].name for name, stages in found.items() if not stages],
            ),
            Listing(
                'sensitivity',
                sensitivity,
                ['windows run', 'pair', *(f'ratio {ratio:g}' for ratio in SENSITIVITY.settings['ratios'])],
                pairs,
                text=PAIRS_TEXT,
                missing=lambda study: [] if study else [SENSITIVITY.name],
            ),
        ],
        plot,
        size=(7.5, 4.5),
    )
]
