"""The database that keeps studies: SQLite by default, opened so that several processes can share it."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import Engine

SQLITE = "sqlite:///"
BUSY_SECONDS = 60
"""How long a process waits for another one that is writing."""


def storage_url(storage: str) -> str:
    """The URL of a storage given as a URL or as the path of an SQLite file."""
    url = storage if "://" in storage else SQLITE + storage
    return url.replace("sqlite+pysqlite:", "sqlite:", 1)  # the same driver, spelled out


def database_file(storage: str) -> Path | None:
    """The SQLite file of a storage, or None where it is no file."""
    url = storage_url(storage)
    if not url.startswith(SQLITE) or url in (SQLITE, SQLITE + ":memory:"):
        return None
    return Path(url[len(SQLITE) :].partition("?")[0])


@contextlib.contextmanager
def alone(storage: str, tell: Callable[[], object] | None = None) -> Iterator[None]:
    """Waits until no other process is in such a block with the same database file; may be nested.

    tell: called before it waits.

    For what takes several transactions: to make the tables or a study, to add to its queue, to end it. The lock is a
    file beside the database, `.NAME.lock`. Of a database that is no file, processes do not wait for each other.
    """
    from filelock import FileLock, Timeout

    path = database_file(storage)
    file = None if path is None else path.resolve().with_name(f".{path.name}.lock")
    try:
        if file is not None:
            file.touch()
    except OSError:  # where no file can be made, the database says so itself; a lock would wait for ever
        file = None
    if file is None:
        yield
        return
    lock = FileLock(file, is_singleton=True)
    try:
        lock.acquire(timeout=0 if tell else -1)
    except Timeout:
        assert tell is not None
        tell()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_storage(storage: str, *, must_exist: bool = False) -> None:
    """Refuse what cannot hold studies, before anything is created. Reads only.

    A new or empty SQLite file, or one that Optuna made, is fine. Of what is no SQLite file the URL and the driver are
    checked here, all else when it is opened.

    Raises:
        UserError: another kind of file, a database of something else, a missing or unwritable folder or file;
            with `must_exist`, also a file that is not there.
    """
    path = database_file(storage)
    if path is None:
        _check_driver(storage)
        return
    if "?" in storage and "://" not in storage:  # in a URL it begins the options
        raise UserError(f"{storage} cannot be the name of a database file: give --storage a path without ?")
    if not path.exists():
        if must_exist:
            raise UserError(f"no database {path}: give the one a study was run with by --storage")
        if not path.parent.is_dir():
            raise UserError(f"cannot create {path}: there is no folder {path.parent}")
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"cannot create {path}: the folder {path.parent} is not writable")
        return
    if not path.is_file():
        raise UserError(f"{path} is not a file: give --storage the path of a database file")
    if not os.access(path, os.R_OK | os.W_OK):
        raise UserError(f"{path} is not readable and writable: give --storage another path")
    _check_tables(path)


def _check_driver(storage: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    if storage_url(storage).startswith("sqlite:"):
        raise UserError(f"{storage or '--storage'} names no file, and what is in memory is lost: give --storage a file")
    try:
        make_url(storage).get_dialect().import_dbapi()
    except ImportError as error:
        raise UserError(f"{shown(storage)}: install the database's Python driver ({error})") from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UserError(
            f"{shown(storage)} is no URL of a database that SQLAlchemy knows ({error}): give another --storage"
        ) from error


def shown(storage: str) -> str:
    """A storage as messages name it: a password in a URL stays out of them."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", storage)


def _check_tables(path: Path) -> None:
    # Only ever through SQLite: to close a file that was opened in another way would drop the locks that this
    # process may hold on it (POSIX), and another process could then damage the database.
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        if "not a database" in str(error):
            raise UserError(f"{path} is not an SQLite database, left as it is: give --storage another path") from error
        if "locked" in str(error):
            raise UserError(f"{path} is locked by another program: close that, or give another --storage") from error
        raise UserError(f"{path} is a damaged database ({error}): give --storage another path") from error
    if tables and not {"studies", "trials", "version_info"} <= tables:
        raise UserError(f"{path} is a database of something else, left as it is: give --storage another path")


def _set_pragmas(connection: sqlite3.Connection, _: Any) -> None:
    """What every connection to an SQLite file gets, as soon as SQLAlchemy's pool opens it."""
    cursor = connection.cursor()
    # The timeout first: switching to WAL takes a lock as well.
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    # WAL: readers and the writer do not block each other. Once set it stays with the file; the switch itself
    # fails at once, whatever the timeout, while another process has the file open to do the same.
    for attempt in range(BUSY_SECONDS * 10):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            if attempt == BUSY_SECONDS * 10 - 1:
                raise
            time.sleep(0.1)
    cursor.execute("PRAGMA synchronous = NORMAL")  # in WAL mode safe against a killed process
    cursor.close()


def open_storage(storage: str, *, must_exist: bool = False) -> RDBStorage:
    """Optuna's storage; an SQLite file is created where there is none, and set to WAL with a busy timeout.

    Raises:
        UserError: `check_storage` refuses it, its driver is missing, its tables are of another Optuna, or it is a
            malformed URL.
    """
    from optuna.storages import RDBStorage

    check_storage(storage, must_exist=must_exist)
    url = storage_url(storage)
    kwargs: dict[str, Any] = {}
    if url.startswith("sqlite:"):
        kwargs["pool_events"] = [(_set_pragmas, "connect")]
    with storage_errors(storage), alone(storage):
        try:
            opened = RDBStorage(url, engine_kwargs=kwargs)
        except RuntimeError as error:  # Optuna's check of its tables' version
            raise UserError(f"{shown(storage)}: {' '.join(str(error).split())}") from error
        if url.startswith("sqlite:"):
            _lock_at_begin(opened.engine)
        return opened


def _lock_at_begin(engine: Engine) -> None:
    """Every transaction takes the write lock when it begins.

    Python's sqlite3 begins a transaction at the first write. Optuna reads a trial's state before it takes the
    trial, so without this two processes may both find it waiting and both run it.
    """
    from sqlalchemy import event

    def leave_transactions_to_us(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None

    event.listen(engine, "connect", leave_transactions_to_us)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # connections from before have not been told


@contextlib.contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Turns what the database raises in this block into one line.

    Raises:
        UserError: whatever SQLAlchemy or Optuna's storage reports: full disk, read-only file, lost server.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        cause = getattr(cause, "orig", None) or cause
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UserError(f"the storage {shown(storage)} failed ({line}): is it writable, and a database?") from error
