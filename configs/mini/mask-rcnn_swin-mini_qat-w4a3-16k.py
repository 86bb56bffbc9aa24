# Quantization-aware training of the small Mask R-CNN's backbone from the float model that has converged: OFQ, four bits
# of weights, three of activations, two in the low branch. Weights are averaged, here and in all that starts from it.
_base_ = ['./mask-rcnn_swin-mini_qat-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

load_from = 'checkpoints/mask-rcnn_swin-mini_float-16k.pth'
extractor = dict(type='KernelRoIExtractor')  # as stock but for rounding, in less of a step's time
model = dict(
    backbone=dict(quant=dict(a_bits=3, edge_weights='LSQ', v_per_channel=True)),
    roi_head=dict(bbox_roi_extractor=extractor, mask_roi_extractor=extractor),
)

max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, eta_min=1e-5),
]
data_root_16k = '{{$MINICOCO_16K_ROOT:data/minicoco-16k/}}'
train_dataloader = dict(dataset=dict(data_root=data_root_16k))
custom_hooks = [
    dict(type='ExactResumeHook'),
    dict(type='CalibrationHook', num_images=32),
    dict(type='EMAHook', momentum=0.005),
]
