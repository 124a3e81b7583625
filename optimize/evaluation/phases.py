"""What each phase of a run has taken, by the clock and by the processor.

A phase may begin within another one, as the holdout does within a trial whose networks it is measured on; its time
then counts as its own only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

PREPARING, TRIALS, RESCORING, HOLDOUT, PLAIN = "preparing", "trials", "scoring again", "holdout", "plain"
SAVED, MAPS = "saved", "heat maps"
"""The phases of a run in their order: from the third on they are about the best trials."""

Seconds = dict[str, float]
"""Of one phase: "seconds" by the clock, "processor" of this process, all of its threads together."""


def _now() -> Seconds:
    return {"seconds": time.perf_counter(), "processor": time.process_time()}


@dataclass
class Phases:
    """The time that each phase has taken so far, in the order in which they began."""

    spent: dict[str, Seconds] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: Seconds = field(default_factory=_now)

    def __str__(self) -> str:
        return ", ".join(f"{name} {spent['seconds']:.0f} s" for name, spent in self.spent.items())

    def _switch(self) -> None:
        """Counts what has passed since the last switch as the innermost open phase's."""
        now = _now()
        if self._open:
            of_phase = self.spent[self._open[-1]]
            for kind, before in self._since.items():
                of_phase[kind] += now[kind] - before
        self._since = now

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        self._switch()
        self.spent.setdefault(name, dict.fromkeys(self._since, 0.0))
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def added_to(self, before: Mapping[str, Mapping[str, float]]) -> dict[str, Seconds]:
        """What earlier runs took and what this one has, by phase."""
        zero = dict.fromkeys(self._since, 0.0)
        return {
            name: {kind: before.get(name, zero)[kind] + self.spent.get(name, zero)[kind] for kind in zero}
            for name in {**before, **self.spent}
        }


_current: ContextVar[Phases | None] = ContextVar("phases", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[Phases]:
    """Records the phases that begin in this block."""
    phases = Phases()
    token = _current.set(phases)
    try:
        yield phases
    finally:
        _current.reset(token)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Counts this block as a phase of the run that is recorded, if one is."""
    phases = _current.get()
    with contextlib.nullcontext() if phases is None else phases.during(name):
        yield
