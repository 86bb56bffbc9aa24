# Quantization-aware training for export: LSQ, whose grids every runtime has, W4A8 with A4 in the low branch.
_base_ = ['./mask-rcnn_swin-mini_qat-w4a4.py']

quant = dict(_delete_=True, method='LSQ', w_bits=4, a_bits=8, low_a_bits=4)
model = dict(backbone=dict(quant=quant, low_ratios=0.4))

# a third of the steps of W4A4: there is less to recover
max_iters = 300
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, eta_min=1e-5),
]
