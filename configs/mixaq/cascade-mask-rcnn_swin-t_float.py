_base_ = ['../_base_/cascade-mask-rcnn_swin-t_fpn_ms-crop-3x_coco.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(type='TwoBranchSwin'))
default_hooks = dict(cost=dict(type='CostHook'))
