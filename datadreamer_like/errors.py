"""Every error that this package raises on purpose, in one tree.

    DataDreamerError
    ├── SessionError            no session, a nested one, a folder that is a file
    ├── DefinitionError         a node is written or called wrongly: names, inputs, arguments, outputs
    │   ├── UnknownColumn       an input names a column that its step does not have
    │   ├── ArgumentTypeError   an argument is of the wrong type
    │   └── FingerprintError    an argument cannot be told apart from another one, so nothing can be cached
    ├── NoSuchRow               a row was asked for beyond the last one
    ├── StepOutputError         a step's `run` returned what its outputs do not allow
    │   └── StepOutputTypeError one column holds values of different types
    ├── DataError               what was read is not what it should be: a malformed line, an unreadable file
    │   ├── EmptyDataset        there are no rows where rows are needed
    │   └── LabelError          a label is outside the set that the model knows
    ├── StorageError            the disk: full, not permitted, damaged
    │   └── NewerFormat         the folder was written by a newer version of this package
    ├── ModelError              an LLM, embedder or other model did not answer
    │   ├── AuthenticationFailed   wrong or missing key; never retried
    │   ├── UnknownModel        the provider does not know this model; never retried
    │   ├── BadRequest          the provider refuses this request; never retried
    │   │   └── PromptTooLong   the prompt and the answer do not fit the context window
    │   ├── RateLimited         too many requests; retried after the time the provider names
    │   ├── Unavailable         no connection, a time-out or a server error; retried
    │   ├── MalformedAnswer     the provider answered with something that is no answer; retried
    │   └── RejectedAnswer      an answer did not pass `parse` or a schema, or a function of it raised
    ├── MissingExtra            an optional dependency is not installed
    ├── NotTrained              a trainer is used before `train`
    ├── MethodMisfit            a compression method does not fit this model
    └── HubError                the Hugging Face Hub refused, or cannot be reached

Each class also inherits the builtin exception that a script written for DataDreamer may catch.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable

# Characters of a rejected answer in its row's error.
_ANSWER_SHOWN = 500


class DataDreamerError(Exception):
    """Base of all errors of this package."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message.
        return str(self.args[0]) if self.args else ""


class SessionError(DataDreamerError, RuntimeError):
    """There is no session, or there is one where none may be."""


class DefinitionError(DataDreamerError, ValueError):
    """A node was defined or constructed wrongly."""


class UnknownColumn(DefinitionError, KeyError):
    """A column was asked for that its step does not have."""


class ArgumentTypeError(DefinitionError, TypeError):
    """An argument is of the wrong type."""


class FingerprintError(DefinitionError, TypeError):
    """A value cannot be fingerprinted."""


class NoSuchRow(DataDreamerError, IndexError):
    """A row was asked for by a position that no row has."""


class StepOutputError(DataDreamerError, ValueError):
    """A step returned something that does not fit its registered outputs."""


class StepOutputTypeError(StepOutputError, TypeError):
    """A column holds values of types that do not go together."""


class DataError(DataDreamerError, ValueError):
    """Data that was read is not what it should be."""


class EmptyDataset(DataError):
    """There are no rows where rows are needed."""


class LabelError(DataError):
    """A label is outside the set of labels that the model knows."""


class StorageError(DataDreamerError, OSError):
    """The disk refused: full, not permitted, or damaged."""


class NewerFormat(StorageError):
    """A folder was written by a newer version of this package."""


class ModelError(DataDreamerError, RuntimeError):
    """A model did not answer."""


class AuthenticationFailed(ModelError, PermissionError):
    """The provider refused the key."""


class UnknownModel(ModelError, LookupError):
    """The provider does not know the model."""


class BadRequest(ModelError, ValueError):
    """The provider refuses this one request."""


class PromptTooLong(BadRequest):
    """A prompt, with the answer asked for, does not fit the context window."""


class RateLimited(ModelError):
    """The provider asks to slow down.

    Args:
        message: What happened.
        retry_after: Seconds that the provider asks to wait, if it said.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(ModelError, ConnectionError):
    """The provider cannot be reached, timed out, or failed on its side.

    Args:
        message: What happened.
        retry_after: Seconds that the provider asks to wait, if it said.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class MalformedAnswer(ModelError, ValueError):
    """The provider answered with something that is no answer."""


class RejectedAnswer(ModelError, ValueError):
    """The answer does not pass `parse` or a schema, or a function that was given it raised."""

    @classmethod
    def of(cls, text: str | None, reason: str, cause: Exception | None = None) -> RejectedAnswer:
        """Returns the error of a row whose last answer was `text`; `cause` is why asking again failed, if it did."""
        shown = repr(text) if text is None or len(text) <= _ANSWER_SHOWN else f"{text[:_ANSWER_SHOWN]!r}..."
        again = f" Asking again failed: {cause}" if cause is not None else ""
        return cls(f"{reason} The last answer was: {shown}.{again}")


class MissingExtra(DataDreamerError, ImportError):
    """An optional dependency is not installed."""


class NotTrained(DataDreamerError, RuntimeError):
    """A trainer's model was asked for before `train` was called."""


class MethodMisfit(DataDreamerError, ValueError):
    """A compression method does not fit the model that it was given."""


class HubError(DataDreamerError, RuntimeError):
    """The Hugging Face Hub refused a request or cannot be reached."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean "x"?' for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""


def require_extra(extra: str, *modules: str, what: str) -> None:
    """Refuses early, with the exact command, when an optional dependency is missing.

    Args:
        extra: Name of the extra in this package's metadata.
        *modules: Top-level modules that must be importable; they are looked for, not imported.
        what: Who needs them, for the message.

    Raises:
        MissingExtra: One of the modules is not installed.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtra(
            f'{what} needs {", ".join(missing)}, which is not installed. Run: pip install "datadreamer-like[{extra}]"'
        )
