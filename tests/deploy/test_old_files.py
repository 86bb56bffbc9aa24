"""Files that earlier versions wrote still run, with the numbers that they had."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_backbone
import torch
from integer_twin import SIZES

from mixaq_mmdet.deploy import IntegerSwin
from mixaq_mmdet.deploy.state import HEADER, VERSION, decode_header, write_header
from mixaq_mmdet.deploy.table import Table

FILES = sorted((Path(__file__).parent / 'converted_files').glob('*.pt'))
SHAPE = {**tiny_backbone.ARCHITECTURE, **SIZES, 'embed_dims': 16, 'num_heads': (1, 1), 'depths': (1, 1)}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def old(request):
    """The integer state of a backbone (W4A8, A4 low; RepQ or OFQ) and every eighth channel of its maps."""
    return torch.load(request.param, weights_only=True)


def loaded(state):
    twin = IntegerSwin(**SHAPE, engine='torch', low_ratios=0.4)
    twin.load_state_dict(state)
    return twin


def test_an_old_file_gives_the_numbers_it_gave(old):
    maps = loaded(old['state'])(tiny_backbone.images(1)[0])
    for found, expected in zip(maps, old['maps'], strict=True):
        torch.testing.assert_close(found[:, ::8], expected)


def test_it_is_saved_in_todays_form(old):
    twin = loaded(old['state'])
    state = twin.state_dict()
    header = decode_header(state[HEADER])
    assert header['version'] == VERSION > decode_header(old['state'][HEADER])['version']
    assert 'stages.0.blocks.0.attn.w_msa.qkv' in header['layers']
    again = loaded(state)
    x = tiny_backbone.images(1)[0]
    assert all(torch.equal(a, b) for a, b in zip(twin(x), again(x), strict=True))


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        ({'version': 1}, 'version 1, and the oldest that can be read is 2; run tools/deploy.py convert again'),
        ({'format': 'another'}, "format 'another', not 'mixaq_mmdet.integers'"),
        ({'blocks': {'stages.0.blocks.0': {}}}, 'header of the integer file is incomplete'),
    ],
)
def test_what_cannot_be_read_is_refused(old, edit, message):
    state = {**old['state'], HEADER: write_header({**decode_header(old['state'][HEADER]), **edit})}
    with pytest.raises(ValueError, match=message):
        Table(state)
