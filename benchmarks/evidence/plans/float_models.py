"""The float detectors that everything starts from, on every split."""

from __future__ import annotations

from ..experiment import Experiment
from ..splits import KINDS
from ..stage import Stage

CONFIG = 'configs/mini/mask-rcnn_swin-mini_float.py'
ALIGNED_CONFIG = 'configs/mini/mask-rcnn_swin-mini_float-aligned.py'
FIRST = 'checkpoints/mask-rcnn_swin-mini_float.pth'
# the same after eight legs on 16 000 images and window alignment: what the recipes start from
LONGER = 'checkpoints/mask-rcnn_swin-mini_float-16k.pth'
# what the first model was before an epoch of window alignment
PLAIN = 'checkpoints/mask-rcnn_swin-mini_plain.pth'
SEVERITIES = (1, 3, 5)

FLOAT = Experiment('float', 'evaluate', config=CONFIG, starts_from=FIRST)
FLOAT_PLAIN = Experiment('float, not aligned', 'evaluate', config=CONFIG, starts_from=PLAIN)
SECOND_PLAIN = Experiment('float-second, not aligned', 'train', config=CONFIG, seed=1)
SECOND = Experiment('float-second', 'train', config=ALIGNED_CONFIG, seed=1, starts_from=SECOND_PLAIN)

# for paired studies over float models: what a later experiment names in ``starts_from``
FLOAT_MODELS = (FIRST, SECOND)

CLEAN = [FLOAT, *(FLOAT.on(split) for split in ('search', 'val_wide'))]
CORRUPTED = {(kind, severity): FLOAT.on(f'ood/{kind}-{severity}') for kind in KINDS for severity in SEVERITIES}
SEALED = [FLOAT.on(split) for split in ('test', 'test_b')]

STAGES = [
    Stage(
        'float', 'the first float model on val, search, val_wide', CLEAN, hours=0.1, topics=['preconditions'], rank=1
    ),
    Stage(
        'float-corrupted',
        'the first float model on every corrupted twin of val',
        list(CORRUPTED.values()),
        hours=0.4,
        tier='full',
        rank=90,
    ),
    Stage(
        'float-test',
        'the first float model on the test splits of both styles',
        SEALED,
        hours=0.2,
        tier='full',
        claims=['P4', 'P6'],
        topics=['preconditions'],
        rank=10,
    ),
    Stage(
        'float-second-seed',
        'a second float model for paired studies',
        [SECOND_PLAIN, SECOND, *(SECOND.on(split) for split in ('search', 'test', 'test_b'))],
        hours=1.8,
        tier='full',
        topics=['preconditions'],
        rank=20,
    ),
]
