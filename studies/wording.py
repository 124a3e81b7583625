"""Words of messages: lists and errors in short."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, what: str) -> str:
    """A number of things, one or several."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def part_of(value: float) -> str:
    """A part in per cent; not all and not none where that is only rounded."""
    digits = 1 if 0 < abs(value) < 0.005 or 0.995 <= value < 1 else 0
    return f"{value:.{digits}%}"


def reason(error: BaseException) -> str:
    """The error as one short line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Which known name may be meant by one that is not known; where none is near, what else to say."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise
