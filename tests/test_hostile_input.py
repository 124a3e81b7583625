"""What a user supplies, changed at random: one clear error, no file changed, no code run; and what was found so."""

from __future__ import annotations

import sys
from pathlib import Path

import fuzz
import pytest
from pxp_optimize.optimize.config_file import read_config
from pxp_optimize.studies.errors import UserError
from pxp_optimize.studies.journal import cut_unfinished
from pxp_optimize.studies.storage import check_storage, open_storage, shown
from pxp_optimize.studies.urls import journal_file, proxy_address, storage_url

KINDS = ("composite", "space", "config", "rates", "checkpoint", "database", "journal", "images")


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_changed_at_random_is_taken_or_refused(kind):
    """In short; 10,000 cases a kind by `python benchmarks/fuzz.py`."""
    assert set(fuzz.KINDS) == set(KINDS)
    assert fuzz.fuzz(kind, 150) == []


def test_a_number_of_thousands_of_digits_is_one_line(tmp_path: Path):
    path = tmp_path / "a.toml"
    path.write_text("trials = " + "9" * 5000)
    with pytest.raises(UserError, match=r"is not TOML: [^\n]+$"):
        read_config(path)
    with pytest.raises(UserError, match=r"[^\n]+$"):
        fuzz.read_space(path, fuzz.NETWORK, True, mixed=False)


def test_names_of_tables_that_are_no_text_are_a_damaged_database(tmp_path: Path):
    path = tmp_path / "a.db"
    open_storage(str(path))
    from pxp_optimize.studies.storage import disconnect

    disconnect("")
    data = path.read_bytes().replace(b"study_user_attributes", b"study_user_attribut\xb5s")
    path.write_bytes(data)
    with pytest.raises(UserError, match="a damaged database"):
        check_storage(str(path))
    assert path.read_bytes() == data


def test_passwords_of_any_form_stay_out_of_messages():
    for url in (
        "postgresql://me:s3cret@host/db",
        "postgresql://me:s3c@ret/x@host/db",
        "postgresql://host/db?user=me&password=s3cret",
        "mysql+pymysql://me:s3cret@host:1/db?ssl_password=s3cret",
    ):
        assert not {"s3c", "ret"} & set(shown(url).replace("***", " ").replace("@", " ").split())
        assert "s3c" not in shown(url)
    with pytest.raises(UserError) as caught:
        check_storage("postgresql+none://me:s3cret@host:port/db")
    assert "s3cret" not in str(caught.value)


def test_what_names_say():
    assert storage_url("a.journal") == "journal:///a.journal"
    assert journal_file("journal:////shared/a") == Path("/shared/a")
    assert journal_file("a.db") is None
    assert proxy_address("grpc://host:13000") == ("host", 13000)
    assert proxy_address("a.db") is None
    for wrong in ("grpc://host", "grpc://host:port", "grpc://:1", "grpc://host:70000"):
        with pytest.raises(UserError, match=r"grpc://HOST:PORT"):
            check_storage(wrong)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    for name in ("psycopg2", "psycopg", "MySQLdb", "pymysql"):
        monkeypatch.setitem(sys.modules, name, None)
    for url, extra in (("postgresql+psycopg://host/db", "postgresql"), ("mysql+pymysql://host/db", "mysql")):
        with pytest.raises(UserError, match=rf"install pxp-optimize\[{extra}\]"):
            check_storage(url)


def test_what_is_no_journal_is_left_as_it_is(tmp_path: Path):
    path = tmp_path / "a.log"
    path.write_text("my diary\n")
    with pytest.raises(UserError, match="not a journal of Optuna's"):
        open_storage(str(path))
    assert path.read_text() == "my diary\n"


@pytest.mark.parametrize(("before", "after"), [(b"a\nb\n", b"a\nb\n"), (b"a\nbc", b"a\n"), (b"abc", b""), (b"", b"")])
def test_what_was_not_written_to_its_end_is_cut_off(tmp_path: Path, before: bytes, after: bytes):
    path = tmp_path / "a.journal"
    path.write_bytes(before)
    cut_unfinished(path)
    assert path.read_bytes() == after
    path.write_bytes(before + b"x" * 10_000)
    cut_unfinished(path)
    assert path.read_bytes() == before[: before.rfind(b"\n") + 1]
