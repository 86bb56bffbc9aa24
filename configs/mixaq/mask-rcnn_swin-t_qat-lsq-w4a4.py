# Quantization-aware training of the backbone by LSQ (learned steps of weights and activations), W4A4.
_base_ = ['./mask-rcnn_swin-t_qat-ofq-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(quant=dict(method='LSQ')))
