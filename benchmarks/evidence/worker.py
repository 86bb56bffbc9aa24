"""Runs one experiment in a process of its own, which `experiments.py run` starts and outlives."""

from __future__ import annotations

import ctypes
import importlib
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from . import splits
from .experiment import REPOSITORY, Experiment, file_digest, fingerprint, resolved, training_split
from .source import source
from .store import Store
from .workplace import Workplace

if TYPE_CHECKING:
    from mixaq_mmdet.engine.matches import Matches

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Context:
    """What a ``measure`` function gets."""

    experiment: Experiment
    cfg: Config | None
    checkpoint: Path | None
    folder: Path
    repository: Path


@dataclass(frozen=True)
class Outcome:
    """What a run yields; ``measure`` functions return a dict with any of these keys."""

    metrics: Mapping[str, float]
    matches: Mapping[str, Matches]
    extras: Mapping[str, Any]
    images: int | None = None


def die_with_parent() -> None:
    """Ask the kernel (Linux) for a SIGTERM when the parent goes, so that no orphan trains on."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def look_up(reference: str) -> Callable[..., Any]:
    """The function behind ``module:function``."""
    module, _, name = reference.partition(':')
    function = getattr(importlib.import_module(module), name, None) if name else None
    if function is None:
        raise ValueError(f'measure or probe {reference!r} is no function; write "module:function"')
    return function


def ready(experiment: Experiment, repository: Path) -> Config:
    """The resolved config with the modules it names imported."""
    cfg = resolved(experiment, repository)
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    return cfg


def starting_point(experiment: Experiment, work_root: Path, repository: Path) -> Path | None:
    """The file the experiment starts from; the runner has seen to it that it is there."""
    start = experiment.starts_from
    if start is None:
        return None
    if isinstance(start, str):
        if not (repository / start).is_file():
            raise ValueError(
                f'starts_from={start!r} is no longer shipped; `git log --diff-filter=D -- {start}` names the commit '
                f'that removed it, `git checkout COMMIT~1 -- {start}` brings it back'
            )
        return repository / start
    place = Workplace(work_root, fingerprint(start, repository))
    place.require_data(trained_on(start, repository))
    path = place.checkpoint()
    if path is None:
        raise ValueError(f'the checkpoint of {start.name!r} is missing; run that experiment first')
    return path


def train(experiment: Experiment, place: Workplace, start: Path | None, repository: Path) -> Path:
    """tools/train.py on the resolved config, resumed where an earlier attempt left off; returns the checkpoint."""
    done = place.checkpoint()
    if done is not None:
        return done
    cfg = resolved(experiment, repository)
    cfg.work_dir = str(place.folder)
    # not `--resume auto`: without a checkpoint to resume it would also forget what the training starts from
    cfg.resume = place.resumable()
    cfg.load_from = None if cfg.resume else str(start) if start else cfg.get('load_from')
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None  # the result is evaluated once, afterwards
    config = place.folder / 'config.py'
    cfg.dump(config)
    command = [sys.executable, str(repository / 'tools' / 'train.py'), str(config), '--work-dir', str(place.folder)]
    subprocess.run(command, cwd=repository, check=True, preexec_fn=die_with_parent)
    return place.finish_training()


def evaluate(experiment: Experiment, checkpoint: Path, place: Workplace, repository: Path) -> Outcome:
    """The checkpoint on the experiment's split."""
    from mixaq_mmdet.engine.evaluate import evaluate as run

    splits.require(repository, experiment.split)
    cfg = ready(experiment, repository)
    # checkpoints hold the average already, and its own copy of a model is nothing that a test may calibrate
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or () if hook['type'] != 'EMAHook']
    found = run(cfg, checkpoint, work_dir=place.folder / 'evaluation')
    prefix = splits.image_prefix(experiment.split)
    matches = {
        kind: replace(part, image_ids=np.char.add(prefix, part.image_ids)) for kind, part in found.matches.items()
    }
    extras = look_up(experiment.probe)(found, cfg) if experiment.probe else {}
    return Outcome(found.metrics, matches, extras, found.images)


def calibration_effort(place: Workplace) -> dict[str, Any]:
    """What the calibration took, where there was one."""
    from mixaq_mmdet.engine.calibration.effort import EFFORT_FILE

    file = place.folder / EFFORT_FILE
    return {'calibration': json.loads(file.read_text())} if file.is_file() else {}


def measure(experiment: Experiment, checkpoint: Path | None, place: Workplace, repository: Path) -> Outcome:
    """The experiment's own function."""
    cfg = ready(experiment, repository) if experiment.config else None
    found = look_up(experiment.measure or '')(Context(experiment, cfg, checkpoint, place.folder, repository))
    return Outcome(found.get('metrics', {}), found.get('matches', {}), found.get('extras', {}), found.get('images'))


def describe(
    experiment: Experiment, key: str, start: Path | None, checkpoint: Path | None, found: Outcome
) -> dict[str, Any]:
    """The result file without what only the run itself knows."""
    from mixaq_mmdet.reporting import environment

    origin = experiment.starts_from
    return {
        'schema': 1,
        'hash': key,
        'name': experiment.name,
        'kind': experiment.kind,
        'config': experiment.config,
        'overrides': dict(experiment.overrides),
        'seed': experiment.seed,
        'split': experiment.split,
        'starts_from': origin.name if isinstance(origin, Experiment) else origin,
        'start_sha256': None if start is None else file_digest(start),
        'measure': experiment.measure,
        'settings': dict(experiment.settings),
        'command': command(experiment),
        'metrics': dict(found.metrics),
        'extras': dict(found.extras),
        'images': found.images,
        'checkpoint_sha256': None if checkpoint is None else file_digest(checkpoint),
        'versions': environment.versions(),
        'device': environment.device(),
    }


def command(experiment: Experiment) -> str:
    """What runs this experiment alone, as a shell takes it."""
    opened = ' --open-test' if experiment.sealed else ''
    return f'python benchmarks/experiments.py run --experiment {shlex.quote(experiment.name)}{opened}'


def digests(experiment: Experiment, repository: Path) -> dict[str, str]:
    """Digests of the splits whose images the result depends on, by name."""
    names = {experiment.split, *experiment.settings.get('splits', ())}
    found = {name: splits.digest(repository, name) for name in sorted(name for name in names if name)}
    return {name: digest for name, digest in found.items() if digest} | trained_on(experiment, repository)


def trained_on(experiment: Experiment, repository: Path) -> dict[str, str]:
    """The digest of the split that a training sees, by its name."""
    split = training_split(experiment, repository)
    digest = splits.digest(repository, split)
    return {split: digest} if split and digest else {}


def work(specification: Mapping[str, Any]) -> None:
    """Run the experiment and commit its result, or only train its checkpoint anew."""
    repository = Path(specification.get('repository', REPOSITORY))
    experiment = Experiment.from_dict(specification['experiment'])
    key, work_root = specification['hash'], Path(specification['work'])
    place, store = Workplace(work_root, key), Store(specification['store'])
    begin = time.perf_counter()
    sources = place.begin_attempt(source(repository), trained_on(experiment, repository))
    start = starting_point(experiment, work_root, repository)
    checkpoint = train(experiment, place, start, repository) if experiment.kind == 'train' else start
    if specification.get('checkpoint_only'):
        return
    if experiment.kind == 'measure':
        found = measure(experiment, checkpoint, place, repository)
    else:
        assert checkpoint is not None  # Experiment has checked it
        found = evaluate(experiment, checkpoint, place, repository)
    if experiment.kind == 'train':
        found = replace(found, extras={**found.extras, **calibration_effort(place)})
    result = describe(experiment, key, start, checkpoint, found)
    result['data'] = digests(experiment, repository)
    result |= sources[-1]
    if earlier := [known for known in sources[:-1] if known != sources[-1]]:
        result['earlier_sources'] = earlier
    result['minutes'] = round((time.perf_counter() - begin) / 60, 2)
    result['attempts'] = len(sources)
    store.write(key, result, found.matches)


def main(specification: str | Path) -> None:
    """Entry of the child process."""
    die_with_parent()
    work(json.loads(Path(specification).read_text()))
