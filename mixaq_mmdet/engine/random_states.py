"""The states of python's, numpy's and torch's global generators: kept, restored, seeded for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_GENERATOR = 'MT19937'  # numpy's global generator, the only one np.random.set_state takes


def random_states() -> dict[str, Any]:
    """The states of python's, numpy's and torch's global generators, in types that ``weights_only`` loads."""
    version, python_words, python_gauss = random.getstate()
    drawn: Any = np.random.get_state()  # noqa: NPY002 (transforms draw from it)
    _, numpy_words, position, has_gauss, cached = drawn
    states = {
        'python': {'version': version, 'words': torch.tensor(python_words, dtype=torch.int64), 'gauss': python_gauss},
        'numpy': {
            'words': torch.from_numpy(numpy_words.astype(np.int64)),
            'position': int(position),
            'has_gauss': int(has_gauss),
            'cached_gaussian': float(cached),
        },
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Continue from what ``random_states`` returned."""
    python = states['python']
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    legacy = states['numpy']
    words = legacy['words'].cpu().numpy().astype(np.uint32)
    state = (_GENERATOR, words, legacy['position'], legacy['has_gauss'], legacy['cached_gaussian'])
    np.random.set_state(state)  # noqa: NPY002
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start all three generators at ``seed``; afterwards they go on as if nothing had drawn from them."""
    before = random_states()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(before)
