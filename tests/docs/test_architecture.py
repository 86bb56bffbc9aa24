"""The example of the architecture page runs."""

from page_blocks import run_page


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    run_page('architecture.md', tmp_path, monkeypatch)
    assert 'TierCounts(high=20, low=32, pruned=12)' in capsys.readouterr().out
