"""Rows of a SQL query: values, what decides the fingerprint, and passwords that appear nowhere."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    EmptyDataset,
    MissingExtra,
    MissingFile,
    StepOutputTypeError,
)
from datadreamer_like.graph import DataDreamer
from datadreamer_like.steps import SQLDataSource

COUNT = 2_345
PASSWORD = "s3cret-pa55word"


@pytest.fixture
def url(tmp_path: Path) -> str:
    with closing(sqlite3.connect(tmp_path / "rows.db")) as connection, connection:
        connection.execute("CREATE TABLE t (id INTEGER, body TEXT, raw BLOB, score REAL)")
        rows = [(n, None if n % 7 == 0 else f"text {n}", b"\0\1", n / 4) for n in range(COUNT)]
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
    return f"sqlite:///{tmp_path / 'rows.db'}"


def test_all_rows_come_in_the_query_s_order(session: DataDreamer, url: str) -> None:
    rows = list(SQLDataSource("Rows", "SELECT * FROM t ORDER BY id DESC", url).output)
    assert [row["id"] for row in rows] == list(range(COUNT))[::-1]
    assert rows[-2] == {"id": 1, "body": "text 1", "raw": b"\0\1", "score": 0.25}
    assert rows[-1]["body"] is None


def test_parameters_and_engines(session: DataDreamer, url: str) -> None:
    query = "SELECT id FROM t WHERE id > :low AND id < :high"
    assert list(SQLDataSource("Some", query, url, {"low": 3, "high": 6}).output["id"]) == [4, 5]
    engine = sqlalchemy.create_engine(url)
    plain = "SELECT id, ':low is no placeholder, nor 10%' AS note FROM t WHERE id < 1"
    (row,) = SQLDataSource("Plain", plain, engine).output
    assert row == {"id": 0, "note": ":low is no placeholder, nor 10%"}
    engine.dispose()


def test_a_changed_query_parameter_file_or_version_reads_again(tmp_path: Path, url: str) -> None:
    def fingerprint(query: str = "SELECT id FROM t WHERE id < :n", n: int = 5, **more: Any) -> str:
        return SQLDataSource("Rows", query, url, {"n": n}, **more).fingerprint

    with DataDreamer(":memory:", verbose=False):
        first = fingerprint()
        assert fingerprint() == first
        others = {fingerprint(n=6), fingerprint(version="tuesday"), fingerprint("SELECT id FROM t WHERE id <= :n")}
        with closing(sqlite3.connect(tmp_path / "rows.db")) as connection, connection:
            connection.execute("DELETE FROM t WHERE id = 2")
        others.add(fingerprint())
        assert len({first, *others}) == 5


def test_a_database_s_password_is_in_no_message_file_or_fingerprint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite stands in for a server whose driver quotes the URL in its error.
    engine = sqlalchemy.create_engine("sqlite://")

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def refuse(*_: Any) -> None:
        raise sqlite3.OperationalError(f"no route to postgresql://ann:{PASSWORD}@db/x, password={PASSWORD}")

    monkeypatch.setattr(engine, "url", sqlalchemy.make_url(f"postgresql://ann:{PASSWORD}@db/x?password={PASSWORD}"))
    caplog.set_level(logging.DEBUG)
    with DataDreamer(tmp_path / "session") as session, pytest.raises(DataError) as raised:
        SQLDataSource("Rows", "SELECT 1", engine)
    assert "no route to" in str(raised.value)
    assert PASSWORD not in f"{raised.value}{raised.value.__context__}{raised.value.__cause__}{caplog.text}"
    files = [path for path in session.folder.rglob("*") if path.is_file()]
    assert not any(PASSWORD.encode() in path.read_bytes() for path in files)

    with DataDreamer(tmp_path / "other", verbose=False), pytest.raises(DefinitionError) as wrong:
        SQLDataSource("Rows", "SELECT 1", f"no url: {PASSWORD}")
    assert PASSWORD not in f"{wrong.value}"


def test_user_and_password_do_not_decide_and_are_not_pickled() -> None:
    def source(user: str) -> SQLDataSource:
        engine = sqlalchemy.create_engine("sqlite://")
        engine.url = sqlalchemy.make_url(f"postgresql://{user}@db/x")  # a real one needs a driver
        return SQLDataSource("Rows", "SELECT 1", engine)  # outside a session nothing runs

    one, other = source("ann:old"), source(f"bob:{PASSWORD}")
    assert one.fingerprint == other.fingerprint
    assert PASSWORD not in repr(other.__getstate__())


@pytest.mark.parametrize(
    ("query", "database", "error", "says"),
    [
        ("SELEC", None, DataError, "syntax error"),
        ("SELECT * FROM nowhere", None, DataError, "no such table: nowhere"),
        ("SELECT id, score AS id FROM t", None, DataError, 'two columns "id"'),
        (
            "SELECT 1 AS a, 'x' AS b UNION SELECT 2, 3",
            None,
            StepOutputTypeError,
            r'column "b" mixes int and str\. .* In the query: SELECT CAST\("b" AS TEXT\)',
        ),
        ("CREATE TABLE more (a)", None, DataError, "returns no rows. Give a SELECT"),
        ("SELECT * FROM t WHERE id < 0", None, EmptyDataset, "its query finds none"),
        (" ", None, DefinitionError, "query is empty"),
        ("SELECT 1", "sqlite:///missing/rows.db", MissingFile, "no file missing"),
        ("SELECT 1", "nosuch://host/name", DefinitionError, "no such backend"),
        ("SELECT 1", "postgresql+psycopg://host/name", MissingExtra, "pip install psycopg"),
        ("SELECT 1", 7, ArgumentTypeError, "database is int"),
    ],
)
def test_bad_queries_and_databases_are_named(
    session: DataDreamer, url: str, query: str, database: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        SQLDataSource("Rows", query, url if database is None else database)


def test_a_missing_sqlite_file_is_not_created(session: DataDreamer, tmp_path: Path, url: str) -> None:
    with pytest.raises(MissingFile, match=r'Did you mean "rows\.db"'):
        SQLDataSource("Rows", "SELECT 1", f"sqlite:///{tmp_path / 'row.db'}")
    assert not (tmp_path / "row.db").exists()
