"""What a person sees while it runs: bars on a terminal, plain lines in a file. All of it on stderr."""

from __future__ import annotations

import contextlib
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.spinner import Spinner

if TYPE_CHECKING:
    from .search.status import SearchStatus

PATIENCE = 2.0
"""Seconds after which work that is not on a terminal says that it is going on."""
AGAIN = 30.0
"""Seconds between the lines by which it says how far it is."""

INDENT = " " * len("pruning ")
"""What lines begin with that go on: they are under each other behind a word that says what they are about."""

Advance = Callable[[int], None]


class Screen:
    """Shows lines, the progress of one piece of work, and a study's standing.

    It is also the progress factory that the preparing functions take:
    `with screen("decode images", 500) as advance: advance(1)`.

    Args:
        quiet: show nothing.
        file: where to; by default stderr.
        verbose: also elsewhere than on a terminal, say at once what is being waited for.
    """

    def __init__(self, quiet: bool = False, file: TextIO | None = None, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.console = Console(file=file or sys.stderr, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet

    def line(self, text: str) -> None:
        """A plain line, also amid a bar; on a terminal it is cut between words, and goes on under its first one."""
        if self.live:
            text = "\n".join(
                textwrap.wrap(
                    text, self.console.width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False
                )
            )
        if not self.quiet:
            self.console.print(escape(text))

    @contextlib.contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        """Says at once what is going on, on a terminal; what is said is gone when it is done or has failed, so that an
        error is the only line. In a file, where nothing can be taken back, it is said only where errors have more
        lines anyway (`verbose`). No other work may be shown within."""
        if self.live:
            with Live(Spinner("dots", f"{escape(label)} ..."), console=self.console, transient=True) as live:
                live.refresh()  # not when its thread comes to it, which what is imported may keep from running
                yield
            return
        if self.verbose:
            self.line(f"{label} ...")
        yield

    @contextlib.contextmanager
    def __call__(self, label: str, total: int, expected: float = 0.0, after: float = 0.0) -> Iterator[Advance]:
        """Shows work of `total` steps; yields the function that says how many steps are done.

        expected: seconds that it may take, where that is known. after: seconds that what comes afterwards may take,
        which are part of the time left.
        """
        started = time.monotonic()
        done = 0

        def left() -> str:
            own = (time.monotonic() - started) / done * (total - done) if done else expected
            return f"{_duration(own + after)} left"

        if self.quiet:
            yield lambda steps: None
        elif self.live:
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed} of {task.total}"),
                TextColumn("{task.fields[rest]}"),
                console=self.console,
                transient=True,
            ) as bar:
                task = bar.add_task(escape(label), total=total, rest=left() if expected else "")

                def show(steps: int) -> None:
                    nonlocal done
                    done += steps
                    bar.update(task, completed=done, rest=left())

                yield show
        else:
            said = started
            lock = threading.Lock()

            def say(text: str) -> None:
                nonlocal said
                said = time.monotonic()
                self.line(f"{label}{text}")

            def begin() -> None:
                with lock:
                    say(f": {done} of {total}, {left()}" if expected else " ...")

            def tell(steps: int) -> None:
                nonlocal done
                with lock:
                    done += steps
                    if started < said <= time.monotonic() - AGAIN and done < total:
                        say(f": {done} of {total}, {left()}")

            timer = threading.Timer(PATIENCE, begin)
            timer.daemon = True
            timer.start()
            try:
                yield tell
            finally:
                timer.cancel()
            if said > started:
                self.line(f"{label}: done in {time.monotonic() - started:.0f} s")

    @contextlib.contextmanager
    def search(self, standing: SearchStatus) -> Iterator[Callable[[SearchStatus, str], None]]:
        """Shows a search; yields the function that takes the new standing and a line about the last trial."""
        started, before = time.monotonic(), standing.done

        def left(now: SearchStatus) -> str:
            spent = time.monotonic() - started
            return f"{_duration(spent / max(now.done - before, 1) * (now.total - now.done + now.after))} left"

        if not self.live:
            tell = self._replaced() if self.console.is_jupyter and not self.quiet else self.line
            yield lambda now, trial: tell(f"{now.done} of {now.total} trials: {trial}; {now}; {left(now)}")
            return
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.completed} of {task.total} trials"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rest]}"),
            console=self.console,
            transient=True,
        ) as bar:
            task = bar.add_task(escape(str(standing)), total=standing.total, completed=before, rest="")

            def show(now: SearchStatus, trial: str) -> None:
                bar.update(
                    task,
                    completed=now.done,
                    description=escape(str(now)),
                    rest=left(now),
                )

            yield show

    @staticmethod
    def _replaced() -> Callable[[str], None]:
        """What shows a line in a notebook, in place of the one that it showed before."""
        from IPython.display import display

        shown = display({"text/plain": ""}, raw=True, display_id=True)
        return lambda text: shown.update({"text/plain": text}, raw=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
