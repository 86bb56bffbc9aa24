# Cascade Mask R-CNN on the same small Swin; the three box heads share their settings and tighten their targets.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    '../_base_/swin_mini.py',
    '../_base_/minicoco_instance.py',
    '../_base_/mini_runtime.py',
]
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

num_classes = len(_base_.metainfo['classes'])
channels = _base_.channels
roi_layer = _base_.roi_layer

box_head = dict(
    type='Shared2FCBBoxHead',
    in_channels=channels,
    fc_out_channels=256,
    roi_feat_size=7,
    num_classes=num_classes,
    reg_class_agnostic=True,
    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
)
box_coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0])

model = dict(
    backbone=dict(_delete_=True, **_base_.swin_mini),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=roi_layer),
        bbox_head=[
            dict(**box_head, bbox_coder=dict(**box_coder, target_stds=[0.1, 0.1, 0.2, 0.2])),
            dict(**box_head, bbox_coder=dict(**box_coder, target_stds=[0.05, 0.05, 0.1, 0.1])),
            dict(**box_head, bbox_coder=dict(**box_coder, target_stds=[0.033, 0.033, 0.067, 0.067])),
        ],
        mask_roi_extractor=dict(out_channels=channels, roi_layer=roi_layer),
        mask_head=dict(num_convs=2, in_channels=channels, conv_out_channels=channels, num_classes=num_classes),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=300),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False,
                    ignore_iof_thr=-1,
                ),
                sampler=dict(type='RandomSampler', num=128, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for iou in (0.5, 0.6, 0.7)
        ],
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)
