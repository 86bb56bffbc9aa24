"""What the hash of an experiment covers, and what it must not depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from evidence import splits
from evidence.experiment import Experiment, fingerprint, meaning, resolved
from evidence.worker import starting_point

BASE = """
data_root = '{{$MINICOCO_ROOT:data/minicoco/}}'
dataset = dict(type='CocoDataset', data_root=data_root, ann_file='annotations/instances_val.json',
               data_prefix=dict(img='val/'))
model = dict(type='Detector', width=8, depths=(2, 2))
train_cfg = dict(max_epochs=2, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=0.1))
train_dataloader = dict(batch_size=2, dataset=dict(ann_file='annotations/instances_train.json'))
test_dataloader = dict(batch_size=1, dataset=dataset)
"""
SAME_MEANING = """
_base_ = ['base.py']
# another order, other folders, other logging
log_level = 'DEBUG'
work_dir = '/somewhere'
train_cfg = dict(val_interval=2, max_epochs=2)
model = dict(depths=[2, 2], width=8)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'same.py').write_text(SAME_MEANING)
    (tmp_path / 'weights.pth').write_bytes(b'weights')
    return tmp_path


TRAIN = Experiment('training', 'train', config='base.py')
EVALUATE = Experiment('evaluation', 'evaluate', config='base.py', starts_from='weights.pth')


def test_order_of_keys_comments_and_logging_do_not_matter(repository: Path) -> None:
    assert fingerprint(TRAIN, repository) == fingerprint(replace(TRAIN, config='same.py', name='other'), repository)
    swapped = {'model.width': 9, 'train_cfg.max_epochs': 3}, {'train_cfg.max_epochs': 3, 'model.width': 9}
    assert len({fingerprint(replace(TRAIN, overrides=o), repository) for o in swapped}) == 1
    assert fingerprint(replace(TRAIN, overrides={'model.width': 8}), repository) == fingerprint(TRAIN, repository)


def test_machine_does_not_matter(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = fingerprint(TRAIN, repository), fingerprint(EVALUATE, repository)
    other = tmp_path_factory.mktemp('elsewhere')
    for path in repository.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv('MINICOCO_ROOT', '/mnt/data/')
    assert (fingerprint(TRAIN, other), fingerprint(EVALUATE, other)) == here
    assert resolved(TRAIN, other).data_root == '/mnt/data/', 'the run itself uses the data of its machine'


@pytest.mark.parametrize(
    'change',
    [
        {'seed': 1},
        {'overrides': {'model.width': 9}},
        {'overrides': {'optim_wrapper.optimizer.lr': 0.2}},
        {'overrides': {'train_dataloader.batch_size': 4}},
        {'split': 'search'},
        {'revision': 2},
        {'starts_from': 'weights.pth'},
        {'starts_from': TRAIN},
        {'probe': 'module:function'},
    ],
)
def test_what_decides_a_result_changes_the_hash(repository: Path, change: dict) -> None:
    assert fingerprint(replace(TRAIN, **change), repository) != fingerprint(TRAIN, repository)


def test_later_options_keep_old_hashes_in_configs_alone(repository: Path) -> None:
    as_before, other = (replace(TRAIN, overrides={'optim_wrapper.branch_lr_mult': factor}) for factor in (1, 10))
    assert fingerprint(as_before, repository) == fingerprint(TRAIN, repository) != fingerprint(other, repository)
    # what a measurement is told by its settings is a choice, whatever its value
    without, given = (replace(TRAIN, kind='measure', measure='a:b', settings=s) for s in ({}, {'branch_lr_mult': 1}))
    assert fingerprint(without, repository) != fingerprint(given, repository)


def test_evaluation_does_not_depend_on_the_training_schedule(repository: Path) -> None:
    longer = replace(EVALUATE, overrides={'train_cfg.max_epochs': 9})
    assert fingerprint(longer, repository) == fingerprint(EVALUATE, repository)
    wider = replace(EVALUATE, overrides={'model.width': 9})
    assert fingerprint(wider, repository) != fingerprint(EVALUATE, repository)


def test_origin_passes_its_meaning_on(repository: Path) -> None:
    before = fingerprint(EVALUATE, repository), fingerprint(replace(EVALUATE, starts_from=TRAIN), repository)
    (repository / 'weights.pth').write_bytes(b'other weights')
    after = fingerprint(EVALUATE, repository), fingerprint(replace(EVALUATE, starts_from=TRAIN), repository)
    assert before[0] != after[0]
    assert before[1] == after[1]
    reseeded = replace(EVALUATE, starts_from=replace(TRAIN, seed=5))
    assert fingerprint(reseeded, repository) != after[1]


def test_corrupted_twins_are_their_own_data(repository: Path) -> None:
    foggy = replace(EVALUATE, split='ood/fog-3')
    assert meaning(foggy, repository)['config']['test']['ann_file'] == 'ood/fog-3/annotations/instances_val.json'


def test_evaluating_elsewhere_keeps_the_checkpoint() -> None:
    assert TRAIN.on('test').starts_from is TRAIN
    assert EVALUATE.on('test').starts_from == 'weights.pth'
    assert EVALUATE.on('test').sealed
    assert not EVALUATE.sealed


def test_json_round_trip() -> None:
    nested = replace(EVALUATE, starts_from=replace(TRAIN, overrides={'a': [1, 2]}))
    assert Experiment.from_dict(nested.as_dict()) == nested


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'kind': 'guess'}, 'kind='),
        ({'kind': 'train'}, 'config is missing'),
        ({'kind': 'evaluate', 'config': 'base.py'}, 'starts_from is missing'),
        ({'kind': 'measure'}, 'measure is missing'),
        ({'kind': 'evaluate', 'config': 'base.py', 'starts_from': EVALUATE}, 'no training'),
    ],
)
def test_incomplete_experiments_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment('wrong', **fields)


def test_missing_files_are_named(repository: Path) -> None:
    with pytest.raises(ValueError, match='config='):
        fingerprint(replace(TRAIN, config='nowhere.py'), repository)
    with pytest.raises(ValueError, match='git checkout'):
        fingerprint(replace(EVALUATE, starts_from='nowhere.pth'), repository)


def test_the_large_set_is_another_split_wherever_it_lies(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = '{{$MINICOCO_16K_ROOT:data/minicoco-16k/}}'
    (repository / 'large.py').write_text(
        f"_base_ = ['base.py']\ntrain_dataloader = dict(dataset=dict(data_root='{root}'))\n"
    )
    large = replace(TRAIN, config='large.py')
    key = fingerprint(large, repository)
    assert key != fingerprint(TRAIN, repository)
    folder = tmp_path_factory.mktemp('elsewhere')
    monkeypatch.setenv('MINICOCO_16K_ROOT', f'{folder}/')
    assert fingerprint(large, repository) == key

    (folder / 'MANIFEST.sha256').write_text(f'{"0" * 64}  annotations/instances_train.json\n')
    found = {name: splits.split_of(resolved(e, repository).train_dataloader.dataset, repository)
             for name, e in (('usual', TRAIN), ('large', large))}  # fmt: skip
    assert found == {'usual': 'train', 'large': 'train_16k'}
    assert splits.digest(repository, 'train_16k') is not None
    assert splits.digest(repository, 'train') is None, 'no other set lies here'


def test_results_outlive_a_checkpoint_that_is_no_longer_shipped(repository: Path) -> None:
    shipped = fingerprint(EVALUATE, repository)
    digest = hashlib.sha256((repository / 'weights.pth').read_bytes()).hexdigest()
    (repository / 'weights.json').write_text(json.dumps({'sha256': digest}))
    (repository / 'weights.pth').unlink()
    assert fingerprint(EVALUATE, repository) == shipped
    with pytest.raises(ValueError, match=r'no longer shipped; .git log --diff-filter=D -- weights.pth'):
        starting_point(EVALUATE, repository / 'work', repository)


def test_a_training_set_that_is_missing_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MINICOCO_16K_ROOT', str(tmp_path))
    with pytest.raises(ValueError, match=r'MINICOCO_16K_ROOT: .*--train 16000 --splits train'):
        splits.require(tmp_path, splits.LARGE)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/instances_train.json').write_text('{}')
    splits.require(tmp_path, splits.LARGE)
