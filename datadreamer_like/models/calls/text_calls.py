"""Calls of models that compute a value per text: keys, stored form and options."""

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
        batch_size: Texts per batch.
        batch_scheduler_buffer_size: Texts read ahead and sorted by length; by default 10 batches.
        adaptive_batch_size: Halve the batch size when memory runs out, instead of failing.
        progress_interval: Seconds between progress lines in the log; None for none.
        force: Compute even if a result is cached.
        cache_only: Raise instead of computing.
        verbose: Log progress at INFO instead of DEBUG.
        log_level: Level of the progress lines; overrides `verbose`.
        total_num_texts: Number of texts, if `texts` has no length.
        return_generator: Return a generator of results, in order, instead of a list.
        on_error: "keep" returns None for a failed row; "raise" raises its error.
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
        """Checks the options of a call.

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
    """A model's result for one text.

    Attributes:
        value: The result; None for a failed row.
        stored: The stored form of the result.
        tokens: Tokens of the text, if the model counts them.
        error: The error of a failed row.
    """

    value: Any = None
    stored: bytes = b""
    tokens: int = 0
    error: ModelError | None = None


class TextCalls(Calls[str, str, Computed]):
    """Calls of one task model; a key is a hash of its identity and the text.

    Args:
        identity: Hash of everything that determines the results, except the text.
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
            # Other values fail as rows; a text never starts with this byte, so keys differ.
            known = isinstance(text, str)
            hasher.update(text.encode("utf-8", "surrogatepass") if known else b"\xff" + repr(text).encode())
            keys.append(hasher.digest())
        return keys, list(prompts)

    def encode(self, answer: Computed) -> bytes:
        """Returns the stored form of a result."""
        return answer.stored

    def decode(self, value: bytes) -> Computed:
        """Reads a stored result."""
        return Computed(self._decode(value))

    def failed(self, error: ModelError) -> Computed:
        """Returns a row without a result."""
        return Computed(error=error)

    def error(self, answer: Computed) -> ModelError | None:
        """Returns the error of a failed row."""
        return answer.error

    def tokens(self, answer: Computed) -> tuple[int, int]:
        """Returns the text's tokens; nothing is generated."""
        return answer.tokens, 0

    def size(self, request: str) -> int:
        """Returns the number of characters of the text."""
        return len(request) if isinstance(request, str) else 0


def values_of(results: Iterable[Computed], options: Mapping[str, Any]) -> Any:
    """Returns the values of results: a list, or a generator with `return_generator`; None for a failed row."""
    run = TextRun.from_options(options)
    results = log_failures(results, lambda result: result.error, run.on_error)
    values = (result.value for result in results)
    return values if run.return_generator else list(values)


def not_a_text(value: object) -> BadRequest:
    """Returns the error of a row that does not hold a text."""
    return BadRequest(f"The value is {type(value).__name__}, not a text. Convert or filter such rows first.")
