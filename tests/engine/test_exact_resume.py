"""Random states in checkpoints: a restored run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

import io
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.model import BaseModel
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mixaq_mmdet.engine.hooks import exact_resume
from mixaq_mmdet.engine.hooks.exact_resume import ExactResumeHook
from mixaq_mmdet.engine.random_states import random_states, set_random_states


def draw() -> list[float]:
    """One number of each kind that has hidden state: gauss and normal keep a second value back."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),  # noqa: NPY002
        np.random.randn(),  # noqa: NPY002
        float(torch.rand(1)),
        float(torch.randn(1)),
    ]


@pytest.fixture
def runner(caplog) -> SimpleNamespace:
    """The parts of a Runner in an epoch-based loop that the hook looks at."""
    logger = logging.getLogger('test_exact_resume')
    logger.setLevel(logging.INFO)
    caplog.set_level(logging.INFO, 'test_exact_resume')
    loader = DataLoader([0, 1, 2, 3], sampler=DefaultSampler([0, 1, 2, 3], seed=7))
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    return SimpleNamespace(logger=logger, train_loop=loop, train_dataloader=loader, iter=2)


def saved_at_epoch_end(runner: SimpleNamespace) -> dict:
    """A checkpoint as it comes back from disk."""
    hook, checkpoint = ExactResumeHook(), {}
    hook.after_train_epoch(runner)
    hook.before_save_checkpoint(runner, checkpoint)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def resume(runner: SimpleNamespace, checkpoint: dict) -> None:
    hook = ExactResumeHook()
    hook.after_load_checkpoint(runner, checkpoint)
    hook.before_train(runner)


def test_generators_continue():
    draw()  # so that both Gaussian generators hold a number back
    states = random_states()
    expected = [draw(), draw()]
    set_random_states(states)
    assert [draw(), draw()] == expected


def test_resume_restores_generators_and_sampler(runner):
    checkpoint = saved_at_epoch_end(runner)
    expected = draw()
    runner.train_dataloader.sampler.seed = 12345  # what a run without randomness.seed gets by chance
    resume(runner, checkpoint)
    assert draw() == expected
    assert runner.train_dataloader.sampler.seed == 7


def test_sampler_inside_a_batch_sampler(runner):
    sampler = DefaultSampler([0, 1, 2, 3], seed=3)
    runner.train_dataloader = DataLoader([0, 1, 2, 3], batch_sampler=BatchSampler(sampler, 2, drop_last=False))
    checkpoint = saved_at_epoch_end(runner)
    sampler.seed = 12345
    resume(runner, checkpoint)
    assert sampler.seed == 3


def test_load_from_restores_nothing(runner):
    """Fine-tuning from such a checkpoint is a new run."""
    checkpoint = saved_at_epoch_end(runner)
    runner.iter = 0
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    resume(runner, checkpoint)
    assert torch.rand(1) == expected


def test_validation_leaves_no_trace(runner):
    hook = ExactResumeHook()
    hook.before_val(runner)
    expected = draw()
    set_random_states(hook._before_validation)
    hook.before_val(runner)
    draw()
    hook.after_val(runner)
    assert draw() == expected


def test_checkpoint_within_an_epoch_carries_no_states(runner):
    hook, checkpoint = ExactResumeHook(), {}
    hook.after_train_epoch(runner)
    hook.before_train_epoch(runner)
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint == {}


def test_each_rank_gets_its_own_states(runner, monkeypatch):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(random_states())
    checkpoint = {exact_resume.CHECKPOINT_KEY: {'ranks': states, 'sampler_seed': 7}}
    monkeypatch.setattr(exact_resume, 'get_world_size', lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(exact_resume, 'get_rank', lambda rank=rank: rank)
        resume(runner, checkpoint)
        drawn = torch.rand(1)
        torch.manual_seed(rank + 1)
        assert drawn == torch.rand(1)


@pytest.mark.parametrize(
    ('change', 'warning'),
    [
        ({'checkpoint': {}}, 'holds no random states'),
        ({'world_size': 2}, 'saved by 1 ranks and 2 resume'),
        ({'workers': 2}, 'num_workers=2'),
        ({'loop': BaseLoop}, 'loops of type Loop do not resume exactly'),
    ],
)
def test_a_lost_promise_is_announced(runner, monkeypatch, caplog, change, warning):
    checkpoint = change.get('checkpoint', saved_at_epoch_end(runner))
    monkeypatch.setattr(exact_resume, 'get_world_size', lambda: change.get('world_size', 1))
    runner.train_dataloader.num_workers = change.get('workers', 0)
    base = change.get('loop', EpochBasedTrainLoop)
    loop = type('Loop', (base,), {'run': None})
    runner.train_loop = loop.__new__(loop)
    resume(runner, checkpoint)
    assert warning in caplog.text


def test_an_ordinary_start_is_silent(runner, caplog):
    runner.iter = 0
    ExactResumeHook().before_train(runner)
    assert caplog.text == ''


class Flipped(Dataset):
    """Five numbers, each with a sign that the transform draws; ``loaded`` counts what was made."""

    loaded = 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.loaded += 1
        return {'inputs': torch.tensor(index + 1.0) * np.random.choice([-1, 1])}  # noqa: NPY002


class Dropped(BaseModel):
    """A model with one weight and noise of its own; remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[list[float], float]] = []

    def forward(self, inputs: Tensor, mode: str) -> dict[str, Tensor]:
        loss = (self.weight * inputs).square().mean() * torch.rand(())
        self.seen.append((inputs.tolist(), float(loss.detach())))
        return {'loss': loss}


def iterations(folder, until: int, sampler: type, seed: int = 3, **options) -> tuple[Dropped, Flipped]:
    """Train with a checkpoint after every second iteration; the model with what it saw, and the data."""
    data = Flipped()
    batches = BatchSampler(sampler(data, seed=seed), 2, drop_last=False)
    model = Dropped()
    runner = Runner(
        model,
        str(folder),
        train_dataloader=DataLoader(data, batch_sampler=batches),
        train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': until},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.01}},
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 2, 'by_epoch': False, 'save_last': False}},
        custom_hooks=[{'type': 'ExactResumeHook'}],
        randomness={'seed': 0},
        experiment_name=f'{folder.name}_{until}_{seed}',
        **options,
    )
    runner.train()
    return model, data


@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
def test_an_iteration_based_run_goes_on_as_if_uninterrupted(tmp_path, monkeypatch, sampler):
    """Stopped after the fifth step, resumed behind the fourth; a sampler that ends starts anew in between."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    whole, _ = iterations(tmp_path / 'whole', 9, sampler)
    iterations(tmp_path / 'interrupted', 5, sampler)
    # a run without randomness.seed gets another seed by chance
    resumed, data = iterations(tmp_path / 'interrupted', 9, sampler, seed=12345, resume=True)
    assert resumed.seen == whole.seen[4:]
    assert torch.equal(resumed.weight, whole.weight)
    assert data.loaded == sum(len(batch) for batch, _ in resumed.seen), 'batches it has had are not loaded again'
