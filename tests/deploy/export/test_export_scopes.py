"""Detectors that do not export whole give their neck or backbone."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mixaq_mmdet.deploy.export.graph import save, to_onnx
from mixaq_mmdet.deploy.export.image_input import FloatInput
from mixaq_mmdet.deploy.export.scopes import build_graph
from mixaq_mmdet.deploy.export.targets import find_target

sys.path.append(str(Path(__file__).parents[2] / 'configs'))
from shrunk_recipe import build, shrunk_recipe

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
SHAPE = (64, 96)


def shrunk(name):
    cfg = shrunk_recipe(name)
    cfg.model.backbone.update(type='TwoBranchSwin', low_ratios=0.0, prune_ratios=0.25, depths=(2, 1, 1, 1))
    cfg.model.backbone.pop('convert_weights', None)
    return build(cfg).eval()


@pytest.mark.parametrize(
    ('recipe', 'scope', 'names'),
    [
        ('dino-5scale_swin-l_float.py', 'neck', ['p2', 'p3', 'p4', 'p5', 'p6']),
        ('mask2former_swin-t_float.py', 'backbone', ['c2', 'c3', 'c4', 'c5']),
    ],
)
@torch.no_grad()
def test_transformers_export_up_to_their_maps(recipe, scope, names, tmp_path):
    model = shrunk(recipe)
    with pytest.raises(ValueError, match=f'{type(model).__name__} exports with scope="neck" or "backbone"'):
        build_graph(model, 'detector', FloatInput(SHAPE))
    image = FloatInput(SHAPE)
    graph = build_graph(model, scope, image).eval()
    assert graph.output_names() == names
    save(to_onnx(graph, image.examples(), names), tmp_path / 'x.onnx')
    x = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(7))
    found = find_target('onnxruntime').session(tmp_path / 'x.onnx')({'image': x.numpy()})
    for out, expected in zip(found, model.extract_feat(x), strict=True):
        np.testing.assert_allclose(out, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
