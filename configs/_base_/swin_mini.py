# The small Swin of the mini recipes: 32 channels and 2-2-6-2 blocks, so six pairs of blocks as Swin-T has.
# Windows of 4 tokens tile 256 px without padding: 256, 64, 16 and 4 windows in the four stages.
swin_mini = dict(
    type='SwinTransformer',
    embed_dims=32,
    depths=[2, 2, 6, 2],
    num_heads=[1, 2, 4, 8],
    window_size=4,
    mlp_ratio=4,
    qkv_bias=True,
    drop_path_rate=0.1,
    patch_norm=True,
    out_indices=(0, 1, 2, 3),
    init_cfg=None,
)
channels = 64  # of the FPN and every head
roi_layer = dict(sampling_ratio=2)  # 0 samples every pixel of a large box: a third of a CPU training step
