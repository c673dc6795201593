"""What every stage is: a node that takes models and works when it is constructed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from datadreamer_like.errors import ArgumentTypeError, SessionError
from datadreamer_like.graph import Node, current_session
from datadreamer_like.models.trained.model_node import as_trained_model
from datadreamer_like.models.trained.trained_model import TrainedModel


class Stage(Node):
    """A node whose inputs are models.

    Args:
        name: The name that the script gives; in a session it becomes unique.
        force: Make the result again although it is there.
        progress_interval: Seconds between progress lines where there is no terminal; None for none.

    Raises:
        SessionError: There is no session.
        ArgumentTypeError: The name is no text.
    """

    kind: ClassVar[Literal["step", "trainer", "stage"]] = "stage"
    result_version: ClassVar[int] = 1
    """Raised when the same arguments give another result."""

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments beside the name, for tests and documentation; columns are lists of values.

        Args:
            model: A classifier whose classes are `cat` and `dog`.
        """
        raise NotImplementedError(f"{cls.__name__} has no example().")

    def __init__(self, name: str, *, force: bool = False, progress_interval: float | None = 60) -> None:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"A stage's name is a text, not {name!r}.")
        if current_session() is None:
            raise SessionError(
                f'{type(self).__name__} "{name}" works when it is made, and there is no session that could keep its '
                "result. Put it inside `with DataDreamer(folder):`."
            )
        super().__init__(name, force=force, progress_interval=progress_interval)


def taken(value: object, stage: str, argument: str, device: object = None) -> TrainedModel:
    """Takes a stage's argument that names a model.

    Args:
        value: A trainer, a stage, a `TrainedModel`, a folder or an id on the Hub.
        stage: Name of the stage, for the message.
        argument: Name of the argument, for the message.
        device: Where the stage works with it; None for where the model is used otherwise.
    """
    trained = as_trained_model(value, f'"{stage}": {argument}')
    if device is None or str(device) == str(trained.device):
        return trained
    return TrainedModel(trained.path, device=device, dtype=trained.dtype, node=trained.node)  # type: ignore[arg-type]


def origins(models: Iterable[TrainedModel], columns: Iterable[object]) -> list[Node]:
    """Returns the nodes that models and columns come from, each once."""
    nodes = [model.node for model in models] + [getattr(column, "step", None) for column in columns]
    return list({id(node): node for node in nodes if node is not None}.values())
