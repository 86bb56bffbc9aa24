# Mix-QViT's clipped fold at uniform bits: what an allocation on your own images starts from and is compared with.
# Bits per layer: python tools/search.py <this file> <float checkpoint> --allocate layers --budget 1.0
_base_ = ['./mask-rcnn_swin-t_ptq-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(quant=dict(method='MixQViT')))
