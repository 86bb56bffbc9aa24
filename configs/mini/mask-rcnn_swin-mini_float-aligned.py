# One more epoch of the small float detector that makes large activations mean objects, as MixA-Q presumes
# (docs/results/premise.md); the result is the model that the quantization recipes start from.
_base_ = ['./mask-rcnn_swin-mini_float.py']

load_from = 'work_dirs/mask-rcnn_swin-mini_float/epoch_5.pth'  # what the recipe before leaves
max_epochs = 1

model = dict(type='WindowAlignedMaskRCNN')
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    optimizer=dict(lr=4e-4),
    # stage 1 is scored on this norm's output: all that its ranking can follow is in these 64 numbers
    paramwise_cfg=dict(custom_keys={'patch_embed.norm': dict(lr_mult=10.0, decay_mult=0.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
