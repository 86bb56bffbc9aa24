"""Configs drawn at random, right ones and ones with a single fault, and what it takes to run one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData
from tiny_backbone import ARCHITECTURE
from tiny_detector import stock_config, tiny_mask_rcnn

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.models import TwoBranchSwin

PATTERNS = {
    'quant': ('*', 'stages.1.*', 'stages.0.blocks.0.*', '*.ffn.layers.1', '*.w_msa.qkv'),
    'detector_quant': ('*', 'neck.*', 'neck.lateral_convs.0.conv'),
}
RECONSTRUCTED = ('FIMAQ', 'APHQ', 'GLFQ')
METHODS = ('MinMax', 'Percentile', 'MSE', 'RepQ', 'LSQ', 'OFQ', 'AIQViT', 'MixQViT', 'ERQ')
METHODS += ('AdaLog', 'PTQ4ViT', 'NoisyQuant', *RECONSTRUCTED)
HEAD_METHODS = tuple(method for method in METHODS if method not in ('ERQ', 'PTQ4ViT'))  # which refuse heads

WRONG: dict[str, list[Any]] = {
    'method': ['repq', '', None, 4, ['RepQ'], 'missing'],
    'w_bits': [0, 1, 9, -4, 4.0, '4', None, True, [4]],
    'a_bits': [0, 1, 9, -4, 4.0, '4', None, True, [4]],
    'low_a_bits': [0, 1, 9, 'a_bits', 2.5, '2', False],
    'patch_bits': [0, 16, '8', None],
    'edge_bits': [0, 16, '8', True],
    'deconvolution': [0, 1, 'yes', None],
    'qkr': [1, 'x', None],
    'n_bits': [4],
    'overrides': [
        [{'pattern': 'nowhere.*', 'w_bits': 4}], [{'w_bits': 4}], [{'pattern': 3}], [{'pattern': '*', 'bits': 4}],
        [{'pattern': '*', 'w_bits': 99}], [{'pattern': '*', 'roles': ['nothing']}], [{'pattern': '*', 'roles': 5}],
        [5], [None], 5, None, 'stages.*', {'pattern': '*'},
    ],
    'percentile': ['high', -1, 200, None, [99.9]],
    'percentiles': ['x', 5, [], [2.0], [-0.1], ['a'], None],
    'clip_deviations': [-1, 'x', None, float('nan')],
    'ranks': [[-1], 'x', 5, [1.5], None],
    'steps': [-1, 'x', 1.5, None],
    'lr': [-1e-3, 'x', None, float('nan')],
    'curriculum_start': [-0.5, 2, 'x', None],
    'seed': ['x', None, 1.5],
    'budget': ['tiny', 5, None],
    'rounding': ['up', 5, 1.5],
    'drop': [-0.1, 1.5, 'x', None],
    'perturbation': [0, -1, 'x', None],
    'ridge': [0, -1, 'x', None, float('nan')],
    'refinements': [-1, 'x', 1.5, None],
    'low_share': [-0.1, 1.5, 'x', None],
    'log_gelu': ['no', 1, None],
    'keep': [0, -1, 'x', 1.5, None],
    'rounds': [-1, 'x', 1.5, None],
    **{key: [0, -1, 'x', 1.5, None] for key in ('candidates', 'shift_steps', 'noise_steps')},
    'code_parity': ['no', 1, None],
    'rows': [0, -1, 'x', 1.5, None],
    'quant': ['RepQ', 5, ['RepQ'], {}],
    'low_ratios': [-0.1, 1.2, float('nan'), '0.5', [0.5], [0.1] * 3, ['a', 0.1], [None, 0], {}, None, [[0.1, 0.2]]],
    'prune_ratios': [-0.1, 1.2, float('nan'), '0.5', [0.5], [0.1] * 3, ['a', 0.1], {}, None],
    'importance': ['l2', '', None, 5, {}, ['L2'], {'type': 'L2', 'seed': 1}, {'type': 'Std', 'nope': 1}],
    'window_size': [1, 0, -1, '4', 2.5, None, (4, 4), True],
    'unshifted_stages': [(7,), 5, 'x', (-1,)],
    'inputs': [(1, 3, 0, 8), (3, 16, 16), (1, 3, 8, 0)],
}  # fmt: skip
"""Values that a user might write in a field, each of which has to end in a ValueError that names it."""
OF_METHOD = {
    'percentile': ('Percentile',),
    'percentiles': ('RepQ', 'AIQViT', 'MixQViT', 'AdaLog', *RECONSTRUCTED),
    'clip_deviations': ('MixQViT',),
    'qkr': ('OFQ',),
    **dict.fromkeys(('ranks', 'steps', 'lr', 'curriculum_start', 'seed'), ('AIQViT',)),
    **dict.fromkeys(('budget', 'rounding', 'drop'), RECONSTRUCTED),
    'perturbation': ('APHQ',),
    **dict.fromkeys(('ridge', 'refinements', 'low_share'), ('ERQ',)),
    **dict.fromkeys(('log_gelu', 'keep'), ('AdaLog',)),
    'rounds': ('AdaLog', 'PTQ4ViT'),
    'rows': ('AdaLog', 'PTQ4ViT', 'NoisyQuant', 'FIMAQ'),
    'candidates': ('PTQ4ViT',),
    'code_parity': ('PTQ4ViT', 'NoisyQuant'),
    **dict.fromkeys(('shift_steps', 'noise_steps'), ('NoisyQuant',)),
}
QUANTIZED = (('quant',), ('detector_quant',), *[('quant', 'detector_quant')] * 3, ())
DETECTORS = ('MaskRCNN', 'CascadeRCNN', 'RetinaNet', 'Mask2Former')
OF_BACKBONE = ('quant', 'low_ratios', 'prune_ratios', 'importance', 'window_size', 'unshifted_stages', 'inputs')


@dataclass
class Case:
    """A model, the size of what it sees, and the field that is wrong, if one is: of ``place`` if it is an option."""

    detector: str
    quant: Any
    heads: Any
    options: dict[str, Any]
    shape: tuple[int, ...]
    fault: str | None
    place: str = 'quant'

    @property
    def named(self) -> str:
        """What the message about the fault has to begin with; the host puts the class it built in front."""
        if self.fault in OF_BACKBONE:
            field = r'quant(\.method)?=' if self.fault == 'quant' else rf'{self.fault}\b'
        elif self.fault == 'n_bits':
            field = rf"{self.place} has unknown keys \['n_bits'\]"
        else:
            field = rf'{self.place}\.{self.fault}\b'
        return rf'(^|: )(model\.)?(backbone\.)?{field}'


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    """Half of them right; the others wrong in one field."""
    fault = draw(st.none() | st.sampled_from(sorted(WRONG)))
    detector = draw(st.sampled_from(('backbone',) * len(DETECTORS) + DETECTORS))
    quantized = draw(st.sampled_from(QUANTIZED))
    if detector in ('backbone', 'Mask2Former'):  # all of whose heads stay float
        quantized = quantized[:1] and ('quant',)
    place = 'quant' if fault in OF_BACKBONE or not quantized else draw(st.sampled_from(quantized))
    quants: dict[str, Any] = {'quant': None, 'detector_quant': None}
    for name in quantized if fault is None else dict.fromkeys((*quantized, place)):
        broken = fault is not None and name == place
        usual = METHODS if name == 'quant' else HEAD_METHODS
        quants[name] = _quant(draw, draw(st.sampled_from(OF_METHOD.get(fault if broken else None, usual))), name)
        if broken and fault not in OF_BACKBONE:
            _break(draw, quants[name], fault)
    low = [draw(st.integers(0, 100)) for _ in range(2)]
    prune = [draw(st.integers(0, 100 - part)) for part in low]
    options = {
        'low_ratios': draw(st.sampled_from([[part / 100 for part in low], min(low) / 100])),
        'prune_ratios': draw(st.sampled_from([[part / 100 for part in prune], min(prune) / 100, 0])),
        'importance': draw(
            st.sampled_from(['L2', 'Std', 'Random', {'type': 'L2', 'reverse': True}, {'type': 'Random', 'seed': 3}])
        ),
        'window_size': draw(st.integers(2, 5)),
        'unshifted_stages': draw(st.sampled_from([(), (1,), (0, 1)])),
    }
    shape = (draw(st.integers(1, 2)), 3, draw(st.integers(1, 48)), draw(st.integers(1, 48)))
    if fault in options:
        options[fault] = draw(st.sampled_from(WRONG[fault]))
    if fault == 'inputs':
        detector, shape = 'backbone', draw(st.sampled_from(WRONG[fault]))
    if fault == 'quant':
        quants['quant'] = draw(st.sampled_from(WRONG[fault]))
    return Case(detector, quants['quant'], quants['detector_quant'], options, shape, fault, place)


def _quant(draw: Callable[..., Any], method: str, place: str) -> dict[str, Any]:
    """A right ``quant`` or ``detector_quant`` of a method."""
    bits = st.integers(2, 8)
    quant: dict[str, Any] = {'method': method, 'w_bits': draw(bits), 'a_bits': draw(bits)}
    if draw(st.booleans()) and place == 'quant':
        quant['low_a_bits'] = draw(st.integers(2, quant['a_bits']))
    if draw(st.booleans()):
        change = draw(st.sampled_from([{'w_bits': 3}, {'a_bits': 5}, {'enabled': False}]))
        if draw(st.booleans()) and 'a_bits' not in change:
            change = {**change, 'roles': ['weight']}
        quant['overrides'] = [{'pattern': draw(st.sampled_from(PATTERNS[place])), **change}]
    if place == 'quant' and draw(st.booleans()):
        quant['edge_bits'] = draw(bits)
    if place == 'quant' and method == 'OFQ':
        quant['qkr'] = draw(st.booleans())
    if method == 'AIQViT':
        ranks = draw(st.sampled_from([[], [1], [2, 1], [0, 2]]))
        quant.update(steps=draw(st.integers(0, 2)), search_steps=draw(st.integers(0, 1)), ranks=ranks)
    if method == 'AdaLog':
        quant.update(keep=1, expansions=draw(st.integers(0, 1)), rounds=draw(st.integers(0, 1)), rows=8)
    if method == 'PTQ4ViT':
        quant.update(candidates=2, rounds=draw(st.integers(0, 1)), rows=8, code_parity=draw(st.booleans()))
    if method == 'NoisyQuant':
        quant.update(shift_steps=1, noise_steps=1, rows=8)
    if method in RECONSTRUCTED:
        quant.update(steps=draw(st.integers(0, 2)), rounding=draw(st.sampled_from(['AdaRound', 'StraightThrough'])))
    return quant


def _break(draw: Callable[..., Any], quant: dict[str, Any], fault: str | None) -> None:
    if fault is None:
        return
    value = draw(st.sampled_from(WRONG[fault]))
    if value == 'missing':
        del quant['method']
    elif value == 'a_bits':
        quant.update(a_bits=4, low_a_bits=5)
    else:
        quant[fault] = value


def run(case: Case) -> None:
    """Build, calibrate, infer and take a training step, in which everything that can be trained has a gradient."""
    torch.manual_seed(0)
    options = case.options if case.quant is None else {**case.options, 'quant': case.quant}
    if case.detector == 'backbone':
        model: Any = TwoBranchSwin(**{**ARCHITECTURE, **options}).eval()
        image = torch.randn(case.shape, generator=torch.Generator().manual_seed(1))
        if case.quant is not None:
            Calibrator(model).run([image[:1]] if case.fault != 'inputs' else [torch.randn(1, 3, 8, 8)])
        with torch.no_grad():
            maps = model(image)
        assert all(torch.isfinite(each).all() for each in maps)
        assert maps[0].shape[2:] == tuple(-(-side // 4) for side in case.shape[2:])
        loss = sum(out.square().mean() for out in model.train()(image))
    else:
        model = MODELS.build(_detector_config(case, options))
        model.init_weights()
        model.eval()
        batch = _batch(case.shape)
        if case.quant is not None or case.heads is not None:
            Calibrator(model).run([batch])
        found = model.test_step(batch)[0].pred_instances
        assert torch.isfinite(found.scores).all()
        prepared = model.train().data_preprocessor(batch, True)
        loss, _ = model.parse_losses(model(**prepared, mode='loss'))
    assert torch.isfinite(loss)
    loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def _detector_config(case: Case, options: dict[str, Any]) -> dict[str, Any]:
    cfg = tiny_mask_rcnn(type='TwoBranchSwin', **{**ARCHITECTURE, **options})
    cfg.neck.update(in_channels=[8, 16], num_outs=5)
    if case.detector != 'MaskRCNN':
        small = cfg
        cfg = {'RetinaNet': _retina_net, 'CascadeRCNN': _cascade, 'Mask2Former': _mask2former}[case.detector](small)
        cfg.backbone = small.backbone
    if case.heads is not None:
        cfg.update(type='QuantDetector', base=cfg.type, detector_quant=case.heads)
    return cfg


def _retina_net(small: Any) -> Any:
    cfg = Config.fromfile(stock_config('_base_/models/retinanet_r50_fpn.py')).model
    cfg.neck = small.neck
    cfg.bbox_head.update(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=3)
    return cfg


def _cascade(small: Any) -> Any:
    """Two of the three stages, with the heads of the small Mask R-CNN."""
    cfg = Config.fromfile(stock_config('_base_/models/cascade-mask-rcnn_r50_fpn.py')).model
    cfg.neck, cfg.rpn_head, cfg.test_cfg = small.neck, small.rpn_head, small.test_cfg
    head, theirs = cfg.roi_head, small.roi_head
    head.update(
        num_stages=2,
        stage_loss_weights=[1, 0.5],
        bbox_roi_extractor=theirs.bbox_roi_extractor,
        mask_roi_extractor=theirs.mask_roi_extractor,
        mask_head=theirs.mask_head,
    )
    small_sizes = {name: theirs.bbox_head[name] for name in ('in_channels', 'fc_out_channels', 'num_classes')}
    head.bbox_head = [{**stage, **small_sizes} for stage in head.bbox_head[:2]]
    stages = cfg.train_cfg.rcnn[:2]
    for stage in stages:
        stage.sampler.num = 32
    cfg.train_cfg = {**small.train_cfg, 'rcnn': stages}
    return cfg


def _mask2former(_: Any) -> Any:
    """One layer of encoder and decoder each, on the two maps of the small backbone."""
    cfg = Config.fromfile(stock_config('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py')).model
    cfg.data_preprocessor.batch_augments = None
    head = cfg.panoptic_head
    head.update(in_channels=[8, 16], strides=[4, 8], feat_channels=16, out_channels=16, num_queries=4)
    head.update(num_things_classes=3, num_transformer_feat_level=1)
    head.loss_cls.class_weight = [1.0] * 3 + [0.1]
    narrow = {'embed_dims': 16, 'num_heads': 2}
    for part, layers in ((head.pixel_decoder.encoder, 1), (head.transformer_decoder, 1)):
        part.num_layers = layers
        part.layer_cfg.self_attn_cfg.update(narrow)
        part.layer_cfg.ffn_cfg.update(embed_dims=16, feedforward_channels=16)
    head.pixel_decoder.num_outs = head.pixel_decoder.encoder.layer_cfg.self_attn_cfg.num_levels = 1
    head.pixel_decoder.norm_cfg.num_groups = 4
    head.transformer_decoder.layer_cfg.cross_attn_cfg.update(narrow)
    head.pixel_decoder.positional_encoding.num_feats = head.positional_encoding.num_feats = 8
    cfg.panoptic_fusion_head.num_things_classes = 3
    cfg.train_cfg.num_points = 64
    cfg.test_cfg.max_per_image = 4
    return cfg


def _batch(shape: tuple[int, ...]) -> dict[str, Any]:
    """One image of uint8 noise as a pipeline gives it, with an object that fills it."""
    size = shape[2:]
    meta = {'img_shape': size, 'ori_shape': size, 'scale_factor': (1.0, 1.0), 'pad_shape': size}
    pixels = torch.randint(0, 255, (3, *size), generator=torch.Generator().manual_seed(1)).byte()
    sample = DetDataSample(metainfo=meta)
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[0.0, 0.0, size[1], size[0]]]),
        labels=torch.tensor([1]),
        masks=BitmapMasks(np.ones((1, *size), np.uint8), *size),
    )
    return {'inputs': [pixels], 'data_samples': [sample]}
