# Sparsity-aware adaptation of the W4A4 model that mask-rcnn_swin-mini_qat-w4a4.py has trained: new ratios of low
# windows at every update. Learning rate and length are ours; the paper publishes neither.
_base_ = ['./mask-rcnn_swin-mini_qat-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

load_from = 'work_dirs/mask-rcnn_swin-mini_qat-w4a4/iter_900.pth'
optim_wrapper = dict(
    type='SparsityAwareOptimWrapper',
    constructor='SparsityAwareOptimWrapperConstructor',
    max_ratio=0.8,
    step=0.1,
    sampling='uniform_sum',
    seed=0,
    branch_lr_mult=1,  # what the results of this recipe had; the default came later
    optimizer=dict(lr=5e-5),
)
# uniform training has never used the low branch
custom_hooks = [dict(type='ExactResumeHook'), dict(type='CalibrationHook', num_images=32, branches='low')]
