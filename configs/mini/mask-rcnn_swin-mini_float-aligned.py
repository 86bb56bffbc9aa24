# Two more epochs of the small float detector that make large activations mean objects, as MixA-Q presumes
# (docs/minicoco.md); the result is the model that the quantization recipes start from.
_base_ = ['./mask-rcnn_swin-mini_float.py']

load_from = 'checkpoints/mask-rcnn_swin-mini_plain.pth'
max_epochs = 2

model = dict(type='WindowAlignedMaskRCNN')
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=4e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
