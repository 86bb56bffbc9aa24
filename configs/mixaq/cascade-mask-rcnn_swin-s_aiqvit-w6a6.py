_base_ = ['./cascade-mask-rcnn_swin-s_ptq-w6a6.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(quant=dict(method='AIQViT')))
