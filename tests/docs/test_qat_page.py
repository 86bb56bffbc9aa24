"""The page on training: its blocks run, on a data set of a few images."""

from __future__ import annotations

from page_blocks import run_page
from tool_process import load_tool


def test_page_runs(tmp_path, monkeypatch, capsys):
    sizes = [word for split in ('train', 'val', 'calib') for word in (f'--{split}', '4')]
    splits = ['--splits', 'train', 'val', 'calib']
    load_tool('make_minicoco.py').main(['--out', str(tmp_path / 'minicoco'), '--size', '128', *sizes, *splits])
    monkeypatch.setenv('MINICOCO_ROOT', f'{tmp_path}/minicoco/')
    capsys.readouterr()
    run_page('qat.md', tmp_path, monkeypatch)
    drawn = [line for line in capsys.readouterr().out.splitlines() if line.startswith('(0.')]
    assert len(set(drawn)) == len(drawn) >= 3, 'each update draws its own ratios'
