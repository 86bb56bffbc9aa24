_base_ = ['./mask-rcnn_swin-t_ptq-w4a8.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(quant=dict(w_bits=6, a_bits=6)))
