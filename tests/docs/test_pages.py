"""Every block of every page is run somewhere, or says why not; links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_blocks import blocks, hides_commands
from run_pages import all_pages
from tool_process import REPOSITORY


@pytest.mark.parametrize('page', all_pages())
def test_blocks_are_run_or_say_why_not(page):
    found = list(blocks(page))
    assert [block.place for block in found if hides_commands(block)] == [], 'fence commands as shell'
    for block in found:
        if block.language == 'python':
            compile(block.text, block.place, 'exec')


@pytest.mark.parametrize('page', all_pages())
def test_links_lead_somewhere(page):
    folder = (REPOSITORY / page).parent
    for target in re.findall(r'\]\(([^)\s]+)\)', (REPOSITORY / page).read_text()):
        # a page of results appears once its stage has run
        if target.startswith(('http://', 'https://', 'results/')):
            continue
        path, _, anchor = target.partition('#')
        file = (folder / path) if path else REPOSITORY / page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file), target


@pytest.mark.parametrize('page', all_pages())
def test_tests_that_a_page_names_are_there(page):
    for named in re.findall(r'`(tests/[\w/]+(?:\.py|/))`', (REPOSITORY / page).read_text()):
        assert (REPOSITORY / named).exists(), named


def _anchors(page: Path) -> set[str]:
    """Names of a page's headings as GitHub makes them."""
    titles = re.findall(r'^#+ (.+)$', page.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def test_words_before_a_block_are_understood(tmp_path, monkeypatch):
    page = tmp_path / 'page.md'
    page.write_text(
        '<!-- docs-test names: CONFIG=a.py 8=2 -->\n<!-- docs-test adds search.py: --images 1 -->\n'
        '```shell\npython tools/train.py CONFIG  # as it is\n'
        'python tools/search.py CONFIG \\\n    -n 8 MY_CONFIG\n```\n'
        '<!-- not run: needs COCO -->\n\n```shell\nmake it\n```\n'
    )
    first, second = blocks(str(page))
    assert [command.split() for command in first.commands()] == [
        ['python', 'tools/train.py', 'a.py'],
        ['python', 'tools/search.py', 'a.py', '-n', '2', 'MY_CONFIG', '--images', '1'],
    ]
    assert second.not_run is None, 'a comment belongs to the block right after it'
    page.write_text('    python tools/train.py\n')
    with pytest.raises(ValueError, match='indented command'):
        list(blocks(str(page)))
