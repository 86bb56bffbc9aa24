# Three tiers: of the windows drawn at an update a random share is pruned, the rest runs low.
_base_ = ['./mask-rcnn_swin-t_saqa-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

optim_wrapper = dict(prune=True)
