"""Low windows and pruning on corrupted twins, sensitivity of pairs, window noise before and after SAQA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..experiment import Experiment
from ..render import COLOURS, NOT_RUN, Reader, Topic, claims_table, table
from ..splits import KINDS
from ..stage import Stage
from ..statistics import Interval, bootstrap, exactly
from .qat import ADAPTED, PRUNED, QAT, SAQA

RATIO = 0.4
CORE_SEVERITY = 3
SEVERITIES = (1, 3, 5)
PLACES = ('all', 'foreground', 'background')


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


def matches_of(reader: Reader, arm: Experiment, severity: int) -> dict[str, Any] | None:
    """Matches on val ('clean') and on each corrupted set; None unless all were run."""
    found = {'clean': reader.matches(arm)}
    found |= {f'twin{number}': reader.matches(arm.on(split)) for number, split in enumerate(twins(severity))}
    return None if any(matches is None for matches in found.values()) else found


def relative_loss(ap: dict[str, Any]) -> Any:
    """Mean over corrupted sets of the share of the clean AP that is lost, in percent."""
    lost = [100 * (1 - value / ap['clean']) for name, value in ap.items() if name != 'clean']
    return sum(lost) / len(lost)


def loss_difference(more: dict[str, Any], less: dict[str, Any]) -> Interval:
    """Relative loss of one arm minus that of another, paired by picture."""
    arms = {f'more_{name}': part for name, part in more.items()} | {f'less_{name}': p for name, p in less.items()}

    def statistic(**ap: Any) -> Any:
        split = [{n.removeprefix(s): v for n, v in ap.items() if n.startswith(s)} for s in ('more_', 'less_')]
        return relative_loss(split[0]) - relative_loss(split[1])

    return bootstrap([arms], statistic)


def summarise(reader: Reader) -> dict[str, Any]:
    """The page's numbers."""
    rows, core = [], {}
    for severity in SEVERITIES:
        for name, arm in {**ARMS, **RANDOM}.items():
            found = matches_of(reader, arm, severity)
            loss = bootstrap([found], lambda **ap: relative_loss(ap)).as_dict() if found else None
            rows.append({'arm': name, 'severity': severity, 'loss': loss})
            if severity == CORE_SEVERITY:
                core[name] = found
    claims = reader.claims()
    judged = []
    for claim, (more, less) in LOSSES.items():
        interval = loss_difference(core[more], core[less]) if core[more] and core[less] else None
        judged.append(claims[claim].judge(interval))
    noise = {name: (reader.result(e) or {'extras': {}})['extras'].get('stages') for name, e in NOISE.items()}
    before, after = noise.values()
    gain = exactly(after[-1]['all'] - before[-1]['all']) if before and after else None
    judged.append(claims['R4'].judge(gain))
    sensitivity = (reader.result(SENSITIVITY) or {'extras': None})['extras']
    return {'losses': rows, 'noise': noise, 'sensitivity': sensitivity, 'claims': judged}


def markdown(summary: dict[str, Any]) -> str:
    """The page."""
    losses = [
        [row['arm'], row['severity'], row['loss']['estimate'], f'{row["loss"]["low"]:.1f} .. {row["loss"]["high"]:.1f}']
        if row['loss']
        else [row['arm'], row['severity'], NOT_RUN, None]
        for row in summary['losses']
    ]
    noise = [
        [name, index + 1, *(stage[place] for place in PLACES)]
        for name, stages in summary['noise'].items()
        for index, stage in enumerate(stages or [])
    ]
    study = summary['sensitivity'] or {'unit': NOT_RUN, 'ratios': [], 'arms': {}}
    pairs = [[arm, n + 1, *row] for arm, rows in study['arms'].items() for n, row in enumerate(rows)]
    return f"""# Robustness

Relative loss: the share of the AP on val that is lost on its corrupted twins, in percent, mean over fog, noise, blur
and contrast. SAQA runs 40 % of the windows low; SparseViT prunes at the same realised cost. Intervals are over
pictures.

{claims_table(summary['claims'])}

{table(['arm', 'severity', 'relative loss (%)', '95 %'], losses)}

## Noise of windows

SQNR in dB at the end of each stage, every window high, mean over windows; foreground and background are weighted by the
share of a window that objects cover. The reference is the same model without rounding.

{table(['model', 'stage', *PLACES], noise)}

## Sensitivity of pairs

{study['unit']}, one pair alone, on the search split.

{table(['windows run', 'pair', *(f'ratio {ratio:g}' for ratio in study['ratios'])], pairs)}
"""


def plot(summary: dict[str, Any], figure: Any) -> None:
    """Relative loss of every arm, at the severities that were run."""
    axes = figure.subplots()
    names = list(dict.fromkeys(row['arm'] for row in summary['losses']))
    for number, name in enumerate(names):
        shown = [row for row in summary['losses'] if row['arm'] == name and row['loss']]
        estimates = [row['loss']['estimate'] for row in shown]
        errors = [
            [row['loss']['estimate'] - row['loss']['low'] for row in shown],
            [row['loss']['high'] - row['loss']['estimate'] for row in shown],
        ]
        at = [row['severity'] + 0.12 * (number - len(names) / 2) for row in shown]
        if shown:
            axes.errorbar(at, estimates, yerr=errors, fmt='osv^Dx'[number % 6], color=COLOURS[number % len(COLOURS)],
                          capsize=3, label=name)  # fmt: skip
    axes.set(
        title='loss on corrupted twins', xlabel='severity', ylabel='relative loss of box AP (%)', xticks=SEVERITIES
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


TOPICS = [Topic('robustness', summarise, markdown, plot, size=(7.5, 4.5))]
