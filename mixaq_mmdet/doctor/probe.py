"""Run probes in a process of their own, so that whatever they break, crash or print stays there."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from .components import Component
from .stacks import installed

TIMEOUT_SECONDS = 600
_MARK = '<<mixaq-doctor>>'
# Reads the probes as JSON, runs them in order, reports each at once: what a crash leaves unreported is its work.
_CHILD = f"""
import json, sys
for name, probe in json.loads(sys.argv[1]):
    report = {{'name': name}}
    try:
        exec(probe, {{'report': report}})
    except BaseException as error:
        report['error'] = type(error).__name__ + ': ' + str(error)
    sys.__stdout__.write('\\n{_MARK}' + json.dumps(report) + '\\n')
    sys.__stdout__.flush()
"""


@dataclass
class Finding:
    """What a probe brought back.

    Attributes:
        found: version (and device), None when not even that is known.
        error: empty when the component works.
        imports: optional components that work once the package has prepared the host.
        lines: what it has to say beside the table.
    """

    found: str | None = None
    error: str = ''
    imports: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def examine(components: Sequence[Component]) -> list[Finding]:
    """Probe components in order, in one process as long as none takes it down; never raises.

    One process imports torch once instead of once per component. After a crash the rest is probed in a new one.
    """
    findings: list[Finding] = []
    while len(findings) < len(components):
        rest = components[len(findings) :]
        reports, end = _run([(component.name, component.probe) for component in rest])
        for component, report in zip(rest, reports, strict=False):
            version = report.get('found') or installed_version(component)
            extras = (report.get(name, []) for name in ('imports', 'lines'))
            findings.append(Finding(version, report.get('error', ''), *extras))
        if len(reports) < len(rest):
            findings.append(Finding(installed_version(rest[len(reports)]), end))
    return findings


def _run(probes: list[tuple[str, str]]) -> tuple[list[dict], str]:
    """The reports that came back, and how the process ended before the first one that did not."""
    # The same interpreter flags (-S, -I, -X ...), or the child would look at another stack.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # typeshed lacks it
    command = [sys.executable, *flags, '-c', _CHILD, json.dumps(probes)]
    environment = {**os.environ, 'PYTHONIOENCODING': 'utf-8:backslashreplace'}
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as expired:
        return _parse(expired.stdout, probes), f'no answer within {TIMEOUT_SECONDS} s'
    except OSError as error:
        return [], f'the probe could not start: {error}'
    return _parse(child.stdout, probes), _describe_end(child)


def _parse(output: bytes | None, probes: list[tuple[str, str]]) -> list[dict]:
    reports: list[dict] = []
    for line in (output or b'').decode('utf-8', 'replace').splitlines():
        if line.startswith(_MARK):
            try:
                report = json.loads(line.removeprefix(_MARK))
            except ValueError:  # cut off in the middle
                break
            if report.get('name') == probes[len(reports)][0]:
                reports.append(report)
    return reports


def _describe_end(child: subprocess.CompletedProcess[bytes]) -> str:
    lines = child.stderr.decode('utf-8', 'replace').splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), '')
    if child.returncode < 0:
        try:
            end = f'crashed with {signal.Signals(-child.returncode).name}'
        except ValueError:
            end = f'was ended by signal {-child.returncode}'
    else:
        end = f'exited with status {child.returncode}'
    return f'importing it {end}' + (f' ({last})' if last else '')


def installed_version(component: Component) -> str | None:
    """The version pip knows, for a component that cannot be imported to ask it; names what is not the tested name."""
    for name, version in installed(component.distributions).items():
        return version + ('' if name == component.distributions[0] else f' ({name})')
    return None


def find_compiler() -> Finding:
    """The C++ compiler that a build of mmcv would use."""
    names = [os.environ['CXX']] if os.environ.get('CXX') else ['c++', 'g++', 'clang++', 'cl']
    for name in names:
        command = shlex.split(name)
        if not command or shutil.which(command[0]) is None:
            continue
        try:
            answer = subprocess.run([*command, '--version'], stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            return Finding(command[0], f'{name} --version failed: {error}')
        first_line = answer.stdout.decode(errors='replace').partition('\n')[0].strip()
        if answer.returncode == 0:
            return Finding(first_line or command[0])
        return Finding(command[0], f'{name} --version exited with status {answer.returncode}')
    return Finding(None, f'none of {", ".join(names)} is on PATH')
