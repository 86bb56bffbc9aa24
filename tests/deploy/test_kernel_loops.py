"""The inner loop of the kernels' products, as compilers translate it: a single stored sum halves its speed."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

from mixaq_mmdet.deploy.kernels import build

COMPILERS = ('g++', 'g++-11', 'g++-12', 'g++-13', 'g++-14', 'clang++', *(f'clang++-{n}' for n in range(14, 21)))
FOUND = [name for name in COMPILERS if shutil.which(name)]
AVX2_TILE = 'const char*, int64_t, const char*, int64_t{more}, int32_t (*)[kPanelOutputs]);'


class Tile(NamedTuple):
    """What a tile is built for, its instance, its product and how many of them a step has."""

    vectors: build.Vectors
    instance: str
    product: str
    count: int


AVX_VNNI = build.Vectors((*build.AVX2.needed, 'avx_vnni'), ())
TILES = {
    'AVX-512 VNNI': Tile(
        build.AVX512,
        'sum_in_registers<12>(const uint8_t*, int64_t, const int8_t*, int64_t, PanelSums&);',
        'vpdpbusd',
        24,
    ),
    'AVX2, sums in 16 bits': Tile(
        build.AVX2, f'sum_half_narrow<6>({AVX2_TILE.format(more=", bool")}', 'vpmaddubsw', 12
    ),
    'AVX2, sums in 32 bits': Tile(build.AVX2, f'sum_half<WholeSums, 3>({AVX2_TILE.format(more="")}', 'vpmaddubsw', 6),
    'AVX-VNNI': Tile(AVX_VNNI, f'sum_half<WholeSums, 6>({AVX2_TILE.format(more="")}', 'vpdpbusd', 12),
    'AVX2, inputs of 16 bits': Tile(build.AVX2, f'sum_half<WideSums, 6>({AVX2_TILE.format(more="")}', 'vpmaddwd', 12),
}


def assembly(compiler: str, tile: Tile) -> list[str]:
    flags = [*build.FLAGS, *build.feature_flags(tile.vectors.needed), f'-I{build.SOURCES}']
    command = [compiler, *flags, '-S', '-x', 'c++', '-', '-o', '-']
    source = f'#include "gemm.h"\nnamespace mixaq {{ template void {tile.instance} }}\n'
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout.splitlines()


def product_loops(lines: list[str], product: str, count: int) -> list[list[str]]:
    """Every shortest piece between a label and a jump back to it that holds a tile's products."""
    labels: dict[str, int] = {}
    loops = []
    for number, line in enumerate(lines):
        if label := re.match(r'(\.L\w+):', line):
            labels[label[1]] = number
        if (jump := re.match(r'\s+j\w+\s+(\.L\w+)', line)) and jump[1] in labels:
            body = lines[labels[jump[1]] : number]
            if sum(product in part for part in body) >= count:
                loops.append(body)
    return loops


def stores(body: list[str]) -> list[str]:
    """Instructions whose last operand, the target, is in memory."""
    return [line for line in body if re.match(r'\s+v?mov\w*\s.*\)\s*(#.*)?$', line)]


@pytest.mark.skipif(not FOUND, reason='no C++ compiler here')
@pytest.mark.parametrize('name', TILES)
@pytest.mark.parametrize('compiler', FOUND)
def test_products_keep_their_sums_in_registers(compiler: str, name: str) -> None:
    tile = TILES[name]
    loops = product_loops(assembly(compiler, tile), tile.product, tile.count)
    assert loops, 'the loop of a tile was not found'
    for body in loops:
        assert not stores(body)


def test_a_stored_sum_would_be_seen() -> None:
    spilling = ['.L3:', *['\tvpdpbusd\t%zmm1, %zmm2, %zmm3'] * 24, '\tvmovdqa64\t%zmm3, 64(%rsp)', '\tjne\t.L3']
    (body,) = product_loops(spilling, 'vpdpbusd', 24)
    assert len(stores(body)) == 1
