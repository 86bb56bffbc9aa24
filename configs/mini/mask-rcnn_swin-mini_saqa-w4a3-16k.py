# Sparsity-aware adaptation of the W4A3 model that mask-rcnn_swin-mini_qat-w4a3-16k.py has trained, as it is shipped.
_base_ = ['./mask-rcnn_swin-mini_qat-w4a3-16k.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

load_from = 'checkpoints/mask-rcnn_swin-mini_qat-w4a3-16k.pth'
max_iters = 900
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, eta_min=1e-5),
]
optim_wrapper = dict(
    type='SparsityAwareOptimWrapper',
    constructor='SparsityAwareOptimWrapperConstructor',
    max_ratio=0.8,
    step=0.1,
    sampling='uniform_sum',
    seed=0,
    branch_lr_mult=10,  # decided by a pilot before an arm was trained
    optimizer=dict(lr=5e-5),
)
custom_hooks = [
    dict(type='ExactResumeHook'),
    dict(type='CalibrationHook', num_images=32, branches='low'),
    dict(type='EMAHook', momentum=0.005),
]
