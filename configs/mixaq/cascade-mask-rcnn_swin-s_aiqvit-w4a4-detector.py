# neck and heads by RepQ
_base_ = ['./cascade-mask-rcnn_swin-s_aiqvit-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(type='QuantDetector', base='CascadeRCNN', detector_quant=dict(method='RepQ', w_bits=4, a_bits=4))
