"""Modules of a converted model: they hold what the file says, and make anew what belongs to one process."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class Part(nn.Module):
    """A module that is copied, pickled and sent without what was made for this process.

    The converted model that it belongs to makes these again on the other side.
    """

    made: ClassVar[tuple[str, ...]] = ('faster',)
    """Attributes that are not sent."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **dict.fromkeys(self.made)}
