# MixA-Q without training: low windows at four bits, high ones at eight; 1.35x fewer bit operations than W4A8.
_base_ = ['./mask-rcnn_swin-mini_ptq-w4a8.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(quant=dict(low_a_bits=4), low_ratios=[0.8, 0.3, 0.6, 0.7, 0.7, 0.3]))
