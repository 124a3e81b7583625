"""What a storage's name says: which kind of storage it is, where it lies, and what of it must not be shown."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

SQLITE, JOURNAL, GRPC = "sqlite:///", "journal:///", "grpc://"
JOURNAL_ENDINGS = (".journal", ".log")
"""How the file of a journal may end, where it is given without `journal:///`."""
DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("MySQLdb", "pymysql")}
"""Of databases whose extra installs another driver than SQLAlchemy takes by itself: that one, and the extra's."""


def storage_url(storage: str) -> str:
    """The URL of a storage given as a URL or as the path of an SQLite file or of a journal."""
    if "://" in storage:
        return storage.replace("sqlite+pysqlite:", "sqlite:", 1)  # the same driver, spelled out
    return (JOURNAL if storage.endswith(JOURNAL_ENDINGS) else SQLITE) + storage


def database_file(storage: str) -> Path | None:
    """The SQLite file of a storage, or None where it is no file."""
    url = storage_url(storage)
    if not url.startswith(SQLITE) or url in (SQLITE, SQLITE + ":memory:"):
        return None
    return Path(url[len(SQLITE) :].partition("?")[0])


def journal_file(storage: str) -> Path | None:
    """The file of a storage that is a journal, else None."""
    url = storage_url(storage)
    return Path(url[len(JOURNAL) :]) if url.startswith(JOURNAL) else None


def storage_file(storage: str) -> Path | None:
    """The file that a storage is, or None where it is none."""
    return database_file(storage) or journal_file(storage)


def proxy_address(storage: str) -> tuple[str, int] | None:
    """Host and port of a storage that is Optuna's gRPC proxy, else None.

    Raises:
        ValueError: no host, or no port.
    """
    url = storage_url(storage)
    if not url.startswith(GRPC):
        return None
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:/@\s]+):(\d{1,5})/?", url[len(GRPC) :])
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"not {GRPC}HOST:PORT")
    return match[1], int(match[2])


def with_driver(url: str) -> str:
    """A database's URL, with the driver of our extra where it names none and SQLAlchemy's own is not installed."""
    scheme, separator, rest = url.partition("://")
    dialect = "postgresql" if scheme == "postgres" else scheme
    own, ours = DRIVERS.get(dialect, ("", ""))
    if not own or importlib.util.find_spec(own) or not importlib.util.find_spec(ours):
        return dialect + separator + rest
    return f"{dialect}+{ours}{separator}{rest}"


def shown(storage: str) -> str:
    """A storage as messages name it: a password in a URL stays out of them. Also of a text that holds such a URL."""
    masked = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", storage)
    return re.sub(r"([?&]\w*(?:password|passwd|pwd|secret)\w*=)[^&\s]*", r"\1***", masked)
