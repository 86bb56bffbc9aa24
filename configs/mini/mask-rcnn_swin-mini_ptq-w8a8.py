# Post-training quantization of the small Mask R-CNN's backbone: RepQ, eight bits.
_base_ = ['./mask-rcnn_swin-mini_float.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

load_from = 'checkpoints/mask-rcnn_swin-mini_float-16k.pth'
model = dict(backbone=dict(type='TwoBranchSwin', quant=dict(method='RepQ', w_bits=8, a_bits=8)))
# calibration images come from a split of their own: neither trained on nor measured on
train_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_calib.json', data_prefix=dict(img='calib/')),
)
train_cfg = dict(_delete_=True, type='PTQLoop', num_images=32)
