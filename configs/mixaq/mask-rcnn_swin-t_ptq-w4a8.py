_base_ = ['./mask-rcnn_swin-t_float.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

folder = 'https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco/'
load_from = folder + 'mask_rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco_20210906_131725-bacf6f7b.pth'
model = dict(
    backbone=dict(init_cfg=None, quant=dict(method='RepQ', w_bits=4, a_bits=8)),
)
train_cfg = dict(_delete_=True, type='PTQLoop', num_images=32)
