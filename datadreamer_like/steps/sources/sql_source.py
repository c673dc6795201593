"""The source for rows of databases, by a SQL query."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    MissingExtra,
    MissingFile,
    StepOutputTypeError,
    did_you_mean,
    require_extra,
)
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.fingerprint import ByContent
from datadreamer_like.graph.results import Kept
from datadreamer_like.graph.rows import BATCH_SIZE, Batch, Rows
from datadreamer_like.models.llms.secrets import Secrets, secrets_in

from ..base.lazy_rows import LazyRowBatches
from ..base.options import NodeOptions, takes_node_options
from .data_source import Source

if TYPE_CHECKING:
    from sqlalchemy import CursorResult, Engine
    from sqlalchemy.exc import SQLAlchemyError


class SQLDataSource(Source):
    """Rows of a SQL query, read in batches through SQLAlchemy.

    The fingerprint contains the query, its parameters, and the content of the file for SQLite. For other databases it
    contains backend, host, port and name of the database, never user, password or options; changes of the tables are
    not detected there: give another `version`, such as the date of the snapshot, or `force=True`, to read them again.

    Args:
        query: The query, in the database's dialect.
        database: The database's URL, such as `sqlite:///tickets.db` or `postgresql+psycopg://user@host/name`, or a
            SQLAlchemy engine. Its driver must be installed. User and password are in no log, card or fingerprint.
        params: Values of the query's `:name` placeholders.
        version: Anything that says which state of the database is read; another value reads it again.
        **options: See `Step`.

    Raises:
        MissingExtra: SQLAlchemy or the database's driver is not installed.
        DefinitionError: The URL is not one, or the query is empty.
        MissingFile: The file of a SQLite database does not exist.
        DataError: The database cannot be reached, or rejects the query; or two columns have the same name.
        EmptyDataset: There are no rows.

    Example:
        >>> tickets = SQLDataSource(  # doctest: +SKIP
        ...     "Tickets", "SELECT body FROM tickets WHERE lang = :lang", "sqlite:///tickets.db", {"lang": "en"}
        ... )
    """

    @takes_node_options
    def __init__(
        self,
        name: str,
        query: str,
        database: str | Engine,
        params: Mapping[str, Any] | None = None,
        version: Any = None,
        **options: Unpack[NodeOptions],
    ) -> None:
        require_extra("sql", "sqlalchemy", what="SQLDataSource")
        if not isinstance(query, str):
            raise ArgumentTypeError(f'"{name}": query is {type(query).__name__}; expected a text.')
        if not query.strip():
            raise DefinitionError(f'"{name}": query is empty. Give one, such as "SELECT * FROM tickets".')
        if params is not None and not (isinstance(params, Mapping) and all(isinstance(key, str) for key in params)):
            raise ArgumentTypeError(f'"{name}": params is {type(params).__name__}; expected a dictionary by name.')
        self.query = query
        self.params = None if params is None else dict(params)
        self.of_version = version
        self._engine: Engine | None = _engine(name, database)
        self._file = _file(name, self._engine)
        super().__init__(name, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_engine": None}  # it holds the password

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        with closing(sqlite3.connect(folder / "texts.db")) as connection, connection:
            connection.execute("CREATE TABLE texts (text TEXT)")
            connection.executemany("INSERT INTO texts VALUES (?)", [("one",), ("two",)])
        return {"query": "SELECT text FROM texts", "database": f"sqlite:///{folder / 'texts.db'}"}

    def fingerprint_values(self) -> dict[str, Any]:
        """Returns the query, its parameters, the version, and the content of a file or the database's address."""
        assert self._engine is not None
        url = self._engine.url
        where: Any = (url.get_backend_name(), url.host, url.port, url.database)
        if self._file is not None:
            log = Path(f"{self._file}-wal")  # changes that are not in the file yet
            where = [ByContent(path) for path in (self._file, log) if path.exists() and path.stat().st_size]
        return {"query": self.query, "parameters": self.params, "version": self.of_version, "database": where}

    def planned_rows(self) -> None:
        """Returns None: a plan sends no query."""

    def run(self) -> LazyRowBatches:
        """Sends the query, and reads its rows as they arrive."""
        from sqlalchemy.exc import SQLAlchemyError

        assert self._engine is not None
        url = self._engine.url
        what = self._file.name if self._file is not None else url.database
        self.register_data_card(DataCardType.DATASET_NAME, f"{url.get_backend_name()}: {what}")
        self.register_data_card("SQL query", self.query)
        failed: DataError | None = None
        with ExitStack() as opened:  # closed on an error, else by `_batches`
            try:
                result = self._sent(opened, self._engine)
                names = self._named(result)
                return LazyRowBatches(self._batches(opened.pop_all(), result, self.found_columns(names)), save=True)
            except SQLAlchemyError as error:
                failed = self._failed(error)
        raise failed  # here, so that its context is not the original error, which may show the URL

    def _named(self, result: CursorResult[Any]) -> list[str]:
        if not result.returns_rows:
            raise DataError(f'"{self.name}": the query returns no rows. Give a SELECT.')
        names = [str(name) for name in result.keys()]  # noqa: SIM118
        for name in names:
            if names.count(name) > 1:
                raise DataError(f'"{self.name}": the query returns two columns "{name}". Rename one, with AS.')
        return names

    def write_rows(self, rows: Rows, draft: Path) -> Kept:
        """Saves the rows; the error of values of several types in a column says what to do in the query."""
        try:
            return super().write_rows(rows, draft)
        except StepOutputTypeError as error:
            name = next((name for name in rows.columns if f'column "{name}"' in str(error)), "name")
            raise StepOutputTypeError(f'{error} In the query: SELECT CAST("{name}" AS TEXT) AS "{name}".') from error

    def describe_empty(self) -> str:
        """Returns what is empty, for the error of a source without rows."""
        return "its query finds none."

    def _sent(self, opened: ExitStack, engine: Engine) -> CursorResult[Any]:
        from sqlalchemy import text

        connection = opened.enter_context(engine.connect())
        connection = connection.execution_options(stream_results=True, yield_per=BATCH_SIZE)
        if self.params is None:  # a colon in the query is no placeholder
            return connection.exec_driver_sql(self.query)
        return connection.execute(text(self.query), self.params)

    def _batches(self, opened: ExitStack, result: CursorResult[Any], names: list[str]) -> Iterator[Batch]:
        from sqlalchemy.exc import SQLAlchemyError

        failed: DataError | None = None
        with opened:
            try:
                for rows in result.partitions(BATCH_SIZE):
                    yield dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            except SQLAlchemyError as error:
                failed = self._failed(error)
        if failed is not None:
            raise failed

    def _failed(self, error: SQLAlchemyError) -> DataError:
        """Returns an error of the database without secrets."""
        assert self._engine is not None
        url = self._engine.url.render_as_string(hide_password=False)
        said = Secrets(secrets_in(url, {})).taken_out_of(str(getattr(error, "orig", None) or error))
        reason = said.strip().partition("\n")[0]
        return DataError(
            f'"{self.name}": {self._engine.url.get_backend_name()} failed ({reason}). Check the query, its tables and '
            "parameters, and that the database can be reached."
        )


def _engine(name: str, database: Any) -> Engine:
    from sqlalchemy import URL, Engine, create_engine
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    if isinstance(database, Engine):
        return database
    if not isinstance(database, str | URL):
        raise ArgumentTypeError(
            f'"{name}": database is {type(database).__name__}; expected a URL, such as "sqlite:///rows.db", or an '
            "engine of SQLAlchemy."
        )
    try:
        return create_engine(database, poolclass=NullPool)
    except ModuleNotFoundError as error:
        driver = error.name
    except NoSuchModuleError:
        driver = None
    except (ArgumentError, ValueError):
        raise DefinitionError(
            f'"{name}": database is not a URL of SQLAlchemy. Expected "backend+driver://user:password@host/name", such '
            'as "sqlite:///rows.db"; quote special characters of a password with urllib.parse.quote.'
        ) from None  # the original error shows the password
    if driver is not None:
        raise MissingExtra(f'"{name}": the database needs {driver}, which is not installed. Run: pip install {driver}')
    raise DefinitionError(f'"{name}": SQLAlchemy has no such backend or driver. Check the start of the URL.')


def _file(name: str, engine: Engine) -> Path | None:
    """Returns the file of a SQLite database; None for other databases and in memory."""
    path = engine.url.database
    if engine.url.get_backend_name() != "sqlite" or path in (None, "", ":memory:") or path.startswith("file:"):
        return None
    file = Path(path)
    if not file.is_file():  # SQLite would create it
        siblings = os.listdir(file.parent) if file.parent.is_dir() else []
        raise MissingFile(f'"{name}": there is no file {file}.{did_you_mean(file.name, siblings)}')
    return file
