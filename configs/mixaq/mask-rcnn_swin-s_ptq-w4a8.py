_base_ = ['./mask-rcnn_swin-s_float.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

folder = 'https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco/'
load_from = folder + 'mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco_20210903_104808-b92c91f1.pth'
model = dict(
    backbone=dict(init_cfg=None, quant=dict(method='RepQ', w_bits=4, a_bits=8)),
)
train_cfg = dict(_delete_=True, type='PTQLoop', num_images=32)
