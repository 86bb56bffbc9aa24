"""The inner loop of the kernels' products, as compilers translate it: a single stored sum halves its speed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from mixaq_mmdet.deploy.kernels import build

COMPILERS = ('g++', 'g++-11', 'g++-12', 'g++-13', 'g++-14', 'clang++', *(f'clang++-{n}' for n in range(14, 21)))
FOUND = [name for name in COMPILERS if shutil.which(name)]
ROWS = 12
SOURCE = f"""
#include "gemm.h"
template void mixaq::sum_in_registers<{ROWS}>(const uint8_t*, int64_t, const int8_t*, int64_t, mixaq::PanelSums&);
"""


def assembly(compiler: str) -> list[str]:
    flags = [*build.FLAGS, *build.feature_flags(build.CPU_FEATURES), f'-I{build.SOURCES}']
    command = [compiler, *flags, '-S', '-x', 'c++', '-', '-o', '-']
    return subprocess.run(command, input=SOURCE, capture_output=True, text=True, check=True).stdout.splitlines()


def product_loops(lines: list[str]) -> list[list[str]]:
    """Every shortest piece between a label and a jump back to it that holds a tile's products."""
    labels: dict[str, int] = {}
    loops = []
    for number, line in enumerate(lines):
        if label := re.match(r'(\.L\w+):', line):
            labels[label[1]] = number
        if (jump := re.match(r'\s+j\w+\s+(\.L\w+)', line)) and jump[1] in labels:
            body = lines[labels[jump[1]] : number]
            if sum('vpdpbusd' in part for part in body) >= 2 * ROWS:
                loops.append(body)
    return loops


def stores(body: list[str]) -> list[str]:
    """Instructions whose last operand, the target, is in memory."""
    return [line for line in body if re.match(r'\s+v?mov\w*\s.*\)\s*(#.*)?$', line)]


@pytest.mark.skipif(not FOUND, reason='no C++ compiler here')
@pytest.mark.parametrize('compiler', FOUND)
def test_products_keep_their_sums_in_registers(compiler: str) -> None:
    loops = product_loops(assembly(compiler))
    assert loops, 'the loop of a tile was not found'
    for body in loops:
        assert not stores(body)


def test_a_stored_sum_would_be_seen() -> None:
    spilling = ['.L3:', *['\tvpdpbusd\t%zmm1, %zmm2, %zmm3'] * 24, '\tvmovdqa64\t%zmm3, 64(%rsp)', '\tjne\t.L3']
    (body,) = product_loops(spilling)
    assert len(stores(body)) == 1
