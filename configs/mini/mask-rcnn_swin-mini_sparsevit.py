# The rival at the same bits (SparseViT, arXiv 2303.17605): all windows drawn at an update are pruned, none runs low.
_base_ = ['./mask-rcnn_swin-mini_saqa-w4a4.py']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

optim_wrapper = dict(prune='only')
