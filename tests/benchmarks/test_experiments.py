"""The command line of the runner, on plans that run nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import experiments
import pytest
from evidence.experiment import Experiment, fingerprint
from evidence.page import Facts, Page
from evidence.plans import STAGES
from evidence.stage import Stage, ordered, select
from evidence.store import Store

OPEN = Experiment('open', 'measure', measure='m:f', split=None)
SEALED = Experiment('sealed', 'measure', measure='m:f', split='test')


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that point the command line at plans and results of the test."""
    plans = ModuleType('plans_of_the_test')
    plans.STAGES = [
        Stage('late', 'sealed', [SEALED], hours=3, tier='full'),
        Stage('early', 'open', [OPEN], hours=1, claims=['Q1']),
    ]
    plans.TOPICS = [Page('page', 'Page', parts=[Facts('n', lambda reader: 1, lambda found: f'n = {found}')])]
    monkeypatch.setitem(sys.modules, plans.__name__, plans)
    monkeypatch.setenv('COLUMNS', '150')
    header = '| id | claim | published | metric | margin | seeds | data |\n|---|---|---|---|---|---|---|\n'
    (tmp_path / 'protocol.md').write_text(f'{header}| Q1 | a | b | c | > 0 | 1 | val |\n')
    return ['--plans', plans.__name__, '--results', str(tmp_path), '--work', str(tmp_path / 'work')]


def test_list_shows_stages_and_what_is_done(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Store(tmp_path).write(fingerprint(OPEN), {'name': 'open', 'metrics': {}})
    assert experiments.main([*command, 'list']) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if 'early' in line or 'late' in line]
    assert '1/1' in lines[0]
    assert 'Q1' in lines[0]
    assert '0/1' in lines[1]


def test_run_alone_means_core_and_finished_work_is_not_repeated(command: list[str], tmp_path: Path) -> None:
    Store(tmp_path).write(fingerprint(OPEN), {'name': 'open', 'metrics': {}})
    assert experiments.main([*command, 'run']) == 0
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['run', '--tier', 'full'], r"\['sealed'\] open a test split; .*--open-test"),
        (['run', '--stage', 'nothing'], "--stage 'nothing' is unknown; use one of"),
        (['run', '--experiment', 'nothing'], "--experiment 'nothing' is unknown"),
        (['render', 'nothing'], "topic 'nothing' is unknown"),
        (['show', 'open'], "'open' has no result yet"),
    ],
)
def test_user_errors_are_one_line(command: list[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        experiments.main([*command, *arguments])


def test_stage_without_its_claims_is_refused(command: list[str], tmp_path: Path) -> None:
    (tmp_path / 'protocol.md').write_text('# nothing claimed\n')
    with pytest.raises(SystemExit, match='add their rows first'):
        experiments.main([*command, 'run', '--dry-run'])


def test_missing_data_are_told_before_hours_are_spent(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MINICOCO_ROOT', str(tmp_path / 'no_data'))
    with pytest.raises(SystemExit, match=r'split .test. is missing .*make_minicoco'):
        experiments.main([*command, 'run', '--stage', 'late', '--open-test'])


def test_dry_run_and_render(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert experiments.main([*command, 'run', '--dry-run']) == 0
    assert 'open' in capsys.readouterr().out
    assert experiments.main([*command, 'render']) == 0
    assert (tmp_path / 'page.md').read_text().endswith('n = 1\n')


def test_orphans_are_what_no_page_reads(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    store = Store(tmp_path)
    read = Facts('open', lambda reader: reader.result(OPEN), lambda found: '')
    sys.modules[command[1]].TOPICS.append(Page('other', 'Other', parts=[read]))
    store.write(fingerprint(OPEN), {'name': 'open'})
    store.path(fingerprint(OPEN)).with_suffix('.npz').write_bytes(b'matches that no page reads')
    store.write('0123456789abcdef', {'name': 'dropped'})
    before = {path.name for path in store.runs.iterdir()}
    assert experiments.main([*command, 'orphans']) == 0
    listed = capsys.readouterr().out
    assert '0123456789abcdef.json' in listed
    assert f'{fingerprint(OPEN)}.npz' in listed
    assert '2 files that no page reads' in listed
    assert {path.name for path in store.runs.iterdir()} == before, 'listing removes nothing'
    assert experiments.main([*command, 'orphans', '--remove']) == 0
    assert [path.name for path in store.runs.iterdir()] == [f'{fingerprint(OPEN)}.json']


def test_shipped_stages_are_ordered_and_named_once() -> None:
    stages = ordered(STAGES)
    assert [stage.tier for stage in stages] == sorted(stage.tier for stage in stages)
    assert select(STAGES, tier='core') == [stage for stage in stages if stage.tier == 'core']
    assert not any(experiment.sealed for stage in select(STAGES, tier='core') for experiment in stage.experiments)
    with pytest.raises(ValueError, match='defined twice'):
        ordered([STAGES[0], STAGES[0]])
