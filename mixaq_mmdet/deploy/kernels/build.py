"""Build the C++ kernels on first use and keep the library in the user's cache."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

SOURCES = Path(__file__).parent / 'src'
CPU_FEATURES = ('avx512f', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512_vnni', 'avx512_bf16')
FLAGS = ('-std=c++17', '-O3', '-fPIC', '-shared', '-pthread', '-mfma')
LIBRARIES = ('-ldl',)
DISABLED = 'MIXAQ_NO_KERNELS'


class Kernels:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = ctypes.CDLL(str(path))
        pointer, long, real, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
        self.block = library.mixaq_block
        self.block.argtypes = [pointer] * 4 + [long] * 3 + [pointer, integer, pointer]
        self.embed = library.mixaq_embed
        self.merge = library.mixaq_merge
        for function in (self.embed, self.merge):
            function.argtypes = [pointer, pointer, long, long, long, pointer, integer]
        self.output = library.mixaq_output
        self.output.argtypes = [pointer] * 3 + [real] + [long] * 3 + [pointer, integer]
        self.token_means = library.mixaq_token_means
        self.token_means.argtypes = [pointer, long, long, pointer, integer]
        self.rank = library.mixaq_rank
        self.rank.argtypes = [pointer, pointer, long, pointer, real, pointer, pointer, pointer]
        self.assign = library.mixaq_assign
        self.assign.argtypes = [pointer, long, pointer, long, long] + [pointer] * 4
        for function in (self.block, self.embed, self.merge, self.output, self.token_means, self.rank):
            function.restype = None
        self.assign.restype = long


@lru_cache(maxsize=1)
def load() -> tuple[Kernels | None, str]:
    """The kernels and a line that tells where they come from, or None and why there are none."""
    if os.environ.get(DISABLED):
        return None, f'{DISABLED} is set'
    missing = [feature for feature in CPU_FEATURES if feature not in cpu_features()]
    if missing:
        return None, f'this CPU lacks {", ".join(missing)}'
    compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
    if compiler is None:
        return None, 'no C++ compiler found; install g++ or set CXX'
    try:
        path = build(compiler)
        return Kernels(path), f'integer kernels {path}'
    except (OSError, subprocess.SubprocessError) as error:
        text = getattr(error, 'stderr', None) or str(error)
        return None, f'the kernels could not be built with {compiler}: {" ".join(text.split())[:200]}'


def cpu_features() -> frozenset[str]:
    """Instruction sets of this CPU as Linux names them; empty where unknown."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split(':')[1].split()) for line in lines if line.startswith('flags')), frozenset())


def cache_folder() -> Path:
    """Where built libraries are kept."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mixaq_mmdet' / 'kernels'


def build(compiler: str) -> Path:
    """Compile unless the same sources, compiler and flags have been compiled before; returns the library."""
    flags = [*FLAGS, *(f'-m{feature.replace("_", "")}' for feature in CPU_FEATURES)]
    version = subprocess.run([compiler, '--version'], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256('\0'.join([version, *flags]).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b'\0' + source.read_bytes())
    folder = cache_folder()
    path = folder / f'{digest.hexdigest()[:16]}.so'
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the library
        if not path.exists():
            _compile([compiler, *flags], path)
    return path


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        built = Path(work) / path.name
        units = [str(source) for source in sorted(SOURCES.glob('*.cpp'))]
        subprocess.run(
            [*command, *units, '-o', str(built), *LIBRARIES], capture_output=True, text=True, check=True, timeout=600
        )
        os.replace(built, path)
