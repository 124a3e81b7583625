"""What a person sees while it runs: bars on a terminal, plain lines in a file. All of it on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PATIENCE = 2.0
"""Seconds after which work that is not on a terminal says that it is going on."""

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Standing:
    """Where a study stands. best, fixed: the best AUC of all and of the fixed composites, with its name.
    stopped: how many of those done were stopped early."""

    done: int
    total: int
    best: float | None = None
    best_name: str = ""
    fixed: float | None = None
    fixed_name: str = ""
    stopped: int = 0

    def __str__(self) -> str:
        if self.best is None:
            return "no AUC yet"
        text = f"best AUC {self.best:.4f} ({self.best_name})"
        if self.fixed is not None and self.best_name != self.fixed_name:
            text += f", best fixed {self.fixed:.4f} ({self.fixed_name})"
        if self.stopped:
            text += f", {self.stopped} stopped early"
        return text


class Screen:
    """Shows lines, the progress of one piece of work, and a study's standing.

    It is also the progress factory that the preparing functions take:
    `with screen("decode images", 500) as advance: advance(1)`.

    Args:
        quiet: show nothing.
        file: where to; by default stderr.
    """

    def __init__(self, quiet: bool = False, file: TextIO | None = None) -> None:
        self.quiet = quiet
        self.console = Console(file=file or sys.stderr, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet

    def line(self, text: str) -> None:
        """A plain line, also amid a bar."""
        if not self.quiet:
            self.console.print(escape(text))

    @contextlib.contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Advance]:
        """Shows work of `total` steps; yields the function that says how many steps are done."""
        if self.quiet:
            yield lambda steps: None
        elif self.live:
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed} of {task.total}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            ) as bar:
                task = bar.add_task(escape(label), total=total)
                yield lambda steps: bar.advance(task, steps)
        else:
            started = time.monotonic()
            said = threading.Event()

            def say() -> None:
                said.set()
                self.line(f"{label} ...")

            timer = threading.Timer(PATIENCE, say)
            timer.daemon = True
            timer.start()
            try:
                yield lambda steps: None
            finally:
                timer.cancel()
            if said.is_set():
                self.line(f"{label}: done in {time.monotonic() - started:.0f} s")

    @contextlib.contextmanager
    def search(self, standing: Standing) -> Iterator[Callable[[Standing, str], None]]:
        """Shows a search; yields the function that takes the new standing and a line about the last trial."""
        started, before = time.monotonic(), standing.done
        if not self.live:

            def tell(now: Standing, trial: str) -> None:
                spent = time.monotonic() - started
                rest = spent / max(now.done - before, 1) * (now.total - now.done)
                self.line(f"trial {now.done} of {now.total}: {trial}; {now}; {_duration(rest)} left")

            yield tell
            return
        with Progress(
            SpinnerColumn(),
            TextColumn("trial {task.fields[trial]} of {task.total}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rest]}"),
            console=self.console,
            transient=True,
        ) as bar:
            task = bar.add_task(
                escape(str(standing)), total=standing.total, completed=before, trial=before + 1, rest=""
            )

            def show(now: Standing, trial: str) -> None:
                spent = time.monotonic() - started
                rest = spent / max(now.done - before, 1) * (now.total - now.done)
                bar.update(
                    task,
                    completed=now.done,
                    description=escape(str(now)),
                    trial=min(now.done + 1, now.total),
                    rest=f"{_duration(rest)} left",
                )

            yield show


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
