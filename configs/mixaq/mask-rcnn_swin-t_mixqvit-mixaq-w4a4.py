# The same with low windows at two bits; four fifths of its standard bit operations.
# Bits and ratios: python tools/search.py <mixqvit-w4a4 recipe> <float checkpoint> --allocate both --budget 0.8
_base_ = ['./mask-rcnn_swin-t_mixqvit-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(quant=dict(low_a_bits=2), low_ratios=0.42))
