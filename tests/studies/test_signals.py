"""Signals stop a run between two steps that must not be cut off, and are never lost."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from pxp_optimize.studies import signals
from pxp_optimize.studies.signals import STOPPING, stop_if_asked, stoppable, whole


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """Of a program that a person starts: one that a shell runs in the background ignores Ctrl-C."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_waits_for_the_end_of_the_outermost_block(number: int):
    steps = []
    with pytest.raises(KeyboardInterrupt), stoppable():
        with whole():
            with whole():
                signal.raise_signal(number)
                steps.append("inner")
            steps.append("outer")
        steps.append("after")
    assert steps == ["inner", "outer"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_presses_twice_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stoppable(), whole():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("still there")
    stop_if_asked()  # a later run knows nothing of it


def test_blocks_of_other_threads_hold_nothing_back():
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with whole():
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(60)
    try:
        with pytest.raises(KeyboardInterrupt), stoppable():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("held back")
    finally:
        done.set()
        thread.join()


class Thing:
    """What is there to be collected."""


def in_a_destructor(number: int) -> None:
    class Last:
        def __del__(self) -> None:
            signal.raise_signal(number)

    Last()


def in_a_weak_references_call(number: int) -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert reference() is None


def in_the_collector(number: int) -> None:
    def called(phase: str, _: object) -> None:
        gc.callbacks.remove(called)
        signal.raise_signal(number)

    gc.callbacks.append(called)
    gc.collect()


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("drop", [in_a_destructor, in_a_weak_references_call, in_the_collector])
def test_what_python_would_drop_comes_again(drop: Callable, number: int, monkeypatch: pytest.MonkeyPatch):
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    with pytest.raises(KeyboardInterrupt), stoppable():
        drop(number)
        for _ in range(1000):
            threading.Event().wait(0.01)
        pytest.fail("lost")
    assert not dropped


def test_what_else_python_drops_is_told(monkeypatch: pytest.MonkeyPatch):
    class Last:
        def __del__(self) -> None:
            raise ValueError("mine")

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(str(what.exc_value)))
    with stoppable():
        Last()
    assert dropped == ["mine"]


def test_a_run_asks_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "_drops", lambda frame: False)  # as if Python dropped it elsewhere
    with stoppable():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()


def test_somebody_elses_handlers_stay():
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
