"""Processes that wait for each other, where what they do to a storage takes several transactions."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .lasting import AWAY_SECONDS
from .signals import whole
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
    lock = _lock_of(storage)
    held = False
    try:
        while lock is not None and not held:  # a signal is heeded between two tries: what was taken is given back
            with whole():
                held = lock.take()
            if not held:
                if tell is not None:
                    tell()
                    tell = None
                time.sleep(PAUSE)
        yield
    finally:
        if lock is not None and held:
            with whole():
                lock.give_back()


class _Lock(Protocol):
    def take(self) -> bool:
        """Takes it, if it is free; or if there can be none, and what uses the storage will say why."""

    def give_back(self) -> None: ...


def _lock_of(storage: str) -> _Lock | None:
    path = storage_file(storage)
    if path is not None:
        return _FileLock(path.resolve().with_name(f".{path.name}.lock"))
    if storage_url(storage).partition(":")[0].partition("+")[0] in (*SERVER_LOCKS, "postgres"):
        return _ServerLock(with_driver(storage_url(storage)))
    return None


class _FileLock:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._makes = True

    def take(self) -> bool:
        from filelock import Timeout

        try:
            self._file.touch()
        except OSError:  # where no file can be made, the storage says so itself; a lock would wait for ever
            self._makes = False
            return True
        try:
            _file_lock(self._file, os.getpid()).acquire(timeout=0)
        except Timeout:
            return False
        return True

    def give_back(self) -> None:
        if self._makes:
            _file_lock(self._file, os.getpid()).release()


@functools.cache
def _file_lock(file: Path, process: int) -> Any:
    """One for all blocks, so that they can be nested; of each process its own."""
    from filelock import FileLock

    return FileLock(file)


@functools.cache
def _engine(url: str, process: int) -> Engine:
    """Of the connections that hold locks: of each process its own, which are not those of the studies."""
    from sqlalchemy import create_engine

    return create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True, pool_size=1)


_held: Counter[tuple[str, int]] = Counter()
"""How many blocks this process is in, by database and process: a fork is in none."""
_reached: set[str] = set()
"""Databases that were there: one that is away now may come back."""


class _ServerLock:
    def __init__(self, url: str) -> None:
        self._url = url
        self._key = url, os.getpid()
        self._connection: Connection | None = None
        self._away_since: float | None = None

    def take(self) -> bool:
        if not _held[self._key] and not self._took():
            return False
        _held[self._key] += 1
        return True

    def _took(self) -> bool:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            if self._connection is None:
                self._connection = _engine(*self._key).connect()
                _reached.add(self._url)
                self._away_since = None
            return bool(_ask(self._connection, TRY))
        except (ImportError, SQLAlchemyError):
            self._close()
            now = time.monotonic()
            self._away_since = self._away_since or now
            return self._url not in _reached or now - self._away_since > AWAY_SECONDS

    def give_back(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        _held[self._key] -= 1
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):  # a connection that is lost has given it back
                _ask(self._connection, FREE)
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _ask(connection: Connection, which: int) -> Any:
    from sqlalchemy import text

    question = SERVER_LOCKS[connection.dialect.name][which]
    values = {"key": zlib.crc32(NAME.encode()), "name": NAME}
    return connection.scalar(text(question), {name: of for name, of in values.items() if f":{name}" in question})
