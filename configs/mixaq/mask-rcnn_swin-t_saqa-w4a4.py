# Sparsity-aware adaptation of the W4A4 model that mask-rcnn_swin-t_qat-ofq-w4a4.py trains.
_base_ = ['./mask-rcnn_swin-t_float.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

# where that recipe leaves its last checkpoint: override it with yours
load_from = 'work_dirs/mask-rcnn_swin-t_qat-ofq-w4a4/epoch_12.pth'
model = dict(
    backbone=dict(init_cfg=None, drop_path_rate=0.0, quant=dict(method='OFQ', w_bits=4, a_bits=4, low_a_bits=2)),
)
# Ours: the paper publishes no schedule; twelve epochs at 1e-5 are SparseViT's, which adapts to the same ratios.
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', begin=0, end=max_epochs, eta_min=1e-6, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type='SparsityAwareOptimWrapper',
    constructor='SparsityAwareOptimWrapperConstructor',
    max_ratio=0.8,
    step=0.1,
    sampling='uniform_sum',
    seed=0,
    optimizer=dict(lr=1e-5),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
# uniform training has never used the low branch
custom_hooks = [dict(type='CalibrationHook', num_images=32, branches='low')]
