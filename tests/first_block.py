"""The inputs of a backbone's first block, as methods see them."""

from __future__ import annotations

import pytest
import torch

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import quantizer_mode


class FirstBlock:
    """Inputs of the first block, or of another, as a calibrator stores them, for images of one's own."""

    def __init__(self, model, pictures, block=None):
        wanted = model.stages[0].blocks[0] if block is None else block
        calibrator = Calibrator(model)
        found = []
        calibrate = type(model.quant_method).calibrate

        class Stop(Exception):
            pass

        def catch(block, inputs):
            if block is wanted:
                found.append(inputs)
                raise Stop
            return calibrate(model.quant_method, block, inputs)

        model.quant_method.calibrate = catch
        with pytest.raises(Stop):
            calibrator.run(pictures)
        del model.quant_method.calibrate
        self.inputs = found[0]

    @torch.no_grad()
    def errors(self, block):
        """(branches,) mean squared error of the block's output."""
        total = 0
        for index in range(len(self.inputs)):
            with quantizer_mode(block, 'float'):
                targets = self.inputs.outputs(block, index)
            outputs = self.inputs.outputs(block, index)
            total += torch.stack([(a - b).square().mean() for a, b in zip(outputs, targets, strict=True)])
        return total
