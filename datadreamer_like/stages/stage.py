"""The base of all stages: nodes that take models and run when they are constructed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from datadreamer_like.errors import SessionError
from datadreamer_like.graph import Node, current_session
from datadreamer_like.models.exports.report import check_runtime
from datadreamer_like.models.trained.ensemble_model import EnsembleModel
from datadreamer_like.models.trained.model_node import as_torch_model, as_trained_model
from datadreamer_like.models.trained.trained_model import TrainedModel


class Stage(Node):
    """A node whose inputs are models; for `name`, `force` and `progress_interval` see `Node`.

    Raises:
        SessionError: There is no session.
    """

    kind: ClassVar = "stage"
    result_version: ClassVar[int] = 1
    """Incremented when the same arguments give another result."""

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments, without the name, for a classifier with the classes `cat` and `dog`.

        They are for tests and documentation; columns are lists of values.
        """
        raise NotImplementedError(f"{cls.__name__} has no example().")

    def __init__(self, name: str, *, force: bool = False, progress_interval: float | None = 60) -> None:
        if current_session() is None:
            raise SessionError(
                f'{type(self).__name__} "{name}" runs when it is created, and there is no session to save its result. '
                "Put it inside `with DataDreamer(folder):`."
            )
        super().__init__(name, force=force, progress_interval=progress_interval)


def model_argument(value: object, what: str, device: object = None, *, weights: bool = False) -> TrainedModel:
    """Converts a stage's argument, called `what` in messages, to a model on a device (None for the model's own).

    With `weights`, it must be one whose weights can be read and changed.

    Raises:
        MethodMisfit: It is a graph of ONNX Runtime, which has no such weights.
    """
    trained = as_torch_model(value, what) if weights else as_trained_model(value, what)
    if device is None or str(device) == str(trained.device):
        return trained
    check_runtime(trained.runtime, device)
    if isinstance(trained, EnsembleModel):
        members = [model_argument(member, what, device) for member in trained.members]
        return EnsembleModel(members, trained.weights, name=trained.path)
    return TrainedModel(trained.path, device=device, dtype=trained.dtype, node=trained.node, runtime=trained.runtime)  # type: ignore[arg-type]


def origins(models: Iterable[TrainedModel], columns: Iterable[object]) -> list[Node]:
    """Returns the nodes that models and columns come from, without duplicates."""
    parts = [part for model in models for part in getattr(model, "members", [model])]
    nodes = [model.node for model in parts] + [getattr(column, "step", None) for column in columns]
    return list(dict.fromkeys(node for node in nodes if node is not None))
