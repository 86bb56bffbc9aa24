# OFQ with its two other parts: the product of query and key weights is what is quantized, and the last steps hold the
# weights that are sure of their code.
_base_ = ['./mask-rcnn_swin-mini_qat-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(quant=dict(qkr=True, edge_weights='LSQ', v_per_channel=True)))

# the base's schedule, then 100 steps at its lowest rate (ours: OFQ publishes epochs of a classifier)
free_iters = 900
max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=free_iters, eta_min=1e-5),
]
custom_hooks = [
    dict(type='ExactResumeHook'),
    dict(type='AnnealingHook', begin=free_iters),
    dict(type='CalibrationHook', num_images=32, branches='low'),
]
