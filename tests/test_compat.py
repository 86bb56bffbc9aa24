"""Shims for the host: mmengine's checkpoints under weights_only, and when torchvision gets its missing schemas.

That the schemas help is shown in test_doctor.py, on an unloadable torchvision in a process of its own.
"""

from __future__ import annotations

import io
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from mixaq_mmdet import compat


@pytest.fixture
def hub_file() -> bytes:
    """What mmengine saves of a message hub: scalars of all kinds and runtime info with arrays."""
    hub = MessageHub('test_compat')
    for value in (1.5, np.float32(2.5), torch.tensor(3.5)):
        hub.update_scalar('train/loss', value)
    hub.update_info('palette', [(1, 2, 3)])
    hub.update_info('best', np.float64(0.25))
    hub.update_info('counts', np.arange(3))
    buffer = io.BytesIO()
    torch.save({'message_hub': hub.state_dict()}, buffer)
    return buffer.getvalue()


def check_hub(content: dict) -> None:
    hub = content['message_hub']
    loss = hub['log_scalars']['train/loss']
    assert isinstance(loss, HistoryBuffer)
    assert loss.statistics('mean') == 2.5
    assert loss.statistics('max') == 3.5
    assert hub['runtime_info']['best'] == 0.25
    np.testing.assert_array_equal(hub['runtime_info']['counts'], [0, 1, 2])


def test_message_hub_loads_weights_only(hub_file):
    check_hub(torch.load(io.BytesIO(hub_file), weights_only=True))


def test_what_is_allowed_outlives_a_block_that_allows_the_same(hub_file):
    """onedl-mmengine loads files in such blocks."""
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray, np.dtype, type(np.dtype('int64'))]):
        pass
    check_hub(torch.load(io.BytesIO(hub_file), weights_only=True))


@pytest.mark.parametrize('package', ['numpy.core', 'numpy._core'])
def test_either_name_of_the_numpy_module_loads(hub_file, package):
    """Files of numpy 1 name numpy.core, files of numpy 2 numpy._core."""
    renamed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(hub_file)) as source, zipfile.ZipFile(renamed, 'w') as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith('data.pkl'):
                assert b'numpy._core.multiarray\n' in data or b'numpy.core.multiarray\n' in data
                for name in (b'numpy._core.multiarray\n', b'numpy.core.multiarray\n'):
                    data = data.replace(name, package.encode() + b'.multiarray\n')
            target.writestr(entry.filename, data)
    renamed.seek(0)
    check_hub(torch.load(renamed, weights_only=True))


class _Reaches:
    """Pickles as ``getattr(owner, name)``, as an attack would."""

    def __init__(self, owner: object, name: str) -> None:
        self.call = (getattr, (owner, name))

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    'reach', [_Reaches(HistoryBuffer, '__init__'), _Reaches(torch.Tensor, 'min'), _Reaches(HistoryBuffer, 'mean.x')]
)
def test_getattr_opens_nothing_else(reach):
    buffer = io.BytesIO()
    torch.save({'x': reach}, buffer)
    buffer.seek(0)
    with pytest.raises(ValueError, match='mmengine never writes'):
        torch.load(buffer, weights_only=True)


def test_the_real_getattr_and_eval_stay_out():
    allowed = torch.serialization.get_safe_globals()
    functions = [entry[0] if isinstance(entry, tuple) else entry for entry in allowed]
    assert getattr not in functions
    assert eval not in functions
    assert np.dtype(object).__class__ not in functions


@pytest.fixture
def torchvision_of(tmp_path, monkeypatch):
    """Put a torchvision of the given source in front; a real one is back after the test."""

    def install(body: str) -> None:
        (tmp_path / 'torchvision.py').write_text(body)
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            monkeypatch.delitem(sys.modules, name)

    yield install
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        del sys.modules[name]


def test_working_torchvision_is_left_alone(torchvision_of, monkeypatch):
    torchvision_of('__version__ = "1"')
    monkeypatch.setattr(compat, '_define_torchvision_schemas', lambda: pytest.fail('remedy without a failure'))
    compat.import_despite_torchvision('torchvision')
    assert sys.modules['torchvision'].__version__ == '1'


def test_other_failures_get_no_remedy(torchvision_of, monkeypatch):
    torchvision_of('raise RuntimeError("operator torchvision::roi_align is odd")')
    monkeypatch.setattr(compat, '_define_torchvision_schemas', lambda: pytest.fail('remedy for another failure'))
    with pytest.raises(RuntimeError, match='is odd'):
        compat.import_despite_torchvision('torchvision')
    compat.import_despite_torchvision('torchvision', optional=True)
