"""Servers for tests and measurements, on this machine only: PostgreSQL, MariaDB, Optuna's proxy before a storage."""

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

    def restart(self) -> None:
        """Ends all connections, and is there again a moment later."""
        self.control("restart", "-m", "fast")

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


def mariadb_program() -> str | None:
    """MariaDB's server: on the path, or where Debian puts it; None where it is not installed."""
    return shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass
class MariaDB:
    """As `Postgres`, but without tables of its own, and so without users: it takes any password."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mysql://pxp:s3cret@127.0.0.1:{self.port}/pxp"

    def start(self) -> None:
        options = ["--no-defaults", "--skip-grant-tables", "--bind-address=127.0.0.1", f"--port={self.port}"]
        options += ["--user=root"] if os.getuid() == 0 else []
        places = [f"--datadir={self.folder}/data", f"--socket={self.folder}/s", f"--pid-file={self.folder}/pid"]
        quick = ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"]
        (self.folder / "init.sql").write_text("CREATE DATABASE IF NOT EXISTS pxp;")
        command = [str(mariadb_program()), *options, *places, *quick, f"--init-file={self.folder}/init.sql"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        _wait_for(self.port, self.process)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    def restart(self) -> None:
        """Ends all connections, and is there again a moment later."""
        self.stop()
        self.start()


@contextlib.contextmanager
def mariadb() -> Iterator[MariaDB]:
    """A server that is there within the block."""
    with tempfile.TemporaryDirectory(prefix="pxp-mariadb-") as name:
        server = MariaDB(Path(name), free_port())
        (server.folder / "data").mkdir()
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until a process listens, or has ended."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)


@contextlib.contextmanager
def proxy(storage: str, port: int | None = None) -> Iterator[str]:
    """The URL of Optuna's proxy before a storage, within the block."""
    port = port or free_port()
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROXY, storage, str(port)]) as process:
        try:
            _wait_for(port, process)
            yield f"grpc://127.0.0.1:{port}"
        finally:
            process.terminate()
