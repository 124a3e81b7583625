"""What each phase of a run has taken: a moment counts once, as the innermost phase's."""

from __future__ import annotations

import pytest
from pxp_optimize.optimize.evaluation import phases
from pxp_optimize.optimize.evaluation.phases import Phases, phase, recorded


@pytest.fixture
def clock(monkeypatch) -> dict[str, float]:
    """A clock that the test sets."""
    now = {"seconds": 100.0, "processor": 7.0}
    monkeypatch.setattr(phases, "_now", lambda: dict(now))
    return now


def pass_time(clock: dict[str, float], seconds: float) -> None:
    clock["seconds"] += seconds
    clock["processor"] += seconds / 2


def test_a_phase_within_another_one_counts_as_its_own(clock):
    with recorded() as found:
        pass_time(clock, 50)  # no phase
        with phase("trials"):
            pass_time(clock, 10)
            with phase("holdout"):
                pass_time(clock, 4)
                with phase("trials"):
                    pass_time(clock, 1)
            pass_time(clock, 20)
        with pytest.raises(OSError), phase("holdout"):
            pass_time(clock, 2)
            raise OSError
    assert found.spent == {
        "trials": {"seconds": 31, "processor": 15.5},
        "holdout": {"seconds": 6, "processor": 3},
    }
    assert str(found) == "trials 31 s, holdout 6 s"


def test_runs_add_up(clock):
    found = Phases()
    with found.during("trials"):
        pass_time(clock, 10)
    before = {"trials": {"seconds": 1.0, "processor": 2.0}, "plain": {"seconds": 3.0, "processor": 3.0}}
    assert found.added_to(before) == {
        "trials": {"seconds": 11, "processor": 7},
        "plain": {"seconds": 3, "processor": 3},
    }
    assert found.added_to({}) == found.spent


def test_without_a_record_nothing_is_kept(clock):
    with phase("trials"):
        pass_time(clock, 1)
    with recorded() as found:
        pass
    assert found.spent == {}
