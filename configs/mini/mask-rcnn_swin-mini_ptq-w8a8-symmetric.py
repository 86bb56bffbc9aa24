# Post-training quantization of the small Mask R-CNN's backbone with grids that TensorRT has nodes for: zero point 0.
_base_ = ['./mask-rcnn_swin-mini_ptq-w8a8.py']

quant = dict(_delete_=True, method='Percentile', w_bits=8, a_bits=8, w_symmetric=True, a_symmetric=True)
model = dict(backbone=dict(quant=quant))
