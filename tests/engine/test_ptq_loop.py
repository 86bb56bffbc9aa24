"""PTQ through the Runner: calibrate, save, validate; resume; a hook that does the same in place; every entry agrees."""

import json
from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner
from tiny_detector import tiny_config

from mixaq_mmdet.engine.calibration import uncalibrated
from mixaq_mmdet.engine.calibration.run import _inputs

QUANT = {'method': 'RepQ', 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}
LOOP = {'type': 'PTQLoop', 'num_images': 3}


def ptq_config(root, work_dir, **edits):
    return tiny_config(
        root,
        work_dir,
        **{'model.backbone.type': 'TwoBranchSwin', 'model.backbone.quant': QUANT, 'model.backbone.low_ratios': 0.5},
        train_cfg={**LOOP, '_delete_': True},
        **edits,
    )


@pytest.fixture(scope='module')
def float_file(tiny_coco, tmp_path_factory):
    folder = tmp_path_factory.mktemp('float')
    register_all_modules()
    detector = MODELS.build(tiny_config(tiny_coco, folder).model)
    torch.manual_seed(0)
    detector.init_weights()
    path = folder / 'float.pth'
    torch.save(
        {'state_dict': detector.state_dict(), 'meta': {'dataset_meta': {'classes': ('box', 'disc', 'bar')}}}, path
    )
    return str(path)


@pytest.fixture(scope='module')
def calibrated(tiny_coco, tmp_path_factory, float_file):
    """Work folder of a finished PTQ run."""
    work_dir = tmp_path_factory.mktemp('ptq')
    cfg = ptq_config(tiny_coco, work_dir, load_from=float_file)
    cfg.dump(work_dir / 'config.py')
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert not uncalibrated(runner.model)
    return Path(work_dir)


def test_saves_an_ordinary_checkpoint_and_a_summary(calibrated):
    saved = torch.load(calibrated / 'epoch_1.pth', weights_only=True)['state_dict']
    assert int(saved['backbone.stages.0.blocks.0.attn.w_msa.qkv.folded']) == 1
    summary = json.loads((calibrated / 'calibration.json').read_text())
    assert len(summary['image_ids']) == 3
    assert {'layer', 'role', 'bits', 'quantizer', 'range', 'sqnr'} == set(summary['quantizers'][0])
    log = next(calibrated.glob('*/*.log')).read_text()
    assert 'calibrated on 3 images (seed 0)' in log
    assert 'stages.0.blocks.0.attn.w_msa.attention_value' in log
    assert 'Epoch(val) [1][4/4]' in log
    effort = json.loads((calibrated / 'calibration_effort.json').read_text())
    assert effort['blocks_taken_over'] == 0
    assert 4 <= effort['block_forwards'] <= 5, 'two passes, one of them in both branches, and one to the next block'
    assert effort['minutes'] > 0
    assert effort['peak_memory'] > 1 << 27


def test_a_resumed_calibrated_file_validates_and_ends(tiny_coco, calibrated, monkeypatch):
    def fail(*args):
        raise AssertionError('calibrated again')

    monkeypatch.setattr('mixaq_mmdet.engine.ptq_loop.calibrate_in_runner', fail)
    before = (calibrated / 'epoch_1.pth').read_bytes()
    # its sampler has no seed to restore
    hooks = {'custom_hooks': [{'type': 'ExactResumeHook'}]}
    runner = Runner.from_cfg(ptq_config(tiny_coco, calibrated, resume=True, **hooks))
    runner.train()
    assert runner.val_loop.dataloader is not None
    assert (calibrated / 'epoch_1.pth').read_bytes() == before


def test_another_config_in_the_same_work_folder_is_refused_before_it_starts(tiny_coco, calibrated, float_file):
    summary = json.loads((calibrated / 'calibration.json').read_text())
    (calibrated / 'calibration.json').write_text(json.dumps({**summary, 'config': 'ptq.py'}))
    before = (calibrated / 'epoch_1.pth').read_bytes()
    own = calibrated / 'qat.py'
    ptq_config(tiny_coco, calibrated, load_from=float_file).dump(own)
    with pytest.raises(ValueError, match=r'what ptq\.py calibrated, and qat\.py would replace it'):
        Runner.from_cfg(Config.fromfile(own)).train()
    assert (calibrated / 'epoch_1.pth').read_bytes() == before


def test_recipes_that_count_iterations_save_the_result_too(tiny_coco, tmp_path, float_file):
    cfg = ptq_config(tiny_coco, tmp_path, load_from=float_file)
    cfg.default_hooks = {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 5000}}
    runner = Runner.from_cfg(cfg)
    runner.train()
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)['state_dict']
    assert int(saved['backbone.stages.0.blocks.0.attn.w_msa.qkv.folded']) == 1
    assert not (tmp_path / 'calibration_blocks').exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an accelerator that CUDA can see')
@pytest.mark.parametrize('method', ['MinMax', 'RepQ', 'LSQ', 'OFQ'])
def test_calibrates_on_an_accelerator(tiny_coco, tmp_path, float_file, method):
    cfg = ptq_config(tiny_coco, tmp_path, load_from=float_file, **{'model.backbone.quant.method': method})
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert next(runner.model.parameters()).is_cuda
    assert not uncalibrated(runner.model)
    assert (tmp_path / 'epoch_1.pth').is_file()


def test_what_blocks_see_is_part_of_the_key_of_finished_blocks(tiny_coco, tmp_path):
    cfg = ptq_config(tiny_coco, tmp_path)
    known = json.dumps(_inputs(cfg), default=str, sort_keys=True)
    ratios = ptq_config(tiny_coco, tmp_path, **{'model.backbone.prune_ratios': 0.1})
    assert json.dumps(_inputs(ratios), default=str, sort_keys=True) == known
    ranking = ptq_config(tiny_coco, tmp_path, **{'model.backbone.importance': {'type': 'L2', 'reverse': True}})
    mean = ptq_config(tiny_coco, tmp_path, **{'model.data_preprocessor.mean': [0.0, 0.0, 0.0]})
    for other in (ranking, mean):
        assert json.dumps(_inputs(other), default=str, sort_keys=True) != known


def test_refuses_to_start_from_nothing(tiny_coco, tmp_path):
    with pytest.raises(ValueError, match='no checkpoint was loaded; set load_from'):
        Runner.from_cfg(ptq_config(tiny_coco, tmp_path)).train()


def test_refuses_a_float_model(tiny_coco, tmp_path, float_file):
    cfg = ptq_config(tiny_coco, tmp_path, load_from=float_file)
    del cfg.model.backbone.quant
    with pytest.raises(ValueError, match=r'nothing to calibrate; set quant=dict\(method='):
        Runner.from_cfg(cfg).train()
    assert not list(tmp_path.glob('*.pth'))


def test_refuses_to_resume_from_a_float_file(tiny_coco, tmp_path, float_file):
    cfg = ptq_config(tiny_coco, tmp_path, load_from=float_file, resume=True)
    with pytest.raises(ValueError, match=r'--resume: the checkpoint is not calibrated.* as load_from instead'):
        Runner.from_cfg(cfg).train()


def test_hook_calibrates_a_test_run_to_the_same_quantizers(tiny_coco, tmp_path, float_file, calibrated):
    hook = {'type': 'CalibrationHook', 'num_images': 3}
    runner = Runner.from_cfg(ptq_config(tiny_coco, tmp_path, load_from=float_file, custom_hooks=[hook]))
    runner.test()
    saved = torch.load(calibrated / 'epoch_1.pth', weights_only=True)['state_dict']
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, saved[name]), name


@pytest.mark.filterwarnings('ignore')
def test_inference_apis_agree_and_need_no_hook(tiny_coco, calibrated, float_file):
    config = str(calibrated / 'config.py')
    image = str(next((tiny_coco / 'images').glob('*.png')))
    detector = init_detector(config, str(calibrated / 'epoch_1.pth'), device='cpu')
    saved = torch.load(calibrated / 'epoch_1.pth', weights_only=True)['state_dict']
    assert all(torch.equal(value, saved[name]) for name, value in detector.state_dict().items())
    found = inference_detector(detector, image).pred_instances
    assert len(found.scores) > 0
    inferencer = DetInferencer(config, str(calibrated / 'epoch_1.pth'), device='cpu', show_progress=False)
    answer = inferencer(image, no_save_vis=True, return_datasamples=True)['predictions'][0].pred_instances
    for name in ('bboxes', 'scores', 'labels'):
        torch.testing.assert_close(answer[name], found[name], rtol=1e-5, atol=1e-4)
    with pytest.raises(RuntimeError, match=r'^not calibrated: patch_embed'):
        inference_detector(init_detector(config, float_file, device='cpu'), image)


@pytest.mark.parametrize('run', ['train', 'test'])
def test_a_moving_average_is_refused(tiny_coco, tmp_path, float_file, run):
    """Its copy, never calibrated, would be saved by the one and evaluated by the other."""
    hooks = [{'type': 'EMAHook', 'momentum': 0.1}, {'type': 'CalibrationHook', 'num_images': 1}]
    runner = Runner.from_cfg(ptq_config(tiny_coco, tmp_path, load_from=float_file, custom_hooks=hooks))
    with pytest.raises(ValueError, match='custom_hooks has EMAHook'):
        getattr(runner, run)()


@pytest.mark.parametrize(
    ('edits', 'message'),
    [
        ({'model.backbone.quant.w_bits': 4}, r'w_bits=4 \(checkpoint: 8\)'),
        ({'model.backbone.quant.method': 'MinMax'}, r"method='MinMax' \(checkpoint: 'RepQ'\)"),
        ({'model.backbone.quant': None}, r'holds a quantized model, but model\.backbone\.quant is absent'),
    ],
)
def test_a_quantized_file_elsewhere_is_refused_by_init_detector(tiny_coco, tmp_path, calibrated, edits, message):
    cfg = ptq_config(tiny_coco, tmp_path)
    cfg.merge_from_dict(edits)
    with pytest.raises(ValueError, match=message):
        init_detector(cfg, str(calibrated / 'epoch_1.pth'), device='cpu')
