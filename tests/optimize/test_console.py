"""What is shown: bars on a terminal, lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import time

import pytest
from pxp_optimize.optimize import console as progress
from pxp_optimize.optimize.console import Screen
from pxp_optimize.optimize.search.status import SearchStatus


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    return Terminal()


def test_work_that_is_quick_says_nothing_in_a_file():
    file = io.StringIO()
    with Screen(file=file)("decode images", 10) as advance:
        advance(10)
    assert file.getvalue() == ""


def test_a_long_line_goes_on_under_its_first_word_on_a_terminal(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "phases  trials, scoring again (the best [3]), --reference-samples, holdout"
    Screen(file=terminal).line(text)
    assert terminal.getvalue().splitlines() == [
        "phases  trials, scoring again (the best",
        "        [3]), --reference-samples,",
        "        holdout",
    ]
    file = io.StringIO()
    Screen(file=file).line(text)
    assert file.getvalue() == f"{text}\n"


def test_work_that_takes_long_says_when_it_starts_and_ends(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    file = io.StringIO()
    with Screen(file=file)("decode [images]", 10):
        time.sleep(0.2)
        assert file.getvalue() == "decode [images] ...\n"
    assert file.getvalue().splitlines()[1:] == ["decode [images]: done in 0 s"]


def test_work_that_fails_does_not_say_it_is_done(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    file = io.StringIO()
    with pytest.raises(OSError), Screen(file=file)("decode", 10):
        time.sleep(0.1)
        raise OSError
    assert "done" not in file.getvalue()


def test_a_search_is_a_line_per_trial_in_a_file():
    file = io.StringIO()
    with Screen(file=file).search(SearchStatus(3, 5)) as watch:
        watch(SearchStatus(4, 5, 0.5, "trial 1, zplus", 0.5, "trial 1, zplus"), "trial 1 (zplus), AUC 0.5000")
        watch(SearchStatus(5, 5, 0.75, "trial 4", 0.5, "trial 1, zplus"), "trial 4, AUC 0.7500")
    first, second = file.getvalue().splitlines()
    assert first == "4 of 5 trials: trial 1 (zplus), AUC 0.5000; best AUC 0.5000 (trial 1, zplus); 0 s left"
    assert second == (
        "5 of 5 trials: trial 4, AUC 0.7500; best AUC 0.7500 (trial 4), best fixed 0.5000 (trial 1, zplus); 0 s left"
    )


def test_the_time_left_counts_what_comes_after_the_trials(monkeypatch):
    clock = iter((0.0, 10.0, 20.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with Screen(file=file).search(SearchStatus(0, 2)) as watch:
        watch(SearchStatus(1, 2, 0.5, "zplus", after=2.5), "zplus, AUC 0.5000")
        watch(SearchStatus(2, 2, 0.5, "zplus", after=2.5), "gamma, AUC 0.4000")
    assert [line.rpartition("; ")[2] for line in file.getvalue().splitlines()] == ["35 s left", "25 s left"]


def test_work_that_is_expected_to_take_long_says_how_long(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    monkeypatch.setattr(progress, "AGAIN", 0.1)
    file = io.StringIO()
    with Screen(file=file)("scoring again", 3, expected=90, after=20) as advance:
        time.sleep(0.3)
        advance(1)  # a step in 0.3 s or more: two more, and what comes after
        advance(1)
        advance(1)
    first, second, last = file.getvalue().splitlines()
    assert first == "scoring again: 0 of 3, 1 min 50 s left"
    assert second.startswith("scoring again: 1 of 3, 2")
    assert last == "scoring again: done in 0 s"


def test_a_terminal_shows_how_long_it_is_expected_to_take(terminal):
    with Screen(file=terminal)("scoring again", 3, expected=90, after=20):
        time.sleep(0.3)
    assert "1 min 50 s left" in terminal.getvalue()


def test_what_is_waited_for_is_said_at_once_and_taken_back(terminal):
    with pytest.raises(OSError), Screen(file=terminal).waiting("loading [it]"):
        said = terminal.getvalue()
        raise OSError
    assert "loading [it] ..." in said
    taken_back = terminal.getvalue().rpartition("loading [it]")[2]
    assert "\x1b[2K" in taken_back  # erases the line
    file = io.StringIO()
    with Screen(file=file).waiting("loading"):
        assert file.getvalue() == ""  # nothing could be taken back
    with Screen(file=file, verbose=True).waiting("loading"):
        assert file.getvalue() == "loading ...\n"


def test_a_terminal_shows_trial_best_and_time_left(terminal):
    with Screen(file=terminal).search(SearchStatus(3, 5, 0.5, "zplus", 0.5, "zplus")) as watch:
        watch(SearchStatus(4, 5, 0.75, "trial 3", 0.5, "trial 1, zplus"), "trial 3, AUC 0.7500")
        time.sleep(0.3)  # the bar draws itself ten times a second
    shown = terminal.getvalue()
    best = "best AUC 0.7500 (trial 3), best fixed 0.5000 (trial 1, zplus)"
    for part in ("3 of 5 trials", "4 of 5 trials", best, "left"):
        assert part in shown


def test_a_terminal_shows_a_bar(terminal):
    with Screen(file=terminal)("train", 10) as advance:
        advance(4)
        time.sleep(0.3)
    assert "train" in terminal.getvalue()
    assert "4 of 10" in terminal.getvalue()


def test_quiet_shows_nothing(terminal, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    screen = Screen(quiet=True, file=terminal)
    screen.line("hello")
    with screen.waiting("loading"):
        pass
    with screen("train", 10) as advance:
        advance(1)
        time.sleep(0.05)
    with screen.search(SearchStatus(0, 5)) as watch:
        watch(SearchStatus(1, 5, 0.5, "zplus"), "zplus")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (7260, "2 h 01 min")]
)
def test_durations(seconds, text):
    assert progress._duration(seconds) == text
