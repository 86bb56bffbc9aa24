"""Build the C++ kernels on first use and keep the library in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .entries import ENTRIES, Entries, bind
from .structures import MIRRORED, Mirrored, check_sizes

LibraryT = TypeVar('LibraryT', bound='Library')


class Vectors(NamedTuple):
    """What the kernels can be built for.

    Attributes:
        needed: features of the CPU, as Linux names them.
        optional: more of them, used where CPU and compiler have them.
    """

    needed: tuple[str, ...]
    optional: tuple[tuple[str, ...], ...]


SOURCES = Path(__file__).parent / 'src'
# products of bf16, which attention does in float without, and of matrices
BF16_FEATURES, MATRIX_FEATURES = ('avx512_bf16',), ('amx_tile', 'amx_int8')
AVX512 = Vectors(('avx512f', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512_vnni'), (BF16_FEATURES, MATRIX_FEATURES))
AVX2 = Vectors(('avx2', 'fma'), (('avx_vnni',),))
INSTRUCTIONS = ('AVX2', 'AVX-VNNI', 'AVX-512 VNNI')
"""What ``mixaq_instructions`` counts."""
FLAGS = ('-std=c++17', '-O3', '-fPIC', '-shared', '-pthread', '-mfma')
LIBRARIES = ('-ldl',)
LONGEST_BUILD = 600  # seconds
DISABLED, NO_MATRICES, MORE_FLAGS = 'MIXAQ_NO_KERNELS', 'MIXAQ_NO_AMX', 'MIXAQ_KERNEL_FLAGS'


class Library:
    """A loaded library.

    Args:
        path: the file.
        entries: its functions.
        mirrored: structures that it reads, by their names in its sources.
    """

    def __init__(self, path: Path, entries: Entries, mirrored: Mirrored) -> None:
        self.path = path
        library = ctypes.CDLL(str(path))
        check_sizes(library, mirrored)
        self._entries = {name: bind(library, name, entries) for name in entries}

    def call(self, name: str, *arguments: Any) -> Any:
        """One of its functions.

        Raises:
            ValueError: if it refuses its arguments.
        """
        return self._entries[name](*arguments)


class Kernels(Library):
    """The integer kernels."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ENTRIES, MIRRORED)
        self.on_matrices = False
        self.use_matrices(not os.environ.get(NO_MATRICES))

    def use_matrices(self, wanted: bool) -> bool:
        """Let products run on AMX, or not; whether they do, since not every CPU has it. Results are the same."""
        self.on_matrices = bool(self.call('matrix_tiles', wanted))
        return self.on_matrices

    @property
    def instructions(self) -> str:
        """What products run on."""
        return 'AMX' if self.on_matrices else INSTRUCTIONS[self.call('instructions')]


@lru_cache(maxsize=1)
def load() -> tuple[Kernels | None, str]:
    """The kernels and a line that tells where they come from, or None and why there are none."""
    features, vectors = cpu_features(), vectors_here()
    if not features and not os.environ.get(DISABLED):
        return None, f"what this CPU has is not known without Linux's /proc; the kernels need {', '.join(AVX2.needed)}"
    if vectors is None and not os.environ.get(DISABLED):
        missing = [feature for feature in AVX2.needed if feature not in features]
        return None, f'this CPU lacks {", ".join(missing)}'
    return attempt(lambda compiler: Kernels(build(compiler, vectors or AVX2)), 'integer kernels')


def vectors_here() -> Vectors | None:
    """The best of those that this CPU has all of."""
    return next((vectors for vectors in (AVX512, AVX2) if cpu_features().issuperset(vectors.needed)), None)


def attempt(make: Callable[[str], LibraryT], name: str) -> tuple[LibraryT | None, str]:
    """What ``make`` returns for this machine's compiler and a line that tells its file; or None and why not."""
    if os.environ.get(DISABLED):
        return None, f'{DISABLED} is set'
    compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
    if compiler is None:
        return None, 'no C++ compiler found; install g++ or set CXX'
    try:
        library = make(compiler)
        return library, f'{name} {library.path}'
    except (OSError, subprocess.SubprocessError) as error:
        text = getattr(error, 'stderr', None) or str(error)
        return None, f'the {name} could not be built with {compiler}: {" ".join(text.split())[:200]}'


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


def build(compiler: str, vectors: Vectors) -> Path:
    """Compile unless the same sources, compiler and flags have been compiled before; returns the library."""
    optional = [features for features in vectors.optional if cpu_features().issuperset(features)]
    while True:
        features = [feature for group in (vectors.needed, *optional) for feature in group]
        try:
            return built(compiler, [*FLAGS, *feature_flags(features)], SOURCES)
        except subprocess.CalledProcessError:
            if not optional:
                raise
            optional.pop()  # compilers of before 2021 do not know all of them


def feature_flags(features: Iterable[str]) -> list[str]:
    """A compiler's words for features in Linux's."""
    return [f'-m{f.replace("_", "-" if f in MATRIX_FEATURES else "")}' for f in features]


def built(compiler: str, flags: list[str], folder: Path, salt: str = '') -> Path:
    """The library of the units in ``folder``, from the cache where it lies there.

    Args:
        compiler: command.
        flags: for all units.
        folder: of the units; what they include lies there or in ``SOURCES``.
        salt: what the result depends on besides sources, compiler and flags.
    """
    flags = [*flags, *shlex.split(os.environ.get(MORE_FLAGS, ''))]  # sanitizers, for example
    version = subprocess.run([compiler, '--version'], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256('\0'.join([version, salt, *flags]).encode())
    for source in sorted({*SOURCES.glob('*.h'), *folder.glob('*.*')}):
        digest.update(source.name.encode() + b'\0' + source.read_bytes())
    cache = cache_folder()
    path = cache / f'{digest.hexdigest()[:16]}.so'
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / 'lock'):
        if not path.exists():
            _compile([compiler, *flags], folder, path)
    return path


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time: a second one waits, then finds the library.

    Where files have no locks both build it, which does no harm. So they do where the other one takes longer than a
    build can: it is stopped.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    end = time.monotonic() + LONGEST_BUILD
    with open(lock, 'w') as file:
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        yield


def _compile(command: list[str], sources: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        built = Path(work) / path.name
        units = [str(source) for source in sorted(sources.glob('*.cpp'))]
        subprocess.run(
            [*command, *units, '-o', str(built), *LIBRARIES],
            capture_output=True,
            text=True,
            check=True,
            timeout=LONGEST_BUILD,
        )
        os.replace(built, path)
