# MixA-Q without training, the whole detector in scope: low windows at four bits, all else at W8A8. It converts whole,
# its mask head's deconvolution included; symmetric weights spare the integer products a correction.
_base_ = ['./mask-rcnn_swin-mini_ptq-w8a8.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(
    type='QuantDetector',
    base='MaskRCNN',
    backbone=dict(quant=dict(low_a_bits=4, w_symmetric=True), low_ratios=[0.8, 0.3, 0.6, 0.7, 0.7, 0.3]),
    detector_quant=dict(method='RepQ', w_bits=8, a_bits=8, w_symmetric=True, deconvolution=True),
)
