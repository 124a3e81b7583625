"""Processes that wait for each other, where what they do to a storage takes several transactions."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .urls import storage_file, storage_url, with_driver

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

NAME = "pxp-optimize"
TRY, FREE = 0, 1
SERVER_LOCKS = {
    "postgresql": ("SELECT pg_try_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"),
    "mysql": ("SELECT GET_LOCK(CONCAT(DATABASE(), :name), 0)", "SELECT RELEASE_LOCK(CONCAT(DATABASE(), :name))"),
    "mariadb": ("SELECT GET_LOCK(CONCAT(DATABASE(), :name), 0)", "SELECT RELEASE_LOCK(CONCAT(DATABASE(), :name))"),
}
"""By the kind of server, what takes its lock, if it is free, and what gives it back. It is free again, too, once the
connection has ended, however that came about."""
PAUSE = 0.02
"""Seconds between two tries."""


@contextlib.contextmanager
def alone(storage: str, tell: Callable[[], object] | None = None) -> Iterator[None]:
    """Waits until no other process is in such a block with the same storage; may be nested.

    tell: called before it waits.

    For what takes several transactions: to make the tables or a study, to add to its queue, to end it. The lock of a
    file is another one beside it, `.NAME.lock`; PostgreSQL and MySQL have locks of their own. Behind other servers,
    and Optuna's proxy, processes do not wait for each other.
    """
    if storage_file(storage) is not None:
        with _file_lock(storage, tell):
            yield
    elif storage_url(storage).partition(":")[0].partition("+")[0] in (*SERVER_LOCKS, "postgres"):
        with _server_lock(with_driver(storage_url(storage)), tell):
            yield
    else:
        yield


@contextlib.contextmanager
def _file_lock(storage: str, tell: Callable[[], object] | None) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path = storage_file(storage)
    assert path is not None
    file = path.resolve().with_name(f".{path.name}.lock")
    try:
        file.touch()
    except OSError:  # where no file can be made, the storage says so itself; a lock would wait for ever
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


@functools.cache
def _engine(url: str, process: int) -> Engine:
    """Of the connections that hold locks: of each process its own, which are not those of the studies."""
    from sqlalchemy import create_engine

    return create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True, pool_size=1)


_held: dict[tuple[str, int], int] = {}
"""How many blocks this process is in, by database and process: a fork is in none."""


@contextlib.contextmanager
def _server_lock(url: str, tell: Callable[[], object] | None) -> Iterator[None]:
    key = url, os.getpid()
    if _held.get(key):
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        connection = _engine(*key).connect()
    except (ImportError, SQLAlchemyError):  # as of a file: whoever opens the database is told what is wrong
        yield
        return
    with connection:
        while not _ask(connection, TRY):
            if tell is not None:
                tell()
                tell = None
            time.sleep(PAUSE)
        _held[key] = 1
        try:
            yield
        finally:
            _held[key] = 0
            with contextlib.suppress(SQLAlchemyError):  # a connection that is lost has given it back
                _ask(connection, FREE)


def _ask(connection: Connection, which: int) -> Any:
    from sqlalchemy import text

    question = SERVER_LOCKS[connection.dialect.name][which]
    values = {"key": zlib.crc32(NAME.encode()), "name": NAME}
    return connection.scalar(text(question), {name: of for name, of in values.items() if f":{name}" in question})
