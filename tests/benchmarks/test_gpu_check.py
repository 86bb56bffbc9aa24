"""The check for accelerators, run dry on a CPU: its code works, whatever an accelerator will say."""

import json

import gpu_check
import pytest


def test_dry_run_passes_every_check(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(['--device', 'cpu', '--minutes', '0', '--json', str(tmp_path / 'found.json')])
    found = json.loads((tmp_path / 'found.json').read_text())
    assert end.value.code == 0, found['checks']
    assert found['device'] == 'cpu (a dry run)'
    assert found['checks']['host reads']['static'] == 0 < found['checks']['host reads']['eager']
    assert found['times']['float32, batch 1']['all high'] == {'not run': 'out of time'}


def test_stub_stands_in_for_compiled_operators_and_refuses_calls():
    stub = gpu_check._Stub('mmcv._ext')
    assert hasattr(stub, 'roi_align_forward')
    with pytest.raises(RuntimeError, match='roi_align_forward was called'):
        stub.roi_align_forward()
