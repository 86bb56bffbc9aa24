"""What the methods share that train their quantizers: 8-bit ends of the network, and a low branch calibrated anew."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from ..quantizers.base import Quantizer
from .base import BlockInputs, Method, activation_quantizers, observe

FIRST_LAYER = 'patch_embed.projection'
LAST_LAYERS = ('*.fc_cls', '*.fc_reg', '*.conv_logits', '*.rpn_cls', '*.rpn_reg', '*.retina_cls', '*.retina_reg')
END_BITS = 8


def is_end(module_path: str) -> bool:
    """Whether a layer is the first convolution, or one of those that give a detector's results."""
    return module_path.endswith(FIRST_LAYER) or any(fnmatchcase(module_path, pattern) for pattern in LAST_LAYERS)


class TrainedMethod(Method):
    """Base of the methods whose quantizers are trained; calibration gives them their first values.

    As OFQ recommends, the first convolution and the layers that give a detector's results have 8 bits.
    """

    trained = True
    fits_low_alone = True

    def bits_of(self, module_path: str) -> dict[str, int]:
        bits = super().bits_of(module_path)
        if self.edge_bits_of(module_path) is not None:
            return bits
        if module_path.endswith(FIRST_LAYER):
            return {**bits, 'w_bits': END_BITS}
        return dict.fromkeys(bits, END_BITS) if is_end(module_path) else bits

    def calibrate_low(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        """Fit the low branch of one block alone, on the low half of the windows; everything else stays as trained.

        Returns:
            Signal to quantization noise in dB of each low quantizer, by its name.
        """
        low: list[Quantizer] = [q for q in activation_quantizers(block) if q.branch == 'low']
        if not low:
            return {}
        samples = observe(block, inputs, low)
        return {quantizer.name: self.fit(quantizer, samples[quantizer.name]) for quantizer in low}
