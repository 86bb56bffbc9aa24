# mini-COCO with boxes and masks: tools/make_minicoco.py makes it, MINICOCO_ROOT tells where it lies.
data_root = '{{$MINICOCO_ROOT:data/minicoco/}}'
metainfo = dict(
    classes=(
        'striped disc',
        'dotted disc',
        'checked box',
        'mottled box',
        'striped triangle',
        'mottled triangle',
        'dotted star',
        'checked star',
        'striped ring',
        'checked ring',
    ),
)
# Every split is made at the size it is meant to be seen at (val_wide included), so nothing is resized:
# the identity Resize only writes the scale_factor that mmdet's heads ask for.
identity = dict(type='Resize', scale_factor=1.0, keep_ratio=True)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    identity,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    identity,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=0,  # two cores: workers would only take turns with the model, and resuming is exact without them
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=16),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,  # a larger batch pads images of unequal size, which moves the window grid
    num_workers=0,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader  # the test split is opened by `make reproduce` alone

val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric=['bbox', 'segm'],
    format_only=False,
)
test_evaluator = val_evaluator
