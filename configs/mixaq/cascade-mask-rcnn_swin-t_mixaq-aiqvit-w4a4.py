# half the windows with two-bit activations
_base_ = ['./cascade-mask-rcnn_swin-t_aiqvit-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(
    backbone=dict(quant=dict(low_a_bits=2), low_ratios=0.5),
)
