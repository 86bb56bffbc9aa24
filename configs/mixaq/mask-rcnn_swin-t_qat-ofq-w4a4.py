# Quantization-aware training of the backbone by OFQ (StatsQ weights, learned steps and offsets), W4A4.
_base_ = ['./mask-rcnn_swin-t_float.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

folder = 'https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco/'
load_from = folder + 'mask_rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco_20210906_131725-bacf6f7b.pth'
model = dict(
    backbone=dict(init_cfg=None, drop_path_rate=0.0, quant=dict(method='OFQ', w_bits=4, a_bits=4, low_a_bits=2)),
)
# Ours: OFQ publishes no schedule for detectors. Its decay from 2e-4 to 1e-5 is for classifiers; the rate of the float
# training bounds what a detector takes.
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', begin=0, end=max_epochs, eta_min=1e-5, convert_to_iter_based=True),
]
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    # learned steps and offsets
    paramwise_cfg=dict(custom_keys=dict(input_quant=no_decay, weight_quant=no_decay, operands=no_decay)),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
# the low branch is not trained at ratio 0: a test fits it anew
custom_hooks = [dict(type='CalibrationHook', num_images=32, branches='low')]
