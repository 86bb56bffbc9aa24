"""The checkpoint that quantization-aware training made and that ships: it loads, exports and says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import mixaq_mmdet
from mixaq_mmdet.deploy.export import export_model
from mixaq_mmdet.quantization import Quantizer
from mixaq_mmdet.quantization.layers import QuantLinear

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
ROOT = Path(__file__).resolve().parents[3]


def test_the_shipped_lsq_checkpoint_exports_as_integers(tmp_path):
    model = mixaq_mmdet.load(
        ROOT / 'configs/mini/mask-rcnn_swin-mini_qat-lsq-w4a8.py', ROOT / 'checkpoints/mask-rcnn_swin-mini_lsq-w4a8.pth'
    )
    report = export_model(model, tmp_path / 'lsq.onnx', 'onnxruntime', (64, 64), scope='backbone', timed=False)
    layers = [m for m in model.modules() if isinstance(m, QuantLinear) and isinstance(m.weight_quant, Quantizer)]
    assert len(layers) > 50
    assert report.census.int8['QGemm'] >= len(layers), 'a product of each branch'
    assert not report.failed
    # a code that falls the other way moves a map by a few per cent
    assert all(error < 0.1 for errors in report.errors.values() for error in errors)
