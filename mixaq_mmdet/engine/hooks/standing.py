"""Hooks that every Runner has once the package is imported: what they do needs no edit to a config."""

from __future__ import annotations

import functools
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner


def add_to_every_runner(*kinds: type[Hook]) -> None:
    """Register hooks without arguments in each Runner that has none of their type; to be called once."""
    if getattr(Runner.register_hooks, 'adds_hooks', False):
        return
    register_hooks = Runner.register_hooks

    @functools.wraps(register_hooks)
    def with_standing_hooks(runner: Runner, *args: Any, **kwargs: Any) -> None:
        register_hooks(runner, *args, **kwargs)
        for kind in kinds:
            if not any(isinstance(hook, kind) for hook in runner.hooks):
                runner.register_hook(kind())

    with_standing_hooks.adds_hooks = True  # type: ignore[attr-defined]
    Runner.register_hooks = with_standing_hooks
