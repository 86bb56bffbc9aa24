"""GMAC per second of single products in one thread: the kernels' inner loop, their products, oneDNN's.

Run by ``kernels.py``. Each figure is the fastest of many rounds. The loop is the tile of 12 rows and 32 outputs, or on
matrix tiles (AMX) of 32 rows; it writes its sums to a buffer that nobody reads. "codes" are uint8 of a grid per column,
"GELU" uint8 behind GELU, "add" float rows that the result is added to. oneDNN is torch's ``qlinear_pointwise`` to
uint8, without and with GELU.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mixaq_mmdet.deploy.kernels import build

SHAPES = ((96, 96), (96, 288), (96, 384), (384, 96), (192, 768), (384, 1536), (1536, 384), (3072, 768))
ROWS, ROUNDS = 480, 100  # rows: whole tiles of 12 and of 32
OURS, ONEDNN = ('loop', 'codes', 'GELU', 'add'), ('oneDNN codes', 'oneDNN GELU')


def product_rates(held: int = 0, more_features: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """GMAC/s by 'K x N' and kind.

    Args:
        held: sums of two products that fit 16 bits, which matters to AVX2 alone.
        more_features: of the CPU, besides those that the kernels cannot do without.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = _build(Path(folder), more_features)
        rates = {}
        for inputs, outputs in SHAPES:
            seconds = (ctypes.c_double * len(OURS))()
            library.time_products(*(ctypes.c_int64(n) for n in (ROWS, inputs, outputs, ROUNDS)), held, seconds)
            found = dict(zip(OURS, seconds, strict=True)) | _onednn(inputs, outputs)
            giga = ROWS * inputs * outputs / 1e9
            rates[f'{inputs} x {outputs}'] = {kind: giga / value for kind, value in found.items()}
    return rates


def print_rates(rates: dict[str, dict[str, float]]) -> None:
    """A table, ours with the share of the inner loop's rate."""
    kinds = [*OURS, *ONEDNN]
    print(f'{"K x N":>12}  ' + '  '.join(f'{kind:>12}' for kind in kinds))
    for shape, rate in rates.items():
        cells = (f'{rate[kind]:.0f} ({rate[kind] / rate["loop"]:.2f})' for kind in kinds)
        print(f'{shape:>12}  ' + '  '.join(f'{cell:>12}' for cell in cells))


def _build(folder: Path, more_features: tuple[str, ...]) -> ctypes.CDLL:
    target = folder / 'products.so'
    source = Path(__file__).with_suffix('.cpp')
    vectors = build.vectors_here()
    if vectors is None:
        raise SystemExit('no integer kernels here: this CPU has no AVX2')
    flags = [*build.FLAGS, *build.feature_flags([*vectors.needed, *more_features]), f'-I{build.SOURCES}']
    subprocess.run([os.environ.get('CXX', 'g++'), *flags, str(source), '-o', str(target)], check=True)
    return ctypes.CDLL(str(target))


def _onednn(inputs: int, outputs: int) -> dict[str, float]:
    x = torch.randint(0, 256, (ROWS, inputs), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (outputs, inputs)).to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scale, zero = torch.full((outputs,), 1e-3), torch.zeros(outputs, dtype=torch.int64)
    bias = torch.zeros(outputs)

    def product(post: str, algorithm: str) -> Callable[[], torch.Tensor]:
        return lambda: torch.ops.onednn.qlinear_pointwise(
            x, 0.1, 8, packed, scale, zero, bias, 1.0, 8, torch.uint8, post, [], algorithm
        )

    works = dict(zip(ONEDNN, (product('none', ''), product('gelu', 'none')), strict=True))
    best = dict.fromkeys(works, float('inf'))
    for _ in range(ROUNDS):
        for kind, work in works.items():
            start = time.perf_counter()
            work()
            best[kind] = min(best[kind], time.perf_counter() - start)
    return best
