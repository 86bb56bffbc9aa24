"""The loss that output gradients are of: a detector's own on annotated images, else the error of its maps."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from forked import on_two_ranks
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from tiny_backbone import backbone, images
from tiny_detector import stock_config, tiny_config, tiny_mask_rcnn
from torch import nn

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.calibration.data import calibration_loader, reading_pipeline
from mixaq_mmdet.engine.calibration.gradients import DetectorLoss, MapError, whole_model_loss
from mixaq_mmdet.engine.calibration.journal import BlockJournal, calibration_key
from mixaq_mmdet.quantization import quantizer_mode
from mixaq_mmdet.quantization.methods import Method
from mixaq_mmdet.registry import QUANT_METHODS

register_all_modules()

QUANT = {'method': 'Slopes', 'w_bits': 4, 'a_bits': 4}


@contextmanager
def slopes():
    """A method that keeps what it saw of each block: (block, image, output, gradient)."""
    seen = []

    @QUANT_METHODS.register_module()
    class Slopes(Method):
        uses_gradients = True

        def calibrate(self, block, inputs):
            noise = super().calibrate(block, inputs)
            for index in range(len(inputs)):
                outputs = inputs.outputs(block, index)
                for output, gradient in zip(outputs, inputs.output_gradients(index, outputs), strict=True):
                    seen.append((block, index, output, gradient))
                    noise[f'gradient {len(noise)}'] = float(gradient.double().norm())
            return noise

    try:
        yield seen
    finally:
        del QUANT_METHODS.module_dict['Slopes']


@pytest.fixture
def seen():
    with slopes() as found:
        yield found


def built(cfg, heads=None):
    if heads is not None:
        cfg.update(type='QuantDetector', base=cfg.type, detector_quant=heads)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model.eval()


def one_stage(path='_base_/models/retinanet_r50_fpn.py', **quantized):
    """A one-stage detector on the tiny backbone: its loss is smooth, for nothing is drawn and no box is a proposal."""
    cfg = Config.fromfile(stock_config(path)).model
    shallow = {'depths': (1, 1, 1), 'num_heads': (1, 2, 4), 'strides': (4, 2, 2), 'out_indices': (1, 2)}
    cfg.backbone = tiny_mask_rcnn(type='TwoBranchSwin', quant=QUANT, **shallow).backbone
    cfg.neck.update(in_channels=[16, 32], out_channels=8, start_level=0, num_outs=5)
    cfg.bbox_head.update(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=3, norm_cfg=None)
    return built(cfg, **quantized)


def mask_rcnn(**quantized):
    return built(tiny_mask_rcnn(type='TwoBranchSwin', quant=QUANT, depths=(1, 1, 1, 1)), **quantized)


def annotated(root, work_dir, number):
    """Images that are larger in the network than in their files, with what training reads of their objects."""
    cfg = tiny_config(root, work_dir)
    for dataloader in (cfg.val_dataloader, cfg.test_dataloader):
        dataloader.dataset.pipeline[1].scale = (96, 96)
    return list(calibration_loader(cfg.train_dataloader, reading_pipeline(cfg, annotated=True), number, seed=0))


def loss_with(model, block, output, image, samples):
    """The detector's loss when a block gives ``output`` and everything behind it is float; heads as in training."""
    plain = block.forward

    def forward(*given):
        found = plain(*given)
        return (output, found[1]) if isinstance(found, tuple) else output

    steps = [step.module for step in model.backbone.steps()]
    behind = nn.ModuleList([*steps[steps.index(block) :], model.neck, model.bbox_head])
    block.forward = forward
    model.bbox_head.train()
    try:
        with torch.no_grad(), quantizer_mode(behind, 'float'):
            return model.parse_losses(model.loss(image, samples))[0]
    finally:
        del block.forward
        model.eval()


def test_they_are_the_slopes_of_the_detectors_loss(seen, tiny_coco, tmp_path):
    model = one_stage(heads={'method': 'MinMax', 'w_bits': 4}).double()
    model.data_preprocessor.float()
    batch = annotated(tiny_coco, tmp_path, 1)[0]
    data = model.data_preprocessor(batch, False)
    preprocess, image = model.data_preprocessor.forward, data['inputs'].double()
    model.data_preprocessor.forward = lambda *given: {**preprocess(*given), 'inputs': image}
    Calibrator(model, annotated=True).run([batch])
    generator = torch.Generator().manual_seed(0)
    assert len(seen) > 8
    for block, _, output, gradient in seen[::3]:
        direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        step = 1e-6 * direction
        ends = [loss_with(model, block, output + side * step, image, data['data_samples']) for side in (1, -1)]
        torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-8)


def test_samplers_draw_the_same_in_every_run_and_disturb_nobody(seen, tiny_coco, tmp_path):
    batches = annotated(tiny_coco, tmp_path, 1)
    for seed in (1, 2):
        model = mask_rcnn()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        Calibrator(model, annotated=True).run(batches)
        assert torch.equal(torch.get_rng_state(), before)
    half = len(seen) // 2
    assert all(torch.equal(a[3], b[3]) for a, b in zip(seen[:half], seen[half:], strict=True))
    assert all(gradient.abs().sum() > 0 for *_, gradient in seen)
    assert not any(module.training for module in model.modules())


def test_a_resumed_calibration_sees_the_same(seen, tiny_coco, tmp_path):
    batches = annotated(tiny_coco, tmp_path, 1)

    def run(folder, blocks):
        """Calibrate at most ``blocks`` more blocks."""
        model = mask_rcnn()
        calibrate = model.backbone.quant_method.calibrate
        calls = iter(range(blocks))

        def limited(block, inputs):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return calibrate(block, inputs)

        model.backbone.quant_method.calibrate = limited
        key = calibration_key(model, [QUANT], [1], 0)
        return Calibrator(model, journal=BlockJournal(folder, key), annotated=True).run(batches)

    unbroken = run(tmp_path / 'unbroken', 99)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'broken', 4)
    assert run(tmp_path / 'broken', 99) == unbroken


def fcos_gradients(rank, root, work_dir):
    """Of the images of a rank; FCOS divides its loss by what it has averaged over the ranks."""
    with slopes() as found:
        own = annotated(root, work_dir, 3)
        Calibrator(one_stage('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'), annotated=True).run(own)
    return [(index, gradient) for _, index, _, gradient in found]


def test_ranks_count_their_own_images_alone(tiny_coco, tmp_path):
    together = fcos_gradients(0, tiny_coco, tmp_path)
    for rank, found in enumerate(on_two_ranks(fcos_gradients, tmp_path, tiny_coco, tmp_path)):
        expected = [gradient for index, gradient in together if index % 2 == rank]
        assert len(found) == len(expected) > 8
        for (_, gradient), reference in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, reference)


def test_objects_are_where_the_image_shows_them(tiny_coco, tmp_path):
    cfg = tiny_config(tiny_coco, tmp_path)
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    found = [
        next(iter(calibration_loader(cfg.train_dataloader, reading_pipeline(cfg, annotated=way), 1, seed=0)))
        for way in (False, True)
    ]
    assert torch.equal(found[0]['inputs'][0], found[1]['inputs'][0])
    in_file, in_network = (batch['data_samples'][0].gt_instances for batch in found)
    assert len(in_file) > 0
    torch.testing.assert_close(in_network.bboxes.tensor, in_file.bboxes.tensor * 1.5)
    assert (in_file.masks.height, in_network.masks.height) == (64, 96)


def test_annotations_are_those_that_training_reads(tiny_cfg):
    load = {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': False}
    inside = {**tiny_cfg.train_dataloader.dataset, 'pipeline': [{'type': 'LoadImageFromFile'}, load]}
    mix = {'type': 'MultiImageMixDataset', 'dataset': inside, 'pipeline': [{'type': 'MixUp'}]}
    tiny_cfg.train_dataloader.dataset = mix
    tiny_cfg.test_dataloader.dataset.pipeline.pop(2)
    names = [step['type'] for step in reading_pipeline(tiny_cfg, annotated=True)]
    assert names == ['LoadImageFromFile', 'LoadAnnotations', 'Resize', 'PackDetInputs']
    assert reading_pipeline(tiny_cfg, annotated=True)[1] == load


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ('annotated', "output gradients are those of MaskRCNN's own loss"),
        ('in pixels of files', 'because the images come without annotations'),
        ('no objects', 'because the calibration images have no annotated objects'),
        ('not read', 'because the calibration images have no annotated objects'),
        ('backbone', 'because TwoBranchSwin is no whole detector'),
    ],
)
def test_which_loss_it_is_is_said(seen, tiny_coco, tmp_path, monkeypatch, given, said):
    lines = []
    monkeypatch.setattr('mixaq_mmdet.engine.calibration.gradients.print_log', lambda text, logger: lines.append(text))
    if given == 'backbone':
        model, batches = backbone(QUANT), images(1)
    else:
        model, batches = mask_rcnn(), annotated(tiny_coco, tmp_path, 1)
    if given in ('no objects', 'not read'):
        sample = batches[0]['data_samples'][0]
        sample.gt_instances = sample.gt_instances[:0] if given == 'no objects' else InstanceData()
    samples, tensors = Calibrator(model).read(batches)
    quantized = model if given == 'backbone' else model.backbone
    loss = whole_model_loss(model, quantized, tensors, samples, given != 'in pixels of files', 4 << 30)
    assert isinstance(loss, DetectorLoss if given == 'annotated' else MapError)
    assert len(lines) == 1
    assert said in lines[0]


def test_post_training_quantization_through_the_runner_takes_it(seen, tiny_coco, tmp_path):
    cfg = tiny_config(
        tiny_coco,
        tmp_path,
        model=tiny_mask_rcnn(type='TwoBranchSwin', quant=QUANT, depths=(1, 1, 1, 1)),
        **dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg')),
        train_cfg={'type': 'PTQLoop', 'num_images': 1, '_delete_': True},
    )
    runner = Runner.from_cfg(cfg)
    runner._has_loaded = True
    runner.train()
    assert "output gradients are those of MaskRCNN's own loss" in next(tmp_path.glob('*/*.log')).read_text()
    assert seen
