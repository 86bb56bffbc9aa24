"""docs/mixqvit.md, run as written."""

from page_blocks import run_page


def test_the_page_runs(tmp_path, monkeypatch):
    run_page('mixqvit.md', tmp_path, monkeypatch)
