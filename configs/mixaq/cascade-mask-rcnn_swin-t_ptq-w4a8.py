_base_ = ['./cascade-mask-rcnn_swin-t_float.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

# made by tools/convert_checkpoint.py, see the table
load_from = 'checkpoints/cascade_swin-t.pth'
model = dict(
    backbone=dict(init_cfg=None, quant=dict(method='RepQ', w_bits=4, a_bits=8)),
)
train_cfg = dict(_delete_=True, type='PTQLoop', num_images=32)
