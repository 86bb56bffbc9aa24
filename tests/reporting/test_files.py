"""Whole files: the old content or the new, never a part."""

import hashlib

import pytest

from mixaq_mmdet.reporting.files import file_sha256, whole_file, write_whole


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / 'made' / 'result.txt'
    write_whole(path, 'old')

    def interrupted():
        with whole_file(path) as temporary:
            temporary.write_text('ne')
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    assert path.read_text() == 'old'
    assert [*path.parent.iterdir()] == [path]
    write_whole(path, b'new')
    assert path.read_text() == 'new'


def test_the_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / 'plain').write_text('')
    write_whole(tmp_path / 'whole', '')
    assert (tmp_path / 'whole').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_digest_of_a_file_larger_than_what_is_read_at_once(tmp_path):
    content = bytes(range(256)) * 8193
    (tmp_path / 'large').write_bytes(content)
    assert file_sha256(tmp_path / 'large') == hashlib.sha256(content).hexdigest()
