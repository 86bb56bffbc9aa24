"""mini-COCO: reproducible byte for byte, valid for COCO tools, and inside its promised ranges."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'make_minicoco.py'
TINY = ['--train', '6', '--calib', '4', '--search', '4', '--val', '5', '--test', '4', '--size', '64', '--quiet']
SPLIT_SIZES = {'train': 6, 'calib': 4, 'search': 4, 'val': 5, 'test': 4, 'test_b': 4, 'val_wide': 5}
TWIN_NAMES = {f'{kind}-{severity}' for kind in ('fog', 'noise', 'blur', 'contrast') for severity in (1, 3, 5)}


def load_tool():
    spec = importlib.util.spec_from_file_location('make_minicoco', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def tool():
    before = list(sys.path)
    yield load_tool()
    sys.path[:] = before


@pytest.fixture(scope='module')
def tiny(tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp('minicoco') / 'one'
    assert tool.main(['--out', str(folder), *TINY, '--workers', '1']) == 0
    return folder


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def documents(folder: Path) -> dict[str, dict]:
    return {name: json.loads((folder / f'annotations/instances_{name}.json').read_text()) for name in SPLIT_SIZES}


def test_two_runs_are_byte_equal_whatever_the_workers(tool, tiny, tmp_path):
    other = tmp_path / 'elsewhere' / 'two'
    tool.main(['--out', str(other), *TINY, '--workers', '2'])
    assert all_files(other) == all_files(tiny)


@pytest.mark.parametrize(
    ('split', 'digest'),
    [
        ('train', 'cb28c222c716a09bc12c76da2a558cd263c57e9c4781480e2546c23b3e9eb1e8'),
        ('val', '31be199bc79e65479d3ea4bc3bbd6868fabd498883f0cc41ffac4f1174aec8df'),
    ],
)
def test_the_shipped_detector_still_meets_its_pictures(tool, split, digest):
    """Style A under default arguments is frozen: published figures and the shipped weights belong to these pixels."""
    from minicoco.files import picture_digest
    from minicoco.plan import planned_splits
    from minicoco.scenes import draw_scene
    from minicoco.styles import STYLES

    plan = tool.Plan()
    (chosen,) = (entry for entry in planned_splits(plan) if entry.name == split)
    scene = draw_scene(chosen.stream(plan.seed, 0), STYLES['A'], chosen.height, chosen.width)
    assert picture_digest(scene.pixels) == digest


def test_layout_and_counts(tiny):
    found = documents(tiny)
    assert {name: len(document['images']) for name, document in found.items()} == SPLIT_SIZES
    for name, document in found.items():
        pictures = {path.name for path in (tiny / name).iterdir()}
        assert pictures == {image['file_name'] for image in document['images']}
    assert {path.name for path in (tiny / 'ood').iterdir()} == TWIN_NAMES
    assert {path.name for path in tiny.iterdir()} == {*SPLIT_SIZES, 'annotations', 'ood', 'MANIFEST.sha256'}


def test_another_train_count_leaves_the_rest_alone(tool, tiny, tmp_path):
    other = tmp_path / 'more'
    tool.main(['--out', str(other), *TINY, '--train', '9', '--workers', '1'])
    one, two = all_files(tiny), all_files(other)
    rest = [name for name in one if name not in ('annotations/instances_train.json', 'MANIFEST.sha256')]
    assert all(one[name] == two[name] for name in rest)
    assert len(two) == len(one) + 3


def test_seeds_splits_and_styles_differ(tool, tiny, tmp_path):
    other = tmp_path / 'seed'
    tool.main(['--out', str(other), *TINY, '--seed', '1', '--splits', 'val', '--workers', '1'])
    assert (other / 'val/000001.png').read_bytes() != (tiny / 'val/000001.png').read_bytes()
    first_pictures = {(tiny / name / '000001.png').read_bytes() for name in SPLIT_SIZES}
    assert len(first_pictures) == len(SPLIT_SIZES)
    styles = {name: document['info']['style'] for name, document in documents(tiny).items()}
    assert styles == {name: 'B' if name == 'test_b' else 'A' for name in SPLIT_SIZES}


def test_coco_reads_it_and_masks_agree_with_boxes_and_areas(tiny, capsys):
    for name in SPLIT_SIZES:
        coco = COCO(str(tiny / f'annotations/instances_{name}.json'))
        for image in coco.imgs.values():
            entries = coco.loadAnns(coco.getAnnIds(image['id']))
            assert 1 <= len(entries) <= 12
            shown = np.zeros((image['height'], image['width']), int)
            for entry in entries:
                mask = coco.annToMask(entry)
                rows, columns = np.nonzero(mask)
                width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
                assert entry['bbox'] == [columns.min(), rows.min(), width, height]
                assert entry['area'] == mask.sum()
                assert entry['iscrowd'] == 0
                shown += mask
            assert shown.max() == 1, 'visible masks never overlap'


def test_pictures_have_the_announced_size(tool, tiny):
    from minicoco.files import read_picture

    for name, document in documents(tiny).items():
        for image in document['images']:
            assert read_picture(tiny / name / image['file_name']).shape == (image['height'], image['width'], 3)
    wide = documents(tiny)['val_wide']['images'][0]
    assert (wide['height'], wide['width']) == (56, 75)


@pytest.mark.parametrize('style', ['A', 'B'])
def test_scenes_keep_coverage_and_populate_all_sizes(tool, style):
    from minicoco.scenes import draw_layout
    from minicoco.styles import STYLES

    coverage, areas = [], []
    for index in range(60):
        things = draw_layout(np.random.default_rng([3, index]), STYLES[style], 256, 256)
        seen = [thing.visible_pixels for thing in things if thing.category_id]
        coverage.append(sum(seen) / 256**2)
        areas += seen
    inside = [0.2 <= share <= 0.45 for share in coverage]
    assert np.mean(inside) > 0.95
    assert 0.25 < np.mean(coverage) < 0.42
    sizes = np.digitize(areas, [32**2, 96**2])
    assert np.bincount(sizes, minlength=3).min() > 0.03 * len(areas)


def test_neither_shape_nor_texture_alone_names_a_category(tool):
    from minicoco.categories import CATEGORY_PAIRS, distractor_pairs

    textures, shapes = zip(*CATEGORY_PAIRS, strict=True)
    assert all(textures.count(texture) > 1 for texture in textures)
    assert all(shapes.count(shape) > 1 for shape in shapes)
    assert not set(CATEGORY_PAIRS) & set(distractor_pairs())


def test_twins_share_annotations_and_differ_in_pixels(tool, tiny):
    from minicoco.files import read_picture

    clean = documents(tiny)['val']
    for name in TWIN_NAMES:
        twin = json.loads((tiny / f'ood/{name}/annotations/instances_val.json').read_text())
        assert all(twin[key] == clean[key] for key in ('images', 'annotations', 'categories'))
        for image in clean['images']:
            before = read_picture(tiny / 'val' / image['file_name'])
            after = read_picture(tiny / f'ood/{name}/val' / image['file_name'])
            assert (before != after).mean() > 0.2


@pytest.mark.parametrize('kind', ['fog', 'noise', 'blur', 'contrast'])
def test_corruptions_grow_with_severity(tool, tiny, kind):
    from minicoco.corruptions import corrupt
    from minicoco.files import read_picture

    clean = read_picture(tiny / 'val/000001.png')
    changes = [
        np.abs(corrupt(np.random.default_rng(0), clean, kind, s).astype(int) - clean).mean() for s in range(1, 6)
    ]
    assert changes == sorted(changes)
    assert changes[0] < 0.6 * changes[-1]


def test_manifest_covers_everything_and_notices_a_change(tool, tiny, tmp_path, capsys):
    copy = tmp_path / 'copy'
    shutil.copytree(tiny, copy)
    listed = {line[66:] for line in (copy / 'MANIFEST.sha256').read_text().splitlines()}
    assert listed == set(all_files(copy)) - {'MANIFEST.sha256'}
    assert tool.main(['--out', str(copy), '--verify']) == 0
    shutil.copy(copy / 'val/000002.png', copy / 'val/000001.png')
    (copy / 'annotations/instances_val.json').write_text('{}')
    (copy / 'train/000001.png').write_bytes(b'damaged')
    capsys.readouterr()
    assert tool.main(['--out', str(copy), '--verify']) == 1
    told = {line.removeprefix('differs: ') for line in capsys.readouterr().out.splitlines()}
    assert told == {'val/000001.png', 'annotations/instances_val.json', 'train/000001.png'}


def test_manifest_hashes_decoded_pixels(tool, tiny, tmp_path):
    import cv2
    from minicoco.files import read_manifest, read_picture, verify

    copy = tmp_path / 'copy'
    shutil.copytree(tiny, copy)
    path = copy / 'val/000001.png'
    cv2.imwrite(str(path), read_picture(path)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert path.read_bytes() != (tiny / 'val/000001.png').read_bytes()
    assert verify(copy) == []
    assert len(read_manifest(copy)) == 2 * len(SPLIT_SIZES) + sum(SPLIT_SIZES.values()) - len(SPLIT_SIZES) + 12 * 6


def test_an_interrupted_run_does_not_look_complete(tool, tmp_path, monkeypatch):
    from minicoco import writer

    def stop(part: str, pictures: int) -> None:
        if part == 'calib':
            raise KeyboardInterrupt

    folder = tmp_path / 'cut'
    plan = tool.Plan(train=4, calib=4, search=4, val=4, test=4, size=64)
    with pytest.raises(KeyboardInterrupt):
        writer.make_set(folder, plan, 1, False, stop)
    with pytest.raises(ValueError, match='unfinished'):
        tool.main(['--out', str(folder), '--verify'])
    with pytest.raises(ValueError, match='--overwrite'):
        tool.main(['--out', str(folder), *TINY])
    tool.main(['--out', str(folder), *TINY, '--splits', 'val', '--overwrite', '--workers', '1'])
    assert {path.name for path in folder.iterdir()} == {'val', 'annotations', 'MANIFEST.sha256'}


def test_overwrite_never_touches_a_folder_it_did_not_make(tool, tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train/precious.jpg').write_bytes(b'photo')
    with pytest.raises(ValueError, match='other files'):
        tool.main(['--out', str(tmp_path), *TINY, '--overwrite'])
    assert (tmp_path / 'train/precious.jpg').read_bytes() == b'photo'


def test_statistics_agree_with_the_annotations_and_skip_test(tool, tiny, tmp_path, capsys):
    target = tmp_path / 'stats.json'
    sheet = tmp_path / 'sheet.png'
    assert tool.main(['--out', str(tiny), '--stats', '--json', str(target), '--sheet', str(sheet)]) == 0
    statistics = json.loads(target.read_text())
    assert set(statistics) == set(SPLIT_SIZES) - {'test'}
    document = documents(tiny)['val']
    decoded = [coco_mask.decode(entry['segmentation']).sum() for entry in document['annotations']]
    assert statistics['val']['coverage']['mean'] == pytest.approx(sum(decoded) / (5 * 64 * 64))
    assert sum(statistics['val']['per_category'].values()) == len(decoded)
    assert '| val |' in capsys.readouterr().out
    assert sheet.stat().st_size > 10_000


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        (['--train', '3'], '--train is 3: ask for at least 4'),
        (['--calib', '0'], '--calib is 0'),
        (['--val', '-1'], '--val is -1'),
        (['--seed', '-1'], '--seed is -1: choose 0 or more'),
        (['--size', '32'], '--size is 32: choose 64 to 1024'),
        (['--style', 'C'], "--style is 'C': choose one of A, B"),
        (['--severities', '0', '3'], '--severities'),
        (['--splits', 'valid'], '--splits'),
        (['--splits', 'ood'], 'add val'),
        (['--workers', '-2'], '--workers is -2'),
        (['--sheet', 'x.png'], 'make one of them first'),
        (['--stats'], 'make the set first'),
    ],
)
def test_bad_flags_name_themselves_and_the_fix(tool, tmp_path, flags, told):
    with pytest.raises(ValueError, match='--') as caught:
        tool.main(['--out', str(tmp_path / 'new'), *TINY, *flags])
    assert told in str(caught.value)
    assert not (tmp_path / 'new').exists()


def test_a_sheet_is_a_picture(tool, tiny, tmp_path):
    with pytest.raises(ValueError, match=r'\.png or \.jpg'):
        tool.main(['--out', str(tiny), '--sheet', str(tmp_path / 'sheet.gif')])


def test_a_full_folder_or_a_file_is_refused(tool, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='not empty'):
        tool.main(['--out', str(tmp_path), *TINY])
    with pytest.raises(ValueError, match='is a file'):
        tool.main(['--out', str(tmp_path / 'notes.txt'), *TINY])
