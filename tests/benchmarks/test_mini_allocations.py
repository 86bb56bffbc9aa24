"""benchmarks/mini_allocations.py: its commands are ones the tools take, and it writes recipes as they are shipped."""

from __future__ import annotations

import shlex

import mini_allocations
import pytest
from mini_allocations import ALLOCATIONS, RECIPE, ROOT, recipe
from mmengine.config import Config
from tool_process import load_tool


@pytest.mark.parametrize('allocation', ALLOCATIONS, ids=lambda allocation: allocation.name)
def test_shipped_recipes_are_written_so(allocation):
    path = ROOT / 'configs/mini' / RECIPE.format(allocation.name)
    cfg = Config.fromfile(path, import_custom_modules=False)
    bits = {override['pattern']: override['w_bits'] for override in cfg.overrides}
    ratios = cfg.model.backbone.get('low_ratios') if allocation.scope == 'both' else None
    assert recipe(allocation, bits, ratios) == path.read_text()


def test_commands_are_taken_by_the_tools(tmp_path, capsys):
    mini_allocations.main(['--dry-run', '--work-dir', str(tmp_path)])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 2 + len(ALLOCATIONS)
    assert not list(tmp_path.iterdir())
    for python, tool, *arguments in commands:
        assert python == 'python'
        options = load_tool(tool.removeprefix('tools/')).parse_args(arguments)
        assert options.images == 8
        if tool == 'tools/search.py':
            assert options.calibration_images == 32
            assert (options.allocate, options.budget) in {(row.scope, row.budget) for row in ALLOCATIONS}
