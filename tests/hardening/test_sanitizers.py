"""Tests of the kernels once more, in libraries that are built with AddressSanitizer and UBSan.

The integer kernels take part in the form that the CPU has, AVX-512 or AVX2; without either only the portable kernels
run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tool_process import REPOSITORY, run_process

pytestmark = pytest.mark.nightly
FLAGS = '-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all'
FILES = sorted(
    f'tests/deploy/test_{name}.py'
    for name in (
        *(
            'kernels',
            'kernel_inputs',
            'kernel_windows',
            'kernel_heads',
            'layers_of_heads',
            'codes',
            'bytes',
            'map_memory',
        ),
        *('kernel_fuzz', 'engine_fuzz', 'roi_align', 'roi_extractor', 'nms', 'masks'),
    )
)
READS_BEHIND = """
import torch
from mixaq_mmdet.deploy.kernels.portable import load_portable

kernels, reason = load_portable()
x, codes = torch.zeros(64), torch.zeros(64, dtype=torch.uint8)
print(reason, flush=True)
kernels.call('to_codes', x.data_ptr(), 1, ROWS, None, 1.0, 0.0, 255.0, codes.data_ptr(), 1)
print('nothing seen')
"""


@pytest.fixture(scope='module')
def sanitized(tmp_path_factory) -> dict[str, str]:
    """The environment of a process whose kernels are watched."""
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip('no g++ to build with sanitizers')
    runtimes = []
    for name in ('libasan.so', 'libstdc++.so.6'):  # the latter for exceptions, which the former looks at
        asked = subprocess.run([compiler, f'-print-file-name={name}'], capture_output=True, text=True, check=True)
        if not Path(asked.stdout.strip()).is_absolute():
            pytest.skip(f'{compiler} comes without {name}')
        runtimes.append(asked.stdout.strip())
    return {
        'CXX': compiler,
        'MIXAQ_KERNEL_FLAGS': FLAGS,
        'XDG_CACHE_HOME': str(tmp_path_factory.mktemp('sanitized')),
        'LD_PRELOAD': ':'.join(runtimes),
        'ASAN_OPTIONS': 'detect_leaks=0',  # Python never frees all of its own
        'UBSAN_OPTIONS': 'print_stacktrace=1',
        'OMP_NUM_THREADS': '1',
    }


@pytest.mark.parametrize('columns', [64, 65])
def test_a_read_behind_a_tensor_is_seen(sanitized, columns):
    code = READS_BEHIND.replace('ROWS', str(columns))
    done = run_process(sys.executable, '-c', code, cwd=REPOSITORY, **sanitized)
    assert 'portable kernels' in done.stdout, done.stdout
    assert ('nothing seen' in done.stdout) == (columns == 64), done.stdout
    assert ('AddressSanitizer: heap-buffer-overflow' in done.stdout) == (columns == 65), done.stdout


@pytest.mark.parametrize('file', FILES)
def test_kernels_touch_only_their_memory(sanitized, file):
    words = ['-m', 'pytest', '-x', '-rs', '-p', 'no:cacheprovider', '-m', 'not gpu', file]
    done = run_process(sys.executable, *words, cwd=REPOSITORY, timeout=1200, **sanitized)
    assert done.returncode in (0, 5), done.stdout[-6000:]
    skipped = re.findall(r'SKIPPED \[\d+\] \S+: (.*)', done.stdout)
    print(done.stdout.strip().splitlines()[-1], *sorted(set(skipped)), sep='\n')
    if ' passed' not in done.stdout:
        pytest.skip(f'all of {file} skips: {sorted(set(skipped))}')
