"""Each dialect is converted and must then compute what the model it was taken from computes."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from swin_dialects import MicrosoftSwin, mmcv_names, randomise

from mixaq_mmdet.models.checkpoint_dialects import detect_dialect, reorder_patch_merging, translate
from mixaq_mmdet.models.checkpoint_geometry import infer_backbone_cfg

GEOMETRY = dict(embed_dims=8, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), window_size=4)


def stock(state_dict: dict, **changes) -> SwinTransformer:
    """mmdet's own Swin holding the backbone of a converted state dict, strictly."""
    model = SwinTransformer(**{**GEOMETRY, **changes})
    own = {key.removeprefix('backbone.'): value for key, value in state_dict.items() if key.startswith('backbone.')}
    model.load_state_dict(own, strict=True)
    model.eval()
    return model


@pytest.fixture(scope='module')
def images() -> torch.Tensor:
    return torch.randn(2, 3, 150, 117, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def detector_swin() -> MicrosoftSwin:
    return randomise(MicrosoftSwin(output_norms=True))


@pytest.fixture(scope='module')
def classifier() -> MicrosoftSwin:
    return randomise(MicrosoftSwin())


def heads() -> dict[str, torch.Tensor]:
    return {'neck.fpn_convs.0.conv.weight': torch.ones(1), 'roi_head.bbox_head.0.fc_cls.weight': torch.ones(2)}


def with_prefix(state_dict: dict) -> dict:
    return {f'backbone.{key}': value for key, value in state_dict.items()}


@pytest.mark.parametrize('dialect', ['swin-object-detection', 'mmdet'])
def test_detector_backbones_compute_the_same_features(dialect, detector_swin, images):
    weights = detector_swin.state_dict()
    source = with_prefix(weights if dialect == 'swin-object-detection' else mmcv_names(weights)) | heads()
    converted, found = translate(source)
    assert found.name == dialect
    for ours, theirs in zip(stock(converted)(images), detector_swin(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(converted[key], value) for key, value in heads().items())


@pytest.mark.parametrize('dialect', ['microsoft', 'mmpretrain'])
def test_classifiers_compute_the_same_scores(dialect, classifier):
    # The last map is one window: detectors shift it, classifiers do not, and a single block never does.
    images = torch.randn(2, 3, 128, 128)
    source = classifier.state_dict()
    if dialect == 'mmpretrain':
        head = {f'head.fc.{key[5:]}': source.pop(key) for key in list(source) if key.startswith('head.')}
        norm = {f'norm3.{key[5:]}': source.pop(key) for key in list(source) if key.startswith('norm.')}
        source = with_prefix(mmcv_names(source | norm)) | head
    converted, found = translate(source)
    assert found.name == dialect
    pooled = stock(converted)(images)[-1].mean((2, 3))
    scores = pooled @ converted['head.fc.weight'].T + converted['head.fc.bias']
    torch.testing.assert_close(scores, classifier(images), rtol=1e-4, atol=1e-5)


def test_a_classifier_gives_the_earlier_stages_identity_norms(classifier, images):
    converted, _ = translate(classifier.state_dict())
    outputs = stock(converted)(images)
    for ours, features in zip(outputs[:3], classifier.stages(images), strict=False):
        expected = torch.nn.functional.layer_norm(features, features.shape[-1:])
        torch.testing.assert_close(ours.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4)


def test_patch_merging_order_matters_and_is_its_own_definition():
    channels = 3
    positions = [(row, column) for column in (0, 1) for row in (0, 1)]
    microsoft = torch.tensor([100 * row + 10 * column + c for row, column in positions for c in range(channels)])
    unfold = torch.tensor([100 * row + 10 * column + c for c in range(channels) for row, column in sorted(positions)])
    assert torch.equal(reorder_patch_merging(microsoft, 0), unfold)
    assert not torch.equal(microsoft, unfold)


def test_bare_backbones_and_stored_masks_are_understood(detector_swin, classifier, images):
    converted, found = translate(mmcv_names(detector_swin.state_dict()))
    assert found.name == 'mmdet'
    stock(converted)
    masked = classifier.state_dict() | {'layers.0.blocks.1.attn_mask': torch.zeros(4, 16, 16)}
    assert not any('attn_mask' in key for key in translate(masked)[0])


def test_mask2former_of_mmdet_2_gets_the_names_of_3(detector_swin):
    layer = 'panoptic_head.{}.layers.0.{}.weight'
    old = [
        layer.format('pixel_decoder.encoder', 'attentions.0.sampling_offsets'),
        layer.format('pixel_decoder.encoder', 'ffns.0.layers.0.0'),
        layer.format('transformer_decoder', 'attentions.0.attn.out_proj'),
        layer.format('transformer_decoder', 'attentions.1.attn.out_proj'),
        layer.format('transformer_decoder', 'ffns.0.layers.1'),
    ]
    new = [
        layer.format('pixel_decoder.encoder', 'self_attn.sampling_offsets'),
        layer.format('pixel_decoder.encoder', 'ffn.layers.0.0'),
        layer.format('transformer_decoder', 'cross_attn.attn.out_proj'),
        layer.format('transformer_decoder', 'self_attn.attn.out_proj'),
        layer.format('transformer_decoder', 'ffn.layers.1'),
    ]
    source = with_prefix(mmcv_names(detector_swin.state_dict()))
    source |= {key: torch.full((1,), float(index)) for index, key in enumerate(old)}
    converted, _ = translate(source)
    assert [converted[key].item() for key in new] == [0, 1, 2, 3, 4]
    assert not set(old) & set(converted)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda keys: {key.replace('layers', 'blocks9'): 0 for key in keys}, 'none of the dialects'),
        (lambda keys: dict.fromkeys(keys) | {f'backbone.{key}': 0 for key in keys}, 'several dialects'),
        (lambda keys: dict.fromkeys(keys) | {'layers.0.blocks.0.attn.logit_scale': 0}, 'Swin V2'),
        (lambda keys: {key.replace('layers.0.down', 'layers.3.down'): 0 for key in keys}, 'timm'),
        (lambda keys: {}, 'none of the dialects'),
    ],
)
def test_other_files_are_refused_with_what_was_seen(change, message, classifier):
    with pytest.raises(ValueError, match=message) as error:
        detect_dialect(change(list(classifier.state_dict())))
    assert 'Seen:' in str(error.value)


def test_quantizer_state_is_not_dropped_silently(detector_swin):
    source = with_prefix(mmcv_names(detector_swin.state_dict()))
    low_norms = {'backbone.stages.0.blocks.0.norm1_low.weight': torch.ones(8)}
    assert set(low_norms) <= set(translate(source | low_norms)[0])
    for key in ('backbone.stages.0.blocks.0.attn.w_msa.qkv_in.scale', 'detector_quant_config'):
        with pytest.raises(ValueError, match='1 tensors that no float detector on Swin has'):
            translate(source | {key: torch.ones(1)})


def test_geometry_is_read_from_the_shapes(detector_swin, classifier):
    cfg = infer_backbone_cfg(translate(with_prefix(detector_swin.state_dict()))[0])
    assert {key: cfg[key] for key in GEOMETRY} == GEOMETRY
    assert cfg['out_indices'] == (0, 1, 2, 3)
    assert (cfg['qkv_bias'], cfg['patch_norm'], cfg['mlp_ratio'], cfg['patch_size']) == (True, True, 4, 4)
    wide = MicrosoftSwin(dim=16, depths=(1, 3), heads=(2, 4), window=7)
    assert SwinTransformer(**infer_backbone_cfg(translate(wide.state_dict())[0])).num_features == [16, 32]


def test_geometry_refuses_stages_of_different_windows(classifier):
    converted, _ = translate(classifier.state_dict())
    table = 'backbone.stages.3.blocks.0.attn.w_msa.relative_position_bias_table'
    converted[table] = converted[table][:9]
    with pytest.raises(ValueError, match=r'different window sizes \[2, 4\]'):
        infer_backbone_cfg(converted)
