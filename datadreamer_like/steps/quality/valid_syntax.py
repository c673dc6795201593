"""Whether a text is valid code or JSON. A validator is called with a text, and returns why it is not valid, or None."""

from __future__ import annotations

import functools
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from datadreamer_like.errors import (
    DefinitionError,
    did_you_mean,
    require_extra,
)
from datadreamer_like.models.llms.schema import json_schema_of
from datadreamer_like.models.llms.schema_check import Problem, schema_problems


@dataclass(frozen=True)
class ValidPython:
    """Is Python code of the running version that can be compiled as a module; it is not run.

    So `return` outside a function and `break` outside a loop are not valid either.

    Example:
        >>> ValidPython()("x = (1")
        "not Python: '(' was never closed (line 1)"
    """

    result_version: ClassVar[int] = 2  # 2: compiled, not only parsed

    def __call__(self, text: str) -> str | None:
        """Returns why the text is not valid, or None."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of code that can be compiled
                compile(text, "<text>", "exec", dont_inherit=True)
        except SyntaxError as error:
            return f"not Python: {error.msg}{f' (line {error.lineno})' if error.lineno else ''}"
        except (ValueError, RecursionError, MemoryError) as error:
            return f"not Python: {error or type(error).__name__}"
        return None


@dataclass(frozen=True)
class ValidSQL:
    """Is one or more SQL statements that the library sqlglot can parse, in a `dialect` such as "sqlite" or "postgres".

    Nothing is run, and no schema is known: tables and columns need not exist. Without a dialect, a mixture of all is
    read. A statement of which sqlglot reads the first word alone is not valid, so that "Show me the answer" is not;
    nor are some statements that are SQL, such as `EXPLAIN` and `CALL`.

    Raises:
        MissingExtra: sqlglot is not installed.
        DefinitionError: There is no such dialect.

    Example:
        >>> ValidSQL()("SELECT name FROM users WHERE age > 30") is None
        True
    """

    dialect: str | None = None

    result_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_extra("quality", "sqlglot", what="ValidSQL")
        from sqlglot.dialects.dialect import Dialect

        known = [name for name in Dialect.classes if name]
        if self.dialect is not None and self.dialect not in known:
            hint = did_you_mean(str(self.dialect), known)
            raise DefinitionError(
                f"ValidSQL: there is no dialect {self.dialect!r}; there are: {', '.join(known)}.{hint}"
            )

    def __call__(self, text: str) -> str | None:
        """Returns why the text is not valid, or None."""
        import sqlglot
        from sqlglot import expressions
        from sqlglot.errors import ErrorLevel, SqlglotError

        logger = logging.getLogger("sqlglot")
        was_disabled, logger.disabled = logger.disabled, True  # it warns of each statement that it does not read
        try:
            statements = sqlglot.parse(text, dialect=self.dialect, error_level=ErrorLevel.RAISE)
        except SqlglotError as error:
            first = (getattr(error, "errors", None) or [{}])[0].get("description") or str(error).splitlines()[0]
            return f"not SQL: {re.sub(r'<.*', '', first).rstrip(' .')}"
        except RecursionError:
            return "not SQL: it is nested too deeply"
        finally:
            logger.disabled = was_disabled
        given = [statement for statement in statements if statement is not None]
        # Alone, an expression such as `hello world` (a column with an alias) can be parsed too.
        if not given or any(isinstance(each, expressions.Condition | expressions.Alias) for each in given):
            return "not SQL: it is no statement"
        unread = next((each for each in given if isinstance(each, expressions.Command)), None)
        if unread is not None:
            return f"not SQL: the statement {unread.this.upper()} cannot be parsed"
        return None


@dataclass(frozen=True)
class ValidJSON:
    """Is one JSON value (RFC 8259, so no NaN), which fits a `schema` if one is given.

    `schema` is a JSON schema (draft 2020-12 unless it names another) or a pydantic model class.

    Raises:
        ArgumentTypeError, DefinitionError: It is no valid schema, or refers to another file.

    Example:
        >>> ValidJSON({"required": ["name"]})('{"age": 3}')
        "does not fit the schema: 'name' is a required property"
    """

    schema: Any = None

    result_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.schema is not None:
            object.__setattr__(self, "schema", json_schema_of(self.schema))

    def __call__(self, text: str) -> str | None:
        """Returns why the text is not valid, or None."""
        try:
            value = json.loads(text, parse_constant=_refuse)
        except ValueError as error:
            return f"not JSON: {error}"
        except RecursionError:
            return "not JSON: it is nested too deeply"
        problem: Problem | None = (
            None if self.schema is None else next(iter(_problems_of(json.dumps(self.schema))(value)), None)
        )
        if problem is None:
            return None
        place = ".".join(map(str, problem[0]))
        return f"does not fit the schema: {f'{place}: ' if place else ''}{problem[1]}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


@functools.lru_cache
def _problems_of(schema: str) -> Callable[[Any], Iterator[Problem]]:
    return schema_problems(json.loads(schema))
