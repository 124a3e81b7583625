"""Signals that stop a run, and where they must wait: amid what is written to a storage.

A handler that raises does so between any two steps of the interpreter. Amid a transaction that left its lock taken, and
whoever wanted it, this process first, waited for it for two minutes; amid a journal's lines it left some of them out;
and Python drops what is raised in a destructor, and in what the collector or a weak reference calls. So the handler
here raises at once only outside of `whole` blocks, else at their end, and again where Python has dropped it; and a
search asks before each trial (`stop_if_asked`), since other people's code may drop it too.
"""

from __future__ import annotations

import _thread
import _weakrefset
import contextlib
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)

_blocks = 0
"""How many `whole` blocks the main thread is in: the one that hears signals."""
_waits = False
"""Whether a signal waits for the end of the outermost one."""
_asked = False
"""Whether this process has been asked to stop at all."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler. Who presses Ctrl-C twice does not want to wait.

    Raises:
        KeyboardInterrupt: outside of a `whole` block, or if a signal waits for its end already.
    """
    global _asked, _waits
    if _drops(frame):
        _thread.start_new_thread(_again, (number,))
        return
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)  # once: what follows puts the trial back into the queue
    _asked = True
    if _blocks and not _waits:
        _waits = True
        return
    _waits = False
    raise KeyboardInterrupt


def _drops(frame: FrameType | None) -> bool:
    """Whether Python would print what is raised here, and go on: in a destructor, or what a weak reference calls."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename in WEAK:
            return True
        frame = frame.f_back
    return False


def _again(number: int) -> None:
    time.sleep(0.01)
    _thread.interrupt_main(signal.Signals(number))


WEAK = (weakref.__file__, _weakrefset.__file__)
"""Where Python keeps such calls of its own."""


class whole:  # used as a function
    """A context that signals do not cut off, for what takes moments. A class, since a generator has steps of its own.

    Raises:
        KeyboardInterrupt: at its end, if a signal came meanwhile.
    """

    def __enter__(self) -> None:
        global _blocks
        self._counts = threading.current_thread() is threading.main_thread()
        _blocks += self._counts

    def __exit__(self, *_: object) -> None:
        global _blocks, _waits
        _blocks -= self._counts
        if self._counts and _waits and not _blocks:
            _waits = False
            raise KeyboardInterrupt


def was_asked() -> bool:
    """Whether this process has been asked to stop."""
    return _asked


def stop_if_asked() -> None:
    """Stops a run whose interruption was dropped on its way.

    Raises:
        KeyboardInterrupt: this process has been asked to stop.
    """
    if _asked:
        raise KeyboardInterrupt


@contextlib.contextmanager
def raising_again(number: int) -> Iterator[None]:
    """Within the block what `interrupt` has raised comes again, as this signal, where Python drops it all the same: in
    what the garbage collector calls, or a weak reference of somebody's own. No frame tells of these."""
    before = sys.unraisablehook

    def heed(dropped: sys.UnraisableHookArgs) -> None:
        global _asked
        if not _asked or dropped.exc_type is not KeyboardInterrupt:
            before(dropped)
            return
        _asked = False
        signal.signal(number, interrupt)
        _thread.start_new_thread(_again, (number,))

    sys.unraisablehook = heed
    try:
        yield
    finally:
        sys.unraisablehook = before


def begin() -> None:
    """Forgets what signals have come: of an earlier run, or of the process that this one is a fork of."""
    global _blocks, _waits, _asked
    _blocks, _waits, _asked = 0, False, False


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM is what Ctrl-C is: a batch system's way to say that time is up; and both wait for the
    end of `whole` blocks. Neither where somebody else heeds it, or outside of the main thread, where Python allows
    none."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    if threading.current_thread() is not threading.main_thread():
        usual = {}
    ours = {number: before for number, before in usual.items() if signal.getsignal(number) == before}
    if not ours:
        yield
        return
    begin()
    try:
        for number in ours:
            signal.signal(number, interrupt)
        with raising_again(next(iter(ours))):
            yield
    finally:
        for number, before in ours.items():
            signal.signal(number, before)
        begin()
