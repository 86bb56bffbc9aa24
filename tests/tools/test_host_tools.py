"""mmdet's own analysis tools on a TwoBranchSwin config; docs/host-tools.md tells the same to users."""

from __future__ import annotations

import pickle
import re
import runpy
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from tool_process import load_tool
from two_branch_files import write_two_branch_files

HOST_TOOLS = Path(find_spec('mmdet').origin).parent / '.mim/tools'


@pytest.fixture(scope='module')
def files(tiny_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_two_branch_files(tiny_coco, tmp_path_factory.mktemp('host'), low_ratios=0.4, prune_ratios=0.2)


@pytest.fixture
def host_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call one of mmdet's tools in this process: a process of its own would import the stack anew."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(HOST_TOOLS / name), run_name='__main__')

    return run


def test_get_flops_counts_what_stock_swin_costs(files, host_tool, tmp_path, capsys):
    stock = Config.fromfile(files[0])
    stock.model.backbone.type = 'SwinTransformer'
    for ours in ('low_ratios', 'prune_ratios'):
        stock.model.backbone.pop(ours)
    stock.dump(tmp_path / 'stock.py')
    counts = {}
    for name, config, prune in (
        ('stock', tmp_path / 'stock.py', None),
        ('all', files[0], 0.0),
        ('pruned', files[0], 0.5),
    ):
        options = [] if prune is None else ['--cfg-options', f'model.backbone.prune_ratios={prune}']
        host_tool('analysis_tools/get_flops.py', config, '--num-images', 1, *options)
        counts[name] = float(re.search(r'Flops: ([\d.]+)M', capsys.readouterr().out)[1])
    assert counts['all'] == counts['stock']
    assert counts['pruned'] < counts['all']


def test_browse_dataset(files, host_tool, tmp_path):
    host_tool('analysis_tools/browse_dataset.py', files[0], '--output-dir', tmp_path / 'seen', '--not-show')
    assert len(list((tmp_path / 'seen').glob('*.png'))) == 4


def test_confusion_matrix_and_best_and_worst_images(files, host_tool, tmp_path):
    load_tool('test.py').main([*files, '--out', str(tmp_path / 'out.pkl'), '--work-dir', str(tmp_path / 'work')])
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 4
    host_tool('analysis_tools/confusion_matrix.py', files[0], tmp_path / 'out.pkl', tmp_path / 'matrix')
    assert (tmp_path / 'matrix/confusion_matrix.png').stat().st_size > 0
    host_tool('analysis_tools/analyze_results.py', files[0], tmp_path / 'out.pkl', tmp_path / 'ranked', '--topk', 2)
    assert len(list((tmp_path / 'ranked').rglob('*.png'))) == 4


@pytest.mark.parametrize('task', ['dataloader', 'dataset'])
def test_benchmark_of_data(files, host_tool, monkeypatch, task):
    lines = []
    monkeypatch.setattr('mmdet.utils.benchmark.print_log', lambda line, logger=None: lines.append(line))
    host_tool('analysis_tools/benchmark.py', files[0], '--task', task, '--max-iter', 3, '--num-warmup', 1)
    assert any(line.startswith('Overall fps') for line in lines)


def test_benchmark_of_inference_needs_cuda(files, host_tool):
    """A limit of the host, which the page names: it calls ``model.cuda()``."""
    arguments = ('--task', 'inference', '--checkpoint', files[1], '--max-iter', 3, '--num-warmup', 1)
    if torch.cuda.is_available():
        host_tool('analysis_tools/benchmark.py', files[0], *arguments)
    else:
        with pytest.raises((AssertionError, RuntimeError), match=r'CUDA|NVIDIA'):
            host_tool('analysis_tools/benchmark.py', files[0], *arguments)


def test_publish_model(files, host_tool, tmp_path):
    host_tool('model_converters/publish_model.py', files[1], tmp_path / 'small.pth')
    # the tool renames in a process that it does not wait for
    for _ in range(100):
        published = list(tmp_path.glob('small-*.pth'))
        if published:
            break
        time.sleep(0.1)
    assert sorted(torch.load(published[0], weights_only=True)) == ['meta', 'state_dict']


def test_publish_model_reads_training_checkpoints_after_conversion(files, tmp_path):
    """Alone it refuses mmengine's training history; our converter leaves that out."""
    trained = torch.load(files[1], weights_only=True)
    trained['message_hub'] = dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1])))
    torch.save(trained, tmp_path / 'epoch_1.pth')
    main = load_tool('convert_checkpoint.py').main
    main([str(tmp_path / 'epoch_1.pth'), str(tmp_path / 'weights.pth'), '--config', files[0]])
    assert sorted(torch.load(tmp_path / 'weights.pth', weights_only=True)) == ['meta', 'state_dict']
