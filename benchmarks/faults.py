"""Faults while several processes run one study, of trials that take a moment: what is lost, doubled, or too much?

    python benchmarks/faults.py                  # all, some minutes: the table
    python benchmarks/faults.py sqlite-sigkill   # some of them

After each fault the study is run to its end, opened, and looked through: every finished trial must have its curve, and
their number must be the one asked for. PostgreSQL and MariaDB are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import optuna

sys.path.insert(0, str(Path(__file__).parent))
from pxp_optimize.attribution import Composite
from pxp_optimize.optimize.search import owners, workers
from pxp_optimize.optimize.search.loop import run_search
from pxp_optimize.optimize.search.samplers import make_sampler
from pxp_optimize.optimize.search.space import GROUPS, Space
from pxp_optimize.optimize.search.status import FINISHED
from pxp_optimize.optimize.search.warm_start import mixed_composites
from pxp_optimize.optimize.study.opening import open_study
from pxp_optimize.studies.errors import UserError
from pxp_optimize.studies.lasting import lasting
from pxp_optimize.studies.locks import alone
from pxp_optimize.studies.signals import whole
from pxp_optimize.studies.storage import check_storage, disconnect, open_storage, storage_errors
from servers import free_port, mariadb, mariadb_program, postgresql, postgresql_folder, proxy

FORK = multiprocessing.get_context("fork")
NAME, MARK = "fast", {"model": "fast", "rates": [0, 0.5]}


@dataclass
class Fast:
    """What a trial measured that takes a moment: any value that depends on all of the composite."""

    accuracy: list[float]
    auc: float
    seconds: dict[str, float]
    ranking_hash: str

    @classmethod
    def of(cls, composite: Composite, seconds: float = 0.0) -> Fast:
        digest = hashlib.sha256(json.dumps(composite.to_dict(), sort_keys=True).encode()).hexdigest()
        value = int(digest[:8], 16) / 2**32
        time.sleep(seconds * (0.5 + value))
        return cls([1.0, value], (1 + value) / 2, {"relevance": seconds, "evaluation": seconds}, digest)


def warm() -> None:
    """Imports what a process needs, so that forks need not; opens nothing that a fork must not have."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.db", "a.journal"):
            search(f"{folder}/{name}", 1)
        disconnect("")


def study_in(storage: str, lag: int = 1, sampler: str = "random") -> optuna.Study:
    """The study of a storage, made where there is none."""
    opened = open_storage(storage)
    with alone(storage), whole():
        study = open_study(opened, NAME, MARK, {"rates": MARK["rates"]})
    study.sampler = make_sampler(sampler, 0, lag)
    return lasting(study, storage, lambda text: None)


def search(storage: str, trials: int, seconds: float = 0.0, lag: int = 1, sampler: str = "random", **more: Any) -> None:
    """Runs the study to its end."""
    space = Space(GROUPS)
    with storage_errors(storage):
        run_search(
            study_in(storage, lag, sampler),
            space,
            lambda composite: Fast.of(composite, seconds),
            trials=trials,
            known=mixed_composites(space),
            alone=partial(alone, storage),
            lag=lag,
            **more,
        )


def begun(work: Callable[[], object], loud: bool = False) -> BaseProcess:
    """A process that does something as a worker of `--workers` does. It ends with 1 if the storage failed.

    loud: says why, where that is not expected.
    """

    def job(tell: workers.Tell) -> None:
        try:
            work()
        except Exception as error:
            if loud:
                traceback.print_exc()
            if isinstance(error, UserError):
                sys.exit(1)
            raise

    _, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=workers._work, args=(job, writer, f"a run {random.random()}"))
    with workers._held_back():
        process.start()
    return process


def ended(processes: list[BaseProcess], seconds: float = 120) -> None:
    for process in processes:
        process.join(seconds)
        assert process.exitcode is not None, "a process hangs"


@dataclass(frozen=True)
class Found:
    """What is wrong with a study afterwards, in numbers of trials."""

    lost: int
    doubled: int
    over: int

    @classmethod
    def of(cls, storage: str, trials: int) -> Found:
        """Of a study that has been run to its end.

        Raises:
            AssertionError: a finished trial lacks its curve, or has another one than it measured.
        """
        finished = optuna.load_study(study_name=NAME, storage=open_storage(storage)).get_trials(states=FINISHED)
        for trial in finished:
            expected = Fast.of(Composite.from_dict(trial.user_attrs["composite"]))
            assert trial.user_attrs["accuracy"] == expected.accuracy, trial.number
            assert trial.value == expected.auc, trial.number
        names = [
            (key, trial.user_attrs[key]) for trial in finished for key in ("fixed", "known") if key in trial.user_attrs
        ]
        expected = min(trials, len(Space(GROUPS).fixed_composites()))
        assert len({name for kind, name in names if kind == "fixed"}) == expected
        numbers = [trial.number for trial in finished]
        doubled = len(names) - len(set(names)) + len(numbers) - len(set(numbers))
        return cls(max(0, trials - len(finished)), doubled, max(0, len(finished) - trials))


def count_in(storage: str) -> int:
    """Finished trials just now, asked in another process: this one is forked, and so holds no connection."""
    reader, writer = FORK.Pipe(duplex=False)

    def count() -> None:
        with contextlib.suppress(Exception):
            study = optuna.load_study(study_name=NAME, storage=open_storage(storage))
            writer.send(len(study.get_trials(deepcopy=False, states=FINISHED)))

    process = FORK.Process(target=count)
    process.start()
    process.join(60)
    found: int = reader.recv() if reader.poll() else 0
    return found


def some_more(storage: str) -> None:
    """Waits for a few more finished trials."""
    before, until = count_in(storage), time.monotonic() + 120
    while count_in(storage) < before + 3 and time.monotonic() < until:
        time.sleep(0.2)


def finish(storage: str, trials: int) -> Found:
    """Runs a study to its end, in a process of its own, and looks it through."""
    ended([begun(partial(search, storage, trials))])
    return look(storage, trials)


def look(storage: str, trials: int) -> Found:
    """Looks a study through, in a process of its own: this one is forked, and so holds no connection."""
    reader, writer = FORK.Pipe(duplex=False)

    def found() -> None:
        try:
            writer.send(Found.of(storage, trials))
        except BaseException as error:
            writer.send(error)

    process = FORK.Process(target=found)
    process.start()
    what = reader.recv()
    process.join()
    if isinstance(what, BaseException):
        raise what
    assert isinstance(what, Found)
    return what


def signalled(
    storage: str,
    trials: int,
    times: int,
    which: signal.Signals,
    pause: float = 0.3,
    seconds: float = 0.05,
    seed: int = 0,
) -> int:
    """Processes are hit at random moments, and others begin in their place; how many were hit. pause: the longest
    between two. seconds: of a trial."""
    rng = random.Random(seed)
    work = partial(search, storage, trials, seconds)
    processes = [begun(work) for _ in range(3)]
    hit = 0
    while hit < times and count_in(storage) < trials:
        time.sleep(rng.random() * pause)
        process = processes.pop(rng.randrange(len(processes)))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, which)
            hit += 1
        process.join(60)
        assert not process.is_alive(), "a signal was lost"
        processes.append(begun(work))
    for process in processes:
        process.terminate()
    ended(processes)
    return hit


def stopped_for_long(storage: str, trials: int, times: int) -> int:
    """Processes as of another machine are stopped for longer than they may be silent, and go on."""

    def work() -> None:
        with (
            mock.patch.object(owners, "BEAT_SECONDS", 0.2),
            mock.patch.object(owners, "SILENCE", 1.5),
            mock.patch.object(owners.platform, "node", lambda: f"machine {os.getpid()}"),
        ):
            search(storage, trials, 0.4)

    processes = [begun(work) for _ in range(2)]
    for index in range(times):
        time.sleep(1.0)
        process = processes[index % 2]
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(3.0)
            os.kill(process.pid, signal.SIGCONT)
    ended(processes)
    return times


def full_disk(storage: str, trials: int, times: int) -> int:
    """Files may not grow beyond some size, a little larger each time."""

    def work(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        search(storage, trials)

    for index in range(times):
        ended([begun(partial(work, 100_000 + 30_000 * index)) for _ in range(2)])
    return times


def small_disk(name: str, trials: int, times: int, first: int, more: int) -> tuple[int, Found]:
    """The storage lies on a disk that fills up: of `first` KiB, and a little larger each time. Only root may mount."""
    with tempfile.TemporaryDirectory(prefix="pxp-faults-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={first}k", "pxp", folder], check=True)
        try:
            storage = f"{folder}/{name}"
            for index in range(times):
                subprocess.run(["mount", "-o", f"remount,size={first + more * index}k", folder], check=True)
                ended([begun(partial(search, storage, trials)) for _ in range(2)])
            subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
            return times, finish(storage, trials)
        finally:
            subprocess.run(["umount", folder], check=True)


def read_only(storage: str, trials: int, times: int) -> int:
    """The folder belongs to somebody else."""
    ended([begun(partial(search, storage, trials // 2))])
    path = Path(storage)
    before = path.read_bytes()

    def work() -> None:
        os.chmod(path.parent, 0o755)
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            check_storage(storage)
        except UserError:
            return
        os._exit(3)  # it should have been refused

    mode = path.stat().st_mode
    os.chmod(path, 0o444)
    for _ in range(times):
        process = begun(work)
        ended([process])
        assert process.exitcode == 0
    os.chmod(path, mode)
    assert path.read_bytes() == before
    return times


def locked(storage: str, trials: int, times: int, seconds: float) -> int:
    """Another program locks the database for a while."""
    ended([begun(partial(search, storage, trials // 2))])
    code = "import sys, sqlite3; c = sqlite3.connect(sys.argv[1], isolation_level=None)"
    code += "; c.execute('BEGIN IMMEDIATE'); print(flush=True); input(); c.execute('ROLLBACK')"
    for _ in range(times):
        command = [sys.executable, "-c", code, storage]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            other.stdout.readline()
            processes = [begun(partial(search, storage, trials)) for _ in range(2)]
            time.sleep(seconds)
            other.communicate("\n")
        ended(processes)
    return times


def watched(storage: str, trials: int, readers: int) -> int:
    """Others read the study all the time, as dashboards do."""

    def read() -> None:
        study = optuna.load_study(study_name=NAME, storage=open_storage(storage, must_exist=True))
        while True:
            study.get_trials()
            time.sleep(0.05)

    ended([begun(partial(search, storage, 1))])
    reading = [begun(read) for _ in range(readers)]
    ended([begun(partial(search, storage, trials)) for _ in range(4)], 1200)
    for process in reading:
        process.terminate()
    ended(reading)
    return readers


def clock_set_back(storage: str, trials: int, times: int) -> int:
    """The time of day goes back by a day, as far as Optuna and we ask for it."""
    import datetime

    from optuna.storages._rdb import storage as relational

    class Earlier(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return datetime.datetime.now(tz) - datetime.timedelta(days=1)

    def work() -> None:
        real = time.time
        with (
            mock.patch.object(time, "time", lambda: real() - 86400),
            mock.patch.object(relational, "datetime", Earlier),
        ):
            search(storage, trials, 0.05)

    processes = [begun(partial(search, storage, trials, 0.05))]
    processes += [begun(work) for _ in range(times)]
    ended(processes)
    return times


def servers() -> dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]:
    """What begins each kind of database server that is installed."""
    found: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {}
    if postgresql_folder() is not None:
        found["postgresql"] = postgresql
    if mariadb_program() is not None:
        found["mariadb"] = mariadb
    return found


def restarted_server(begin: Callable[[], contextlib.AbstractContextManager[Any]], times: int) -> tuple[int, Found]:
    """A database server is stopped and started while processes run a study; they do not end by that."""
    trials = 20 + 20 * times
    with begin() as server:
        processes = [begun(partial(search, server.url, trials, 0.05), loud=True) for _ in range(2)]
        for _ in range(times):
            some_more(server.url)
            server.restart()
        ended(processes)
        assert all(process.exitcode == 0 for process in processes), "one has ended"
        return times, look(server.url, trials)


def restarted_proxy(times: int) -> tuple[int, Found]:
    """The proxy is stopped and started while processes run a study; they do not end by that."""
    trials, processes = 20 + 20 * times, list[BaseProcess]()
    with tempfile.TemporaryDirectory() as folder:
        storage, port = f"{folder}/a.db", free_port()
        for _ in range(times):
            with proxy(storage, port) as url:
                processes = processes or [begun(partial(search, url, trials, 0.05), loud=True) for _ in range(2)]
                some_more(url)
        with proxy(storage, port) as url:
            ended(processes)
            assert all(process.exitcode == 0 for process in processes), "one has ended"
            return times, look(url, trials)


def faults(short: bool = False) -> dict[str, Callable[[], tuple[int, Found]]]:
    """By its name what injects a fault, and says how often and what was found."""
    kills, trials = (6, 30) if short else (50, 300)

    disk = partial(full_disk, times=2 if short else 10)

    def in_folder(inject: Callable[[str, int], int], count: int = trials, name: str = "a.db") -> tuple[int, Found]:
        with tempfile.TemporaryDirectory(prefix="pxp-faults-") as folder:
            storage = f"{folder}/{name}"
            return inject(storage, count), finish(storage, count)

    def on_server(
        begin: Callable[[], contextlib.AbstractContextManager[Any]], which: signal.Signals
    ) -> tuple[int, Found]:
        with begin() as server:
            return signalled(server.url, trials, kills, which), finish(server.url, trials)

    def on_proxy() -> tuple[int, Found]:
        with tempfile.TemporaryDirectory() as folder, proxy(f"{folder}/a.db") as url:
            return signalled(url, trials, kills, signal.SIGKILL, pause=1.0), finish(url, trials)

    kill, term = (partial(signalled, times=kills, which=which) for which in (signal.SIGKILL, signal.SIGTERM))
    found: dict[str, Callable[[], tuple[int, Found]]] = {
        "sqlite-sigkill": partial(in_folder, kill),
        "sqlite-sigterm": partial(in_folder, term),
        "sigterm-series": partial(
            in_folder, partial(signalled, times=3 * kills, which=signal.SIGTERM, pause=0.1, seconds=0.01), 4 * trials
        ),
        "journal-sigkill": partial(in_folder, kill, 2 * trials, "a.journal"),
        "stopped": partial(in_folder, partial(stopped_for_long, times=1 if short else 6), 20),
        "full-disk": partial(in_folder, disk, 40),
        "full-disk-journal": partial(
            in_folder, partial(full_disk, times=2 if short else 10), 400 - 360 * short, "a.journal"
        ),
        "small-disk": partial(small_disk, "a.db", 40, 10, 40, 40),
        "small-disk-journal": partial(small_disk, "a.journal", 400, 10, 40, 40),
        "read-only": partial(in_folder, partial(read_only, times=1), 20),
        "locked": partial(in_folder, partial(locked, times=1, seconds=1 if short else 60), 20),
        "watched": partial(in_folder, partial(watched, readers=2), 40 if short else 1000),
        "clock": partial(in_folder, partial(clock_set_back, times=1 if short else 3), 40),
    }
    for name, begin in servers().items():
        found[f"{name}-sigkill"] = partial(on_server, begin, signal.SIGKILL)
        found[f"{name}-sigterm"] = partial(on_server, begin, signal.SIGTERM)
        found[f"{name}-restarted"] = partial(restarted_server, begin, 1 if short else 5)
    found["proxy-sigkill"] = on_proxy
    found["proxy-restarted"] = partial(restarted_proxy, 1 if short else 5)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", help="their names; all by default")
    parser.add_argument("--short", action="store_true", help="as in the tests")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warm()
    print(f"{'fault':<22} {'times':>5} {'lost':>5} {'doubled':>7} {'over':>5} {'seconds':>8}", flush=True)
    for name, inject in faults(arguments.short).items():
        if arguments.faults and name not in arguments.faults:
            continue
        started = time.perf_counter()
        times, found = inject()
        seconds = time.perf_counter() - started
        print(f"{name:<22} {times:>5} {found.lost:>5} {found.doubled:>7} {found.over:>5} {seconds:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
