"""Each recipe stands in its folder's README and metafile, and nothing else does."""

from __future__ import annotations

import re

import pytest
from mmengine.fileio import load
from shrunk_recipe import ROOT


@pytest.mark.parametrize('folder', ['configs/mixaq', 'configs/classification'])
def test_metafile_lists_the_recipes(folder):
    models = load(ROOT / folder / 'metafile.yml')['Models']
    listed = {model['Name']: model['Config'] for model in models}
    assert len(listed) == len(models)
    assert listed == {path.stem: f'{folder}/{path.name}' for path in (ROOT / folder).glob('*.py')}


def test_readme_lists_the_recipes_and_claims_no_run():
    rows = re.findall(r'^\|.*\[config\]\(\./(.*?)\).*$', (ROOT / 'configs/mixaq/README.md').read_text(), re.M)
    assert sorted(rows) == sorted(path.name for path in (ROOT / 'configs/mixaq').glob('*.py'))
    claimed = {m['Name'] for m in load(ROOT / 'configs/mixaq/metafile.yml')['Models'] if 'Results' in m}
    for line in (ROOT / 'configs/mixaq/README.md').read_text().splitlines():
        name = re.search(r'\[config\]\(\./(.*?)\.py\)', line)
        if name:
            assert ('not run on COCO' in line) != (name[1] in claimed)


def test_model_index_finds_every_metafile():
    imported = load(ROOT / 'model-index.yml')['Import']
    assert sorted(imported) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/metafile.yml'))
