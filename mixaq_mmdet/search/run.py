"""One search from a config and a checkpoint to its files: what tools/search.py calls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.registry import init_default_scope

from mixaq_mmdet.analysis.latency import SCOPES, LatencyTable, measure
from mixaq_mmdet.engine.calibration.data import reading_pipeline
from mixaq_mmdet.engine.damaged_files import read_json
from mixaq_mmdet.engine.detectors import every_window_high
from mixaq_mmdet.engine.tool_errors import quoted
from mixaq_mmdet.models.backbone_cost import swin_spec
from mixaq_mmdet.reporting.environment import device, versions
from mixaq_mmdet.reporting.files import file_sha256, write_whole

from . import nsga, report, surrogate
from .history import History, Scores
from .images import image_sizes, refuse_reported, search_dataset, search_loader, usual_size
from .progress import SearchProgress
from .scoring import CostModel, DetectorScorer, load_searched
from .space import Candidate, SearchSpace
from .study import Study, checked_objectives

HISTORY, LATENCY = 'history.jsonl', 'latency.json'


@dataclass(frozen=True)
class Settings:
    """What the command line says; see tools/search.py."""

    config: Path
    checkpoint: Path
    work_dir: Path
    budget: float | None = 0.75
    target_latency: float | None = None
    objectives: str = 'map,bops'
    population: int = 24
    generations: int = 10
    images: int = 100
    seed: int = 0
    prune: bool = False
    surrogate: bool = False
    detector: bool = False
    resume: bool = False
    force: bool = False
    ann_file: str | None = None
    image_prefix: str | None = None
    edited: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ValueError(f'--budget {self.budget} must be a relative cost in (0, 1], such as 0.75')
        if self.target_latency is not None and not self.target_latency > 0:
            raise ValueError(f'--target-latency {self.target_latency} must be milliseconds above 0')
        for name, least in (('population', 2), ('generations', 1), ('images', 1)):
            if getattr(self, name) < least:
                raise ValueError(f'--{name} {getattr(self, name)} is too small; give at least {least}')
        if self.detector and not self.measures:
            raise ValueError('--detector is for predicted latency; add --objectives map,latency or --target-latency MS')

    @property
    def pair(self) -> tuple[str, str]:
        """(quality, cost)."""
        return checked_objectives(self.objectives)

    @property
    def measures(self) -> bool:
        """Whether latency is measured."""
        return self.pair[1] == 'latency' or self.target_latency is not None

    @property
    def scope(self) -> str:
        """What latency is of, as in ``LatencyTable.scope``."""
        return SCOPES[self.detector]

    @property
    def limit(self) -> str:
        """The budget in words."""
        if self.target_latency is not None:
            return f'predicted latency{" of the detector" if self.detector else ""} <= {self.target_latency:g} ms'
        return 'no budget' if self.budget is None else f'relative BOPs <= {self.budget:g}'


def run_search(cfg: Config, settings: Settings) -> dict[str, Any]:
    """Search, write the files into ``settings.work_dir`` and return what ``search_<name>.json`` holds."""
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    quality, cost_name = settings.pair
    dataset = search_dataset(cfg, settings.ann_file, settings.image_prefix)
    refuse_reported(cfg, dataset, settings.force)
    loader, ids = search_loader(cfg, dataset, settings.images, settings.seed)
    detector = load_searched(cfg, settings.checkpoint)
    backbone: Any = detector.backbone
    sizes = image_sizes(cfg, loader)
    table = None
    if settings.measures:
        table = latency_table(detector, usual_size(sizes), settings)
    costs = CostModel(backbone, sizes, table)
    fits = None
    if settings.target_latency is not None:
        fits = lambda candidate: costs(candidate)['latency'] <= settings.target_latency  # noqa: E731
    elif settings.budget is not None:
        fits = lambda candidate: costs(candidate)['bops'] <= settings.budget  # noqa: E731
    space = SearchSpace(swin_spec(backbone).pair_stages, settings.prune, fits)
    history = shared_history(settings, subject(cfg, settings, ids))
    scorer = DetectorScorer(detector, loader, quality)
    total = settings.population * settings.generations
    total = max(settings.population, total // 3) if settings.surrogate else total
    with SearchProgress(total) as progress:
        study = Study((quality, cost_name), scorer, costs, history, progress.notify)
        dense = study.scores(space.dense)
        explore(space, study, costs, settings, total, progress)
    return finish(cfg, settings, study, costs, dense, ids, progress)


def explore(
    space: SearchSpace, study: Study, costs: CostModel, settings: Settings, total: int, progress: SearchProgress
) -> None:
    """Run the algorithm."""
    first = space.first_population(settings.population, settings.seed)

    def after(number: int) -> None:
        progress.generation(number, study)

    if settings.surrogate:
        name = study.objectives[1]
        surrogate.search(
            space, study.evaluate, lambda candidate: costs(candidate)[name], first, total, settings.seed, after
        )
    else:
        nsga.search(space, study.evaluate, first, settings.generations, settings.seed, after)


def latency_table(detector: Any, shape: tuple[int, int], settings: Settings) -> LatencyTable:
    """Measured once on rank 0 and kept: a resumed search must predict what the killed one did."""
    path = settings.work_dir / LATENCY

    def read() -> LatencyTable:
        if not (settings.resume and path.is_file()):
            made = measure(detector.backbone, shape, detector=detector if settings.detector else None)
            made.environment = {'versions': versions(), 'device': device()}
            write_whole(path, json.dumps(made.as_dict(), indent=1) + '\n')
        remedy = 'delete it: it is measured again'
        content = read_json(path, remedy)
        try:
            return LatencyTable.from_dict(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f'{str(path)!r} is not a latency table ({error!r}); {remedy}') from error

    table = from_rank_zero(read)
    if table.shape != shape:
        raise ValueError(f'{path} was measured at {table.shape}, the images are {shape}; give another --work-dir')
    if table.scope != settings.scope:
        raise ValueError(f'{path} is of the {table.scope}; give --detector as before, or another --work-dir')
    return table


def shared_history(settings: Settings, about: dict[str, Any]) -> History:
    """Rank 0 reads and writes the file; the others start from what it read."""
    history = from_rank_zero(lambda: History(settings.work_dir / HISTORY, about, settings.resume))
    if not is_main_process():
        history.path = None
    return history


def from_rank_zero(function: Callable[[], Any]) -> Any:
    """What ``function`` returns on rank 0, or its ValueError, on every rank."""
    shared: list[Any] = [None]
    if is_main_process():
        try:
            shared = [function()]
        except ValueError as error:
            shared = [error]
    broadcast_object_list(shared)
    if isinstance(shared[0], ValueError):
        raise shared[0]
    return shared[0]


def subject(cfg: Config, settings: Settings, ids: list[Any]) -> dict[str, Any]:
    """What every score depends on."""
    model = every_window_high(cfg).model.to_dict()
    text = json.dumps([model, reading_pipeline(cfg)], sort_keys=True, default=str)
    return {
        'model': hashlib.sha256(text.encode()).hexdigest()[:16],
        'checkpoint': file_sha256(settings.checkpoint)[:16],
        'images': [str(image) for image in ids],
    }


def finish(
    cfg: Config,
    settings: Settings,
    study: Study,
    costs: CostModel,
    dense: Scores,
    ids: list[Any],
    progress: SearchProgress,
) -> dict[str, Any]:
    """Write everything and print the table."""
    chosen, scores = study.best()
    low, prune = costs.realised(chosen)
    name, folder = settings.config.stem, settings.work_dir
    ready = folder / f'{name}_searched.py'
    content: dict[str, Any] = {
        'config': str(settings.config),
        'checkpoint': str(settings.checkpoint),
        'objectives': list(study.objectives),
        'budget': settings.limit,
        'algorithm': 'surrogate' if settings.surrogate else 'NSGA-II',
        'population': settings.population,
        'generations': settings.generations,
        'prune': settings.prune,
        'seed': settings.seed,
        'candidates': len(study.asked),
        'every_window_high': dense,
        'chosen': {
            **report.row(chosen, scores),
            'realised_low_ratios': list(low),
            'realised_prune_ratios': list(prune),
            'config': ready.name,
        },
        'front': report.rows(study),
        'evaluated': [report.row(candidate, found) for candidate, found in study.asked.items()],
        'image_ids': ids,
        'versions': versions(),
        'device': device(),
    }
    if is_main_process():
        report.write_json(folder / f'search_{name}.json', content)
        report.write_markdown(folder / f'search_{name}.md', study, chosen, content)
        report.write_csv(folder / f'pareto_{name}.csv', content['front'])
        report.write_plot(folder / f'pareto_{name}.png', study, chosen, dense)
        remark = (
            f'Ratios found by a search for {settings.limit}: {study.objectives[1]} {scores[study.objectives[1]]:.3f}.'
        )
        report.write_config(ready, cfg, settings.config, settings.checkpoint, chosen, settings.edited, remark)
    console = progress.console
    console.print(report.front_table(study.front(), chosen, dense))
    console.print(f'chosen (*) for {settings.limit}: {chosen}', soft_wrap=True)
    console.print(f'written to {folder}: search_{name}.json, .md, pareto_{name}.csv, .png', soft_wrap=True)
    command = quoted('python', 'tools/test.py', ready, settings.checkpoint)
    console.print(f'test it: {command}', soft_wrap=True)
    return content


def candidate_of(entry: dict[str, Any]) -> Candidate:
    """The candidate of a row of the JSON."""
    return Candidate(*(tuple(round(10 * r) for r in entry[name]) for name in ('low_ratios', 'prune_ratios')))
