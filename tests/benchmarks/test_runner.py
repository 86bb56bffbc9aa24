"""The runner killed, stopped, run twice at once; what is finished stays, what is not goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_plan
import pytest
import torch
from evidence.experiment import Experiment, fingerprint
from evidence.runner import BLOCKED, DONE, ELSEWHERE, FAILED, STOPPED
from evidence.stage import Stage
from evidence.store import Store
from evidence.workplace import Workplace
from forked import start_script
from noisy_oracle import oracle_config

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='locks and process groups of POSIX')


@pytest.fixture
def folder(tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own with the real tools and one config."""
    repository = tmp_path / 'repository'
    (repository / 'configs').mkdir(parents=True)
    (repository / 'tools').symlink_to(HERE.parents[1] / 'tools')
    cfg = oracle_config(tiny_coco, 'elsewhere')
    cfg.custom_imports = {'imports': ['mixaq_mmdet', 'noisy_oracle'], 'allow_failed_imports': False}
    cfg.train_cfg.max_epochs = 3
    cfg.train_cfg.val_interval = 5
    cfg.dump(repository / 'configs' / 'oracle.py')
    monkeypatch.setenv('PYTHONPATH', f'{HERE}{os.pathsep}{HERE.parent}')
    return tmp_path


def wait_for(condition: Callable[[], bool], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.05)


def place(folder: Path, experiment: Experiment) -> Workplace:
    return Workplace(folder / 'work', fingerprint(experiment, folder / 'repository'))


def unlocked(workplace: Workplace) -> bool:
    descriptor = workplace.lock()
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def test_killed_runner_loses_nothing_and_training_goes_on(folder: Path) -> None:
    trained = place(folder, fake_plan.TRAINED)
    path = {'PYTHONPATH': os.environ['PYTHONPATH']}
    first = start_script(HERE / 'fake_plan.py', [folder], folder, path, folder / 'output')
    wait_for((trained.folder / 'epoch_1.pth').exists)
    first.kill()
    first.join()
    store = Store(folder / 'results')
    quick, key = (fingerprint(e, folder / 'repository') for e in (fake_plan.QUICK, fake_plan.TRAINED))
    assert store.has(quick)
    assert not store.has(key)
    wait_for(lambda: unlocked(trained), 120)  # the orphaned training has been ended with its runner

    assert fake_plan.main(folder) == 0, trained.log.read_text()
    assert (folder / 'repository' / 'calls.txt').read_text() == 'quick\n', 'a finished experiment is not repeated'
    log = trained.log.read_text()
    assert 'resumed epoch: 1' in log or 'resumed epoch: 2' in log
    assert 'Epoch(train) [3][2/2]' in log

    result = store.read(key)
    assert result['attempts'] == 2
    assert result['seed'] == 3
    assert 0 < result['metrics']['coco/bbox_mAP'] < 1
    assert len(result['checkpoint_sha256']) == 64
    assert {'versions', 'device', 'minutes', 'command', 'commit', 'dirty'} <= set(result)
    assert set(store.matches(key)) == {'bbox', 'segm'}
    assert str(folder) not in json.dumps(result), 'no path of the machine in a result'

    for path in trained.folder.glob('*.pth'):
        path.unlink()
    new = replace(fake_plan.EVALUATED, overrides={'model.noise': 1.0})
    tasks = fake_plan.runner(folder).plan([Stage('new', 'one more', [new], hours=0)])
    assert [(task.experiment.name, task.checkpoint_only) for task in tasks] == [('trained', True), ('evaluated', False)]


def weights_of(trained: Workplace) -> dict[str, torch.Tensor]:
    """The weights of a training's last checkpoint."""
    return torch.load(trained.checkpoint(), weights_only=False)['state_dict']


@pytest.mark.nightly
def test_a_trained_checkpoint_is_evaluated_and_missed_when_it_is_gone(folder: Path) -> None:
    trained, stage = place(folder, fake_plan.TRAINED), Stage('s', 's', [fake_plan.TRAINED], hours=0)
    found = fake_plan.runner(folder)
    assert found.run([stage]) == 0
    weights = weights_of(trained)
    for path in trained.folder.glob('*.pth'):
        path.unlink()
    result = found.store.path(fingerprint(fake_plan.TRAINED, folder / 'repository'))
    before = result.stat().st_mtime_ns
    assert found.plan([stage]) == [], 'a checkpoint that nobody needs is not missed'
    evaluated = replace(fake_plan.EVALUATED, probe='fake_plan:probe')
    assert found.run([Stage('new', 'one more', [evaluated], hours=0)]) == 0
    assert result.stat().st_mtime_ns == before, 'a result is never recomputed'
    first, other = (found.store.read(fingerprint(e, folder / 'repository')) for e in (fake_plan.TRAINED, evaluated))
    assert other['extras'] == {'noise': 4.0}
    assert other['start_sha256'] == other['checkpoint_sha256'] != first['checkpoint_sha256']
    assert first['start_sha256'] is None
    again = weights_of(trained)  # not the file's bytes: it holds times, too
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert other['metrics'] != first['metrics']


def test_failure_is_told_and_does_not_stop_the_rest(folder: Path) -> None:
    (folder / 'repository' / 'configs' / 'broken.py').write_text('model = None\n')
    (folder / 'repository' / 'tools').unlink()
    (folder / 'repository' / 'tools').mkdir()
    (folder / 'repository' / 'tools' / 'train.py').write_text('raise ValueError("model is missing")\n')
    bad = Experiment('bad', 'train', config='configs/broken.py', split=None)
    found = fake_plan.runner(folder)
    code = found.run([Stage('s', 's', [bad, replace(fake_plan.EVALUATED, starts_from=bad), fake_plan.QUICK], hours=0)])
    states = {task.experiment.name: task for task in found.tasks}
    assert code == 1
    assert states['bad'].state == FAILED
    assert 'ValueError: model is missing' in states['bad'].message, 'the end of the log is shown'
    assert states['evaluated'].state == BLOCKED
    assert states['quick'].state == DONE
    assert len(list((folder / 'results').rglob('*.json'))) == 1


def test_experiment_locked_by_another_process_is_left_alone(folder: Path) -> None:
    lock = place(folder, fake_plan.QUICK).lock()
    assert lock is not None
    found = fake_plan.runner(folder)
    code = found.run([Stage('s', 's', [fake_plan.QUICK], hours=0)])
    os.close(lock)
    assert (code, found.tasks[0].state) == (1, ELSEWHERE)
    assert str(os.getpid()) in found.tasks[0].message


def test_lock_of_a_dead_process_is_taken_over(folder: Path) -> None:
    workplace = place(folder, fake_plan.QUICK)
    workplace.folder.mkdir(parents=True)
    (workplace.folder / 'lock').write_text('999999\n')
    assert unlocked(workplace)


def test_sigterm_stops_the_child_and_says_how_to_go_on(folder: Path) -> None:
    sleeper = Experiment('sleeper', 'measure', measure='fake_plan:sleep', split=None)
    workplace = place(folder, sleeper)
    found = fake_plan.runner(folder)

    def stop_when_asleep(tasks: object) -> None:
        if (workplace.folder / 'asleep').exists():
            (workplace.folder / 'asleep').unlink()
            os.kill(os.getpid(), signal.SIGTERM)

    found.changed = stop_when_asleep
    assert found.run([Stage('s', 's', [sleeper, fake_plan.QUICK], hours=0)]) == 128 + signal.SIGTERM
    assert found.tasks[0].state == STOPPED
    assert found.tasks[1].state != DONE
    assert unlocked(workplace)
