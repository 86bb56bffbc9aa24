"""benchmarks/deploy.py without its clock: arguments, the interleaved rounds, the verdict, the JSON, the plots."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import deploy
import deploy_rivals
import pytest
import torch
from deploy import HALF, OPENVINO, OURS, QUICK, STOCK
from deploy_plots import pruned_share
from deploy_rivals import MINMAX, RIVALS, Source, make_images, serve
from tiny_backbone import backbone

from mixaq_mmdet.engine.calibration import Calibrator

DYNAMIC = 'ONNX Runtime dynamic int8'


def test_quick_is_one_size_and_six_backbones():
    args = deploy.parse_args(['--quick'])
    assert (args.sizes, args.batches, args.rivals) == (['800x1216'], [1], QUICK)
    assert set(QUICK) == {STOCK, OPENVINO, 'OpenVINO bf16', DYNAMIC, OURS, HALF}


def test_everything_is_measured_by_default():
    args = deploy.parse_args([])
    assert set(args.rivals) == set(RIVALS)
    assert {'224x224', '800x1216', '800x1333'} <= set(args.sizes)
    assert args.batches == [1, 4]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--sizes', '800'], "'800' is no size; write it as 800x1216"),
        (['--rounds', '0'], 'must be a whole number of at least 1'),
        (['--rivals', 'nobody'], "invalid choice: 'nobody'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        deploy.parse_args(arguments)
    assert message in capsys.readouterr().err


def case(errors=None, **seconds):
    """A measured case from seconds by rival: stock, dynamic, bf16, openvino, ours, half."""
    names = {'stock': STOCK, 'dynamic': DYNAMIC, 'bf16': 'compiled bf16', 'ours': OURS, 'half': HALF}
    names['openvino'] = OPENVINO
    named = {names[key]: values for key, values in seconds.items()}
    return {
        'size': '800x1216',
        'batch': 1,
        'seconds': named,
        'facts': {names[key]: {'c5_error': (errors or {}).get(key, 0.01)} for key in seconds},
    }


def test_verdict_takes_medians_of_ratios_per_round():
    lines = deploy.verdict(case(stock=[4.0, 8.0, 4.0], dynamic=[2, 2, 2], ours=[1.0, 2.0, 2.0], half=[0.5, 1.0, 1.2]))
    assert lines == [
        'ours W8A8, half pruned: 0.50 of all-high',
        f'all-high W8A8: 4.00x {STOCK}',
        f'all-high W8A8: 1.00x {DYNAMIC}',
        'relative C5 error: 0.0100 (within 0.03)',
    ]


def test_rivals_of_another_error_class_do_not_count():
    measured = case({'bf16': 0.2}, stock=[4.0], dynamic=[2.0], bf16=[0.1], ours=[1.0])
    assert deploy.verdict(measured)[-2] == f'all-high W8A8: 2.00x {DYNAMIC}'
    measured = case({'dynamic': 0.2, 'ours': 0.05}, stock=[4.0], dynamic=[2.0], ours=[1.0])
    assert deploy.verdict(measured)[-2:] == [
        'all-high W8A8: no rival within a C5 error of 0.03',
        'relative C5 error: 0.0500 (ABOVE 0.03)',
    ]


@pytest.mark.parametrize(('error', 'best'), [(0.034, OPENVINO), (0.036, DYNAMIC)])
def test_openvino_counts_a_little_longer(error, best):
    measured = case({'openvino': error}, stock=[4.0], dynamic=[2.0], openvino=[1.0], ours=[1.0])
    assert deploy.verdict(measured)[-2].endswith(best)


def test_quick_fails_without_openvino(fakes, monkeypatch):
    monkeypatch.setattr(FakeRival, 'missing', OPENVINO)
    with pytest.raises(RuntimeError, match='not installed'):
        deploy.main(['--quick', '--rounds', '1'])
    deploy.main(['--sizes', '64x64', '--batches', '1', '--rounds', '1', '--rivals', OPENVINO])


def test_our_other_tiers_are_no_rivals():
    measured = case(stock=[4.0], dynamic=[2.0], ours=[1.0])
    for name in ('ours bf16', 'ours W8A8, 80 % pruned'):
        measured['seconds'][name], measured['facts'][name] = [0.1], {'c5_error': 0.001}
    assert deploy.verdict(measured)[-2] == f'all-high W8A8: 2.00x {DYNAMIC}'


class FakeRival:
    """Answers at once, slower by name; the first round is the slowest."""

    asked: list[str] = []
    missing = 'torchao dynamic int8'

    def __init__(self, name, batch, size, threads, source):
        if name == self.missing:
            raise RuntimeError('not installed')
        self.name, self.round = name, 0
        self.facts = {'prepare': 1.0, 'first': 0.5, 'c5_error': 0.02}

    def time(self):
        self.round += 1
        FakeRival.asked.append(self.name)
        return 100.0 if self.round == 1 else 4.0 if self.name == STOCK else 1.0

    def close(self):
        FakeRival.asked.append(f'{self.name} closed')


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(deploy, 'Rival', FakeRival)
    monkeypatch.setattr(deploy, 'SETTLE', 0.0)
    monkeypatch.setattr(FakeRival, 'asked', [])


def test_rounds_interleave_and_figures_are_written(fakes, tmp_path, capsys):
    path = tmp_path / 'speed.json'
    chosen = [DYNAMIC, HALF, 'torchao dynamic int8']
    deploy.main(
        ['--sizes', '64x64', '96x64', '--batches', '1', '--rounds', '2', '--json', str(path), '--rivals', *chosen]
    )
    found = json.loads(path.read_text())
    assert {'device', 'torch', 'threads', 'rounds', 'cases', 'verdict'} <= found.keys()
    assert [measured['size'] for measured in found['cases']] == ['64x64', '96x64']
    first = found['cases'][0]
    assert first['seconds'][STOCK] == [4.0, 4.0]
    assert first['ratio to stock'][OURS]['median'] == 0.25
    assert first['not run'] == {'torchao dynamic int8': 'not installed'}
    names = [STOCK, DYNAMIC, OURS, HALF]
    rounds = [FakeRival.asked[start : start + 4] for start in (0, 4, 8)]
    assert all(sorted(asked) == sorted(names) for asked in rounds)
    assert rounds[0] != rounds[1]  # an order of its own
    assert FakeRival.asked[12:16] == [f'{name} closed' for name in names]
    assert capsys.readouterr().out.splitlines()[-3:] == found['verdict'][-3:]
    assert path.with_suffix('.png').stat().st_size > 1000


def test_stock_and_ours_must_start(fakes, monkeypatch):
    def refuse(*_):
        raise RuntimeError('no memory')

    monkeypatch.setattr(deploy, 'Rival', refuse)
    with pytest.raises(RuntimeError, match='no memory'):
        deploy.main(['--quick'])


def test_shares_are_read_from_names():
    shares = {name: share for name in RIVALS if (share := pruned_share(name)) is not None}
    assert shares == {OURS: 0.0, HALF: 0.5, 'ours W8A8, 20 % pruned': 0.2, 'ours W8A8, 80 % pruned': 0.8}
    assert pruned_share(STOCK) is None


def test_rows_are_run_by_the_engine_that_they_name(monkeypatch):
    made = []

    class Model:
        plan = SimpleNamespace(line='')

        def __init__(self, **options):
            made.append((options['engine'], options['prune_ratios']))

        def load_state_dict(self, state):
            assert state == 'converted'

    monkeypatch.setattr(deploy_rivals, '_simulated', lambda *_: None)
    monkeypatch.setattr('mixaq_mmdet.deploy.IntegerSwin', Model)
    monkeypatch.setattr('mixaq_mmdet.deploy.convert.convert_backbone', lambda simulated: 'converted')
    monkeypatch.setattr('mixaq_mmdet.deploy.kernels.load', lambda: (None, ''))
    for name in (OURS, 'ours onednn W8A8', 'ours onednn W8A8, half pruned'):
        RIVALS[name](Source(), make_images(1, (32, 32)))
    assert made == [('auto', 0.0), ('onednn', 0.0), ('onednn', 0.5)]


def test_exported_rivals_are_our_grids_in_other_runtimes(monkeypatch):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    images = make_images(1, (32, 32))
    simulated = backbone({'w_bits': 8, 'a_bits': 8, **MINMAX})
    Calibrator(simulated).run([images])
    monkeypatch.setattr(deploy_rivals, '_simulated', lambda *_: simulated)
    with torch.no_grad():
        out = RIVALS['ours exported, ONNX Runtime'](None, images)(images)
        expected = simulated(images)
    assert float((out[-1] - expected[-1]).norm() / expected[-1].norm()) < 0.05
    with pytest.raises(ValueError, match='one image at a time'):
        RIVALS['ours exported, OpenVINO, half pruned'](None, make_images(2, (64, 64)))


def test_a_rival_says_when_it_is_ready_and_times_each_line(monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setitem(RIVALS, 'fake', lambda source, images: lambda x: [x + 0.01])
    monkeypatch.setattr(deploy_rivals, 'float_swin', lambda source: lambda x: [x])
    monkeypatch.setattr(deploy_rivals.os, 'sched_setaffinity', lambda *_: None)
    monkeypatch.setattr('sys.stdin', io.StringIO('\n\n'))
    monkeypatch.setattr('sys.stdout', sys.stdout)  # serve points it at the error stream, for exporters that print
    serve('fake', 1, (32, 32), threads, ['tiny', None])
    ready, *times = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ready.keys() == {'prepare', 'first', 'c5_error'}
    assert 0.005 < ready['c5_error'] < 0.02
    assert len(times) == 2
    assert torch.equal(make_images(1, (32, 32)), make_images(1, (32, 32)))
