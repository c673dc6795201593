"""Fine-tuning a chat model on OpenAI's servers, or others with that API."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from datadreamer_like.errors import (
    DataError,
    DefinitionError,
    NotTrained,
    check_flag,
    check_number,
    did_you_mean,
)
from datadreamer_like.evaluation.columns import Columns, check_columns, read_rows
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.results import Kept
from datadreamer_like.models import OpenAI
from datadreamer_like.models.llms.chat_template import AUTO, Auto
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.storage.ledger import in_dollars, nanodollars

from .trainer import Trainer
from .training.curves import read_curves, write_curves
from .training.openai_job import FineTuningJob

T = TypeVar("T")

logger = logging.getLogger("datadreamer_like")

_SET_HERE = {"self", "model", "training_file", "validation_file", "hyperparameters", "method"}
"""Arguments of the SDK's `jobs.create` that `train` sets itself."""
_FEWEST_ROWS = 10
_MOST_BYTES = 512 * 1024**2


class TrainOpenAIFineTune(Trainer):
    """Fine-tunes a chat model on OpenAI's servers, or others with that API, to answer as the training rows do.

    The rows are uploaded, a fine-tuning job is created, and its state is polled until it ends. Ids of files and job are
    saved as soon as they exist: a killed run uploads and pays nothing twice, and the next one waits for the same job.
    The model stays on the server; `OpenAI(trainer)` prompts it, with the address, key and system prompt of the trainer.

    Args:
        model_name: Name of the model to start from, or of a fine-tuned one.
        system_prompt: Added to every row.
        organization, api_key, base_url, api_version, retry_on_fail: See `OpenAI`.
        force, verbose, log_level, progress_interval: See `HFOptions`.
        training_price: US dollars for a million trained tokens. Without it, the cost is unknown.
        **kwargs: See `OpenAI`; `tokenizer_model_name` and `max_context_length` decide what `truncate` cuts.

    Raises:
        MissingExtra, AuthenticationFailed, DefinitionError: See `APIModel`.

    Attributes:
        poll_seconds: Seconds between two requests for the job's state.

    Example:
        >>> trainer = TrainOpenAIFineTune("Support", "gpt-4.1-nano", api_key="...")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_input=train.output["question"], train_output=train.output["answer"],
        ...     validation_input=None, validation_output=None,
        ... )
        >>> OpenAI(trainer).run(["How do I reset my password?"])  # doctest: +SKIP
    """

    poll_seconds: ClassVar[float] = 10.0

    def __init__(
        self,
        name: str,
        model_name: str,
        system_prompt: str | None = None,
        organization: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        api_version: str | None = None,
        retry_on_fail: bool = True,
        force: bool = False,
        verbose: bool | None = None,
        log_level: int | None = None,
        *,
        progress_interval: float | None = 60,
        training_price: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.llm = OpenAI(
            model_name, system_prompt, organization, api_key, base_url, api_version, retry_on_fail, **kwargs
        )
        check_number(training_price, f"{type(self).__name__}: training_price", optional=True)
        super().__init__(name, force, verbose, log_level, progress_interval=progress_interval)
        self.model_name = self.llm.model_name
        self.system_prompt = self.llm.system_prompt
        self.training_price = training_price

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        prompts = [f"{a} + {b} =" for a in (1, 2) for b in range(5)]
        answers = [str(a + b) for a in (1, 2) for b in range(5)]
        columns = {"train_input": prompts, "train_output": answers}
        return {**columns, "validation_input": prompts[:2], "validation_output": answers[:2], "epochs": 2}

    def train(
        self,
        train_input: Column,
        train_output: Column,
        validation_input: Column | None,
        validation_output: Column | None,
        truncate: bool = True,
        epochs: float | Auto = AUTO,
        batch_size: int | Auto = AUTO,
        learning_rate_multiplier: float | Auto = AUTO,
        **kwargs: Any,
    ) -> Self:
        """Trains the model, or loads the cached result, and returns the trainer.

        Args:
            train_input: Prompts, at least ten.
            train_output: Their answers.
            validation_input: Prompts on which the server measures the loss; None for none.
            validation_output: Their answers.
            truncate: Cut the ends of prompts where prompt and answer exceed the context window; False refuses such
                rows. Lengths are estimated conservatively without a `tokenizer_model_name`.
            epochs: Number of epochs, a whole number; AUTO for the server's choice.
            batch_size: Rows in a batch; AUTO for the server's choice.
            learning_rate_multiplier: Factor of the server's learning rate; AUTO for its choice.
            **kwargs: Further arguments of the SDK's `fine_tuning.jobs.create`, such as `seed` and `suffix`.
                With another `timeout`, in seconds, a finished training is loaded.

        Raises:
            DataError: There are fewer than ten rows, an answer is empty, or a row is too long.
            ModelError: The server refused a request, or the job failed or was cancelled.
        """
        self.need_session()
        for value, name, over in (
            (epochs, "epochs", False), (batch_size, "batch_size", False),
            (learning_rate_multiplier, "learning_rate_multiplier", True),
        ):  # fmt: skip
            if value is not AUTO:
                what = f'"{self.name}".train: {name}'
                check_number(value, what, 0 if over else 1, whole=name == "batch_size", over=over)
        if epochs is not AUTO and epochs != int(epochs):
            raise DefinitionError(f'"{self.name}".train: epochs is {epochs}; the API takes whole epochs only.')
        check_flag(truncate, f'"{self.name}".train: truncate')
        self._check_settings(kwargs)
        given = {"n_epochs": epochs, "batch_size": batch_size, "learning_rate_multiplier": learning_rate_multiplier}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not AUTO}
        if "n_epochs" in chosen:
            chosen["n_epochs"] = int(chosen["n_epochs"])
        optional = {"validation_input": validation_input, "validation_output": validation_output}
        if None in optional.values() and any(column is not None for column in optional.values()):
            raise DefinitionError(
                f'"{self.name}".train: pass validation_input and validation_output both, or None for both.'
            )
        columns = check_columns({"train_input": train_input, "train_output": train_output, **optional}, optional)
        columns = {split: of_split for split, of_split in columns.items() if of_split}
        inputs = {name: column for of_split in columns.values() for name, column in of_split.items()}
        parts = {**class_part(type(self)), "model": fingerprint(self.llm, "model_name")}
        parts |= {f"input {name}": fingerprint(column, name) for name, column in inputs.items()}
        own = {"truncate": truncate, **chosen, **kwargs}
        own.pop("timeout", None)  # the job is the same
        parts |= {f"argument {name}": fingerprint(value, name) for name, value in own.items()}
        settings = {"method": {"type": "supervised", **({"supervised": {"hyperparameters": chosen}} if chosen else {})}}
        parents = [column.step for column in inputs.values()]
        return self.work(parts, parents, partial(self._build, columns, truncate, {**settings, **kwargs}))

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        known = inspect.signature(self.llm.client.fine_tuning.jobs.create).parameters.keys() - _SET_HERE
        for name in settings:
            if name in _SET_HERE:
                raise DefinitionError(f'"{self.name}".train sets "{name}" itself. Leave it out.')
            if name not in known:
                raise DefinitionError(f'"{self.name}".train has no argument "{name}".{did_you_mean(name, known)}')

    def _build(self, columns: Columns, truncate: bool, settings: Mapping[str, Any], draft: Path) -> Kept:
        try:
            usage, job = current_usage(), FineTuningJob(self.llm, self.name, self.scratch, self.fingerprint[:16])
            if job.id is None:
                usage.note = "reading the rows"
                # All are checked before one is uploaded.
                paths = {split: self._write_rows(columns[split], split, truncate) for split in columns}
                files = {split: job.upload(path) for split, path in paths.items()}
                job.create(files["train"], files.get("validation"), settings)
            done = job.wait(self.poll_seconds)
            epochs = getattr(_hyperparameters(done), "n_epochs", None)
            curve = job.curve(epochs if isinstance(epochs, int) else "unknown")
            self._fill_card(done, curve)
            if curve:
                write_curves(draft, curve)
            result = {"model": done.fine_tuned_model, "job": done.id, "trained_tokens": done.trained_tokens}
            return self.kept(result={**result, "history": curve})
        finally:  # later calls open another client
            self.unload_model()

    def _write_rows(self, columns: Mapping[str, Column], split: str, truncate: bool) -> Path:
        path = self.scratch / f"{split}.jsonl"
        rows = 0
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row in self._rows(columns, truncate):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                rows += 1
        name = next(iter(columns))
        if split == "train" and rows < _FEWEST_ROWS:
            raise DataError(
                f"{name} has {rows} rows; the API fine-tunes with at least {_FEWEST_ROWS}. Use more rows, or show "
                "these to the model as examples: FewShotPrompt."
            )
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{name}: its rows are more than the 512 MB that the API takes in a file. Use fewer rows.")
        return path

    def _rows(self, columns: Mapping[str, Column], truncate: bool) -> Iterator[dict[str, Any]]:
        name, answer_name = columns
        limit = self._limit()
        too_long = []
        for number, (prompt, answer) in enumerate(row for part in read_rows(columns) for row in part):
            if not answer.strip():
                raise DataError(f"{answer_name} is empty in row {number}. Filter such rows out first.")
            if limit is not None and not self._fits(prompt, answer, limit):
                too_long.append(number)
                if not truncate or not self._fits("", answer, limit):
                    fix = "Shorten the answer" if truncate else "Pass truncate=True to cut its prompt"
                    raise DataError(
                        f"{name}: row {number} and its answer exceed the {limit:,} tokens of {self.model_name}'s "
                        f"context window. {fix}, or filter such rows out."
                    )
                prompt = _longest_start(prompt, partial(self._fits, answer=answer, limit=limit))
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            if self.system_prompt:
                messages.insert(0, {"role": "system", "content": self.system_prompt})
            yield {"messages": messages}
        if too_long:
            counted = (
                "" if self.tokenizer is not None else " Lengths are estimates: tokenizer_model_name counts tokens."
            )
            logger.warning(
                '"%s": %s: %s rows exceed the context window: the ends of their prompts were cut; the first: row %s.%s',
                self.name, name, f"{len(too_long):,}", too_long[0], counted,
            )  # fmt: skip

    def _limit(self) -> int | None:
        def known() -> int | None:
            try:
                return self.get_max_context_length(0)
            except NotImplementedError:  # the server does not say, or has no list of models
                return None

        return self.llm.retry_wrapper(known)

    def _fits(self, prompt: str, answer: str, limit: int) -> bool:
        return self.llm.final_count_tokens(prompt) + self.count_tokens(answer) <= limit

    def _fill_card(self, job: Any, curve: Iterable[Mapping[str, float]]) -> None:
        card, tokens = self.card, job.trained_tokens
        card.base_model = self.model_name
        for key in ("loss", "eval_loss"):
            values = [point[key] for point in curve if key in point]
            if values:
                card.metrics[key] = round(values[-1], 6)
        card.register("Model Name", self.model_name)
        card.register("License Information", self.license)
        card.register("Model Card", self.base_model_card)
        card.register("Fine-tuned Model", job.fine_tuned_model)
        card.register("Trained Tokens", tokens)
        known = tokens is not None and self.training_price is not None
        cost = tokens * self.training_price / 1e6 if known else None
        current_usage().add(cost=cost)
        card.register("Cost", "unknown" if cost is None else in_dollars(nanodollars(cost)))

    # The result

    @property
    def model(self) -> Any:
        """Name of the fine-tuned model on the server.

        Raises:
            NotTrained: There is no model yet.
        """
        if self.manifest is None:
            raise NotTrained(self.describe_missing())
        return self.manifest.result["model"]

    @property
    def model_path(self) -> str:
        """The same name."""
        return str(self.model)

    @property
    def trained(self) -> TrainedModel:
        """Not available: the model has no files here."""
        raise DefinitionError(
            f'"{self.name}" is the model {self.model} on a server, without files here. Prompt it with OpenAI(trainer).'
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The last training loss, and the last validation loss, that the server reported."""
        return dict(self.card.metrics) if self.model else {}

    @property
    def curves(self) -> list[dict[str, float]]:
        """The losses that the server reported, by step; also in `curves.json` and `curves.png`.

        Raises:
            NotTrained: There is no model yet.
        """
        return read_curves(self.result_folder) if self.model else []

    @property
    def base_model_card(self) -> str | None:
        """See `Trainer.base_model_card`."""
        return self.llm.model_card

    @property
    def license(self) -> str | None:
        """See `Trainer.license`."""
        return self.llm.license

    # The server

    @property
    def client(self) -> Any:
        """The SDK's client."""
        return self.llm.client

    def retry_wrapper(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Calls a function of the `client`; see `APIModel.retry_wrapper`."""
        return self.llm.retry_wrapper(func, *args, **kwargs)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that counts tokens, or None; see `OpenAICompatible.tokenizer`."""
        return self.llm.tokenizer

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text; see `OpenAICompatible.count_tokens`."""
        return self.llm.count_tokens(value)

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the maximum number of prompt tokens; see `OpenAICompatible.get_max_context_length`."""
        return self.llm.get_max_context_length(max_new_tokens)

    def unload_model(self) -> None:
        """Closes the client."""
        self.llm.unload_model()


def _hyperparameters(job: Any) -> Any:
    """Returns the values that the server chose or was given; a server has them in one of two places."""
    supervised = getattr(getattr(job, "method", None), "supervised", None)
    return getattr(supervised, "hyperparameters", None) or getattr(job, "hyperparameters", None)


def _longest_start(text: str, fits: Callable[[str], bool]) -> str:
    """Returns the longest start of a text that fits; the empty one does."""
    short, long = 0, len(text)
    while short < long:
        middle = (short + long + 1) // 2
        short, long = (middle, long) if fits(text[:middle]) else (short, middle - 1)
    return text[:short]
