"""The base of models that compute a value per text, such as embedders and classifiers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from typing_extensions import Unpack

from datadreamer_like.errors import BadRequest, PromptTooLong
from datadreamer_like.graph.fingerprint import fingerprint

from ..calls.batch_engine import BatchEngine
from ..calls.pipeline import run_calls
from ..calls.text_calls import Computed, TextCalls, TextOptions, TextRun, values_of
from ..model import Model

V = TypeVar("V")


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

    def run(self, texts: Iterable[str], truncate: bool = False, **options: Unpack[TextOptions]) -> Any:
        """Computes the value of each text, in order; cached values are not computed again.

        Args:
            texts: The texts; any iterable, with bounded read-ahead.
            truncate: Truncate texts that are too long, instead of failing the row.
            **options: See `TextOptions`.

        Returns:
            A list, or a generator where `return_generator=True`; None for a row that failed.

        Raises:
            ModelError: A row failed and `on_error="raise"`.
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
        return run_calls(
            TextCalls(fingerprint([self, {**asks, "truncate": truncate}], what=type(self).__name__), self.decode_value),
            texts,
            lambda recorder: BatchEngine(lambda batch: self._compute_rows(batch, truncate, asks), recorder, run),
            self,
            run,
            what="texts done",
            total=run.total_num_texts,
        )

    def _compute_rows(self, texts: Sequence[Any], truncate: bool, asks: Mapping[str, Any]) -> list[Computed]:
        rows = []
        for text in texts:
            tokens, error = 0, None
            if not isinstance(text, str):
                error = BadRequest(
                    f"The value is {type(text).__name__}, not a text. Convert or filter such rows first."
                )
            else:
                tokens = self.count_input_tokens(text, asks)
                if tokens > self.model_max_length and not truncate:
                    error = PromptTooLong(
                        f"The text has {tokens} tokens; the limit of {self.display_name} is {self.model_max_length}. "
                        "Shorten it, or pass truncate=True."
                    )
            rows.append(Computed(error=error) if error else Computed(tokens=min(tokens, self.model_max_length)))
        good = [index for index, row in enumerate(rows) if row.error is None]
        values = self.compute([texts[index] for index in good], **asks) if good else ()
        for index, value in zip(good, values, strict=True):
            # Decoded again, so that new and cached results are the same.
            rows[index].stored = self.encode_value(value)
            rows[index].value = self.decode_value(rows[index].stored)
        return rows

    def count_input_tokens(self, text: str, asks: Mapping[str, Any]) -> int:
        """Returns the number of tokens of a text with the run's instruction, if any."""
        return self.count_tokens(text)
