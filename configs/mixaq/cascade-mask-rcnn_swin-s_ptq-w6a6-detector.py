_base_ = ['./cascade-mask-rcnn_swin-s_ptq-w6a6.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(type='QuantDetector', base='CascadeRCNN', detector_quant=dict(method='RepQ', w_bits=6, a_bits=6))
