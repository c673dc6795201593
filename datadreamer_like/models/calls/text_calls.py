"""Calls of models that compute a value per text: keys, stored form and options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, did_you_mean

from .failures import log_failures
from .options import Run, RunOptions
from .pipeline import Calls


class TextOptions(RunOptions, total=False):
    """Options of `TaskModel.run` and `Embedder.run`; the defaults are those of `TextRun`."""

    total_num_texts: int | None


@dataclass(frozen=True, slots=True)
class TextRun(Run):
    """All options of one run.

    Attributes:
        adaptive_batch_size: See `Run`, as for all other options.
        total_num_texts: Number of texts, if `texts` has no length.
    """

    adaptive_batch_size: bool = True
    total_num_texts: int | None = None

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


@dataclass(slots=True)
class Computed:
    """A model's result for one text.

    Attributes:
        value: The result; None for a failed row.
        stored: The stored form of the result.
        tokens: Tokens of the text, if the model counts them.
        error: The error of a failed row.
        completion_tokens: Tokens generated: none.
        cost: US dollars.
    """

    value: Any = None
    stored: bytes = b""
    tokens: int = 0
    error: ModelError | None = None
    completion_tokens: int = 0
    cost: float | None = 0.0

    @property
    def prompt_tokens(self) -> int:
        """The same as `tokens`, as an LLM's answer names it."""
        return self.tokens


class TextCalls(Calls[str, str, Computed]):
    """Calls of one task model; a key is a hash of the text and of `identity`, all else that determines a result."""

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

    def size(self, request: str) -> int:
        """Returns the number of characters of the text."""
        return len(request) if isinstance(request, str) else 0

    def encode(self, answer: Computed) -> bytes:
        """Returns the stored form of a result."""
        return answer.stored

    def decode(self, value: bytes) -> Computed:
        """Reads a stored result."""
        return Computed(self._decode(value))

    def failed(self, error: ModelError) -> Computed:
        """Returns a row without a result."""
        return Computed(error=error)


def values_of(results: Iterable[Computed], options: Mapping[str, Any]) -> Any:
    """Returns the values of results: a list, or a generator with `return_generator`; None for a failed row."""
    run = TextRun.from_options(options)
    values = (result.value for result in log_failures(results, run.on_error))
    return values if run.return_generator else list(values)
