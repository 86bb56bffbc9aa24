# AIQViT at four bits: block reconstruction with low-rank compensation and a learned attention interval.
_base_ = ['./mask-rcnn_swin-mini_ptq-w8a8.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(quant=dict(method='AIQViT', w_bits=4, a_bits=4)))
