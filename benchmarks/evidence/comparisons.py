"""What decides a claim, as data: which arms are compared, and over what the interval is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .claims import Claim
from .experiment import Experiment, resolved
from .intervals import Interval, difference, outcome, outcome_on_pool
from .splits import SEALED

if TYPE_CHECKING:
    from .reader import Reader

Arm = Experiment | Sequence[Experiment]
IMAGES, PAIR, SEEDS = 'images', 'images, this pair', 'seeds, then images'
POOL = 'both'
SETS = (*SEALED, POOL)


class Comparison(ABC):
    """How a claim's number is read from results."""

    over = IMAGES

    @abstractmethod
    def found(self, reader: Reader) -> Interval | None:
        """The claim's number; None unless all that it needs was run."""

    def judge(self, claim: Claim, reader: Reader) -> dict[str, Any]:
        """The claim's entry on a page; ``over`` tells what its interval is over."""
        return {**claim.judge(self.found(reader)), 'over': self.over}


@dataclass(frozen=True)
class Reading(Comparison):
    """A number that a function reads from results; None where they are missing."""

    read: Callable[[Reader], Interval | None]
    over: str = IMAGES

    def found(self, reader: Reader) -> Interval | None:
        return self.read(reader)


@dataclass(frozen=True)
class Difference(Comparison):
    """AP of the treatments minus that of the controls on one split, paired by image and by seed."""

    treatments: Sequence[Experiment]
    controls: Sequence[Experiment]

    @property
    def over(self) -> str:  # type: ignore[override]
        if len(self.treatments) > 1:
            return SEEDS
        return PAIR if is_pair_of_trainings(self.treatments[0], self.controls[0]) else IMAGES

    def found(self, reader: Reader) -> Interval | None:
        treated = [found for experiment in self.treatments if (found := reader.matches(experiment)) is not None]
        controls = [found for experiment in self.controls if (found := reader.matches(experiment)) is not None]
        complete = (len(treated), len(controls)) == (len(self.treatments), len(self.controls))
        return difference(treated, controls) if complete else None


@dataclass(frozen=True)
class OnBothStyles(Comparison):
    """A difference of two arms on the test split of each style: the pool decides, either style may contradict."""

    treatment: Experiment
    control: Experiment

    @property
    def over(self) -> str:  # type: ignore[override]
        return PAIR if is_pair_of_trainings(self.treatment, self.control) else IMAGES

    def found(self, reader: Reader) -> Interval | None:
        sets = self._on_sets(reader)
        return None if sets is None else sets[POOL]

    def judge(self, claim: Claim, reader: Reader) -> dict[str, Any]:
        return {**judge_on_sets(claim, self._on_sets(reader)), 'over': self.over}

    def _on_sets(self, reader: Reader) -> dict[str, Interval] | None:
        treated, controls = reader.on_both_styles(self.treatment), reader.on_both_styles(self.control)
        if treated is None or controls is None:
            return None
        return {name: difference(treated[name], controls[name]) for name in SETS}


def differences(pairs: Mapping[str, tuple[Arm, Arm]]) -> dict[str, Comparison]:
    """Claims about (treatment, control), each one experiment or one a seed."""
    return {name: Difference(_listed(treatment), _listed(control)) for name, (treatment, control) in pairs.items()}


def judge_on_sets(claim: Claim, found: Mapping[str, Interval] | None) -> dict[str, Any]:
    """A claim decided on the pool, contradicted if either part contradicts it; with what each part says."""
    judged = claim.judge(None if found is None else found[POOL])
    if found is None:
        return {**judged, 'sets': None}
    said = {name: outcome(interval, claim.bound) for name, interval in found.items()}
    decided = outcome_on_pool(said[POOL], [said[split] for split in SEALED])
    sets = {name: {**interval.as_dict(), 'outcome': said[name]} for name, interval in found.items()}
    return {**judged, 'outcome': decided, 'sets': sets}


def is_pair_of_trainings(treatment: Experiment, control: Experiment) -> bool:
    """Whether two arms are different trainings: an interval over images then tells of these two alone."""
    return training_of(treatment) != training_of(control)


def training_of(experiment: Experiment) -> Experiment | str | None:
    """The training, or the shipped file, whose weights an arm has; calibration changes none."""
    arm: Experiment | str | None = experiment
    while isinstance(arm, Experiment) and not _trains(arm):
        arm = arm.starts_from
    return arm


def _trains(experiment: Experiment) -> bool:
    return experiment.kind == 'train' and resolved(experiment).train_cfg.get('type') != 'PTQLoop'


def _listed(arm: Arm) -> Sequence[Experiment]:
    return [arm] if isinstance(arm, Experiment) else arm
