"""The storage that keeps studies: an SQLite file by default, opened so that several processes can share it; a journal
file, a database server, or Optuna's proxy of one, which machines can share."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .lasting import said
from .locks import alone
from .signals import whole
from .urls import (
    DRIVERS,
    database_file,
    journal_file,
    proxy_address,
    shown,
    storage_file,
    storage_url,
    with_driver,
)

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage
    from sqlalchemy.engine import Engine

__all__ = ["alone", "check_storage", "database_file", "open_storage", "shown", "storage_errors", "storage_url"]

BUSY_SECONDS = 120
"""How long a process waits for another one that is writing."""
PROXY_SECONDS = 10
"""How long it waits for Optuna's proxy to answer at first."""
TABLES = {
    *("studies", "study_directions", "study_user_attributes", "study_system_attributes"),
    *("trials", "trial_params", "trial_values", "trial_intermediate_values", "trial_heartbeats"),
    *("trial_user_attributes", "trial_system_attributes", "version_info", "alembic_version"),
}
"""Optuna's."""


def check_storage(storage: str, *, must_exist: bool = False) -> None:
    """Refuse what cannot hold studies, before anything is created. Reads only.

    A new or empty file, or one that Optuna made, is fine. Of what is no file the URL and the driver are
    checked here, all else when it is opened.

    Raises:
        UserError: another kind of file, a database of something else, a missing or unwritable folder or file;
            with `must_exist`, also a file that is not there.
    """
    path = storage_file(storage)
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
    (_check_tables if journal_file(storage) is None else _check_journal)(path)


def _check_driver(storage: str) -> None:
    if _is_proxy(storage):
        try:
            import google.protobuf  # noqa: F401
            import grpc  # noqa: F401
        except ImportError as error:
            raise UserError(f"{storage}: install pxp-optimize[grpc] ({error})") from error
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    if storage_url(storage).startswith("sqlite:"):
        raise UserError(f"{storage or '--storage'} names no file, and what is in memory is lost: give --storage a file")
    try:
        make_url(with_driver(storage)).get_dialect().import_dbapi()
    except ImportError as error:
        kind = storage.partition(":")[0].partition("+")[0].replace("postgres", "postgresql").replace("sqlql", "sql")
        what = f"pxp-optimize[{kind}]" if kind in DRIVERS else "the database's Python driver"
        raise UserError(f"{shown(storage)}: install {what} ({error})") from None
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UserError(
            f"{shown(storage)} is no URL of a database that SQLAlchemy knows ({shown(str(error))}): "
            "give another --storage"
        ) from None  # what SQLAlchemy says may hold the whole URL


def _is_proxy(storage: str) -> bool:
    try:
        return proxy_address(storage) is not None
    except ValueError as error:
        raise UserError(f"{shown(storage)} is {error}: give another --storage") from None


def _check_journal(path: Path) -> None:
    """Optuna's journal is a JSON object in each line, with a number `op_code`."""
    try:
        with path.open("rb") as file:
            first = file.readline(1 << 20)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        ours = not first or isinstance(json.loads(first)["op_code"], int)
    except (ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(f"{path} is not a journal of Optuna's, left as it is: give --storage another path")


def _check_tables(path: Path) -> None:
    # Only ever through SQLite: to close a file that was opened in another way would drop the locks that this
    # process may hold on it (POSIX), and another process could then damage the database.
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            # it has some of them and nothing in them if the disk was full when they were made
            begun = tables <= TABLES and not any(
                database.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in tables
            )
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if "not a database" in str(error):
            raise UserError(f"{path} is not an SQLite database, left as it is: give --storage another path") from error
        if "locked" in str(error):
            raise UserError(f"{path} is locked by another program: close that, or give another --storage") from error
        raise UserError(f"{path} is a damaged database ({error}): give --storage another path") from error
    if not begun and not {"studies", "trials", "version_info"} <= tables:
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


def open_storage(storage: str, *, must_exist: bool = False) -> BaseStorage:
    """Optuna's storage; a file is created where there is none, an SQLite file set to WAL with a busy timeout.

    Raises:
        UserError: `check_storage` refuses it, its driver is missing, its tables are of another Optuna, it is a
            malformed URL, or it does not answer.
    """
    check_storage(storage, must_exist=must_exist)
    address, journal = proxy_address(storage), journal_file(storage)
    with storage_errors(storage):
        if address is not None:
            return _open_proxy(storage, *address)
        with alone(storage):
            return _open_database(storage) if journal is None else _open_journal(journal)


def _open_database(storage: str) -> RDBStorage:
    from optuna.storages import RDBStorage

    url = with_driver(storage_url(storage))
    file = url.startswith("sqlite:")
    # a server's connections are tried before they are used: it may have been started anew since
    kwargs: dict[str, Any] = {"pool_events": [(_set_pragmas, "connect")]} if file else {"pool_pre_ping": True}
    try:
        with whole() if file else contextlib.nullcontext():  # a server may keep it waiting
            opened = RDBStorage(url, engine_kwargs=kwargs)
            if file:
                _lock_at_begin(opened.engine)
    except RuntimeError as error:  # Optuna's check of its tables' version
        raise UserError(f"{shown(storage)}: {' '.join(str(error).split())}") from error
    _opened.add(opened)
    return opened


_opened: weakref.WeakSet[RDBStorage] = weakref.WeakSet()


def disconnect(storage: str) -> None:
    """Closes all connections of this process to databases, so that a fork has none of them; the next use opens one.

    SQLite would take the locks of its parent for its own, and then damage the file.

    Raises:
        UserError: the file is open all the same.
    """
    for opened in list(_opened):
        opened.remove_session()
        opened.engine.dispose()
    path, descriptors = database_file(storage), Path("/proc/self/fd")
    if path is None or not descriptors.is_dir():
        return
    for link in descriptors.iterdir():
        with contextlib.suppress(OSError):
            if link.resolve() == path.resolve():
                raise UserError(f"{path} is open elsewhere in this process: close it before you ask for workers")


def _open_proxy(storage: str, host: str, port: int) -> BaseStorage:
    import warnings

    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import GrpcStorageProxy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=host, port=port)
    try:
        proxy.wait_server_ready(timeout=PROXY_SECONDS)
    except ConnectionError:
        raise UserError(f"{storage} does not answer: is the proxy running there? (docs/scaling.md)") from None
    return proxy


def _open_journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from .journal import JournalLock

    try:
        lock: Any = JournalLock(path)  # Optuna takes any that has its two methods
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is a damaged journal ({error}): give --storage another path") from error


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

    grpc = sys.modules.get("grpc")  # loaded, if anything of it can be raised
    lost = () if grpc is None else (grpc.RpcError,)
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, *lost) as error:
        raise UserError(
            f"the storage {shown(storage)} failed ({said(error)}): is it writable, and a database?"
        ) from error
    except OSError as error:
        if journal_file(storage) is None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise UserError(f"the storage {storage} failed ({error.strerror}): is there room for it?") from error
