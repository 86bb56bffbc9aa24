"""What an experiment is, and the hash of what it means."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .splits import ROOTS, SEALED, dataset_edits, split_of

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ('train', 'evaluate', 'measure')

# What decides a result. Everything else in a config (logging, validation on the way, folders) may change freely.
_MODEL = ('model', 'custom_hooks')
_TRAINING = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr')
_WITHOUT_MEANING = ('val_interval', 'persistent_workers', 'pin_memory')
# Options of configs that came later, at the value that results of before had: these keep their hash.
_AS_BEFORE = {'edge_weights': 'StatsQ', 'v_per_channel': False, 'branch_lr_mult': 1}


@dataclass(frozen=True)
class Experiment:
    """A config, edits to it, a seed: one run with one result.

    Kinds: ``train`` runs tools/train.py (training, or calibration by PTQLoop) and evaluates the last checkpoint;
    ``evaluate`` evaluates the checkpoint it starts from; ``measure`` calls a function (docs/evidence.md).

    Args:
        name: how people call it; not part of the hash.
        kind: see above.
        config: config file, relative to the repository; None for a ``measure`` that needs no detector.
        overrides: edits in the form of --cfg-options.
        seed: of the run.
        starts_from: another experiment whose checkpoint is loaded, or a shipped file relative to the repository.
        split: what is evaluated; None: the config's own test set.
        measure: ``module:function`` for ``measure``.
        settings: arguments of that function, plain JSON.
        probe: ``module:function`` called with the Evaluation and the config after evaluating; its dict of facts
            (mean bits, realised ratios ...) goes to the result's ``extras``.
        revision: raise it when code changed so that an old result no longer stands.
    """

    name: str
    kind: str
    config: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    starts_from: Experiment | str | None = None
    split: str | None = 'val'
    measure: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    probe: str | None = None
    revision: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f'kind={self.kind!r} is unknown; use one of {list(KINDS)}')
        if self.kind == 'measure' and not self.measure:
            raise ValueError(f'measure is missing in {self.name!r}; give "module:function"')
        if self.kind != 'measure' and not self.config:
            raise ValueError(f'config is missing in {self.name!r}; give a config file')
        if self.kind == 'evaluate' and self.starts_from is None:
            raise ValueError(f'starts_from is missing in {self.name!r}; give an experiment or a checkpoint file')
        if isinstance(self.starts_from, Experiment) and self.starts_from.kind != 'train':
            raise ValueError(f'starts_from of {self.name!r} is no training; only kind "train" leaves a checkpoint')

    @property
    def sealed(self) -> bool:
        """Whether it opens a test split."""
        return self.split in SEALED

    def on(self, split: str, name: str | None = None) -> Experiment:
        """The checkpoint of this experiment (or the one it evaluates) evaluated on another split."""
        source = self if self.kind == 'train' else self.starts_from
        return replace(self, name=name or f'{self.name}-{split}', kind='evaluate', starts_from=source, split=split)

    def from_model(self, start: Experiment | str) -> Experiment:
        """The same experiment, and all that it starts from, on another float model."""
        before = self.starts_from
        return replace(self, starts_from=before.from_model(start) if isinstance(before, Experiment) else start)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Experiment:
        """Inverse of ``as_dict``."""
        start = content.get('starts_from')
        return cls(**{**content, 'starts_from': cls.from_dict(start) if isinstance(start, Mapping) else start})


def resolved(experiment: Experiment, repository: Path = REPOSITORY) -> Config:
    """The experiment's whole config: bases, overrides, seed and split applied."""
    if experiment.config is None:
        raise ValueError(f'config is missing in {experiment.name!r}; give a config file')
    path = repository / experiment.config
    if not path.is_file():
        raise ValueError(f'config={experiment.config!r} of {experiment.name!r} is no file below {repository}')
    cfg = copy.deepcopy(_read(path, *(os.environ.get(variable) for variable in ROOTS)))
    cfg.merge_from_dict({'randomness': {'seed': experiment.seed}})
    cfg.merge_from_dict(dict(experiment.overrides))
    edits = dataset_edits(experiment.split)
    if edits:
        cfg.merge_from_dict({'test_dataloader': {'dataset': edits}})
    return cfg


def training_split(experiment: Experiment, repository: Path = REPOSITORY) -> str | None:
    """The split of mini-COCO that a training sees; None for what is no training, and for other data."""
    if experiment.kind != 'train':
        return None
    dataset = (resolved(experiment, repository).get('train_dataloader') or {}).get('dataset') or {}
    return split_of(dataset, repository)


def meaning(experiment: Experiment, repository: Path = REPOSITORY) -> dict[str, Any]:
    """What the hash covers: nothing that depends on the machine, on folders or on the order of keys."""
    content: dict[str, Any] = {
        'kind': experiment.kind,
        'seed': experiment.seed,
        'split': experiment.split,
        'revision': experiment.revision,
        'starts_from': _origin(experiment.starts_from, repository),
    }
    for name in ('measure', 'settings', 'probe'):
        if getattr(experiment, name):
            content[name] = getattr(experiment, name)
    if experiment.config is not None:
        with _no_machine():
            cfg = resolved(experiment, repository).to_dict()
        keys = _MODEL + (_TRAINING if experiment.kind == 'train' else ())
        content['config'] = {key: _as_before(cfg[key]) for key in keys if cfg.get(key) is not None}
        content['config']['test'] = (cfg.get('test_dataloader') or {}).get('dataset')
        if experiment.starts_from is None and cfg.get('load_from'):
            content['config']['load_from'] = cfg['load_from']
    return _plain(content, str(repository))


def fingerprint(experiment: Experiment, repository: Path = REPOSITORY) -> str:
    """The 16 hexadecimal digits that name the experiment's result."""
    text = json.dumps(meaning(experiment, repository), sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _origin(start: Experiment | str | None, repository: Path) -> str | None:
    if start is None:
        return None
    if isinstance(start, Experiment):
        return f'experiment:{fingerprint(start, repository)}'
    path = repository / start
    digest = file_digest(path) if path.is_file() else _recorded_digest(path)
    if digest is None:
        raise ValueError(f'starts_from={start!r} is no file; it ships with the repository: `git checkout -- {start}`')
    return f'file:{digest}'


def _recorded_digest(path: Path) -> str | None:
    """Of a checkpoint that is no longer shipped, from the facts beside it: what was made from it keeps its hash."""
    facts = path.with_suffix('.json')
    return json.loads(facts.read_text()).get('sha256') if facts.is_file() else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def _read(path: Path, *data_roots: str | None) -> Config:
    """A config file, read once for each place of the data: a plan names the same files many times."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmengine's way of finding mmdet's configs is deprecated
        logging.disable(logging.INFO)  # it reports every variable it fills in
        try:
            return Config.fromfile(path, import_custom_modules=False)
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _no_machine() -> Iterator[None]:
    """Read configs as if the data lay in a place of the same name everywhere."""
    before = {variable: os.environ.get(variable) for variable in ROOTS}
    # the first name is that of the result files there are
    os.environ.update(zip(ROOTS, ('DATA/', 'DATA_16K/'), strict=True))
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value


def _as_before(value: Any) -> Any:
    """A part of a config without the options that came later and change nothing."""
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if key not in _AS_BEFORE or item != _AS_BEFORE[key]}
        return {key: _as_before(item) for key, item in kept.items()}
    return [_as_before(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any, repository: str) -> Any:
    """Containers and scalars that JSON knows, without the repository's path and without keys of no meaning."""
    if isinstance(value, Mapping):
        kept = {str(key): item for key, item in value.items() if key not in _WITHOUT_MEANING}
        return {key: _plain(kept[key], repository) for key in sorted(kept)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, repository) for item in value]
    if isinstance(value, (bool, int, float, type(None))):
        return value
    return str(value).replace(f'{repository}/', '')
