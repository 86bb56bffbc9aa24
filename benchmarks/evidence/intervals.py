"""Intervals from stored matches: paired bootstrap over images, hierarchical over seeds, and what an interval decides.

All AP is in points (0-100). One resample of the images serves every arm and every seed, because all of them saw the
same pictures: what the pictures contribute cancels in a difference and does not shrink with the number of seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student

from mixaq_mmdet.engine.matches import Matches, mean_ap

SAMPLES = 1000
LEVEL = 95
HOLDS, CONTRADICTED, NOT_RESOLVED = 'holds', 'contradicted', 'not resolved'

Arms = Mapping[str, Matches]
Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile interval."""

    estimate: float
    low: float
    high: float
    standard_error: float
    images: int
    seeds: int

    def as_dict(self) -> dict[str, Any]:
        """Rounded for a result file, so that a rendering does not change with the machine."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Interval:
        """Inverse of ``as_dict``, but for the rounding; other keys are left aside."""
        return cls(**{field.name: content[field.name] for field in fields(cls)})

    def __str__(self) -> str:
        if self.low == self.high:
            return f'{self.estimate:.2f} (counted)'
        return f'{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]'


def image_weights(images: int, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """(samples, images) how often each image occurs in each bootstrap resample."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples).astype(np.int32)


def bootstrap(
    seeds: Sequence[Arms],
    statistic: Statistic,
    *,
    threshold: float | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic of the APs of several arms, averaged over training seeds.

    Args:
        seeds: for each training seed the matches of every arm, all on the same images.
        statistic: takes the arms' APs by name, arrays of shape (resamples,), and returns such an array.
        threshold: an IoU threshold instead of the mean over all ten.
        samples: resamples.
        seed: of the resampling.
    """
    images = _common_images(seeds)
    values = np.stack(
        [
            statistic(**{name: _resampled(matches, samples, seed, threshold) for name, matches in arms.items()})
            for arms in seeds
        ]
    )
    return interval_of(values[:, 0], values[:, 1:], images=images, seed=seed)


# one arm meets many others, on many pages
_KNOWN: WeakKeyDictionary[Matches, dict[tuple[int, int, float | None], np.ndarray]] = WeakKeyDictionary()


def _resampled(matches: Matches, samples: int, seed: int, threshold: float | None = None) -> np.ndarray:
    """AP on all pictures, then on each resample of them: (1 + samples,)."""
    known = _KNOWN.setdefault(matches, {})
    if (samples, seed, threshold) not in known:
        images = len(matches.image_ids)
        weights = np.concatenate([np.ones((1, images), np.int32), image_weights(images, samples, seed)])
        known[samples, seed, threshold] = mean_ap(matches, weights, threshold)
    return known[samples, seed, threshold]


def interval_of(points: np.ndarray, values: np.ndarray, *, images: int, seed: int = 0) -> Interval:
    """Interval from the statistic of each seed on all images (S,) and on resamples (S, R).

    With several seeds each resample also draws seeds. Drawing from S seeds understates their variance by (S - 1) / S;
    their deviations are stretched to make up for it.
    """
    count, samples = values.shape
    estimate = float(points.mean())
    if count == 1:
        draws = values[0]
    else:
        stretch = np.sqrt(count / (count - 1)) - 1
        stretched = values + stretch * (points - estimate)[:, None]
        chosen = np.random.default_rng([seed, 1]).integers(count, size=(samples, count))
        draws = stretched[chosen, np.arange(samples)[:, None]].mean(axis=1)
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(estimate, float(low), float(high), float(draws.std(ddof=1)), images, count)


def over_paired_seeds(
    seeds: Sequence[Arms], statistic: Statistic, *, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """Student's t over paired seeds whose start is one fixed block, with the images' error within.

    Args:
        seeds: for each training seed the matches of every arm, all on the same images.
        statistic: as in :func:`bootstrap`.
        samples: resamples of the images.
        seed: of the resampling.
    """
    images = _common_images(seeds)
    values = np.stack(
        [statistic(**{name: _resampled(found, samples, seed) for name, found in arms.items()}) for arms in seeds]
    )
    return student_interval(values[:, 0], float(values[:, 1:].mean(axis=0).std(ddof=1)), images=images)


def student_interval(values: Sequence[float] | np.ndarray, image_error: float = 0.0, *, images: int = 0) -> Interval:
    """Mean of a value per seed, +- t sqrt(s^2 / n + e^2) with n - 1 degrees of freedom.

    Args:
        values: of at least two seeds; s is their standard deviation.
        image_error: e, the standard error of the mean from the choice of images.
        images: how many there are.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        raise ValueError(f'{len(values)} seed has no spread; give at least two, or use bootstrap over images')
    estimate, spread = float(values.mean()), float(values.std(ddof=1))
    half = smallest_effect(spread, len(values), image_error)
    error = float(np.hypot(spread / len(values) ** 0.5, image_error))
    return Interval(estimate, estimate - half, estimate + half, error, images, len(values))


def score(matches: Matches | Sequence[Matches], **options: Any) -> Interval:
    """Interval of one arm's AP (one or several seeds)."""
    return bootstrap([{'arm': m} for m in _listed(matches)], lambda arm: arm, **options)


def difference(
    treatment: Matches | Sequence[Matches], control: Matches | Sequence[Matches], **options: Any
) -> Interval:
    """Interval of AP(treatment) - AP(control), paired by image and by seed; one control may serve all seeds."""
    treated, controls = _listed(treatment), _listed(control)
    if len(controls) == 1:
        controls = controls * len(treated)
    if len(treated) != len(controls):
        raise ValueError(f'treatment has {len(treated)} seeds, control {len(controls)}; pair them or give one control')
    pairs = [{'treatment': a, 'control': b} for a, b in zip(treated, controls, strict=True)]
    return bootstrap(pairs, lambda treatment, control: treatment - control, **options)


def bootstrap_sets(sets: Sequence[Arms], statistic: Statistic, *, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """Interval of a statistic of APs on different sets of pictures, each set resampled by itself.

    Args:
        sets: for each set the matches of its arms, paired by picture; names are unique over the sets.
        statistic: takes all arms' APs by name, arrays of shape (resamples,), and returns such an array.
        samples: resamples.
        seed: of the resampling.
    """
    draws = {}
    images = 0
    for number, arms in enumerate(sets):
        images += _common_images([arms])
        draws.update({name: _resampled(matches, samples, seed + number) for name, matches in arms.items()})
    values = statistic(**draws)
    return interval_of(values[:1], values[None, 1:], images=images)


def ratio_of_sets(above: Matches, below: Matches, **options: Any) -> Interval:
    """Interval of AP(above) / AP(below) for different pictures."""
    return bootstrap_sets([{'above': above}, {'below': below}], lambda above, below: above / below, **options)


def exactly(value: float, images: int = 0) -> Interval:
    """A number that was counted, not estimated."""
    return Interval(value, value, value, 0.0, images, 1)


def mean_over_images(values: np.ndarray, *, samples: int = SAMPLES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Means of per-image quantities (N, Q): on all images (Q,), and on the same resamples as APs use (R, Q)."""
    values = np.asarray(values, float)
    weights = image_weights(len(values), samples, seed)
    return values.mean(axis=0), weights @ values / len(values)


def smallest_effect(spread: float, seeds: int, image_error: float = 0.0) -> float:
    """Half width of a 95 % interval that ``seeds`` seeds of this spread can give: no smaller effect can be resolved.

    Args:
        spread: standard deviation of the paired difference between seeds.
        seeds: number of seeds.
        image_error: standard error of the paired difference from the choice of images.
    """
    if seeds < 2:
        return float('inf')
    factor = student.ppf(0.5 + LEVEL / 200, seeds - 1)
    return float(factor * np.sqrt(spread**2 / seeds + image_error**2))


def spread_interval(spread: float, seeds: int) -> tuple[float, float]:
    """The 95 % interval of a standard deviation that was estimated from so many seeds."""
    if seeds < 2:
        return 0.0, float('inf')
    tails = chi2.ppf([0.5 + LEVEL / 200, 0.5 - LEVEL / 200], seeds - 1)
    low, high = spread * np.sqrt((seeds - 1) / tails)
    return float(low), float(high)


@dataclass(frozen=True)
class Bound:
    """What a claim says of a number: ``> -0.3``, ``< 5`` or ``20 .. 45``."""

    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Read the margin column of the protocol."""
        number = r'(-?\d+(?:\.\d+)?)'
        if found := re.fullmatch(rf'>\s*{number}', text.strip()):
            return cls(low=float(found[1]))
        if found := re.fullmatch(rf'<\s*{number}', text.strip()):
            return cls(high=float(found[1]))
        if found := re.fullmatch(rf'{number}\s*\.\.\s*{number}', text.strip()):
            return cls(float(found[1]), float(found[2]))
        raise ValueError(f'margin={text!r} cannot be read; write "> -0.3", "< 5" or "20 .. 45"')


def outcome(interval: Interval, bound: Bound) -> str:
    """What an interval says of a claim."""
    if interval.low > bound.low and interval.high < bound.high:
        return HOLDS
    if interval.high <= bound.low or interval.low >= bound.high:
        return CONTRADICTED
    return NOT_RESOLVED


def outcome_on_pool(pool: str, parts: Sequence[str]) -> str:
    """A claim holds when it holds on the pooled sets and is contradicted on none of them."""
    return CONTRADICTED if pool == HOLDS and CONTRADICTED in parts else pool


def _listed(matches: Matches | Sequence[Matches]) -> list[Matches]:
    return [matches] if isinstance(matches, Matches) else list(matches)


def _common_images(seeds: Sequence[Arms]) -> int:
    every = [matches for arms in seeds for matches in arms.values()]
    if not every:
        raise ValueError('no arm was given; a statistic needs at least one')
    for matches in every[1:]:
        if not np.array_equal(matches.image_ids, every[0].image_ids):
            raise ValueError('arms were evaluated on different images; a paired comparison needs the same set')
    return len(every[0].image_ids)
