"""One task model on several devices or servers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.threads import Task

from ..model import Model
from .task_model import TaskModel, one_each

V = TypeVar("V")


class ParallelTaskModel(TaskModel[V]):
    """The same task model several times, such as on two GPUs: each computes its share of a batch, all at once.

    Give `batch_size` as many times as you would for one of them. Cached values are those of one of them alone.

    Args:
        *task_models: The models, equal but for their devices.

    Raises:
        DefinitionError: There is none, or they differ.
        ArgumentTypeError: One of them is not a task model.

    Example:
        >>> gpus = [HFClassificationTaskModel("me/topics", device=gpu) for gpu in (0, 1)]  # doctest: +SKIP
        >>> ParallelTaskModel(*gpus).run(texts, batch_size=512)  # doctest: +SKIP
    """

    kind: ClassVar[type[TaskModel[Any]]] = TaskModel
    """What the models must be."""

    def __init__(self, *task_models: TaskModel[V]) -> None:
        name, what = type(self).__name__, f"{self.kind.__name__}s"
        if not task_models:
            raise DefinitionError(f"{name} needs at least one model: {name}(one, other).")
        for model in task_models:
            if not isinstance(model, self.kind):
                raise ArgumentTypeError(f"{name} takes {what}, not {model!r:.100}.")
        if len({fingerprint(model) for model in task_models}) > 1:
            names = ", ".join(model.display_name for model in task_models)
            raise DefinitionError(
                f"{name} takes one model several times, not {names}: results of other models or options cannot be "
                "compared."
            )
        first = self._source = task_models[0]
        Model.__init__(self, first.cache_folder_path)
        self.task_models = task_models
        self.model_name = first.model_name

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns the same model twice, for tests and documentation."""
        return cls(model, model)

    def compute(self, texts: Sequence[str], **asks: Any) -> list[V]:
        """Computes the values of a batch, each model its share; an error has a note which of them raised it."""
        share = -(-len(texts) // len(self.task_models))
        parts = [texts[start : start + share] for start in range(0, len(texts), share)]
        tasks = [
            Task(partial(self._share, number, part, asks), "datadreamer_like-parallel")
            for number, part in enumerate(parts)
        ]
        for task in tasks:
            task.wait()  # of all, so that none is at work when a smaller batch is tried
        return [value for task in tasks for value in task.result()]

    def _share(self, number: int, texts: Sequence[str], asks: dict[str, Any]) -> Sequence[V]:
        """Computes the values of a share by one of the models."""
        model = self.task_models[number]
        try:
            return one_each(model.compute(texts, **asks), len(texts), model)
        except Exception as error:
            error.add_note(f"It was raised by model {number + 1} of {len(self.task_models)} of {self.display_name}.")
            raise

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text."""
        return self.task_models[0].count_tokens(value)

    @property
    def model_max_length(self) -> int:
        """Maximum number of tokens of a text."""
        return self.task_models[0].model_max_length

    def encode_value(self, value: V) -> bytes:
        """Returns the stored form of a value."""
        return self.task_models[0].encode_value(value)

    def decode_value(self, value: bytes) -> V:
        """Reads a stored value."""
        return self.task_models[0].decode_value(value)

    @property
    def answers_name(self) -> str:
        """The class of the models."""
        return self.task_models[0].answers_name

    def unload_model(self) -> None:
        """Frees the memory of all models."""
        for model in self.task_models:
            model.unload_model()

    def __fingerprint__(self) -> Any:
        return self.task_models[0].__fingerprint__()
