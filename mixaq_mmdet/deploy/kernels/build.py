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
# matrix products, where this CPU and the compiler have them
MATRIX_FEATURES = ('amx_tile', 'amx_int8')
FLAGS = ('-std=c++17', '-O3', '-fPIC', '-shared', '-pthread', '-mfma')
LIBRARIES = ('-ldl',)
DISABLED, NO_MATRICES = 'MIXAQ_NO_KERNELS', 'MIXAQ_NO_AMX'


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
        self._matrix_tiles = library.mixaq_matrix_tiles
        self._matrix_tiles.argtypes, self._matrix_tiles.restype = [integer], integer
        self.on_matrices = False
        self.use_matrices(not os.environ.get(NO_MATRICES))

    def use_matrices(self, wanted: bool) -> bool:
        """Let products run on AMX, or not; whether they do, since not every CPU has it. Results are the same."""
        self.on_matrices = bool(self._matrix_tiles(wanted))
        return self.on_matrices


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
        kernels = Kernels(build(compiler))
        return kernels, f'integer kernels {kernels.path}'
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
    if not cpu_features().issuperset(MATRIX_FEATURES):
        return _built(compiler, flags)
    try:
        return _built(compiler, [*flags, *(f'-m{feature.replace("_", "-")}' for feature in MATRIX_FEATURES)])
    except subprocess.CalledProcessError:  # compilers of before 2021 do not know these instructions
        return _built(compiler, flags)


def _built(compiler: str, flags: list[str]) -> Path:
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
