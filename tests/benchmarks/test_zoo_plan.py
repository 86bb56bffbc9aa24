"""The table of methods: arms differ in the method alone, rows can be built, the page says what was run and what not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evidence import worker
from evidence.claims import read_claims
from evidence.experiment import REPOSITORY, Experiment, fingerprint, resolved
from evidence.measures import conversion
from evidence.page import Page
from evidence.plans import zoo, zoo_page
from evidence.reader import Reader
from evidence.store import Store
from evidence.workplace import Workplace
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.matches import Matches
from mixaq_mmdet.quantization import build_method
from mixaq_mmdet.registry import QUANT_METHODS

(PAGE,) = zoo_page.TOPICS
EVERY = [row for rows in zoo.SETTINGS.values() for row in rows.values()]


def without_method(experiment: Experiment) -> dict:
    cfg = copy.deepcopy(resolved(experiment).to_dict()['model'])
    quant = cfg['backbone']['quant']
    method = quant.pop('method')
    for option in zoo.METHODS[method].options:
        quant.pop(option)
    cfg.get('detector_quant', {}).pop('method', None)
    return cfg


@pytest.mark.parametrize('key', zoo.SETTINGS)
def test_rows_of_a_setting_differ_in_the_method_alone(key):
    rows = zoo.SETTINGS[key]
    expected = without_method(rows['RepQ'])
    for method, row in rows.items():
        assert resolved(row).model.backbone.quant.method == method
        assert without_method(row) == expected
        assert row.starts_from == zoo.START


@pytest.mark.parametrize('method', [name for name in zoo.METHODS if name in QUANT_METHODS.module_dict])
def test_rows_are_configs_that_the_methods_take(method):
    for rows in zoo.SETTINGS.values():
        model = resolved(rows[method]).model
        build_method(model.backbone.quant)
        if 'detector_quant' in model:
            heads = build_method(model.detector_quant, 'detector_quant')
            assert heads.quantizes_heads


def test_every_claim_of_the_page_has_a_row_and_a_stage_that_runs_its_treatment():
    written = read_claims(REPOSITORY / 'docs' / 'results' / 'protocol.md')
    assert {name for name in written if name.startswith('Z')} == set(PAGE.claims)
    run = {claim: stage for stage in zoo.STAGES for claim in stage.claims}
    assert set(run) == set(PAGE.claims)
    assert len({fingerprint(row) for row in EVERY}) == len(EVERY)
    for claim, (treatment, _) in {**zoo.PAIRS, **zoo.ON_TEST}.items():
        rows = run[claim].experiments
        assert (treatment if claim in zoo.PAIRS else treatment.on('test')) in rows
        method = next((name for name in zoo.METHODS if treatment.name.startswith(f'{name} ')), '')
        assert written[claim].metric.startswith((f'AP, {method}', 'as Z'))
    assert len(zoo.UNSEEN) == 8


def found(hits: int, of: int = 40) -> dict[str, Matches]:
    """One object and one detection in each of so many images."""
    matches = Matches(
        image_ids=np.arange(of).astype(str),
        categories=np.array(['thing']),
        objects=np.ones((1, of), np.int16),
        counts=np.ones((1, of), np.int16),
        scores=np.full(of, 0.5, np.float32),
        hits=np.array([0x3FF if number < hits else 0 for number in range(of)], np.uint16),
        ignored=np.zeros(of, np.uint16),
    )
    return {'bbox': matches}


def write(store: Store, row: Experiment, hits: int, taken_over: int = 0, converts: bool = True) -> None:
    effort = {'minutes': 1.5, 'block_forwards': 4.0, 'peak_memory': 2e9, 'blocks_taken_over': taken_over}
    extras = {'calibration': effort, 'converts': converts}
    content = {'name': row.name, 'metrics': {'coco/segm_mAP': 0.3}, 'extras': extras}
    store.write(fingerprint(row), content, found(hits))


@pytest.fixture
def page_of(tmp_path: Path):
    store = Store(tmp_path)

    def render(**rows: dict) -> tuple[dict, str]:
        for method, options in rows.items():
            write(store, zoo.FOUR[method], **options)
        comparisons = dict(PAGE.claims)
        reader = Reader(store, comparisons=comparisons)
        (tmp_path / 'protocol.md').write_text((REPOSITORY / 'docs' / 'results' / 'protocol.md').read_text())
        summary = Page('zoo', 'zoo', claims=PAGE.claims, parts=PAGE.parts).summarise(reader)
        return summary, PAGE.markdown(summary)

    return render


def test_the_page_has_differences_efforts_and_what_was_not_run(page_of):
    summary, text = page_of(
        RepQ={'hits': 20}, ERQ={'hits': 28}, AIQViT={'hits': 20, 'taken_over': 3, 'converts': False}
    )
    rows = {row['name']: row['result'] for row in summary['four']}
    assert rows['RepQ W4A4']['against'] is None
    assert rows['ERQ W4A4']['against']['estimate'] > 5
    lines = {line.split('|')[1].strip(): line for line in text.splitlines() if line.startswith('| ')}
    assert lines['ERQ W4A4'].endswith('| 1.50 | 4.00 | 2.00 | yes |')
    assert lines['AIQViT W4A4'].endswith('| - | - | - | no |'), 'minutes of the part that was run are not those of all'
    assert 'FIMAQ W4A4; APHQ W4A4' in text
    outcomes = {claim['id']: claim['outcome'] for claim in summary['claims']}
    assert (outcomes['Z3'], outcomes['Z10'], outcomes['Z13']) == ('holds', 'not run', 'not run')
    assert lines['AdaLog'].startswith('| AdaLog | 39.10 |'), 'published figures stand apart'


def test_the_best_method_is_that_of_each_resample(page_of):
    summary, _ = page_of(RepQ={'hits': 20}, **{name: {'hits': 20} for name in zoo.OF_FOUR.values()})
    (claim,) = [entry for entry in summary['claims'] if entry['id'] == 'Z10']
    assert (claim['found']['estimate'], claim['outcome']) == (0, 'holds')


def test_the_probe_converts_what_it_can(monkeypatch):
    monkeypatch.setattr(conversion, 'realised', lambda found, cfg: {'cost': {}})
    told = {}
    for name, options in (('RepQ', {}), ('OFQ', {'qkr': True})):
        model = backbone({'method': name, 'w_bits': 4, 'a_bits': 4, **options})
        Calibrator(model).run(images(1))
        told[name] = conversion.realised_and_converted(SimpleNamespace(detector=SimpleNamespace(backbone=model)), None)
    assert told['RepQ'] == {'cost': {}, 'converts': True, 'refusal': None}
    assert not told['OFQ']['converts']
    assert 'qkr=True' in told['OFQ']['refusal']


def test_results_keep_what_calibration_took(tmp_path: Path):
    place = Workplace(tmp_path, 'a' * 16)
    place.folder.mkdir(parents=True)
    assert worker.calibration_effort(place) == {}
    (place.folder / 'calibration_effort.json').write_text(json.dumps({'minutes': 2.0}))
    assert worker.calibration_effort(place) == {'calibration': {'minutes': 2.0}}
