# 500 steps of window alignment behind the last leg: without them its third stage gives background the larger scores
# (docs/results/ptq_longer.md). The result is the model that the quantization recipes start from.
_base_ = ['./mask-rcnn_swin-mini_float-16k.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

load_from = 'checkpoints/mask-rcnn_swin-mini_float-16k-leg8.pth'
max_iters = 500  # as many as in mask-rcnn_swin-mini_float-aligned.py, whose settings these are

model = dict(type='WindowAlignedMaskRCNN')
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'patch_embed.norm': dict(lr_mult=10.0, decay_mult=0.0)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, eta_min=0),
]
