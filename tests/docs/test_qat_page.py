"""The page on training: its blocks run."""

from __future__ import annotations

from page_blocks import run_page


def test_page_runs(tmp_path, monkeypatch, capsys):
    run_page('qat.md', tmp_path, monkeypatch)
    printed = capsys.readouterr().out.splitlines()
    assert len(set(printed)) == len(printed) >= 3, 'each update draws its own ratios'
