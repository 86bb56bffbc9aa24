"""Claims: the protocol's table is where they are declared, and the only place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .intervals import Bound, Interval, outcome

NOT_RUN, NOT_TESTABLE = 'not run', 'not testable'
COLUMNS = ('id', 'claim', 'published', 'metric', 'margin', 'seeds', 'data')
NEEDS = 'needs'  # a further column of tables whose claims have preconditions


@dataclass(frozen=True)
class Claim:
    """A row of the protocol: what is claimed of which number, and what would decide it."""

    id: str
    claim: str
    published: str
    metric: str
    margin: str
    seeds: str
    data: str
    needs: tuple[str, ...] = ()  # claims that must hold before this one can be tested

    @property
    def bound(self) -> Bound:
        """The margin, read."""
        return Bound.parse(self.margin)

    def judge(self, interval: Interval | None, untestable: str = '') -> dict[str, Any]:
        """One entry of a page: the claim, what was found, what that says of it.

        Args:
            interval: of the claim's metric; None: not run (yet).
            untestable: why the claim cannot be tested here, where no claim of ``needs`` says it.
        """
        found = None if interval is None else interval.as_dict()
        if untestable:
            decided = f'{NOT_TESTABLE}: {untestable}'
        else:
            decided = NOT_RUN if interval is None else outcome(interval, self.bound)
        return {
            'id': self.id,
            'claim': self.claim,
            'published': self.published,
            'metric': self.metric,
            'margin': self.margin,
            'found': found,
            'outcome': decided,
        }


def read_claims(protocol: str | Path) -> dict[str, Claim]:
    """Claims by id, from every Markdown table of the protocol that has the claims' columns."""
    protocol = Path(protocol)
    if not protocol.is_file():
        raise ValueError(f'protocol {protocol} is missing; claims are written there before anything is run')
    claims: dict[str, Claim] = {}
    header: tuple[str, ...] = ()
    for line in protocol.read_text().splitlines():
        if not line.startswith('|'):
            header = ()
            continue
        cells = tuple(cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1])
        if cells in (COLUMNS, (*COLUMNS, NEEDS)):
            header = cells
        elif header and not set(''.join(cells)) <= set('-: '):
            claim = _row(cells, header, protocol)
            if claim.id in claims:
                raise ValueError(f'{protocol}: claim {claim.id} stands there twice; give one of them another id')
            claims[claim.id] = claim
    _check_needs(claims, protocol)
    return claims


def require(claims: dict[str, Claim], ids: tuple[str, ...], stage: str) -> None:
    """A stage whose claims are not in the protocol does not run: what decides a claim is fixed before the result."""
    missing = [name for name in ids if name not in claims]
    if missing:
        raise ValueError(
            f'claims {missing} of stage {stage!r} are not in docs/results/protocol.md; add their rows first'
        )


def _check_needs(claims: dict[str, Claim], protocol: Path) -> None:
    for claim in claims.values():
        reached: set[str] = set()
        waiting = list(claim.needs)
        while waiting:
            need = waiting.pop()
            if need not in claims:
                raise ValueError(f'{protocol}: claim {claim.id} needs {need!r}, which is no claim; add its row')
            if need == claim.id:
                raise ValueError(f'{protocol}: claim {claim.id} needs itself; leave it out of its preconditions')
            if need not in reached:
                reached.add(need)
                waiting += claims[need].needs


def _row(cells: tuple[str, ...], header: tuple[str, ...], protocol: Path) -> Claim:
    if len(cells) != len(header):
        raise ValueError(f'{protocol}: row {cells[0]!r} has {len(cells)} cells; columns are {list(header)}')
    named = dict(zip(header, (cell.replace('\\|', '|') for cell in cells), strict=True))
    needs = tuple(re.findall(r'[\w-]*\w[\w-]*', named.pop(NEEDS, '')))
    claim = Claim(**named, needs=needs)
    claim.bound  # noqa: B018  (an unreadable margin must fail here, not after hours of computing)
    return claim
