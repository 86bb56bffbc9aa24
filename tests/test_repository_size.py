"""What a clone holds stays small: raw matches are packed, orphans are removed, checkpoints are few."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 70e6  # the missing rows of the table of methods grow to it


def test_tracked_files_are_small_together() -> None:
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip('no checkout: only git knows which files are tracked')
    paths = [ROOT / name for name in listed.stdout.decode().split('\0') if name]
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
    assert sum(sizes.values()) < LIMIT, f'`experiments.py orphans` lists run files to remove; largest: {largest}'
