"""The base of models that compute a value per text, such as embedders and classifiers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from typing_extensions import Unpack

from datadreamer_like.errors import (
    ArgumentTypeError,
    BadRequest,
    DefinitionError,
    ModelError,
    PromptTooLong,
    did_you_mean,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.positions import by_position, defaults_of

from ..calls.batch_engine import BatchEngine
from ..calls.calls import Calls
from ..calls.failures import log_failures
from ..calls.options import BATCHING, Run, RunOptions
from ..calls.pipeline import Engine, Recorder, run_calls
from ..model import Model

V = TypeVar("V")


class TextOptions(RunOptions, total=False):
    """Options of `TaskModel.run` and `Embedder.run`; the defaults are those of `TextRun`."""

    total_num_texts: int | None


@dataclass(frozen=True, slots=True)
class TextRun(Run):
    """All options of one run: those of `Run`, and `total_num_texts`, the number of texts if they have no length."""

    adaptive_batch_size: bool = True
    total_num_texts: int | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> TextRun:
        """Checks the options of a call; raises `ArgumentTypeError` for a name, `DefinitionError` for a value."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ArgumentTypeError(
                    f'There is no option "{name}" of run.{hint} The options are: {", ".join(known)}.'
                )
        run = cls(**options)
        if run.batch_size < 1:
            raise DefinitionError(f"batch_size cannot be {run.batch_size}; expected at least 1.")
        if run.on_error not in ("keep", "raise"):
            raise DefinitionError(f'on_error cannot be {run.on_error!r}; expected "keep" or "raise".')
        return run


takes_text_options = by_position(defaults_of((*BATCHING, "total_num_texts", "return_generator"), TextRun))
"""Lets `run` take its options by position too, in DataDreamer's order."""


@dataclass(slots=True)
class Computed:
    """A model's result for one text, and its stored form; a failed row has an `error` and the value None."""

    value: Any = None
    stored: bytes = b""
    prompt_tokens: int = 0
    error: ModelError | None = None
    completion_tokens: int = 0
    cost: float | None = 0.0


class TaskModel(Model, Generic[V]):
    """A model that computes a value V for each text.

    A subclass writes `compute(texts, ...)`, `count_tokens`, `model_max_length`, and `identity` with everything that
    determines its results. Deduplication, caching, batches by length, order and errors per row are as for LLMs. Values
    are stored as JSON unless `encode_value` and `decode_value` are overridden.
    """

    icon = " 🧠 "

    # What a subclass writes.

    def compute(self, texts: Sequence[str], **asks: Any) -> Sequence[V]:
        """Computes the values of texts of similar length, in order; texts that are too long are truncated.

        `asks` are further arguments of this run, such as an embedder's `instruction`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement compute.")

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text."""
        raise NotImplementedError(f"{type(self).__name__} does not count tokens.")

    @property
    def model_max_length(self) -> int:
        """Maximum number of tokens of a text."""
        raise NotImplementedError(f"{type(self).__name__} has no model_max_length.")

    def encode_value(self, value: V) -> bytes:
        """Returns the stored form of a value."""
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")

    def decode_value(self, value: bytes) -> V:
        """Reads a stored value."""
        decoded: V = json.loads(value.decode("utf-8", "surrogatepass"))
        return decoded

    # What users call.

    @takes_text_options
    def run(self, texts: Iterable[str], truncate: bool = False, **options: Unpack[TextOptions]) -> Any:
        """Computes the value of each text, in order; cached values are not computed again.

        Returns a list, or a generator where `return_generator=True`; None for a row that failed, whose error is raised
        where `on_error="raise"`. `texts` is any iterable, with bounded read-ahead; `truncate` cuts texts that are too
        long, instead of failing the row. For `options` see `TextOptions`.
        """
        return values_of(self.results(texts, truncate, **options), options)

    def results(
        self, texts: Iterable[str], truncate: bool = False, *, asks: Mapping[str, Any] | None = None, **options: Any
    ) -> Iterator[Computed]:
        """Yields results in the texts' order: the value, or the error of a failed row; see `run`.

        `asks` are further arguments of `compute`, which are part of the key of a result.
        """
        run = TextRun.from_options(options)
        asks = asks or {}
        identity = fingerprint([self, {**asks, "truncate": truncate}], what=type(self).__name__)
        return run_calls(
            _TextCalls(identity, self.decode_value),
            texts,
            lambda recorder: self.engine(recorder, run, truncate, asks),
            self,
            run,
            what="texts done",
            total=run.total_num_texts,
        )

    def engine(
        self, recorder: Recorder[str, str, Computed], run: TextRun, truncate: bool, asks: Mapping[str, Any]
    ) -> Engine[str, Computed]:
        """Returns the engine of a run: one batch after another is computed."""

        def compute_rows(texts: Sequence[Any]) -> list[Computed]:
            rows = [self.checked(text, truncate, asks) for text in texts]
            good = [index for index, row in enumerate(rows) if row.error is None]
            values = one_each(self.compute([texts[index] for index in good], **asks), len(good), self) if good else ()
            for index, value in zip(good, values, strict=True):
                self.fill(rows[index], value)
            return rows

        return BatchEngine(compute_rows, recorder, run, least_window=1_000)

    def checked(self, text: object, truncate: bool, asks: Mapping[str, Any]) -> Computed:
        """Returns the result of a text before it is computed: its tokens, or the error of what cannot be computed."""
        if not isinstance(text, str):
            return Computed(
                error=BadRequest(f"The value is {type(text).__name__}, not a text. Convert or filter such rows first.")
            )
        tokens = self.count_tokens(f"{asks.get('instruction') or ''}{text}")
        if tokens > self.model_max_length and not truncate:
            return Computed(
                error=PromptTooLong(
                    f"The text has {tokens} tokens; the limit of {self.display_name} is {self.model_max_length}. "
                    "Shorten it, or pass truncate=True."
                )
            )
        return Computed(prompt_tokens=min(tokens, self.model_max_length))

    def fill(self, row: Computed, value: V) -> None:
        """Puts a value into its result."""
        # Decoded again, so that new and cached results are the same.
        row.stored = self.encode_value(value)
        row.value = self.decode_value(row.stored)


def one_each(values: Any, count: int, model: Model) -> Sequence[Any]:
    """Returns what `compute` of a model has returned for `count` texts, if it is one value for each."""
    if not hasattr(values, "__len__") or len(values) != count:
        what = f"{len(values)} values" if hasattr(values, "__len__") else type(values).__name__
        raise DefinitionError(
            f"compute of {model.display_name} returned {what} for {count} texts; expected one value for each."
        )
    found: Sequence[Any] = values
    return found


class _TextCalls(Calls[str, str, Computed]):
    """Calls of one task model; a key is a hash of the text and of `identity`, all else that determines a result."""

    def __init__(self, identity: str, decode: Callable[[bytes], Any]) -> None:
        self._decode = decode
        self._prefix = hashlib.blake2b(identity.encode(), digest_size=16)

    def admit(self, prompts: Sequence[str]) -> tuple[list[bytes], list[str]]:
        keys = []
        for text in prompts:
            hasher = self._prefix.copy()
            # Other values fail as rows; a text never starts with this byte, so keys differ.
            known = isinstance(text, str)
            hasher.update(text.encode("utf-8", "surrogatepass") if known else b"\xff" + repr(text).encode())
            keys.append(hasher.digest())
        return keys, list(prompts)

    def size(self, request: str) -> int:
        return len(request) if isinstance(request, str) else 0

    def encode(self, answer: Computed) -> bytes:
        return answer.stored

    def decode(self, value: bytes) -> Computed:
        return Computed(self._decode(value))

    def failed(self, error: ModelError) -> Computed:
        return Computed(error=error)


def values_of(results: Iterable[Computed], options: Mapping[str, Any]) -> Any:
    """Returns the values of results: a list, or a generator with `return_generator`; None for a failed row."""
    run = TextRun.from_options(options)
    values = (result.value for result in log_failures(results, run.on_error, "texts failed and have no result"))
    return values if run.return_generator else list(values)
