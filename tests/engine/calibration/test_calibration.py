"""The calibrator: same result for any order and any storage; errors that name the layer."""

import pytest
import torch
from tiny_backbone import backbone, images
from torch import nn

from mixaq_mmdet.engine.calibration import Calibrator, uncalibrated
from mixaq_mmdet.engine.calibration.inputs import TensorStore
from mixaq_mmdet.engine.calibration.summary import as_table, summarize
from mixaq_mmdet.quantization import Quantizer
from mixaq_mmdet.quantization.observers import MinMaxObserver

QUANT = {'method': 'RepQ', 'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4}


def calibrated_state(batches, **options):
    model = backbone(QUANT)
    Calibrator(model, **options).run(batches)
    return model.state_dict()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def mixed_sizes():
    return [*images(2), *images(1, (32, 40), seed=8)]


def test_order_and_storage_do_not_matter(monkeypatch):
    reference = calibrated_state(mixed_sizes())
    assert_same(calibrated_state(mixed_sizes()[::-1]), reference)
    spilled = []
    monkeypatch.setattr(TensorStore, '__del__', lambda self: spilled.append(self.spilled), raising=False)
    assert_same(calibrated_state(mixed_sizes(), store_limit=20_000), reference)
    assert max(spilled) >= 2


def test_at_most_six_block_forwards_per_image(monkeypatch):
    model = backbone(QUANT)
    windows = {}

    def count(block, inputs, _):
        assignment = inputs[1]
        kept, everything = assignment.counts.high + assignment.counts.low, sum(assignment.counts)
        windows[block] = windows.get(block, 0) + kept / everything

    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_hook(count)
    Calibrator(model).run(images(3, (64, 64)))
    assert len(windows) == 3
    assert max(windows.values()) / 3 <= 4


def test_each_branch_sees_its_windows(monkeypatch):
    """High all windows of all images, low the lowest half: counted in tokens that reach fc1."""
    counts = {}
    finish = Quantizer.start_histogram

    def spy(self):
        assert isinstance(self.observer, MinMaxObserver)
        counts[self.name] = int(self.observer.count)
        finish(self)

    monkeypatch.setattr(Quantizer, 'start_histogram', spy)
    Calibrator(backbone(QUANT)).run(images(1, (64, 64)))
    name = 'stages.0.blocks.1.ffn.layers.0.0.fc1_in'
    assert counts[f'{name}.high'] == 16 * 16 * 8
    assert counts[f'{name}.low'] == 16 * 16 * 8 // 2


def test_progress_ends_at_the_announced_number_of_steps():
    steps = []
    calibrator = Calibrator(backbone(QUANT), tick=lambda: steps.append(1))
    calibrator.run(images(2))
    assert len(steps) == calibrator.steps(2)


def test_training_mode_is_restored_and_nothing_stays_attached():
    model = backbone(QUANT).train()
    Calibrator(model).run(images(1))
    assert model.training
    assert not uncalibrated(model)
    assert all(quantizer.observer is None for quantizer in model.modules() if isinstance(quantizer, Quantizer))


def test_stages_behind_the_outputs_are_not_asked_for():
    model = backbone(QUANT, out_indices=(0,))
    Calibrator(model).run(images(1))
    assert not uncalibrated(model)
    assert len(model(images()[0])) == 1


def test_nan_names_the_layer():
    model = backbone(QUANT)
    with torch.no_grad():
        model.stages[0].blocks[1].ffn.layers[1].weight[0, 0] = float('nan')
    with pytest.raises(ValueError, match=r'stages\.0\.blocks\.1\.ffn\.layers\.1\.weight saw NaN or Inf'):
        Calibrator(model).run(images(1))


@pytest.mark.parametrize('batches', [[], iter([])], ids=['empty', 'generator that has ended'])
def test_no_images_are_refused(batches):
    with pytest.raises(ValueError, match='batches is empty; calibration needs at least one image'):
        Calibrator(backbone(QUANT)).run(batches)


@pytest.mark.parametrize(
    ('image', 'found'),
    [(torch.zeros(3, 64, 64), r'\(3, 64, 64\)'), (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 'uint8')],
)
def test_tensors_that_are_no_normalised_images_are_refused(image, found):
    with pytest.raises(ValueError, match=rf'batches: a tensor of shape .*{found}.* is a float tensor of \(1, 3, H, W'):
        Calibrator(backbone(QUANT)).run([image])


def test_a_float_model_has_nothing_to_calibrate():
    for model in (backbone(), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match='model has nothing to calibrate; set quant='):
            Calibrator(model)


def test_summary_has_a_line_per_quantizer():
    model = backbone(QUANT)
    lines = summarize(model, Calibrator(model).run(images(1)))
    assert len(lines) == sum(isinstance(m, Quantizer) for m in model.modules())
    low = next(x for x in lines if x.layer == 'stages.0.blocks.0.ffn.layers.1' and x.role == 'fc2_in low')
    assert (low.bits, low.quantizer) == (4, 'Uniform')
    assert 10 < low.sqnr < 40
    assert all(line.sqnr is not None for line in lines)
    table = as_table(lines).splitlines()
    assert table[0].split() == ['layer', 'role', 'bits', 'quantizer', 'range', 'SQNR']
    assert len(table) == len(lines) + 1
