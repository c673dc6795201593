"""What a call is to a model that computes something of each text: its key, its stored form, its options."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError, ModelError, did_you_mean

from .failures import log_failures
from .pipeline import Calls, progress_logger


class TextOptions(TypedDict, total=False):
    """Options of `TaskModel.run` and `Embedder.run`; the defaults are those of `TextRun`."""

    batch_size: int
    batch_scheduler_buffer_size: int | None
    adaptive_batch_size: bool
    progress_interval: int | None
    force: bool
    cache_only: bool
    verbose: bool | None
    log_level: int | None
    total_num_texts: int | None
    return_generator: bool
    on_error: Literal["keep", "raise"]


@dataclass(frozen=True, slots=True)
class TextRun:
    """All options of one run.

    Attributes:
        batch_size: Texts that the model takes at once.
        batch_scheduler_buffer_size: Texts read ahead and sorted by length; 10 batches unless given.
        adaptive_batch_size: Halve the batch when memory runs out, in place of failing.
        progress_interval: Seconds between two lines of progress in the log; None for none.
        force: Compute again what is cached already.
        cache_only: Raise in place of computing.
        verbose: Log progress at INFO; otherwise it goes to DEBUG.
        log_level: Level of the progress lines, in place of `verbose`.
        total_num_texts: Number of texts, where it is known and `len(texts)` is not.
        return_generator: Yield results as they come, in order, in place of a list.
        on_error: "keep" puts None in a failed row's place and goes on; "raise" raises its error.
    """

    batch_size: int = 10
    batch_scheduler_buffer_size: int | None = None
    adaptive_batch_size: bool = True
    progress_interval: int | None = 60
    force: bool = False
    cache_only: bool = False
    verbose: bool | None = None
    log_level: int | None = None
    total_num_texts: int | None = None
    return_generator: bool = False
    on_error: Literal["keep", "raise"] = "keep"

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> TextRun:
        """Turns the options of a call into checked values.

        Raises:
            ArgumentTypeError: A name is unknown.
            DefinitionError: A value is outside its range.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ArgumentTypeError(
                    f'There is no option "{name}" of run.{did_you_mean(name, known)} The options are: '
                    f"{', '.join(known)}."
                )
        run = cls(**options)
        if run.batch_size < 1:
            raise DefinitionError(f"batch_size cannot be {run.batch_size}; expected at least 1.")
        if run.on_error not in ("keep", "raise"):
            raise DefinitionError(f'on_error cannot be {run.on_error!r}; expected "keep" or "raise".')
        return run

    def progress(self, texts: Iterable[object], who: str) -> Callable[[int], None] | None:
        """Returns a function that logs a line when `progress_interval` seconds have passed since the last one."""
        level = self.log_level if self.log_level is not None else logging.INFO if self.verbose else logging.DEBUG
        return progress_logger(who, "texts done", texts, self.total_num_texts, self.progress_interval, level)


@dataclass(slots=True)
class Computed:
    """What a model computed of one text.

    Attributes:
        value: The result; None for a failed row.
        stored: The result as it is stored.
        tokens: Tokens of the text, where the model counts them.
        error: Why there is no result.
    """

    value: Any = None
    stored: bytes = b""
    tokens: int = 0
    error: ModelError | None = None


class TextCalls(Calls[str, str, Computed]):
    """Calls of one task model; a key is a hash of its identity and the text.

    Args:
        identity: Hash of all that decides the results besides the text.
        decode: Reads a stored value.
    """

    def __init__(self, identity: str, decode: Callable[[bytes], Any]) -> None:
        self._decode = decode
        self._prefix = hashlib.blake2b(identity.encode(), digest_size=16)

    def admit(self, prompts: Sequence[str]) -> tuple[list[bytes], list[str]]:
        """Returns keys, and the texts themselves."""
        keys = []
        for text in prompts:
            hasher = self._prefix.copy()
            # What is no text fails as a row; no text has its key, for none starts with this byte.
            known = isinstance(text, str)
            hasher.update(text.encode("utf-8", "surrogatepass") if known else b"\xff" + repr(text).encode())
            keys.append(hasher.digest())
        return keys, list(prompts)

    def encode(self, answer: Computed) -> bytes:
        """Returns a result as the model stores it."""
        return answer.stored

    def decode(self, value: bytes) -> Computed:
        """Reads a stored result."""
        return Computed(self._decode(value))

    def failed(self, error: ModelError) -> Computed:
        """Returns a row without a result."""
        return Computed(error=error)

    def error(self, answer: Computed) -> ModelError | None:
        """Returns why the row failed."""
        return answer.error

    def tokens(self, answer: Computed) -> tuple[int, int]:
        """Returns the text's tokens; nothing is generated."""
        return answer.tokens, 0

    def size(self, request: str) -> int:
        """Returns the characters of the text."""
        return len(request) if isinstance(request, str) else 0


def values_of(results: Iterable[Computed], options: Mapping[str, Any]) -> Any:
    """Returns what `run` returns: a list of values, or a generator with `return_generator`; None for a failed row."""
    run = TextRun.from_options(options)
    results = log_failures(results, lambda result: result.error, run.on_error)
    values = (result.value for result in results)
    return values if run.return_generator else list(values)


def not_a_text(value: object) -> BadRequest:
    """Returns the error of a row that holds something else than a text."""
    return BadRequest(f"The value is {type(value).__name__}, not a text. Convert or filter such rows first.")
