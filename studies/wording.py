"""Words of messages: lists and errors in short."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def reason(error: BaseException) -> str:
    """The error as one short line."""
    return (str(error) or type(error).__name__).splitlines()[0]
