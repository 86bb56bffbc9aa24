"""The page on the Python API runs as it stands, and names every function with its arguments."""

import inspect

from page_blocks import run_page
from tool_process import REPOSITORY

import mixaq_mmdet


def test_page_runs(tmp_path, monkeypatch, capsys):
    run_page('python-api.md', tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert 'qkv_in low' in printed
    assert 'SwinTransformer' not in printed.partition('TwoBranchSwin, one image of 800 x 1216')[2]


def test_signatures_are_those_of_the_page():
    page = (REPOSITORY / 'docs/python-api.md').read_text()
    for name in set(mixaq_mmdet.__all__) - {'__version__'}:
        signature = inspect.signature(getattr(mixaq_mmdet, name))
        plain = ', '.join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())
        assert f'`{name}({plain})`' in page
