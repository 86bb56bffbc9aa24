"""The method of docs/add-a-method.md, as it stands there: at most 30 lines, and it works."""

import re
from pathlib import Path

import pytest
import torch
from tiny_backbone import backbone, images, signal_to_noise

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization.quantizers.logarithmic import Log2Quantizer
from mixaq_mmdet.registry import QUANT_METHODS

PAGE = Path(__file__).resolve().parents[2] / 'docs/add-a-method.md'


@pytest.fixture
def source():
    code = re.search(r'```python\n(.*?)```', PAGE.read_text(), re.S)[1]
    exec(compile(code, str(PAGE), 'exec'), {})
    yield code
    del QUANT_METHODS.module_dict['KeepShare']


def test_the_page_holds_a_complete_method(source):
    assert len([line for line in source.splitlines() if line.strip()]) <= 30
    quant = {'method': 'KeepShare', 'share': 0.99, 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}
    model = backbone(quant, low_ratios=0.5)
    Calibrator(model).run(images())
    with torch.no_grad():
        assert signal_to_noise(backbone()(images()[0]), model(images()[0])) > 5
    product = model.stages[0].blocks[0].attn.w_msa.attention_value
    assert isinstance(product.operands['attn'].low, Log2Quantizer)
    with pytest.raises(ValueError, match=r'share=0\.99 \(checkpoint: 0\.999\)|share=0\.999 \(checkpoint: 0\.99\)'):
        backbone({**quant, 'share': 0.999}).load_state_dict(model.state_dict())


def test_its_options_are_checked(source):
    with pytest.raises(ValueError, match=r'quant\.share=0\.2 must lie in'):
        backbone({'method': 'KeepShare', 'share': 0.2})
