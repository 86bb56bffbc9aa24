"""Says which layers a quantization method had to leave float."""

from __future__ import annotations

from mmengine.logging import print_log

from mixaq_mmdet.quantization import Method


def tell_kept_float(method: Method) -> None:
    """Log each layer that was not replaced because its class computes in a way of its own."""
    for path, kind in method.kept_float:
        print_log(f'{path} stays float: {kind} has a forward of its own', 'current')
