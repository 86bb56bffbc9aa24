"""The page that helps to choose a method: what it says of methods they say themselves, its figures stand in results."""

from __future__ import annotations

import re

import pytest
from tool_process import REPOSITORY

from mixaq_mmdet.registry import QUANT_METHODS

TEXT = (REPOSITORY / 'docs' / 'choose-a-method.md').read_text()


def test_methods_convert_and_quantize_heads_as_the_table_says():
    rows = re.findall(r'^\| \[?`(\w+)`.*\| (\w[^|]*) \| (\w[^|]*) \|$', TEXT.partition('## The methods')[2], re.M)
    named = {method: row for method, *row in rows}
    assert {'RepQ', 'ERQ', 'AIQViT', 'OFQ'} <= set(named)
    for method in set(named) & set(QUANT_METHODS.module_dict):
        convert, heads = named[method]
        cls = QUANT_METHODS.get(method)
        assert convert.startswith('yes') == cls.converts, method
        assert heads in ('yes', 'by RepQ')
        assert heads != 'yes' or cls.quantizes_heads, method


@pytest.mark.parametrize(('figure', 'page'), re.findall(r'\[(\d+\.\d+)\]\((results/\w+\.md)\)', TEXT))
def test_figures_are_those_of_the_results(figure, page):
    assert f'| {figure} |' in (REPOSITORY / 'docs' / page).read_text()
