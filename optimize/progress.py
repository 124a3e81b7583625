"""What long work tells how far it is: a factory of progress bars, and the one that shows nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""`with progress("decode images", total) as advance: advance(1)` shows one bar; see `no_progress`."""


def no_progress(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """The `Progress` that shows nothing."""
    return nullcontext(lambda steps: None)
