"""From findings to verdicts, the table and the exit status."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

from .components import COMPILER, COMPONENTS, ENGINES, HINTS, PACKAGE, Component
from .probe import Finding, examine, find_compiler
from .stacks import OPENMMLAB, Stack, owners, stack_here

HEADER = ('component', 'found', 'tested', 'verdict', 'fix')


@dataclass
class Row:
    """One line of the table, and why it says so."""

    component: Component
    finding: Finding
    verdict: str
    fix: str = ''
    reason: str = ''
    is_root: bool = False  # broken by itself, not by what it needs
    stack: Stack = OPENMMLAB

    @property
    def works(self) -> bool:
        return self.verdict.startswith('ok')

    def cells(self) -> tuple[str, ...]:
        tested = ', '.join(self.component.tested(self.stack)) or '-'
        fix = self.stack.fill(self.fix) or '-'
        return self.component.name, self.finding.found or '-', tested, self.verdict, fix


def run() -> int:
    """Print the diagnosis.

    Returns:
        0 when detection can run, optional parts broken or not; 1 when it cannot; 2 when the doctor itself fails.
    """
    try:
        if sys.stderr.isatty():
            print('Importing every component once, which takes some seconds ...', file=sys.stderr)
        rows = diagnose()
        text = render(rows, engines(rows))
        status = int(not all(row.works for row in rows if row.component.required))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # whatever happens to the doctor itself, no traceback
        text, status = f'The doctor itself failed: {type(error).__name__}: {error}', 2
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader (head, less) went away; keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UnicodeEncodeError:
        print(text.encode('ascii', 'replace').decode(), flush=True)
    return status


def diagnose() -> list[Row]:
    """Probe everything; the package itself comes last, and only if what it needs works."""
    rows: list[Row] = []
    stack = stack_here()
    components = [component for component in COMPONENTS if component.stack in (None, stack.name)]
    for component, finding in zip(components, examine(components), strict=True):
        rows.append(judge(component, finding, [row.component.name for row in rows if not row.works], stack))
    broken = [row.component.name for row in rows if row.component.required and not row.works]
    compiler = judge(COMPILER, find_compiler(), [], stack)
    if broken:
        package = Row(PACKAGE, Finding(), 'not checked', f'first {", ".join(broken)}', stack=stack)
    else:
        package = judge(PACKAGE, examine([PACKAGE])[0], [], stack)
        for row in rows:
            if not row.works and row.component.name in package.finding.imports:
                row.verdict = 'ok after import mixaq_mmdet'
                row.fix = 'none needed; torchvision stays without its compiled operators'
                row.reason = ''
    return [*rows, compiler, package]


def engines(rows: list[Row]) -> list[str]:
    """What runs converted models here, and why; nothing where the package does not work."""
    if not rows[-1].works:
        return []
    finding = examine([ENGINES])[0]
    return finding.lines or [_one_line(finding.error)]


def judge(component: Component, finding: Finding, broken: list[str], stack: Stack = OPENMMLAB) -> Row:
    """The verdict on one component, given which earlier ones do not work and whose packages are here."""
    holders = owners(component.name)
    if len(holders) > 1:
        fix = f'pip uninstall -y {" ".join(holders)}, then: {component.fix}'
        reason = f'{" and ".join(holders)} are both installed and overwrite the same files'
        return Row(component, finding, 'broken', fix, reason, is_root=component.required, stack=stack)
    if not finding.error:
        tested = component.tested(stack)
        known = not tested or any(re.match(re.escape(each) + r'(?!\d)', finding.found or '') for each in tested)
        if holders and holders != [stack.distributions[component.name]]:
            return Row(component, finding, f'ok (of another stack: {holders[0]})', stack=stack)
        return Row(component, finding, 'ok' if known else 'ok (other version than tested)', stack=stack)
    itself = finding.error.startswith('ModuleNotFoundError')  # further in, it is a part of the component that lacks one
    absent = finding.found is None and bool(component.distributions) and itself
    state = 'missing' if absent else 'broken'
    reason = '' if absent else _one_line(finding.error)
    if not component.required:
        return Row(component, finding, f'{state}, optional', component.fix, reason, stack=stack)
    causes = [name for name in component.after if name in broken]
    if causes and not absent:
        return Row(component, finding, state, f'first {", ".join(causes)}', stack=stack)
    return Row(component, finding, state, _fix(component, finding.error), reason, is_root=True, stack=stack)


def _one_line(error: str) -> str:
    """The error in one line that fits a screen."""
    text = ' '.join(error.split())
    return text if len(text) <= 300 else text[:297] + '...'


def _fix(component: Component, error: str) -> str:
    for pattern, fix in HINTS:
        if re.search(pattern, error):
            return fix
    missing = re.search(r"No module named '(\w+)", error)
    if missing and component.name not in ('opencv', 'mmcv', 'mmcv ops', missing[1]):
        return f'pip install {missing[1]}'
    return component.fix


def render(rows: list[Row], engines: list[str]) -> str:
    """The table, the reasons, what runs converted models, and one closing sentence."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER) - 1)]
    text = []
    for line in lines:
        text.append('  '.join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]))
    text.insert(1, '  '.join('-' * width for width in [*widths, len(HEADER[-1])]))
    reasons = [f'  {row.component.name}: {row.reason}' for row in rows if row.reason]
    if reasons:
        text += ['', 'Reasons:', *reasons]
    if engines:
        text += ['', 'Converted models on this CPU:', *(f'  {line}' for line in engines)]
    roots = [row.component.name for row in rows if row.is_root]
    text += ['', f'Stack: {rows[0].stack.label} (make setup STACK={rows[0].stack.name}).']
    text += ['', f'Detection cannot run here; mend {", ".join(roots)}.' if roots else 'Detection can run here.']
    return '\n'.join(text)
