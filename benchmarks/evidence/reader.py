"""Results by experiment, and what they say of claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mixaq_mmdet.engine.matches import Matches, pool

from .claims import NOT_RUN, NOT_TESTABLE, Claim, read_claims
from .comparisons import POOL, Comparison
from .experiment import REPOSITORY, Experiment, fingerprint
from .intervals import HOLDS, score
from .splits import SEALED
from .store import Store

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Reader:
    """Results by experiment. Results of one page must have seen the same data.

    Pages that share a reader share their matches, and with them the resamples that take most of a rendering's time.

    Args:
        store: of the results.
        repository: root of configs and shipped checkpoints.
        comparisons: what decides each claim of every page, by the claim's id: a claim may need another page's.
    """

    store: Store
    repository: Path = REPOSITORY
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    read_matches: set[str] = field(default_factory=set)
    _keys: dict[str, str] = field(default_factory=dict)
    _data: dict[str, tuple[str, str]] = field(default_factory=dict)
    _matches: dict[str, Mapping[str, Matches]] = field(default_factory=dict)
    _pooled: dict[tuple[str, ...], Matches] = field(default_factory=dict)
    _claims: dict[str, Claim] = field(default_factory=dict)
    _judged: dict[str, dict[str, Any]] = field(default_factory=dict)

    def key(self, experiment: Experiment) -> str:
        """The experiment's hash; its config is resolved once."""
        written = repr(experiment)
        if written not in self._keys:
            self._keys[written] = fingerprint(experiment, self.repository)
        return self._keys[written]

    def result(self, experiment: Experiment) -> dict[str, Any] | None:
        """The result file, None where it was not run."""
        key = self.key(experiment)
        if not self.store.has(key):
            return None
        self.read.add(key)
        found = self.store.read(key)
        for split, digest in found.get('data', {}).items():
            name, known = self._data.setdefault(split, (found['name'], digest))
            if known != digest:
                raise ValueError(
                    f'split {split!r} differs between the results {name!r} and {found["name"]!r}; '
                    f'delete the outdated one from {self.store.runs} and run it again'
                )
        return found

    def matches(self, experiment: Experiment, kind: str = 'bbox') -> Matches | None:
        """Per-image matches, None where it was not run."""
        if self.result(experiment) is None:
            return None
        key = self.key(experiment)
        if key not in self._matches:
            self._matches[key] = self.store.matches(key)
            self.read_matches.add(key)
        return self._matches[key][kind]

    def pooled(self, experiments: Sequence[Experiment]) -> Matches | None:
        """Box matches of several experiments as of one on all their images, None unless all were run."""
        parts = [self.matches(experiment) for experiment in experiments]
        found = [matches for matches in parts if matches is not None]
        if len(found) < len(parts):
            return None
        keys = tuple(self.key(experiment) for experiment in experiments)
        if keys not in self._pooled:
            self._pooled[keys] = pool(found)
        return self._pooled[keys]

    def on_both_styles(self, arm: Experiment) -> dict[str, Matches] | None:
        """Box matches of an arm on the test split of each style and on both pooled; None unless both were run."""
        rows = [arm.on(split) for split in SEALED]
        both = self.pooled(rows)
        if both is None:
            return None
        parts = {split: self.matches(row) for split, row in zip(SEALED, rows, strict=True)}
        return {**{split: matches for split, matches in parts.items() if matches is not None}, POOL: both}

    def starts_anew(self, experiment: Experiment) -> bool:
        """Whether it rests on a training whose checkpoint was gone and trained again: not the file that was evaluated.

        The same seed ends elsewhere on another processor. Trainings of before ``start_sha256`` was kept count as not.
        """
        start, own = experiment.starts_from, self.result(experiment)
        if own is None or not isinstance(start, Experiment):
            return False
        trained = self.result(start) or {}
        used = own.get('start_sha256') or (own.get('checkpoint_sha256') if experiment.kind == 'evaluate' else None)
        evaluated = trained.get('checkpoint_sha256')
        return (None not in (used, evaluated) and used != evaluated) or self.starts_anew(start)

    def claims(self) -> dict[str, Claim]:
        """The protocol's claims."""
        self._claims = self._claims or read_claims(self.store.root / 'protocol.md')
        return self._claims

    def judge(self, name: str, comparison: Comparison | None = None) -> dict[str, Any]:
        """A claim's entry on a page: what was found, and what that says of the claim if its preconditions hold.

        Args:
            name: of the claim.
            comparison: what decides it; None: what the reader knows of it.
        """
        if name not in self._judged:
            claim, decides = self.claims()[name], comparison or self.comparisons.get(name)
            judged = claim.judge(None) if decides is None else decides.judge(claim, self)
            if reason := self._untestable(claim, judged['outcome']):
                judged['outcome'] = f'{NOT_TESTABLE}: {reason}'
            self._judged[name] = judged
        return self._judged[name]

    def _untestable(self, claim: Claim, decided: str) -> str:
        """Why a claim cannot be tested here: the first of its preconditions that does not hold."""
        for need in claim.needs:
            found = self.judge(need)['outcome']
            if found == NOT_RUN and decided != NOT_RUN:
                return f'{need} was not run'
            if found not in (HOLDS, NOT_RUN):
                return f'{need} is {found}'
        return ''

    def row(self, experiment: Experiment) -> dict[str, Any]:
        """A model's line: its name; box AP with interval, mask AP and cost as 'result', None where it was not run."""
        result, matches = self.result(experiment), self.matches(experiment)
        if result is None or matches is None:
            return {'name': experiment.name, 'result': None}
        mask, cost = 100 * result['metrics']['coco/segm_mAP'], result['extras'].get('cost')
        return {'name': experiment.name, 'result': {'box': score(matches).as_dict(), 'mask': mask, 'cost': cost}}
