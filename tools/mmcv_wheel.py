"""Build mmcv's wheel with its compiled operators from source, in minutes: a precompiled header, no debug information.

Part of ``make setup`` (tools/setup_env.py). The wheel is kept in the user's cache, one folder for each combination of
torch, Python, platform, compiler and flags that may not share a binary.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

OPTIMIZED = ('-O3', '-DNDEBUG', '-g0')  # these replace Python's own flags, whose -g takes nearly half of the time
# nearly every source file of the operators begins with these headers: 18 of the 21 seconds that one file takes
COMMON_HEADER = '#include <torch/types.h>\n'
MACROS = ('-DTORCH_API_INCLUDE_EXTENSION_H', '-DTORCH_EXTENSION_NAME=_ext')
# PEP 667: what exec() defines is not in locals() from Python 3.13 on
READS_LOCALS = """        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']"""
READS_A_DICT = """        names = {}
        exec(compile(f.read(), version_file, 'exec'), names)
    return names['__version__']"""
TORCH_INCLUDES = (
    'import sysconfig, torch.utils.cpp_extension as c; '
    'print("\\n".join([*c.include_paths(), sysconfig.get_paths()["include"]]))'
)


class SetupError(Exception):
    """A reason to stop that the user can act on; its text holds the fix."""


class Environment(Protocol):
    """What a build asks of the environment that it builds for."""

    folder: Path
    python: Path

    def evaluate(self, code: str) -> str | None: ...


def say(message: str) -> None:
    print(f'[setup] {message}', flush=True)


def cache_folder() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mixaq_mmdet'


def compiler_command() -> list[str]:
    name = os.environ.get('CXX') or next((c for c in ('c++', 'g++', 'clang++') if shutil.which(c)), None)
    if name is None:
        raise SetupError('no C++ compiler found; install one (Debian: apt-get install g++) or set CXX')
    return name.split()


def compiler_version() -> str:
    """The compiler's name and version, as part of the wheel's cache key."""
    command = compiler_command()
    lines = subprocess.run([*command, '--version'], capture_output=True, text=True).stdout.splitlines()
    return lines[0] if lines else ' '.join(command)


def build_flags(environment: Environment) -> dict[str, str]:
    """Environment variables of the mmcv build: CPU ops always, CUDA ops where torch has CUDA."""
    cuda = environment.evaluate(
        'import torch; print(int(torch.version.cuda is not None and torch.cuda.is_available()))'
    )
    flags = {'MMCV_WITH_OPS': '1', 'FORCE_CUDA': '1' if cuda == '1' else '0'}
    if os.name == 'posix':
        flags['CFLAGS'] = ' '.join((*OPTIMIZED, os.environ.get('CFLAGS', ''))).strip()
    flags.update({key: os.environ[key] for key in ('TORCH_CUDA_ARCH_LIST', 'CXXFLAGS') if key in os.environ})
    return flags


def wheel_folder(environment: Environment, flags: dict[str, str]) -> Path:
    """Where the built wheel is kept."""
    torch = environment.evaluate('import torch; print(torch.__version__)')
    if torch is None:
        raise SetupError(f'torch does not import in {environment.folder}; run `{environment.python} -c "import torch"`')
    key = {
        'torch': torch,
        'python': sysconfig.get_config_var('SOABI') or platform.python_version(),
        'platform': sysconfig.get_platform(),
        'compiler': compiler_version(),
        'flags': flags,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / 'wheels' / f'torch{torch}-{digest}'


def fetch_source(environment: Environment, name: str, version: str, work: Path) -> Path:
    """Download and unpack the source distribution ``name`` below ``work``; mend what keeps it from building on 3.13.

    pip runs setup.py to read metadata before it hands a source distribution over, and setup.py is what may need
    mending: ``--no-clean`` leaves the unpacked source behind, whether that run succeeded or not.
    """
    unpacked = work / 'source'
    unpacked.mkdir()
    command = [environment.python, '-m', 'pip', 'download', '-q', '--no-deps', '--no-build-isolation', '--no-clean']
    command += ['--no-binary', name, f'{name}=={version}', '-d', work]
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, 'TMPDIR': str(unpacked), 'MMCV_WITH_OPS': '1'},
    )
    found = sorted(unpacked.glob(f'*/{name}*/setup.py'))
    if not found:
        raise SetupError(f'the source of {name} {version} could not be downloaded:\n{result.stderr[-2000:]}')
    text = found[0].read_text(encoding='utf-8')
    found[0].write_text(text.replace(READS_LOCALS, READS_A_DICT), encoding='utf-8')
    return found[0].parent


def precompiled_header(environment: Environment, flags: dict[str, str], work: Path) -> list[str]:
    """Compile torch's common headers once; returns the flags that use them, none where that does not work.

    Only g++ leaves a header that does not match a file's flags aside and reads the text instead; for other compilers
    a mismatch is an error. With CUDA the host compiler is called by nvcc with flags of its own.
    """
    command = compiler_command()
    version = subprocess.run([*command, '--version'], capture_output=True, text=True).stdout
    includes = environment.evaluate(TORCH_INCLUDES)
    if 'Free Software Foundation' not in version or flags['FORCE_CUDA'] == '1' or includes is None:
        return []
    header = work / 'common.h'
    header.write_text(COMMON_HEADER)
    started = time.monotonic()
    command += [*flags['CFLAGS'].split(), '-fPIC', '-std=c++17', *MACROS]
    command += [f'-I{folder}' for folder in includes.splitlines()]
    command += ['-x', 'c++-header', str(header), '-o', f'{header}.gch']
    if subprocess.run(command, capture_output=True).returncode:
        say('the compiler makes no precompiled header of torch; the build takes about four times as long')
        return []
    say(f'precompiled header ready after {time.monotonic() - started:.0f} seconds')
    return ['-include', str(header), '-Winvalid-pch']


def build_steps(log: Path, process: subprocess.Popen) -> Iterator[tuple[int, int]]:
    """Yield (done, total) as the build's log grows, until the process ends."""
    position = 0
    while process.poll() is None:
        time.sleep(2)
        with log.open(errors='replace') as stream:
            stream.seek(position)
            found = re.findall(r'\[(\d+)/(\d+)\]', stream.read())
            position = stream.tell()
        if found:
            yield int(found[-1][0]), int(found[-1][1])


def stop(process: subprocess.Popen) -> None:
    """End the build with all the compilers that it started."""
    if os.name == 'posix':
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    process.wait()


def compile_wheel(environment: Environment, source: Path, flags: dict[str, str], work: Path) -> Path:
    """Run the build in ``source`` and show how many minutes are left; returns the wheel below ``work``."""
    log = work / 'build.log'
    command = [environment.python, '-m', 'pip', 'wheel', '-v', '--no-build-isolation', '--no-deps', source, '-w', work]
    started, shown = time.monotonic(), -1
    with log.open('w') as stream:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **flags},
            start_new_session=True,
        )
    try:
        for done, total in build_steps(log, process):
            if done * 10 // total > shown:
                shown = done * 10 // total
                left = (time.monotonic() - started) / 60 * (total - done) / done
                say(f'mmcv: {done}/{total} files compiled, about {left:.1f} minutes left')
    except BaseException:
        stop(process)
        raise
    wheels = list(work.glob('*mmcv-*.whl'))
    if process.returncode or not wheels:
        tail = '\n'.join(log.read_text(errors='replace').splitlines()[-25:])
        raise SetupError(f'the mmcv build failed; the end of its log:\n{tail}')
    return wheels[0]


def built_wheel(environment: Environment, name: str, version: str) -> Path:
    """mmcv's wheel for this environment: from the cache, or built there and moved in when it is whole.

    Args:
        name: the distribution, ``mmcv`` or ``onedl-mmcv``.
    """
    flags = build_flags(environment)
    folder = wheel_folder(environment, flags)
    if kept := sorted(folder.glob(f'{name.replace("-", "_")}-{version}-*.whl')):
        return kept[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    jobs = os.environ.get('MAX_JOBS', str(cores))
    say(f'building {name} {version} with its operators on {jobs} cores; once for this torch, kept in {folder.parent}')
    work = folder.with_name(f'{folder.name}.building-{os.getpid()}')
    work.mkdir(parents=True)
    try:
        source = fetch_source(environment, name, version, work)
        header = precompiled_header(environment, flags, work)
        if header:
            flags = {**flags, 'CFLAGS': ' '.join((flags['CFLAGS'], *header))}
        wheel = compile_wheel(environment, source, {**flags, 'MAX_JOBS': jobs}, work)
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(wheel, folder / wheel.name)
        return folder / wheel.name
    finally:
        shutil.rmtree(work, ignore_errors=True)
