# low windows at four bits: 1.35x fewer bit operations than W4A8 at 800 x 1216
_base_ = ['./mask-rcnn_swin-t_ptq-w4a8.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(
    backbone=dict(quant=dict(low_a_bits=4), low_ratios=[0.8, 0.2, 0.6, 0.7, 0.7, 0.3]),
)
