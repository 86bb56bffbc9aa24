_base_ = ['mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(type='TwoBranchSwin'))
default_hooks = dict(cost=dict(type='CostHook'))
