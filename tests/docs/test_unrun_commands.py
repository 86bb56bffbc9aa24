"""Commands that no test runs are at least understood by their tools, and the configs that they name are there."""

from __future__ import annotations

import re
import shlex
from functools import cache

import pytest
from mmengine.config import Config
from page_blocks import blocks
from run_pages import ASSIGNMENT, all_pages
from tool_process import REPOSITORY, load_tool

OURS = re.compile(r'\s*(python tools/\w+\.py|bash tools/dist_\w+\.sh) ')
PROCESSES = {'dist_train.sh': 1, 'dist_test.sh': 2}  # where in a launcher's arguments their number stands


def commands_of(page):
    """The tool's name and its words, for every command of ours in a block that is not run."""
    variables = {}
    for block in blocks(page):
        for command in block.commands() if block.not_run and block.language == 'shell' else ():
            if assigned := ASSIGNMENT.match(command):
                variables[f'${assigned[1]}'] = assigned[2]
            elif OURS.match(command):
                for name, value in variables.items():
                    command = command.replace(name, value)
                _, tool, *words = shlex.split(re.sub(r'\[(--.*?)\]', r'\1', command))  # a synopsis has [--flag]
                yield pytest.param(tool.removeprefix('tools/'), words, id=f'{block.place} {tool}')


@cache
def parser_of(name):
    tool = load_tool(name)
    return getattr(tool, 'parse_args', None) or tool.build_parser().parse_args


@pytest.mark.parametrize(('tool', 'words'), [case for page in all_pages() for case in commands_of(page)])
def test_command_is_understood(tool, words):
    if tool.endswith('.sh'):
        assert int(words.pop(PROCESSES[tool])) > 1
        tool = tool.removeprefix('dist_').replace('.sh', '.py')
    options = parser_of(tool)(words)
    named = [word for word in words if word.startswith('configs/')]
    for path in named:
        assert (REPOSITORY / path).is_file(), path
    if named and getattr(options, 'cfg_options', None):
        Config.fromfile(REPOSITORY / named[0]).merge_from_dict(options.cfg_options)
