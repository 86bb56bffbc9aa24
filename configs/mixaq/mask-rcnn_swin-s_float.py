_base_ = ['mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(type='TwoBranchSwin'))
# as every recipe here: full precision in the file, mixed precision by `tools/train.py --amp`
optim_wrapper = dict(type='OptimWrapper')
default_hooks = dict(cost=dict(type='CostHook'))
