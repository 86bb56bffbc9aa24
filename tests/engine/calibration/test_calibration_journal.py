"""A calibration that is killed goes on behind its last finished block and ends with the numbers of an unbroken one."""

import pytest
import torch
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.calibration.journal import BlockJournal, calibration_key

QUANT = {'method': 'AIQViT', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2, 'steps': 3, 'search_steps': 2}

RECONSTRUCTED = {'method': 'FIMAQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2, 'steps': 2, 'rows': 2}


class Killed(Exception):
    pass


def run(folder, quant=QUANT, stop_at=None, tick=lambda: None):
    """Calibrate with a journal; ``stop_at`` dies at the start of that block."""
    model = backbone(quant)
    calibrator = Calibrator(model, tick=tick)
    calibrator.journal = BlockJournal(folder, calibration_key(model, calibrator.configs, [1, 2], seed=0))
    calls = []
    calibrate = model.quant_method.calibrate

    def counted(block, inputs):
        if len(calls) == stop_at:
            raise Killed
        calls.append(block)
        return calibrate(block, inputs)

    model.quant_method.calibrate = counted
    noise = calibrator.run(images())
    return model, noise, len(calls), calibrator


@pytest.mark.parametrize('quant', [QUANT, RECONSTRUCTED], ids=['AIQViT', 'FIMAQ'])
def test_resumed_equals_uninterrupted(tmp_path, quant):
    """Also where weights change: the float stream goes on as the float model's."""
    reference, noise, blocks, _ = run(tmp_path / 'unbroken', quant)
    assert blocks == 5
    with pytest.raises(Killed):
        run(tmp_path / 'broken', quant, stop_at=3)
    steps = []
    resumed, resumed_noise, again, calibrator = run(tmp_path / 'broken', quant, tick=lambda: steps.append(1))
    assert again == 2
    assert len(steps) == calibrator.steps(2)
    assert resumed_noise == noise
    for name, value in reference.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_torn_file_does_not_count(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, stop_at=2)
    (tmp_path / '.002.pt.7.part').write_bytes(b'half a block')
    assert run(tmp_path)[2] == 3


@pytest.mark.parametrize('change', [{'w_bits': 3}, {'steps': 4}, {'method': 'RepQ'}])
def test_files_of_another_calibration_are_dropped(tmp_path, change):
    run(tmp_path)
    quant = {**QUANT, **change}
    if change.get('method') == 'RepQ':
        quant = {'method': 'RepQ', 'w_bits': 4}
    assert run(tmp_path, quant)[2] == 5


def test_weights_images_and_seed_decide_the_key():
    model = backbone(QUANT)
    key = calibration_key(model, [QUANT], [1, 2], 0)
    assert key == calibration_key(backbone(QUANT), [QUANT], [1, 2], 0)
    others = [
        calibration_key(backbone(QUANT, seed=1), [QUANT], [1, 2], 0),
        calibration_key(model, [QUANT], [1, 3], 0),
        calibration_key(model, [QUANT], [1, 2], 1),
    ]
    assert key not in others
    assert len(set(others)) == 3


def test_clear_leaves_nothing(tmp_path):
    calibrator = run(tmp_path / 'blocks')[3]
    assert len(list((tmp_path / 'blocks').glob('*.pt'))) == 5
    calibrator.journal.clear()
    assert not (tmp_path / 'blocks').exists()
