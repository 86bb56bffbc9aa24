"""Run a probe in a process of its own, so that whatever it breaks, crashes or prints stays there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field

from .components import Component

TIMEOUT_SECONDS = 300
_MARK = '<<mixaq-doctor>>'
_CHILD = f"""
import json, sys
report = {{}}
try:
    exec(sys.argv[1], {{'report': report}})
except BaseException as error:
    report['error'] = type(error).__name__ + ': ' + str(error)
sys.stdout.write('\\n{_MARK}' + json.dumps(report) + '\\n')
sys.stdout.flush()
"""


@dataclass
class Finding:
    """What a probe brought back.

    Attributes:
        found: version (and device), None when not even that is known.
        error: empty when the component works.
        imports: optional components that work once the package has prepared the host.
    """

    found: str | None = None
    error: str = ''
    imports: list[str] = field(default_factory=list)


def examine(component: Component) -> Finding:
    """Probe one component; never raises."""
    version = installed_version(component)
    # The same interpreter flags (-S, -I, -X ...), or the child would look at another stack.
    command = [sys.executable, *subprocess._args_from_interpreter_flags(), '-c', _CHILD, component.probe]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            encoding='utf-8',
            errors='replace',
            env={**os.environ, 'PYTHONIOENCODING': 'utf-8'},
        )
    except subprocess.TimeoutExpired:
        return Finding(version, f'no answer within {TIMEOUT_SECONDS} s')
    except OSError as error:
        return Finding(version, f'the probe could not start: {error}')
    report = _parse(child.stdout)
    if report is None:
        return Finding(version, _describe_end(child))
    return Finding(report.get('found') or version, report.get('error', ''), report.get('imports', []))


def _parse(output: str) -> dict | None:
    for line in reversed(output.splitlines()):
        if line.startswith(_MARK):
            try:
                return json.loads(line.removeprefix(_MARK))
            except ValueError:
                return None
    return None


def _describe_end(child: subprocess.CompletedProcess[str]) -> str:
    last = next((line.strip() for line in reversed(child.stderr.splitlines()) if line.strip()), '')
    if child.returncode < 0:
        try:
            end = f'crashed with {signal.Signals(-child.returncode).name}'
        except ValueError:
            end = f'was ended by signal {-child.returncode}'
    else:
        end = f'exited with status {child.returncode}'
    return f'importing it {end}' + (f' ({last})' if last else '')


def installed_version(component: Component) -> str | None:
    """The version pip knows, for a component that cannot be imported to ask it."""
    for name in component.distributions:
        try:
            return importlib.metadata.version(name) + ('' if name == component.distributions[0] else f' ({name})')
        except importlib.metadata.PackageNotFoundError:
            continue
        except Exception as error:  # metadata on a broken installation may be unreadable
            return f'unreadable metadata ({type(error).__name__})'
    return None


def find_compiler() -> Finding:
    """The C++ compiler that a build of mmcv would use."""
    names = [os.environ['CXX']] if os.environ.get('CXX') else ['c++', 'g++', 'clang++', 'cl']
    for name in names:
        command = shlex.split(name)
        if not command or shutil.which(command[0]) is None:
            continue
        try:
            answer = subprocess.run(
                [*command, '--version'], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, errors='replace'
            )
        except (OSError, subprocess.SubprocessError) as error:
            return Finding(command[0], f'{name} --version failed: {error}')
        first_line = (answer.stdout.splitlines() or [''])[0].strip()
        if answer.returncode == 0:
            return Finding(first_line or command[0])
        return Finding(command[0], f'{name} --version exited with status {answer.returncode}')
    return Finding(None, f'none of {", ".join(names)} is on PATH')
