"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import time

import notebook_cells
import pytest
from tool_process import REPOSITORY

TUTORIAL = REPOSITORY / 'docs' / 'tutorial.ipynb'
SECONDS = 240  # of one core; a busy one took 150


def printed(cells):
    return ''.join(text for cell in cells for output in cell.get('outputs', []) for text in output.get('text', []))


@pytest.mark.nightly
def test_every_cell_runs(tmp_path):
    for name in ('tools', 'configs', 'checkpoints', 'benchmarks'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    cells = notebook_cells.read(TUTORIAL)
    started = time.process_time()
    notebook_cells.run(cells, tmp_path)
    assert time.process_time() - started < SECONDS
    text = printed(cells['cells'])
    assert 'mixaq_mmdet.models.two_branch_swin TwoBranchSwin' in text
    assert (tmp_path / 'work_dirs/tutorial/backbone.onnx').is_file()
    drawn = [output for cell in cells['cells'] for output in cell.get('outputs', []) if 'data' in output]
    assert len(drawn) == 2, 'detections and the window map'


def test_the_committed_notebook_holds_its_outputs():
    cells = notebook_cells.read(TUTORIAL)['cells']
    assert all(cell['execution_count'] for cell in cells if cell['cell_type'] == 'code')
    assert 'bit operations' in printed(cells)
    assert TUTORIAL.stat().st_size < 600_000
