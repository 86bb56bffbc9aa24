# Quantization-aware training of the small Mask R-CNN's backbone: OFQ, four bits, two in the low branch.
_base_ = ['./mask-rcnn_swin-mini_float.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

load_from = 'checkpoints/mask-rcnn_swin-mini_float-16k.pth'
# the last two are those of the shipped checkpoint, not the defaults
quant = dict(method='OFQ', w_bits=4, a_bits=4, low_a_bits=2, edge_weights='StatsQ', v_per_channel=False)
model = dict(backbone=dict(type='TwoBranchSwin', drop_path_rate=0.0, quant=quant))

# OFQ's learning rates; 900 steps are sized for two CPU cores (ours)
max_iters = 900
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, eta_min=1e-5),
]
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    # learned steps and offsets
    paramwise_cfg=dict(custom_keys=dict(input_quant=no_decay, weight_quant=no_decay, operands=no_decay)),
)
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
default_hooks = dict(checkpoint=dict(interval=100, by_epoch=False))
custom_hooks = [dict(type='ExactResumeHook'), dict(type='CalibrationHook', num_images=32)]
log_processor = dict(by_epoch=False)
