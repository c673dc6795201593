"""Options that runs of LLMs, embedders, task models and retrievers share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

from datadreamer_like.errors import ArgumentTypeError

# Names of options, in their order as positional arguments.
LOGGING = ("progress_interval", "force", "cache_only", "verbose", "log_level")
BATCHING = ("batch_size", "batch_scheduler_buffer_size", "adaptive_batch_size", *LOGGING)


def check_is_list(given: object) -> None:
    """Refuses what a model cannot take as a list of texts, or would take for another one.

    The characters of a text would be its texts, and so would the names of the keys or columns of a mapping or table.

    Raises:
        ArgumentTypeError: It is a text, a mapping, a table with named columns, or nothing to iterate over.
    """
    if isinstance(given, str | bytes):
        raise ArgumentTypeError("A model was given one text; expected a list of them, as in run([text]).")
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        raise ArgumentTypeError(
            f"A model was given {type(given).__name__}; expected a list of texts, as in run([text]), or one column."
        )
    if not isinstance(given, Iterable):
        raise ArgumentTypeError(f"A model was given {given!r:.100}; expected a list of texts, as in run([text]).")


class RunOptions(TypedDict, total=False):
    """The options as arguments of `run`; the defaults are those of `Run`."""

    batch_size: int
    batch_scheduler_buffer_size: int | None
    adaptive_batch_size: bool
    progress_interval: int | None
    force: bool
    cache_only: bool
    verbose: bool | None
    log_level: int | None
    return_generator: bool
    on_error: Literal["keep", "raise"]


@dataclass(frozen=True, slots=True)
class Run:
    """The options of one run that every kind of model takes.

    Attributes:
        batch_size: Prompts or texts per batch.
        batch_scheduler_buffer_size: How many are read ahead and sorted by length; by default 10 batches (of an LLM) or
            at least 1,000 texts (of other models), and more for fast models.
        adaptive_batch_size: Halve the batch size when memory runs out, instead of failing.
        progress_interval: Seconds between progress lines in the log; None for none.
        force: Ask the model even if a result is cached.
        cache_only: Raise an error instead of asking the model.
        verbose: Log progress at INFO instead of DEBUG.
        log_level: Level of the progress lines; overrides `verbose`.
        return_generator: Return a generator of results, in order, instead of a list.
        on_error: "keep" returns None for a failed row and continues; "raise" raises its error.
    """

    batch_size: int = 10
    batch_scheduler_buffer_size: int | None = None
    adaptive_batch_size: bool = False
    progress_interval: int | None = 60
    force: bool = False
    cache_only: bool = False
    verbose: bool | None = None
    log_level: int | None = None
    return_generator: bool = False
    on_error: Literal["keep", "raise"] = "keep"

    @property
    def progress_level(self) -> int:
        """Level at which progress is logged."""
        if self.log_level is not None:
            return self.log_level
        return logging.INFO if self.verbose else logging.DEBUG
