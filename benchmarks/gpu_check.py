"""What runs on an accelerator, checked and timed in under eight minutes on a bare machine: backbones only.

    python benchmarks/gpu_check.py [--device cuda] [--minutes 7.5] [--json docs/results/gpu.json]

Checks: float identity with stock Swin, static against eager form, host reads per forward, calibration, a QAT step, a
SAQA step, float16 and bfloat16. Then times and memory against stock Swin at 800x1216. Where the machine has mmcv
without its compiled operators, a stub stands in: no operator is called. ``--device cpu`` is a dry run of the same code
on a tiny model: it says nothing about accelerators.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

HOST_READS = ('aten::_local_scalar_dense', 'aten::nonzero', 'aten::is_nonzero')
TINY = dict(embed_dims=16, depths=(2, 2), num_heads=(2, 4), strides=(4, 2), out_indices=(0, 1), window_size=4)
ROUNDS = 7


class _Stub(ModuleType):
    """Has every name, and refuses every call."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(f'mmcv._ext is a stub here, and {name} was called')

        return refuse


def prepare_host() -> None:
    """Let this package and mmdet import, also where mmcv has no compiled operators."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        importlib.import_module('mmcv._ext')
    except ImportError:
        sys.modules['mmcv._ext'] = _Stub('mmcv._ext')
    importlib.import_module('mixaq_mmdet')


class Check:
    """Models of one size on one device."""

    def __init__(self, device: str) -> None:
        from mmdet.models.backbones import SwinTransformer

        from mixaq_mmdet.models import TwoBranchSwin

        self.device = device
        self.real = device != 'cpu'
        self.architecture = {} if self.real else TINY
        self.size = (800, 1216) if self.real else (64, 96)
        self.odd = (333, 517) if self.real else (50, 67)
        torch.manual_seed(0)
        self.stock = SwinTransformer(**self.architecture).to(device)
        self.stock.eval()  # returns None
        self._class = TwoBranchSwin

    def ours(self, quant: dict[str, Any] | None = None, **options: Any) -> Any:
        """A two-branch backbone with stock's weights."""
        model = self._class(**self.architecture, quant=quant, **options)
        model.load_state_dict(self.stock.state_dict())
        return model.to(self.device).eval()

    def images(self, size: tuple[int, int], batch: int = 1) -> Tensor:
        """Noise."""
        return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1)).to(self.device)

    def calibrated(self, quant: dict[str, Any], **options: Any) -> Any:
        """A quantized one, calibrated on the device."""
        from mixaq_mmdet.engine.calibration import Calibrator

        model = self.ours(quant, **options)
        Calibrator(model).run([self.images(self.odd)])
        return model

    def identity(self) -> dict[str, Any]:
        """Largest relative difference to stock in float32, at every low ratio, on a size that needs padding."""
        x, worst = self.images(self.odd, 2), 0.0
        with torch.no_grad(), _full_precision():
            expected = self.stock(x)
            for low in (0.0, 0.5, 1.0):
                worst = max(worst, _difference(self.ours(low_ratios=low)(x), expected))
        return {'difference': worst, 'passed': worst < 1e-4}

    def forms(self) -> dict[str, Any]:
        """Static against eager, with windows in every tier."""
        x, model = self.images(self.odd, 2), self.ours(low_ratios=0.4, prune_ratios=0.2)
        with torch.no_grad(), _full_precision():
            model.form = 'eager'
            expected = model(x)
            model.form = 'static'
            found = _difference(model(x), expected)
        return {'difference': found, 'passed': found < 1e-4}

    def host_reads(self) -> dict[str, Any]:
        """Numbers that one forward reads back from the device, by form; the static one must read none."""
        from torch.profiler import ProfilerActivity, profile

        x, counts = self.images(self.odd), {}
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.real else [])]
        for form in ('eager', 'static'):
            model = self.ours(low_ratios=0.4, prune_ratios=0.2, form=form)
            with torch.no_grad():
                model(x)
                with profile(activities=activities) as seen:
                    model(x)
                    _wait(self.device)
            names = [event.name for event in seen.events()]
            counts[form] = sum(name in HOST_READS or 'Memcpy DtoH' in name for name in names)
        return {**counts, 'passed': counts['static'] == 0}

    def calibration(self) -> dict[str, Any]:
        """A calibrated W8A8 model stays near float."""
        model, x = self.calibrated({'method': 'RepQ', 'w_bits': 8, 'a_bits': 8}), self.images(self.odd)
        with torch.no_grad():
            found = _distance(model(x)[-1], self.stock(x)[-1])
        return {'relative error': found, 'passed': found < 0.2}

    def training(self, quant: dict[str, Any], low: float, prune: float) -> dict[str, Any]:
        """One step with gradients of every parameter."""
        model = self.calibrated(quant).train()
        model.sample_ratios(low, prune)
        sum(out.square().mean() for out in model(self.images(self.odd, 2))).backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        finite = all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        return {'without gradient': missing, 'passed': finite and not missing}

    def autocast(self, dtype: torch.dtype) -> dict[str, Any]:
        """A forward and backward under autocast."""
        model = self.ours(low_ratios=0.4, prune_ratios=0.2).train()
        with torch.autocast(self.device, dtype):
            outs = model(self.images(self.odd))
        sum(out.float().mean() for out in outs).backward()
        return {'passed': all(bool(out.isfinite().all()) for out in outs)}

    def half(self, dtype: torch.dtype) -> dict[str, Any]:
        """The whole model in half precision."""
        with torch.no_grad():
            outs = self.ours(low_ratios=0.4, prune_ratios=0.2).to(dtype)(self.images(self.odd).to(dtype))
        return {'passed': all(bool(out.isfinite().all()) for out in outs)}

    def rivals(self, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
        """What is timed, by name; the first is what the others are compared with."""
        quant = {'method': 'MinMax', 'w_bits': 8, 'a_bits': 8}
        makers: dict[str, Callable[[], Any]] = {
            'stock': lambda: self.stock,
            'all high': self.ours,
            'half pruned': lambda: self.ours(prune_ratios=0.5),
            'fake-quantized': lambda: self.calibrated(quant),
        }
        for name, make in makers.items():
            yield name, lambda make=make: _copy(make()).to(dtype)
        for name, make in list(makers.items())[:3]:
            yield f'{name}, compiled', lambda make=make: torch.compile(_copy(make()).to(dtype), dynamic=False)


def _copy(model: nn.Module) -> nn.Module:
    import copy

    model = copy.deepcopy(model)
    model.eval()
    return model


@contextmanager
def _full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _difference(found: Any, expected: Any) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _wait(device: str) -> None:
    if device != 'cpu':
        torch.cuda.synchronize()


def time_rivals(check: Check, dtype: torch.dtype, batch: int, deadline: float) -> dict[str, Any]:
    """Median milliseconds and peak MiB of each rival, rounds interleaved among those that were made in time."""
    x = check.images(check.size, batch).to(dtype)
    models, found = {}, {}
    with torch.no_grad():
        for name, make in check.rivals(dtype):
            if time.monotonic() > deadline:
                found[name] = {'not run': 'out of time'}
                continue
            try:
                models[name] = make()
                models[name](x)
                found[name] = {'MiB': _peak(check, models[name], x)}
            except Exception as error:  # one rival's fault must not end the others
                models.pop(name, None)
                found[name] = {'not run': f'{type(error).__name__}: {error}'[:300]}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS):
            for name, model in models.items():
                _wait(check.device)
                start = time.perf_counter()
                model(x)
                _wait(check.device)
                seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        found[name]['ms'] = 1000 * statistics.median(values)
        found[name]['of stock'] = statistics.median(values) / statistics.median(seconds['stock'])
    return found


def _peak(check: Check, model: nn.Module, x: Tensor) -> float | None:
    if not check.real:
        return None
    torch.cuda.reset_peak_memory_stats()
    model(x)
    _wait(check.device)
    return torch.cuda.max_memory_allocated() / 2**20


def run(device: str, minutes: float) -> dict[str, Any]:
    """All checks, then times for as long as there is time."""
    deadline = time.monotonic() + 60 * minutes
    check = Check(device)
    low = {'method': 'LSQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        'float identity with stock': check.identity,
        'static form': check.forms,
        'host reads': check.host_reads,
        'calibration': check.calibration,
        'QAT step': lambda: check.training(low, 0.0, 0.0),
        'SAQA step': lambda: check.training(low, 0.5, 0.2),
        'autocast bfloat16': lambda: check.autocast(torch.bfloat16),
        'bfloat16': lambda: check.half(torch.bfloat16),
    }
    if device != 'cpu':
        checks['autocast float16'] = lambda: check.autocast(torch.float16)
        checks['float16'] = lambda: check.half(torch.float16)
    found: dict[str, Any] = {'device': device_name(device), 'torch': torch.__version__, 'checks': {}, 'times': {}}
    for name, work in checks.items():
        try:
            found['checks'][name] = work()
        except Exception:  # the next check says something of its own
            found['checks'][name] = {'passed': False, 'error': traceback.format_exc()[-1500:]}
        print(f'{name}: {found["checks"][name]}', flush=True)
    for dtype in (torch.float16, torch.bfloat16) if device != 'cpu' else (torch.float32,):
        for batch in (1, 4):
            name = f'{str(dtype).removeprefix("torch.")}, batch {batch}'
            found['times'][name] = time_rivals(check, dtype, batch, deadline)
            print(f'{name}: {json.dumps(found["times"][name], indent=1)}', flush=True)
    return found


def device_name(device: str) -> str:
    """What the device calls itself."""
    return 'cpu (a dry run)' if device == 'cpu' else torch.cuda.get_device_name()


def main(argv: list[str] | None = None) -> None:
    """Check, time, write; status 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', choices=('cuda', 'cpu'))
    parser.add_argument('--minutes', type=float, default=7.5, help='no new timing starts after so long')
    parser.add_argument('--json', type=Path, help='file for the findings')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('error: no CUDA device is visible; --device cpu is a dry run of the same code')
    prepare_host()
    found = run(args.device, args.minutes)
    if args.json:
        from mixaq_mmdet.reporting.files import write_whole

        write_whole(args.json, json.dumps(found, indent=1) + '\n')
    failed = [name for name, result in found['checks'].items() if not result['passed']]
    print(f'failed: {failed}' if failed else f'all {len(found["checks"])} checks passed')
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
