"""Servers for tests and measurements, on this machine only: PostgreSQL, and Optuna's proxy before a storage."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROXY = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
from pxp_optimize.studies.storage import open_storage
run_grpc_proxy_server(get_storage(open_storage(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]))
"""


def postgresql_folder() -> Path | None:
    """Where PostgreSQL's programs are: on the path, or where Debian puts them; None where it is not installed."""
    found = shutil.which("pg_ctl")
    if found and shutil.which("initdb"):
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Postgres:
    """A server of its own: with its data in a folder, for local connections. url: with a password, which it does not
    ask for."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://pxp:s3cret@127.0.0.1:{self.port}/postgres"

    def control(self, *words: str) -> None:
        """Runs pg_ctl: "start", "restart", "stop"."""
        programs = postgresql_folder()
        assert programs is not None
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        _run(self.folder, programs / "pg_ctl", "-D", self.folder / "data", "-w", "-o", options, *words)


def _run(folder: Path, *words: str | Path) -> None:
    """As somebody else, if this is root: PostgreSQL refuses that."""
    owner = pwd.getpwuid(folder.stat().st_uid)
    user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    log = folder / "log"
    with log.open("ab") as out:
        subprocess.run([str(word) for word in words], check=True, stdout=out, stderr=out, cwd=folder, **user)


@contextlib.contextmanager
def postgresql() -> Iterator[Postgres]:
    """A server that is there within the block."""
    programs = postgresql_folder()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="pxp-postgres-"))
    try:
        if os.getuid() == 0:
            other = next((u for u in pwd.getpwall() if u.pw_name == "postgres"), pwd.getpwnam("nobody"))
            os.chown(folder, other.pw_uid, other.pw_gid)
        _run(folder, programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "pxp", "--no-sync")
        server = Postgres(folder, free_port())
        server.control("start")
        try:
            yield server
        finally:
            server.control("stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def proxy(storage: str, port: int | None = None) -> Iterator[str]:
    """The URL of Optuna's proxy before a storage, within the block."""
    port = port or free_port()
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROXY, storage, str(port)]) as process:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until and process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
            yield f"grpc://127.0.0.1:{port}"
        finally:
            process.terminate()
