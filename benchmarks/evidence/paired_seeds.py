"""Claims about several paired trainings: Student's t over seeds, on the test split of each style and on both pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .claims import Claim
from .comparisons import POOL, SETS, Comparison, judge_on_sets
from .experiment import Experiment
from .intervals import Interval, Statistic, over_paired_seeds
from .splits import SEALED

if TYPE_CHECKING:
    from mixaq_mmdet.engine.matches import Matches

    from .reader import Reader

ArmsOn = Callable[[str], Sequence[Mapping[str, Experiment]]]


@dataclass(frozen=True)
class PairedSeeds(Comparison):
    """A statistic of the APs of arms that share start, data and seed: the pool decides, either style may contradict.

    Args:
        arms: the evaluations on a split, for each seed by the arm's name.
        statistic: of the arms' APs by name.
    """

    arms: ArmsOn
    statistic: Statistic
    over = "seeds (Student's t), images within"

    def found(self, reader: Reader) -> Interval | None:
        sets = self._on_sets(reader)
        return None if sets is None else sets[POOL]

    def judge(self, claim: Claim, reader: Reader) -> dict[str, Any]:
        return {**judge_on_sets(claim, self._on_sets(reader)), 'over': self.over}

    def _on_sets(self, reader: Reader) -> dict[str, Interval] | None:
        seeds = zip(*(self.arms(split) for split in SEALED), strict=True)
        found = [{arm: matches_on_sets(reader, [arms[arm] for arms in seed]) for arm in seed[0]} for seed in seeds]
        known = [{arm: sets for arm, sets in arms.items() if sets is not None} for arms in found]
        if known != found:
            return None
        return {
            name: over_paired_seeds([{arm: sets[name] for arm, sets in arms.items()} for arms in known], self.statistic)
            for name in SETS
        }


def matches_on_sets(reader: Reader, rows: Sequence[Experiment]) -> dict[str, Matches] | None:
    """Box matches of an arm's rows on the test split of each style, and on both pooled; None unless both were run."""
    both = reader.pooled(rows)
    if both is None:
        return None
    parts = {split: reader.matches(row) for split, row in zip(SEALED, rows, strict=True)}
    return {**{split: matches for split, matches in parts.items() if matches is not None}, POOL: both}
