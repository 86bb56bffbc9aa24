"""Searches as experiments: one real search, and algorithms compared on a landscape tabulated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mixaq_mmdet.engine.evaluate import evaluate
from mixaq_mmdet.models.backbone_cost import backbone_bops, swin_spec
from mixaq_mmdet.search import SearchSpace, Study, nsga, surrogate
from mixaq_mmdet.search.history import History
from mixaq_mmdet.search.images import image_sizes, search_dataset, search_loader
from mixaq_mmdet.search.run import HISTORY, Settings, candidate_of, run_search, subject
from mixaq_mmdet.search.scoring import CostModel, DetectorScorer, load_searched
from mixaq_mmdet.search.space import LARGEST, Candidate
from mixaq_mmdet.search.study import hypervolume
from mixaq_mmdet.search.surrogate import Ridge

from .. import splits
from .cost import realised

if TYPE_CHECKING:
    from ..worker import Context


def settings_of(context: Context) -> Settings:
    """Arguments of a search from an experiment's settings; an interrupted one goes on from its history."""
    own = {key: value for key, value in context.experiment.settings.items() if key in Settings.__dataclass_fields__}
    assert context.checkpoint is not None
    assert context.experiment.config is not None
    return Settings(
        config=context.repository / context.experiment.config,
        checkpoint=context.checkpoint,
        work_dir=context.folder / 'search',
        seed=context.experiment.seed,
        resume=True,
        edited=bool(context.experiment.overrides),
        **own,
    )


def search(context: Context) -> dict[str, Any]:
    """Search on ``search``, then evaluate the chosen ratios and the uniform vector of equal cost on val.

    The uniform vector is in whole hundredths, of the largest cost that is not above the chosen one's.
    """
    assert context.cfg is not None
    splits.require(context.repository, 'search')
    splits.require(context.repository, 'val')
    settings = settings_of(context)
    found = run_search(context.cfg, settings)
    found |= {'config': context.experiment.config, 'checkpoint': settings.checkpoint.name}  # whoever reads it
    chosen = candidate_of(found['chosen'])
    detector: Any = load_searched(context.cfg, settings.checkpoint)
    val = context.cfg.copy()
    val.merge_from_dict({'test_dataloader': {'dataset': splits.dataset_edits('val')}})
    loader, _ = search_loader(context.cfg, search_dataset(context.cfg), settings.images, settings.seed)
    costs = CostModel(detector.backbone, image_sizes(context.cfg, loader))
    uniform = uniform_of_cost(detector.backbone, costs, found['chosen']['bops'])
    pairs = len(chosen.low)
    arms = {
        'chosen': (chosen.low_ratios, chosen.prune_ratios),
        'uniform': ((uniform,) * pairs, (0.0,) * pairs),
        'dense': ((0.0,) * pairs, (0.0,) * pairs),
    }
    matches, extras = {}, {'search': found, 'uniform_ratio': uniform, 'arms': {}}
    for name, (low, prune) in arms.items():
        with detector.backbone.at_ratios(low, prune):
            on_search = evaluate(detector, dataloader=loader)
            on_val = evaluate(detector, dataloader=val.test_dataloader)
        matches |= {f'{name} on search': on_search.matches['bbox'], name: on_val.matches['bbox']}
        extras['arms'][name] = {
            'search': 100 * on_search.metrics['coco/bbox_mAP'],
            'val': 100 * on_val.metrics['coco/bbox_mAP'],
            **realised(on_val, val),
        }
    return {'extras': extras, 'matches': matches, 'images': len(matches['chosen'].image_ids)}


def uniform_of_cost(backbone: Any, costs: CostModel, wanted: float) -> float:
    """The smallest uniform low ratio, in hundredths, that costs no more than ``wanted``."""
    size = costs.sizes.most_common(1)[0][0]
    pairs = backbone.num_pairs
    for ratio in range(101):
        cost = backbone_bops(backbone, size, (ratio / 100,) * pairs, (0.0,) * pairs).relative('paper')
        if cost <= wanted + 1e-9:
            return ratio / 100
    raise ValueError(f'no uniform low ratio costs {wanted:.3f} or less; compare with pruning instead')


def landscape(context: Context) -> dict[str, Any]:
    """Evaluate random vectors once (resumable), interpolate, and run both algorithms many times on the result."""
    assert context.cfg is not None
    splits.require(context.repository, 'search')
    settings, own = settings_of(context), context.experiment.settings
    loader, ids = search_loader(context.cfg, search_dataset(context.cfg), settings.images, settings.seed)
    detector: Any = load_searched(context.cfg, settings.checkpoint)
    costs = CostModel(detector.backbone, image_sizes(context.cfg, loader))
    space = SearchSpace(swin_spec(detector.backbone).pair_stages)
    history = History(settings.work_dir / HISTORY, subject(context.cfg, settings, ids), resume=True)
    study = Study(('map', 'bops'), DetectorScorer(detector, loader, 'map'), costs, history)
    for candidate in space.first_population(own['vectors'], context.experiment.seed):
        study.evaluate(candidate)
    return {'extras': {'landscape': compare(study, space, costs, settings, own['repeats'])}}


def compare(
    study: Study, space: SearchSpace, costs: Callable[[Candidate], Any], settings: Settings, repeats: int
) -> dict[str, Any]:
    """Hypervolumes of both algorithms over seeds; the surrogate has a third of the evaluations."""
    vectors = list(study.asked)
    genes = np.stack([space.encode(candidate) for candidate in vectors])
    values = np.array([study.asked[candidate]['map'] for candidate in vectors])
    table = Interpolation(genes, values)

    def quality(candidate: Candidate) -> tuple[float, float]:
        return -float(table(space.encode(candidate))), costs(candidate)['bops']

    reference = (-float(values.min()), 1.0)
    volumes: dict[str, list[float]] = {'nsga': [], 'surrogate': []}
    total = settings.population * settings.generations
    for seed in range(repeats):
        first = space.first_population(settings.population, seed)
        for name in volumes:
            asked: dict[Candidate, tuple[float, float]] = {}

            def remember(candidate: Candidate, asked: dict = asked) -> tuple[float, float]:
                return asked.setdefault(candidate, quality(candidate))

            if name == 'nsga':
                nsga.search(space, remember, first, settings.generations, seed)
            else:
                surrogate.search(space, remember, lambda c: costs(c)['bops'], first, total // 3, seed)
            volumes[name].append(hypervolume(list(asked.values()), reference))
    return {'vectors': len(vectors), 'reference': reference, 'volumes': volumes, 'fit_error': table.error}


class Interpolation:
    """A ridge trend plus what is left over at the nearest vectors, weighted by closeness."""

    def __init__(self, genes: np.ndarray, values: np.ndarray, neighbours: int = 8) -> None:
        self._trend = Ridge(genes, values)
        self._genes = genes
        self._left = values - self._trend(genes)
        self._neighbours = neighbours
        self.error = self._trend.error

    def __call__(self, genes: np.ndarray) -> float:
        """Quality at one gene vector (G,)."""
        distance = np.linalg.norm((self._genes - genes) / LARGEST, axis=1)
        near = np.argsort(distance)[: self._neighbours]
        weights = 1 / (distance[near] + 1e-3) ** 2
        return float(self._trend(genes[None])[0] + weights @ self._left[near] / weights.sum())
