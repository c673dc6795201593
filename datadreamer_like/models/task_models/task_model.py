"""The base of models that compute a value per text, such as embedders and classifiers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from typing_extensions import Unpack

from datadreamer_like.errors import PromptTooLong
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.usage import current_usage

from ..calls.batch_engine import BatchEngine
from ..calls.cache import model_answers
from ..calls.pipeline import Recorder, run_calls
from ..calls.text_calls import Computed, TextCalls, TextOptions, TextRun, not_a_text, values_of
from ..model import Model

V = TypeVar("V")


class TaskModel(Model, Generic[V]):
    """A model that computes a value V for each text.

    A subclass writes `compute(texts, ...)`, `count_tokens`, `model_max_length`, and `identity` with everything that
    determines its results. Deduplication, caching, batches by length, order and errors per row are as for LLMs. Values
    are stored as JSON unless `encode_value` and `decode_value` are overridden.

    Args:
        cache_folder_path: Folder of the cache outside a session.
    """

    icon = " 🧠 "

    def __init__(self, cache_folder_path: str | Path | None = None) -> None:
        self.cache_folder_path = cache_folder_path

    # What a subclass writes.

    def compute(self, texts: Sequence[str], **asks: Any) -> Sequence[V]:
        """Computes the values of texts of similar length, in order; texts that are too long are truncated.

        Args:
            texts: The texts.
            **asks: Further arguments of this run.
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

    def results(self, texts: Iterable[str], truncate: bool = False, **options: Any) -> Iterator[Computed]:
        """Yields results in the texts' order: the value, or the error of a failed row; see `run`."""
        return self.results_of(texts, truncate, {}, options)

    def results_of(
        self, texts: Iterable[str], truncate: bool, asks: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Iterator[Computed]:
        """Yields results; for `results` of subclasses with further arguments of `compute`.

        Args:
            texts: The texts.
            truncate: See `run`.
            asks: Further arguments of `compute`, which are part of the key of a result.
            options: See `TextOptions`.
        """
        run = TextRun.from_options(options)
        identity = fingerprint([self, {**asks, "truncate": truncate}], what=type(self).__name__)

        def ask(batch: Sequence[str]) -> Sequence[Computed]:
            return self._compute_rows(batch, truncate, asks)

        def make_engine(recorder: Recorder[str, str, Computed]) -> BatchEngine[str, Computed]:
            return BatchEngine(
                ask,
                recorder,
                batch_size=run.batch_size,
                adaptive=run.adaptive_batch_size,
                window=run.batch_scheduler_buffer_size,
            )

        return run_calls(
            TextCalls(identity, self.decode_value),
            texts,
            make_engine,
            model_answers(self),
            current_usage(),
            force=run.force,
            cache_only=run.cache_only,
            progress=run.progress(texts, self.display_name),
        )

    def _compute_rows(self, texts: Sequence[Any], truncate: bool, asks: Mapping[str, Any]) -> list[Computed]:
        rows: dict[int, Computed] = {}
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                rows[index] = Computed(error=not_a_text(text))
                continue
            tokens = self.count_input_tokens(text, asks)
            if tokens > self.model_max_length and not truncate:
                rows[index] = Computed(
                    error=PromptTooLong(
                        f"The text has {tokens} tokens; the limit of {self.display_name} is {self.model_max_length}. "
                        "Shorten it, or pass truncate=True."
                    )
                )
            else:
                rows[index] = Computed(tokens=min(tokens, self.model_max_length))
        good = [index for index, row in rows.items() if row.error is None]
        if good:
            values = self.compute([texts[index] for index in good], **asks)
            for index, value in zip(good, values, strict=True):
                # Decoded again, so that new and cached results are the same.
                rows[index].stored = self.encode_value(value)
                rows[index].value = self.decode_value(rows[index].stored)
        return [rows[index] for index in range(len(texts))]

    def count_input_tokens(self, text: str, asks: Mapping[str, Any]) -> int:
        """Returns the number of tokens of a text with the run's instruction, if any."""
        return self.count_tokens(text)
