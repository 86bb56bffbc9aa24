# Quantization-aware training of the backbone by all of OFQ, W4A4: products of query and key weights, and a last epoch
# that holds the weights that are sure of their code.
_base_ = ['./mask-rcnn_swin-t_qat-ofq-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(quant=dict(qkr=True)))
# one epoch more than the base has, at the rate where its cosine ends (ours: nothing is published for detectors)
free_epochs = 12
max_epochs = 13
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', begin=0, end=free_epochs, eta_min=1e-5, convert_to_iter_based=True),
]
custom_hooks = [
    dict(type='AnnealingHook', begin=free_epochs, by_epoch=True),
    dict(type='CalibrationHook', num_images=32, branches='low'),
]
