"""A run never replaces, without being told to, the file that it starts from or what another config calibrated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from mixaq_mmdet.engine.checkpoints.overwriting import refuse_overwriting


@pytest.fixture
def run(tmp_path: Path):
    """A function that makes the config of a run in ``tmp_path/work``, read from a file of the given name."""

    def make(name: str = 'ptq.py', **keys: object) -> Config:
        path = tmp_path / name
        path.write_text('model = dict()\n')
        cfg = Config.fromfile(path)
        cfg.merge_from_dict({'work_dir': str(tmp_path / 'work'), **keys})
        return cfg

    (tmp_path / 'work').mkdir()
    return make


@pytest.mark.parametrize('name', ['epoch_1.pth', 'iter_900.pth'])
def test_a_start_that_the_run_would_replace_is_refused(run, tmp_path, name):
    start = {'load_from': str(tmp_path / 'work' / '..' / 'work' / name)}
    with pytest.raises(ValueError, match=rf'work_dir .* holds load_from, {name!r}.*--work-dir.*--overwrite'):
        refuse_overwriting(run(**start))
    refuse_overwriting(run(**start, allow_overwrite=True))
    refuse_overwriting(run(**start, resume=True))
    refuse_overwriting(run(load_from=str(tmp_path / name)))
    refuse_overwriting(run(load_from=f'https://example.com/{name}'))


def test_a_start_of_another_name_may_lie_in_the_work_folder(run, tmp_path):
    refuse_overwriting(run(load_from=str(tmp_path / 'work' / 'float.pth')))


def test_what_another_config_calibrated_is_kept(run, tmp_path):
    summary = tmp_path / 'work' / 'calibration.json'
    summary.write_text(json.dumps({'config': 'ptq.py', 'seed': 0}))
    refuse_overwriting(run('ptq.py'))
    with pytest.raises(ValueError, match=r'holds what ptq\.py calibrated, and qat\.py would replace it'):
        refuse_overwriting(run('qat.py'))
    refuse_overwriting(run('qat.py', allow_overwrite=True))
    refuse_overwriting(run('qat.py', resume=True))
    for unknown in ('{"seed": 0}', '{"conf', '[]'):  # of an earlier version, torn, something else
        summary.write_text(unknown)
        refuse_overwriting(run('qat.py'))
