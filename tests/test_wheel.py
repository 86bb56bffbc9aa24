"""Use without a clone: a wheel of the repository, in a fresh environment, under mmdet's stock tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from mixaq_mmdet.version import __version__

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('setup.py', 'setup.cfg', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml')
FOLDERS = ('mixaq_mmdet', 'configs', 'tools')


@pytest.fixture(scope='module')
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that no build folder appears in the repository."""
    copy = tmp_path_factory.mktemp('sources')
    for name in SOURCES:
        shutil.copy2(ROOT / name, copy / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    return copy


def built_from(source: Path, out: Path) -> Path:
    """The wheel of a folder or of a source distribution."""
    pip = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--quiet']
    subprocess.run([*pip, '--wheel-dir', str(out), str(source)], check=True)
    return next(out.glob('mixaq_mmdet-*.whl'))


@pytest.fixture(scope='module')
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_from(sources, tmp_path_factory.mktemp('wheel'))


@pytest.mark.nightly
def test_wheel_holds_package_configs_and_tools(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith('METADATA'))).decode()
    for shipped in ('configs', 'tools'):
        expected = {
            f'mixaq_mmdet/.mim/{path.relative_to(ROOT)}'
            for path in (ROOT / shipped).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts and path.name != 'make_minicoco.py'
        }
        assert expected <= names
    drawing = {name for name in names if 'tools/' in name and 'minicoco' in name}
    assert not drawing, 'mini-COCO is drawn in a checkout: no wheel carries benchmarks/minicoco'
    assert {
        'mixaq_mmdet/.mim/model-index.yml',
        'mixaq_mmdet/models/two_branch_swin.py',
        'mixaq_mmdet/py.typed',
    } <= names
    sources = (path for path in (ROOT / 'mixaq_mmdet/deploy/kernels/src').rglob('*') if path.is_file())
    assert {str(path.relative_to(ROOT)) for path in sources} <= names, 'the kernels are built on first use'
    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist') and 'extra ==' not in line]
    assert required == [], 'installing must not touch the torch, mmcv and mmdet of the environment'


def test_the_citation_names_the_version():
    assert f'\nversion: {__version__}\n' in (ROOT / 'CITATION.cff').read_text()


@pytest.mark.nightly
def test_a_source_distribution_builds_the_same_wheel(wheel, sources, tmp_path):
    code = f'import setuptools.build_meta as backend; backend.build_sdist({str(tmp_path)!r})'
    subprocess.run([sys.executable, '-c', code], cwd=sources, check=True, capture_output=True)
    [sdist] = tmp_path.glob('mixaq_mmdet-*.tar.gz')
    assert sdist.name == f'mixaq_mmdet-{__version__}.tar.gz'
    again = built_from(sdist, tmp_path / 'wheel')
    assert again.name == wheel.name
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


@pytest.mark.nightly
def test_shipped_recipe_trains_by_stock_tools_in_a_fresh_environment(wheel, tiny_coco, tmp_path):
    home = tmp_path / 'environment'
    venv.create(home, symlinks=True)
    site = Path(sysconfig.get_path('purelib', vars={'base': str(home), 'platbase': str(home)}))
    # The heavy stack comes from the running environment; a path file passes on its packages, not its editable installs.
    (site / 'stack.pth').write_text(sysconfig.get_path('purelib'))
    python = home / 'bin' / 'python'
    pip = [sys.executable, '-m', 'pip', '--python', str(python), 'install', '--no-deps', '--no-index', '--quiet']
    subprocess.run([*pip, str(wheel)], check=True)

    def run(*command: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
        done = subprocess.run([str(python), *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    package = Path(run('-c', 'import mixaq_mmdet; print(mixaq_mmdet.__file__)').splitlines()[-1]).parent
    assert package.is_relative_to(home)
    stock_tools = Path(find_spec('mmdet').origin).parent / '.mim/tools'
    named = 'import mixaq_mmdet; print(mixaq_mmdet.config_path("mixaq/mask-rcnn_swin-t_float.py"))'
    recipe = Path(run('-c', named).splitlines()[-1])
    assert recipe == package / '.mim/configs/mixaq/mask-rcnn_swin-t_float.py'
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    options = [
        'model.backbone.init_cfg=None', 'model.backbone.embed_dims=12', 'model.backbone.depths=(1,1,1,1)',
        'model.neck.in_channels=[12,24,48,96]', 'train_cfg.max_epochs=1', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False', 'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False', f'val_evaluator.ann_file={tiny_coco}/annotations.json',
        f'test_evaluator.ann_file={tiny_coco}/annotations.json',
        *(f'{loader}.dataset.data_root={tiny_coco}/' for loader in loaders),
        *(f'{loader}.dataset.ann_file=annotations.json' for loader in loaders),
        *(f'{loader}.dataset.data_prefix.img=images/' for loader in loaders),
        *(f'{loader}.dataset.metainfo.classes=(box,disc,bar)' for loader in loaders),
        *(f'{loader}.dataset.pipeline.1.scale=(96,96)' for loader in loaders[1:]),
        'model.roi_head.bbox_head.num_classes=3', 'model.roi_head.mask_head.num_classes=3',
        'model.test_cfg.rcnn.score_thr=0.0', 'train_dataloader.dataset.pipeline.3.prob=[1.0,0.0]',
        'train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(96,96)]',
    ]  # fmt: skip
    run(str(stock_tools / 'train.py'), str(recipe), '--work-dir', 'work_dir', '--cfg-options', *options)
    checkpoint = tmp_path / 'work_dir/epoch_1.pth'
    assert checkpoint.exists()
    printed = run(str(stock_tools / 'test.py'), str(recipe), str(checkpoint), '--cfg-options', *options)
    assert 'coco/bbox_mAP' in printed
