# ImageNet-1k classification with mmpretrain's ImageClassifier; needs the `classification` extra.
_base_ = ['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='TwoBranchSwin',
        embed_dims=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.2,
        out_indices=(3,),
        unshifted_stages=(3,),  # one window covers its map at 224 pixels
    )
)
