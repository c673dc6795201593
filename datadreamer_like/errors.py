"""All errors that this package raises on purpose, in one tree.

    DataDreamerError
    ├── SessionError            no session, a nested session, a folder that is a file
    │   └── NoOutput            a step's output is used before the step has run
    │       └── NotMade         a plan needs what does not exist yet: rows, a model, an answer
    ├── DefinitionError         a node is defined or called incorrectly: names, inputs, arguments, outputs
    │   ├── UnknownColumn       an input names a column that its step does not have
    │   ├── ArgumentTypeError   an argument has the wrong type
    │   ├── ForbiddenOverride   a class overrides a method that it must not
    │   ├── LateRegistration    a step registers a name after its construction
    │   └── FingerprintError    an argument cannot be hashed, so results cannot be cached
    ├── NoSuchRow               a row position is out of range
    ├── StepOutputError         a step's return value does not match its outputs
    │   └── StepOutputTypeError one column holds values of different types
    ├── DataError               invalid input data: a malformed line, an unreadable file
    │   ├── MissingFile         a file or folder to read does not exist
    │   ├── EmptyDataset        there are no rows where rows are needed
    │   └── LabelError          a label is not among the model's labels
    ├── StorageError            disk full, no permission, or damaged files
    │   └── NewerFormat         the folder was written by a newer version of this package
    ├── ModelError              an LLM, embedder or other model failed
    │   ├── AuthenticationFailed   wrong or missing key; never retried
    │   ├── UnknownModel        the provider does not have this model; never retried
    │   ├── BadRequest          the provider rejects this request; never retried
    │   │   └── PromptTooLong   the prompt and the answer do not fit the context window
    │   ├── RateLimited         too many requests; retried after the provider's delay
    │   ├── Unavailable         no connection, a timeout or a server error; retried
    │   ├── MalformedAnswer     the response is not a valid answer; retried
    │   ├── RejectedAnswer      an answer failed `parse` or a schema, or a function given it raised
    │   └── OverBudget          the budget does not allow the next request; never retried
    ├── MissingExtra            an optional dependency is not installed
    ├── NotTrained              a trainer is used before `train`
    ├── MethodMisfit            a compression method does not fit this model
    └── HubError                the Hugging Face Hub rejected a request, or is unavailable

Each class also inherits the builtin exception that a DataDreamer script may catch.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
from collections.abc import Iterable
from numbers import Integral, Real

# Vowels, and letters whose names begin with one where a name begins with several capitals.
_AN = re.compile(r"(?!Uni|[Uu]se)[AEIOUaeiou]|[FHLMNRSX](?=[A-Z0-9])")


class DataDreamerError(Exception):
    """Base of all errors of this package."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message.
        return str(self.args[0]) if self.args else ""


class SessionError(DataDreamerError, RuntimeError, ValueError):
    """There is no session, or one is open where none may be."""


class DefinitionError(DataDreamerError, ValueError):
    """A node was defined or constructed incorrectly."""


class UnknownColumn(DefinitionError, KeyError):
    """A step does not have the requested column."""


class ArgumentTypeError(DefinitionError, TypeError):
    """An argument has the wrong type."""


class ForbiddenOverride(DefinitionError, AttributeError):
    """A class overrides a method that it must not override."""


class LateRegistration(DefinitionError, RuntimeError):
    """A step registers an input, argument or output after its construction."""


class FingerprintError(DefinitionError, TypeError):
    """A value cannot be hashed."""


class NoSuchRow(DataDreamerError, IndexError):
    """A row position is out of range."""


class StepOutputError(DataDreamerError, ValueError):
    """A step's return value does not match its registered outputs."""


class StepOutputTypeError(StepOutputError, TypeError):
    """A column holds values of incompatible types."""


class NoOutput(SessionError, StepOutputError):
    """A step's output is used before the step has run."""


class NotMade(NoOutput):
    """A plan needs rows, a model or an answer that does not exist yet; the plan ends there."""


class DataError(DataDreamerError, ValueError):
    """Input data is invalid."""


class MissingFile(DataError, FileNotFoundError):
    """A file or folder to read does not exist."""


class EmptyDataset(DataError):
    """There are no rows where rows are needed."""


class LabelError(DataError):
    """A label is not among the model's labels."""


class StorageError(DataDreamerError, OSError):
    """The disk is full, access is not permitted, or files are damaged."""


class NewerFormat(StorageError):
    """A folder was written by a newer version of this package."""

    @classmethod
    def check(cls, path: object, found: object, known: int) -> None:
        """Raises if the format `found` at `path` is newer than `known`, the newest that this version reads.

        A format that is not a whole number is a `StorageError`.
        """
        if not isinstance(found, int) or isinstance(found, bool):
            raise StorageError(f"{path} is damaged: its format is {found!r:.100}, not a whole number. Make it again.")
        if found > known:
            raise cls(
                f"{path} was written by a newer version of datadreamer-like (its format is {found}, this version reads "
                f'up to {known}). Run: pip install --upgrade "datadreamer-like", or use another folder.'
            )


class ModelError(DataDreamerError, RuntimeError):
    """A model failed; `retry_after` is the number of seconds to wait before another try, if given by the provider.

    Attributes:
        lasting: Whether a rerun leaves the row as it is, since the model itself gave no usable answer; other failures,
            those of servers and connections, may be over by then.
    """

    lasting: bool = True

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AuthenticationFailed(ModelError, PermissionError):
    """The provider rejected the key."""

    lasting = False


class UnknownModel(ModelError, LookupError):
    """The provider does not have the model."""

    lasting = False


class BadRequest(ModelError, ValueError):
    """The provider rejects this request."""

    lasting = False


class PromptTooLong(BadRequest):
    """A prompt with its answer does not fit the context window."""

    lasting = True


class RateLimited(ModelError):
    """The provider's rate limit is reached."""

    lasting = False


class Unavailable(ModelError, ConnectionError):
    """The provider cannot be reached, timed out, or had a server error."""

    lasting = False


class MalformedAnswer(ModelError, ValueError):
    """The provider's response is not a valid answer."""

    lasting = False


class RejectedAnswer(ModelError, ValueError):
    """The answer failed `parse` or a schema, or a function given it raised."""

    @classmethod
    def of(cls, text: str | None, reason: str, cause: Exception | None = None) -> RejectedAnswer:
        """Returns the error of a row with the last answer `text`; `cause` is the error of a failed follow-up."""
        shown = repr(text) if text is None or len(text) <= 500 else f"{text[:500]!r}..."
        again = f" Asking again failed: {cause}" if cause is not None else ""
        error = cls(f"{reason} The last answer was: {shown}.{again}")
        error.lasting = cause is None or getattr(cause, "lasting", False)
        return error


class OverBudget(ModelError):
    """The budget does not allow the next request; answers received so far are kept."""

    lasting = False


class MissingExtra(DataDreamerError, ImportError):
    """An optional dependency is not installed."""


class NotTrained(DataDreamerError, RuntimeError):
    """A trainer's model was used before `train`."""


class MethodMisfit(DataDreamerError, ValueError):
    """A compression method does not fit the model."""


class HubError(DataDreamerError, RuntimeError):
    """The Hugging Face Hub rejected a request or is unavailable."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean "x"?' for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""


def with_article(thing: str | type, a: str = "a") -> str:
    """Returns a name, or that of a class, after the article that it is spoken with; `a` is "a" or "A"."""
    name = thing if isinstance(thing, str) else thing.__name__
    return f"{a}{'n' * bool(_AN.match(name))} {name}"


def check_number(
    value: object,
    what: str,
    least: float = 0,
    most: float = math.inf,
    *,
    whole: bool = False,
    over: bool = False,
    optional: bool = False,
) -> None:
    """Checks a number among arguments, called `what` in messages; numpy's numbers count, True and False do not.

    Raises:
        ArgumentTypeError: It is not a number, or not a whole one; None is accepted if `optional`.
        DefinitionError: It is not finite, is less than `least` (or not `over` it), or more than `most`.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise ArgumentTypeError(f"{what} must be {'a whole number' if whole else 'a number'}, not {value!r:.100}.")
    number = float(value)
    if not math.isfinite(number):
        raise DefinitionError(f"{what} is {value}; it must be a finite number.")
    if number < least or (over and number == least) or number > most:
        limits = (f"over {least}" if over else f"at least {least}") + (
            f" and at most {most}" if most < math.inf else ""
        )
        raise DefinitionError(f"{what} is {value}; it must be {limits}.")


def check_flag(value: object, what: str) -> None:
    """Checks an argument, called `what` in messages, that is on or off; "no" would be taken for True.

    Raises:
        ArgumentTypeError: It is neither True nor False.
    """
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{what} must be True or False, not {value!r:.100}.")


def check_sequence(value: object, what: str, of: str) -> None:
    """Checks an argument, called `what` in messages, that must be a list or tuple `of` something.

    Raises:
        ArgumentTypeError: It is another object.
    """
    if not isinstance(value, list | tuple):
        raise ArgumentTypeError(f"{what} must be a list of {of}, not {value!r:.100}.")


def require_extra(extra: str, *modules: str, what: str) -> None:
    """Raises `MissingExtra`, with the install command, if one of the top-level modules of an extra is not installed.

    They are not imported. `what` is the class or function that needs them, for the message.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtra(
            f'{what} needs {", ".join(missing)}, which is not installed. Run: pip install "datadreamer-like[{extra}]"'
        )
