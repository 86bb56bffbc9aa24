"""Make the project's environment: a virtual environment with the tested stack, mmcv's CPU ops built from source.

``make setup`` calls it; it needs Python and a C++ compiler, nothing else, and ends within seconds when nothing changed.

    python3 tools/setup_env.py                     # .venv/ with everything from constraints.txt
    python3 tools/setup_env.py --system-packages   # keep the torch (CUDA or not) and mmcv this interpreter already has
    python3 tools/setup_env.py --torch-index URL   # torch from an index of CPU builds
    python3 tools/setup_env.py --stack onedl       # .venv-onedl/ with the onedl-* forks of the mm packages
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import mmcv_wheel
from mmcv_wheel import SetupError, built_wheel, say

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / 'constraints.txt'
STAMP = 'mixaq-setup.json'
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
PYTHON_RANGE = ((3, 10), (3, 14))
BUILD_TOOLS = ('setuptools', 'wheel', 'ninja', 'psutil')
HOST = ('numpy', 'opencv-python', 'pycocotools')


class Stack(NamedTuple):
    """What pip calls the mm packages, which have the same import names in every stack; and this package's extras."""

    mmengine: str
    mmcv: str
    mmdet: str
    extras: str


STACKS = {
    'openmmlab': Stack('mmengine', 'mmcv', 'mmdet', 'all'),
    'onedl': Stack('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'all-onedl'),
}


def pinned(name: str) -> str:
    """The tested version of ``name`` as constraints.txt has it."""
    found = re.search(rf'^{re.escape(name)}==([^\s;]+)', CONSTRAINTS.read_text(), flags=re.MULTILINE)
    if found is None:
        raise SetupError(f'constraints.txt does not pin {name}; add a line {name}==VERSION')
    return found.group(1)


def run(command: list[str | Path], **kwargs) -> None:
    result = subprocess.run([str(part) for part in command], **kwargs)
    if result.returncode:
        raise SetupError(f'`{" ".join(map(str, command))}` failed with exit status {result.returncode}')


class Environment:
    """The virtual environment at ``folder`` and what can be asked of it."""

    def __init__(self, folder: Path, system_packages: bool, stack: Stack = STACKS['openmmlab']) -> None:
        self.folder = folder
        self.stack = stack
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
        kept = ('torch', 'numpy', 'opencv-python', *self.stack[:3])
        for package in kept if self.system_packages else ():
            found = self.version(package)
            if found is not None:
                text = re.sub(rf'^{re.escape(package)}==.*$', f'{package}=={found}', text, flags=re.MULTILINE)
        return text


def install_torch(environment: Environment, index: str) -> None:
    """torch alone and first, so that ``index`` serves nothing else, and nobody wonders what takes so long."""
    if environment.version('torch') is not None:
        return
    if index:
        say(f'installing torch {pinned("torch")} from {index}')
        environment.pip('--index-url', index, 'torch')
        return
    if sys.platform == 'linux':
        say(
            f'installing torch {pinned("torch")}; unless pip is configured otherwise, Linux gets the CUDA build, also '
            'without a GPU: about 3 GB to download, 5.5 GB on disk. '
            f'For the CPU build (0.2 GB) stop here and give TORCH_INDEX={CPU_INDEX}'
        )
    environment.pip('torch')


def install_mmcv(environment: Environment) -> None:
    if environment.evaluate('import mmcv.ops, mmcv; print(mmcv.__version__)') is not None:
        return
    name = environment.stack.mmcv
    wheel = built_wheel(environment, name, pinned(name))
    say(f'mmcv from {wheel}')
    environment.pip(wheel)


def refuse_other_stacks(environment: Environment) -> None:
    """Two stacks in one environment overwrite each other's files: pip does not know that they share folders."""
    for name, stack in STACKS.items():
        if stack != environment.stack and environment.version(stack.mmengine) is not None:
            raise SetupError(
                f'{environment.folder} has {stack.mmengine}, whose files {environment.stack.mmengine} would overwrite; '
                f'give STACK={name}, or --folder with the name of a new folder'
            )


def install_torchvision(environment: Environment) -> None:
    """mmpretrain imports it at the top. Never with its dependencies: they would replace a CPU build of torch."""
    if environment.version('torchvision') is None:
        environment.pip('--no-deps', 'torchvision')


def mend_opencv(environment: Environment) -> None:
    """Where the machine has no display libraries, put the headless build's files in opencv's place."""
    if environment.evaluate('import cv2; print(cv2.__version__)') is None:
        say('opencv-python needs display libraries that are not here; taking its headless build')
        environment.pip('--force-reinstall', '--no-deps', 'opencv-python-headless')


def fingerprint(system_packages: bool, stack: Stack) -> str:
    """Changes when anything that decides the environment's content does."""
    parts = [CONSTRAINTS, ROOT / 'setup.cfg', ROOT / 'pyproject.toml', Path(__file__), Path(mmcv_wheel.__file__)]
    digest = hashlib.sha256(b''.join(part.read_bytes() for part in parts))
    digest.update(f'{sys.version}{ROOT}{system_packages}{stack.mmengine}'.encode())
    return digest.hexdigest()


def is_complete(environment: Environment, mark: str) -> bool:
    stamp = environment.folder / STAMP
    return environment.python.exists() and stamp.exists() and json.loads(stamp.read_text()).get('fingerprint') == mark


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, help='where the environment goes: .venv, or .venv-onedl for that stack')
    parser.add_argument(
        '--stack',
        default=os.environ.get('STACK') or 'openmmlab',
        help="openmmlab: OpenMMLab's own packages; onedl: their maintained forks; also STACK=NAME",
    )
    parser.add_argument(
        '--system-packages',
        action='store_true',
        default=os.environ.get('MIXAQ_SYSTEM_PACKAGES', '0') not in ('', '0'),
        help='build on the packages this interpreter has (a CUDA torch, say); also MIXAQ_SYSTEM_PACKAGES=1',
    )
    parser.add_argument(
        '--torch-index',
        default=os.environ.get('TORCH_INDEX', ''),
        metavar='URL',
        help=f'where torch comes from, {CPU_INDEX} for the CPU build; also TORCH_INDEX=URL',
    )
    arguments = parser.parse_args()
    lowest, beyond = PYTHON_RANGE
    if not lowest <= sys.version_info[:2] < beyond:
        raise SetupError(
            f'Python {platform.python_version()} is outside {lowest[0]}.{lowest[1]} to '
            f'{beyond[0]}.{beyond[1] - 1} ; name another: make setup PYTHON=python3.12'
        )
    if arguments.stack not in STACKS:
        raise SetupError(f'no stack {arguments.stack!r}; give STACK= one of {", ".join(STACKS)}')
    stack = STACKS[arguments.stack]
    folder = arguments.folder or ROOT / ('.venv' if arguments.stack == 'openmmlab' else f'.venv-{arguments.stack}')
    environment = Environment(folder.resolve(), arguments.system_packages, stack)
    mark = fingerprint(arguments.system_packages, stack)
    if is_complete(environment, mark):
        return 0
    started = time.monotonic()
    say(f'making {environment.folder}')
    environment.create()
    refuse_other_stacks(environment)
    environment.pip(*BUILD_TOOLS)
    install_torch(environment, arguments.torch_index)
    say('installing the mm stack')
    environment.pip(*HOST, stack.mmengine, stack.mmdet)
    install_mmcv(environment)
    say('installing mixaq_mmdet with all extras')
    environment.pip('--no-build-isolation', '-e', f'{ROOT}[{stack.extras}]')
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
