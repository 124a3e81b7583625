"""Storage: what is refused untouched, and how SQLite is set up."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from pxp_optimize.studies.errors import UserError
from pxp_optimize.studies.storage import (
    BUSY_SECONDS,
    alone,
    check_storage,
    database_file,
    disconnect,
    open_storage,
    shown,
    storage_errors,
    storage_url,
)


def test_a_path_is_an_sqlite_url():
    assert storage_url("runs/a.db") == "sqlite:///runs/a.db"
    assert storage_url("sqlite:///a.db") == "sqlite:///a.db"
    assert storage_url("postgresql://host/db") == "postgresql://host/db"
    assert database_file("/runs/a.db") == database_file("sqlite:////runs/a.db") == Path("/runs/a.db")
    assert database_file("sqlite:///:memory:") is None
    assert database_file("postgresql://host/db") is None


def test_every_connection_is_wal_with_a_busy_timeout(tmp_path: Path):
    storage = open_storage(str(tmp_path / "a.db"))
    optuna.create_study(storage=storage, study_name="one")
    for _ in range(3):
        storage.engine.dispose()  # so that the next connection is a new one
        with storage.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == BUSY_SECONDS * 1000
    with sqlite3.connect(tmp_path / "a.db") as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_studies_are_found_again(tmp_path: Path):
    path = str(tmp_path / "a.db")
    optuna.create_study(storage=open_storage(path), study_name="one")
    check_storage(path, must_exist=True)
    assert optuna.get_all_study_names(open_storage(path, must_exist=True)) == ["one"]


def test_an_empty_file_becomes_a_database(tmp_path: Path):
    path = tmp_path / "a.db"
    path.touch()
    optuna.create_study(storage=open_storage(str(path)), study_name="one")
    assert path.read_bytes().startswith(b"SQLite format 3")


def other_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE addresses (name TEXT)")
    database.close()


def damaged(path: Path) -> None:
    other_database(path)
    data = bytearray(path.read_bytes())
    data[100:2000] = b"\xff" * 1900
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("my thesis"), "not an SQLite database"),
        (lambda path: path.write_bytes(b"SQL"), "not an SQLite database"),
        (other_database, "a database of something else"),
        (damaged, "a damaged database"),
    ],
)
def test_what_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path, make, message):
    path = tmp_path / "precious"
    make(path)
    before = path.read_bytes()
    for act in (check_storage, open_storage):
        with pytest.raises(UserError, match=message):
            act(str(path))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]


def test_places_that_cannot_hold_a_database(tmp_path: Path):
    with pytest.raises(UserError, match="is not a file"):
        check_storage(str(tmp_path))
    with pytest.raises(UserError, match="there is no folder"):
        check_storage(str(tmp_path / "none" / "a.db"))
    with pytest.raises(UserError, match="no database"):
        check_storage(str(tmp_path / "a.db"), must_exist=True)
    check_storage(str(tmp_path / "a.db"))
    assert not list(tmp_path.iterdir())


def test_a_locked_database_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.db"
    other_database(path)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, timeout=0.1, **kwargs))
    with contextlib.closing(connect(path)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="is locked by another program"):
            check_storage(str(path))


def test_an_unknown_database_or_a_missing_driver_is_one_line():
    for url in ("nonsense://host/db", "postgresql+nodriver://host/db", "postgresql://host:port/db", "://"):
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            open_storage(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", ""])
def test_a_database_in_memory_is_refused(url: str):
    with pytest.raises(UserError, match="give --storage a file"):
        check_storage(url)


def test_passwords_stay_out_of_messages():
    url = "postgresql+nodriver://me:secret@host/db"
    assert shown(url) == "postgresql+nodriver://me:***@host/db"
    assert [shown(other) for other in ("a.db", "sqlite:///a.db", "mysql://host/db", "mysql://me@host:1/db")] == [
        *("a.db", "sqlite:///a.db", "mysql://host/db", "mysql://me@host:1/db")
    ]
    with pytest.raises(UserError, match=r"me:\*\*\*@host") as caught:
        check_storage(url)
    assert "secret" not in str(caught.value)


def test_processes_wait_for_each_other(tmp_path: Path):
    path = str(tmp_path / "a.db")
    code = "import sys; from pxp_optimize.studies.storage import alone\n"
    code += "with alone(sys.argv[1]): print('in', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        told: list[float] = []

        def tell() -> None:
            told.append(time.monotonic())
            assert other.stdin is not None
            other.stdin.write("\n")
            other.stdin.flush()

        with alone(path, tell), alone(path, tell):  # nested: it waits once
            assert len(told) == 1
            other.wait(timeout=60)
    for other in ("mysql://host/db", "sqlite:////proc/a.db", str(tmp_path / "none" / "a.db")):
        with alone(other):
            pass


def test_a_database_whose_tables_were_not_all_made_is_finished(tmp_path: Path):
    """The disk was full; with a row in it it is somebody else's."""
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE version_info (a)")
        database.execute("INSERT INTO version_info VALUES (1)")
        database.commit()
        with pytest.raises(UserError, match="a database of something else"):
            check_storage(str(path))
        database.execute("DROP TABLE version_info")
        database.execute("CREATE TABLE trial_heartbeats (a)")
        database.commit()
    optuna.create_study(storage=open_storage(str(path)), study_name="one")
    disconnect("")


def test_what_the_database_raises_is_one_line(tmp_path: Path):
    storage = open_storage(str(tmp_path / "a.db"))
    study = optuna.create_study(storage=storage, study_name="one")
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE study_user_attributes")
    with (
        pytest.raises(UserError, match=r"^the storage a\.db failed \(no such table[^\n]+$"),
        storage_errors("a.db"),
    ):
        study.set_user_attr("a", 1)


VISITOR = "import sys, sqlite3; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM studies'); c.close()"


def test_a_check_leaves_the_locks_of_this_process_alone(tmp_path: Path):
    """If it did not, the next process to leave would take itself for the last one and remove the log in use."""
    path = tmp_path / "a.db"
    storage = open_storage(str(path))
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("SELECT * FROM studies").fetchall()
        check_storage(str(path))
        open_storage(str(path))
        subprocess.run([sys.executable, "-c", VISITOR, str(path)], check=True)
        assert path.with_name("a.db-wal").exists()


WRITER = """
import sys, optuna
from pxp_optimize.studies.storage import open_storage
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(storage=open_storage(sys.argv[1]), study_name="shared", load_if_exists=True)
for _ in range(20):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 0.5)
"""


def test_processes_share_a_database(tmp_path: Path):
    path = str(tmp_path / "a.db")
    open_storage(path)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path]) for _ in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    study = optuna.load_study(study_name="shared", storage=open_storage(path))
    assert [trial.number for trial in study.trials] == list(range(60))
