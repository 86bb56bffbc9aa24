# One leg of the small float detector's training on 16 000 images: 750 steps, learning rate to zero, from the shipped
# model or from the leg before. The quantization recipes that end in `-16k` start from the last leg
# (docs/results/protocol.md, A start that has converged).
_base_ = ['./mask-rcnn_swin-mini_float.py']

load_from = 'checkpoints/mask-rcnn_swin-mini_float.pth'
extractor = dict(type='KernelRoIExtractor')  # as stock but for rounding, in less of a step's time
model = dict(roi_head=dict(bbox_roi_extractor=extractor, mask_roi_extractor=extractor))

# python tools/make_minicoco.py --out data/minicoco-16k --train 16000 --splits train
data_root_16k = '{{$MINICOCO_16K_ROOT:data/minicoco-16k/}}'
max_iters = 750
checkpoint_interval = 150

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, eta_min=0),
]
optim_wrapper = dict(optimizer=dict(lr=4e-4))
train_dataloader = dict(sampler=dict(type='InfiniteSampler'), dataset=dict(data_root=data_root_16k))
default_hooks = dict(checkpoint=dict(interval=checkpoint_interval, by_epoch=False))
log_processor = dict(by_epoch=False)
