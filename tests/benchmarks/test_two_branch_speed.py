"""The speed benchmark measures what it says: alternation, ratios, and measures that change time but no result."""

import json
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import two_branch
import two_branch_steps
from forked import run_script
from timing import alternate, peak_above_start, ratios

from mixaq_mmdet.models import TwoBranchSwin


def test_works_alternate_and_the_first_round_does_not_count():
    calls = []
    seconds = alternate({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, rounds=2)
    assert [sorted(calls[start : start + 2]) for start in (0, 2, 4)] == [['a', 'b']] * 3
    assert {name: len(times) for name, times in seconds.items()} == {'a': 2, 'b': 2}


def test_ratios_are_taken_per_round():
    found = ratios({'stock': [1.0, 2.0, 4.0], 'ours': [2.0, 2.0, 2.0]}, 'stock')
    assert found == {'ours': {'median': 1.0, 'least': 0.5, 'most': 2.0}}


def test_peak_memory_is_seen():
    size = 64 * 2**20
    peak = peak_above_start(lambda: torch.ones(size // 4).sum())
    assert 0.9 * size < peak < 2 * size


def test_verdicts_compare_with_the_limits():
    case = {
        'size': '8x8',
        'batch': 1,
        'what': 'forward',
        'time': {'half low': {'median': 1.04}, 'half pruned': {'median': 0.7}},
        'memory': {'half low': 0.9},
    }
    lines = two_branch.verdicts({'cases': [case]})
    assert [line.split()[0] for line in lines] == ['holds', 'MISSED', 'holds']


def test_tables_are_written_beside_the_figures(tmp_path, monkeypatch):
    def run(command, **options):
        done = run_script(command[1], command[2:], tmp_path, {}, tmp_path / 'output')
        return SimpleNamespace(**vars(done), stderr=done.stdout)

    monkeypatch.setattr(two_branch.subprocess, 'run', run)  # the processes that measure memory are forked
    for script, options in (
        (two_branch, ['--sizes', '32x32', '--batches', '1', '--what', 'forward']),
        (two_branch_steps, ['--size', '32x32']),
    ):
        path = tmp_path / f'{script.__name__}.json'
        monkeypatch.setattr('sys.argv', [script.__name__, *options, '--rounds', '1', '--json', str(path)])
        script.main()
        figures = json.loads(path.read_text())
        assert figures['rounds'] == 1
        assert path.with_suffix('.md').read_text() == script.as_table(figures)


@pytest.mark.parametrize('name', two_branch_steps.MEASURES)
def test_switching_a_measure_off_changes_no_result(name):
    torch.manual_seed(0)
    model = TwoBranchSwin(
        embed_dims=8, depths=(2, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), low_ratios=0.4
    )
    model.double().eval()
    x = torch.randn(2, 3, 90, 70, dtype=torch.float64)
    owner, attribute, value, _ = two_branch_steps.MEASURES[name]
    results = []
    for patched in (False, True):
        with mock.patch.object(owner, attribute, value if patched else getattr(owner, attribute)):
            model.zero_grad()
            outs = model(x)
            outs[-1].square().sum().backward()
            with torch.no_grad():
                inferred = model(x)
        results.append([*outs, *inferred, model.patch_embed.projection.weight.grad])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
