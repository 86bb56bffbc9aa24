"""Make the project's environment: a virtual environment with the tested stack, mmcv's CPU ops built from source.

``make setup`` calls it; it needs Python and a C++ compiler, nothing else, and ends within seconds when nothing changed.

    python3 tools/setup_env.py                     # .venv/ with everything from constraints.txt
    python3 tools/setup_env.py --system-packages   # keep the torch (CUDA or not) and mmcv this interpreter already has
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / 'constraints.txt'
STAMP = 'mixaq-setup.json'
PYTHON_RANGE = ((3, 10), (3, 13))
BUILD_TOOLS = ('setuptools', 'wheel', 'ninja', 'psutil')
HOST = ('torch', 'numpy', 'opencv-python', 'pycocotools', 'mmengine', 'mmdet')
BUILD_MINUTES_PER_CORE = 19  # measured: 9.5 minutes on two cores


class SetupError(Exception):
    """A reason to stop that the user can act on; its text holds the fix."""


def say(message: str) -> None:
    print(f'[setup] {message}', flush=True)


def pinned(name: str) -> str:
    """The tested version of ``name`` as constraints.txt has it."""
    found = re.search(rf'^{re.escape(name)}==(\S+)$', CONSTRAINTS.read_text(), flags=re.MULTILINE)
    if found is None:
        raise SetupError(f'constraints.txt does not pin {name}; add a line {name}==VERSION')
    return found.group(1)


def run(command: list[str | Path], **kwargs) -> None:
    result = subprocess.run([str(part) for part in command], **kwargs)
    if result.returncode:
        raise SetupError(f'`{" ".join(map(str, command))}` failed with exit status {result.returncode}')


class Environment:
    """The virtual environment at ``folder`` and what can be asked of it."""

    def __init__(self, folder: Path, system_packages: bool) -> None:
        self.folder = folder
        self.system_packages = system_packages
        self.python = folder / ('Scripts' if os.name == 'nt' else 'bin') / 'python'

    def create(self) -> None:
        if not self.python.exists():
            flags = ['--system-site-packages'] if self.system_packages else []
            run([sys.executable, '-m', 'venv', *flags, self.folder])

    def evaluate(self, code: str) -> str | None:
        """What ``print``-ing code prints inside the environment; None when it raises."""
        result = subprocess.run([self.python, '-c', code], capture_output=True, text=True, cwd=self.folder)
        return result.stdout.strip() if result.returncode == 0 else None

    def version(self, package: str) -> str | None:
        return self.evaluate(f'import importlib.metadata as m; print(m.version({package!r}))')

    def pip(self, *arguments: str | Path) -> None:
        constraints = self.folder / 'constraints.txt'
        constraints.write_text(self.constraints())
        run([self.python, '-m', 'pip', 'install', '-q', '-c', constraints, *arguments])

    def constraints(self) -> str:
        """The tested set; with ``system_packages``, the host packages already there keep their versions."""
        text = CONSTRAINTS.read_text()
        for package in ('torch', 'mmcv', 'mmengine', 'mmdet', 'numpy', 'opencv-python') if self.system_packages else ():
            found = self.version(package)
            if found is not None:
                text = re.sub(rf'^{re.escape(package)}==.*$', f'{package}=={found}', text, flags=re.MULTILINE)
        return text


def compiler() -> str:
    """The C++ compiler and its version, as part of the wheel's cache key."""
    name = os.environ.get('CXX') or next((c for c in ('c++', 'g++', 'clang++') if shutil.which(c)), None)
    if name is None:
        raise SetupError('no C++ compiler found; install one (Debian: apt-get install g++) or set CXX')
    lines = subprocess.run([*name.split(), '--version'], capture_output=True, text=True).stdout.splitlines()
    return lines[0] if lines else name


def mmcv_flags(environment: Environment) -> dict[str, str]:
    """Environment variables of the mmcv build: CPU ops always, CUDA ops where torch has CUDA."""
    cuda = environment.evaluate(
        'import torch; print(int(torch.version.cuda is not None and torch.cuda.is_available()))'
    )
    flags = {'MMCV_WITH_OPS': '1', 'FORCE_CUDA': '1' if cuda == '1' else '0'}
    flags.update({key: os.environ[key] for key in ('TORCH_CUDA_ARCH_LIST', 'CXXFLAGS') if key in os.environ})
    return flags


def wheel_folder(environment: Environment, flags: dict[str, str]) -> Path:
    """Where the built mmcv wheel is kept: one folder for each combination that may not share a binary."""
    torch = environment.evaluate('import torch; print(torch.__version__)')
    if torch is None:
        raise SetupError(f'torch does not import in {environment.folder}; run `{environment.python} -c "import torch"`')
    key = {
        'torch': torch,
        'python': sysconfig.get_config_var('SOABI') or platform.python_version(),
        'platform': sysconfig.get_platform(),
        'compiler': compiler(),
        'flags': flags,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return cache / 'mixaq_mmdet' / 'wheels' / f'torch{torch}-{digest}'


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


def build_mmcv(environment: Environment, folder: Path, flags: dict[str, str]) -> None:
    """Build the wheel into a temporary folder beside its place and move it there when it is whole."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    jobs = int(os.environ.get('MAX_JOBS', cores))
    say(
        f'building mmcv {pinned("mmcv")} with its compiled ops, about {max(1, round(BUILD_MINUTES_PER_CORE / jobs))} '
        f'minutes on {jobs} cores; once for this torch, then it comes from {folder.parent}'
    )
    work = folder.with_name(f'{folder.name}.building-{os.getpid()}')
    work.mkdir(parents=True)
    log = work / 'build.log'
    command = [
        environment.python,
        '-m',
        'pip',
        'wheel',
        '-v',
        '--no-build-isolation',
        '--no-deps',
        '--no-binary',
        'mmcv',
        f'mmcv=={pinned("mmcv")}',
        '-w',
        work,
    ]
    started, shown = time.monotonic(), -1
    with log.open('w') as stream:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **flags, 'MAX_JOBS': str(jobs)},
        )
    try:
        for done, total in build_steps(log, process):
            if done * 10 // total > shown:
                shown = done * 10 // total
                minutes = (time.monotonic() - started) / 60
                say(f'mmcv: {done}/{total} files compiled, {minutes:.1f} minutes gone')
    except BaseException:
        process.terminate()
        shutil.rmtree(work, ignore_errors=True)
        raise
    wheels = list(work.glob('mmcv-*.whl'))
    if process.returncode or not wheels:
        tail = '\n'.join(log.read_text(errors='replace').splitlines()[-25:])
        raise SetupError(f'the mmcv build failed; the end of {log}:\n{tail}')
    folder.mkdir(parents=True, exist_ok=True)
    os.replace(wheels[0], folder / wheels[0].name)
    shutil.rmtree(work, ignore_errors=True)


def install_mmcv(environment: Environment) -> None:
    if environment.evaluate('import mmcv.ops, mmcv; print(mmcv.__version__)') is not None:
        return
    flags = mmcv_flags(environment)
    folder = wheel_folder(environment, flags)
    if not list(folder.glob('mmcv-*.whl')):
        build_mmcv(environment, folder, flags)
    wheel = next(folder.glob('mmcv-*.whl'))
    say(f'mmcv from {wheel}')
    environment.pip(wheel)


def install_torchvision(environment: Environment) -> None:
    """mmpretrain imports it at the top. Never with its dependencies: they would replace a CPU build of torch."""
    if environment.version('torchvision') is None:
        environment.pip('--no-deps', 'torchvision')


def mend_opencv(environment: Environment) -> None:
    """Where the machine has no display libraries, put the headless build's files in opencv's place."""
    if environment.evaluate('import cv2; print(cv2.__version__)') is None:
        say('opencv-python needs display libraries that are not here; taking its headless build')
        environment.pip('--force-reinstall', '--no-deps', 'opencv-python-headless')


def fingerprint(system_packages: bool) -> str:
    """Changes when anything that decides the environment's content does."""
    parts = [CONSTRAINTS, ROOT / 'setup.cfg', ROOT / 'pyproject.toml', Path(__file__)]
    digest = hashlib.sha256(b''.join(part.read_bytes() for part in parts))
    digest.update(f'{sys.version}{ROOT}{system_packages}'.encode())
    return digest.hexdigest()


def is_complete(environment: Environment, mark: str) -> bool:
    stamp = environment.folder / STAMP
    return environment.python.exists() and stamp.exists() and json.loads(stamp.read_text()).get('fingerprint') == mark


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, default=ROOT / '.venv', help='where the environment goes')
    parser.add_argument(
        '--system-packages',
        action='store_true',
        default=os.environ.get('MIXAQ_SYSTEM_PACKAGES', '0') not in ('', '0'),
        help='build on the packages this interpreter has (a CUDA torch, say); also MIXAQ_SYSTEM_PACKAGES=1',
    )
    arguments = parser.parse_args()
    lowest, beyond = PYTHON_RANGE
    if not lowest <= sys.version_info[:2] < beyond:
        raise SetupError(
            f'Python {platform.python_version()} is outside {lowest[0]}.{lowest[1]} to '
            f'{beyond[0]}.{beyond[1] - 1} (tested: 3.11); name another: make setup PYTHON=python3.11'
        )
    environment = Environment(arguments.folder.resolve(), arguments.system_packages)
    mark = fingerprint(arguments.system_packages)
    if is_complete(environment, mark):
        return 0
    started = time.monotonic()
    say(f'making {environment.folder}')
    environment.create()
    environment.pip(*BUILD_TOOLS)
    say('installing torch and the mm stack')
    environment.pip(*HOST)
    install_mmcv(environment)
    say('installing mixaq_mmdet with all extras')
    environment.pip('--no-build-isolation', '-e', f'{ROOT}[all]')
    install_torchvision(environment)
    mend_opencv(environment)
    run([environment.python, '-m', 'mixaq_mmdet.compat'], cwd=ROOT)
    stamp = environment.folder / STAMP
    stamp.with_suffix('.tmp').write_text(json.dumps({'fingerprint': mark}))
    os.replace(stamp.with_suffix('.tmp'), stamp)
    say(f'ready after {(time.monotonic() - started) / 60:.1f} minutes; `make demo` and `make test` run from here')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except SetupError as error:
        print(f'[setup] {error}', file=sys.stderr)
        sys.exit(1)
