"""`--workers`: the real command, in several processes, on a small network."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import optuna
import pytest
import servers
from pxp_optimize.optimize.evaluation.processes import fitting_processes
from pxp_optimize.studies.storage import disconnect, open_storage

FEW = ("--trials", "14", "--rescore", "1", "--repair", "none", "--schedule", "oneshot")


def trials_of(storage: str) -> list[tuple]:
    opened = open_storage(storage)
    (name,) = optuna.get_all_study_names(opened)
    study = optuna.load_study(study_name=name, storage=opened)
    found = [(trial.number, trial.value, trial.user_attrs.get("composite")) for trial in study.trials]
    disconnect("")
    return found


def test_two_workers_are_stopped_by_a_signal_and_end_with_the_same_trials(project: Any):
    whole = project.run(*project.options, *FEW, "--workers", "2", "--storage", "whole.db")
    assert whole.returncode == 0, whole.stderr
    assert "workers 2 processes, 1 thread each" in whole.stderr
    assert "14 of 14 trials" in whole.stderr

    command = project.start(*project.options, *FEW, "--workers", "2", "--storage", "cut.db")
    with command as process:
        lines: list[str] = []
        sent = False
        for line in process.stderr:
            lines.append(line)
            if " of 14 trials: trial " in line and not sent:  # which number comes first depends on who is faster
                process.send_signal(signal.SIGTERM)
                sent = True
        assert process.wait() == 130
    assert lines[-1].startswith("Stopped after ") and "Run the same command again to continue." in lines[-1]
    rest = project.run(*project.options, *FEW, "--workers", "1", "--storage", "cut.db")
    assert rest.returncode == 0, rest.stderr
    assert trials_of(str(project.folder / "cut.db")) == trials_of(str(project.folder / "whole.db"))
    assert len(trials_of(str(project.folder / "cut.db"))) == 14


def test_a_study_on_postgresql_shows_its_password_nowhere(project: Any):
    pytest.importorskip("psycopg")
    if servers.postgresql_folder() is None:
        pytest.skip("PostgreSQL is not installed")
    with servers.postgresql() as server:
        options = ("--trials", "6", *FEW[2:], "--workers", "2", "--verbose", "--export", "server.json")
        done = project.run(*project.options, *options, "--storage", server.url)
        assert done.returncode == 0, done.stderr
        page = project.run("report", "--storage", server.url, "-o", "server.html")
        assert page.returncode == 0, page.stderr
        study = optuna.load_study(study_name="network:small-images-filters", storage=open_storage(server.url))
        trials = study.trials
        kept = str([study.user_attrs, *trials])
        disconnect("")
        wrong = project.run("studies", "--storage", server.url.replace(str(server.port), "1"))
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
    assert len(trials) == 6
    written = [(project.folder / name).read_text() for name in ("server.json", "server.html")]
    for text in (kept, done.stdout, done.stderr, page.stdout, page.stderr, wrong.stderr, *written):
        assert "s3cret" not in text
    assert "pxp:***@" in done.stdout


@pytest.mark.parametrize(("asked", "free", "fits"), [(4, 0, 1), (4, 2**50, 4), (1, 2**50, 1)])
def test_as_many_processes_as_fit(asked: int, free: int, fits: int):
    assert fitting_processes(asked, free) == fits


SPAWNED = """
from pxp_optimize.optimize.commands.main import main
from pxp_optimize.optimize.evaluation import processes

if __name__ == "__main__":  # a process that is spawned imports this, as it does the installed command
    processes._survives_fork = lambda: False
    main()
"""


def test_spawned_workers_try_the_same(project: Any):
    """As on a GPU: each prepares its own network, from a file of the user's."""
    few = (*project.options, "--trials", "6", *FEW[2:], "--workers", "2")
    (project.folder / "spawned.py").write_text(SPAWNED)
    command = [sys.executable, "spawned.py", *few, "--storage", "spawned.db"]
    done = subprocess.run(command, cwd=project.folder, env=project._environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "workers one has ended" not in done.stderr
    forked = project.run(*few, "--storage", "forked.db")
    assert forked.returncode == 0, forked.stderr
    assert trials_of(str(project.folder / "spawned.db")) == trials_of(str(project.folder / "forked.db"))
