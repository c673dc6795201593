"""What every trainer is: a node that works when `train` is called, and then is a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, NotTrained, SessionError
from datadreamer_like.graph import Node
from datadreamer_like.graph.manifest import Manifest
from datadreamer_like.graph.results import Kept
from datadreamer_like.models.trained.model_node import ModelNode


class Trainer(ModelNode):
    """Makes a trained model out of columns when its `train` is called, or finds the one that was made before.

    Once trained it can be used wherever a model can: as a teacher, as what a stage makes small, as what another
    trainer starts from. A subclass writes `train`, which checks what it was given and calls `work`.

    Args:
        name: The name that the script gave; in a session it becomes unique.
        force: Train again although the result is there.
        verbose: False shows only warnings of this trainer.
        log_level: A level of `logging` that overrides `verbose`.
        progress_interval: Seconds between progress lines where there is no terminal; None for none.
    """

    kind: ClassVar = "trainer"
    result_version: ClassVar[int] = 1
    """Raised when the same arguments give another model."""

    def __init__(
        self,
        name: str,
        force: bool = False,
        verbose: bool | None = None,
        log_level: int | None = None,
        *,
        progress_interval: float | None = 60,
    ) -> None:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"A trainer's name is a text, not {name!r}.")
        super().__init__(name, force=force, progress_interval=progress_interval)
        self._log_level = log_level or (logging.WARNING if verbose is False else None)
        self._decided_by: dict[str, str] | None = None
        self._train: Callable[[Path], Kept] | None = None

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`, for tests and documentation; columns are lists of values."""
        raise NotImplementedError(f"{cls.__name__} has no example().")

    def train(self, *args: Any, **kwargs: Any) -> Self:
        """Trains, or finds what was trained before."""
        raise NotImplementedError

    def need_session(self) -> None:
        """Refuses to go on outside a session.

        Raises:
            SessionError: The trainer was made outside a session.
        """
        if self.session is None:
            raise SessionError(
                f'{type(self).__name__} "{self.name}" was made outside a session, so it cannot train. '
                "Make it inside `with DataDreamer(folder):`."
            )

    def work(self, parts: Mapping[str, str], parents: Iterable[Node], build: Callable[[Path], Kept]) -> Self:
        """Finds the model that `parts` decide, or makes it with `build`.

        Args:
            parts: What decides the result, by name, each with its fingerprint.
            parents: The nodes that the result comes from.
            build: Saves the model below the folder that it is given and returns `self.kept()`.

        Raises:
            DefinitionError: This trainer was trained on something else before, in this very script.
        """
        if self.manifest is not None and self._decided_by != dict(parts):
            changed = Manifest("", "", "", self._decided_by or {}).difference(dict(parts))
            raise DefinitionError(
                f'"{self.name}" is trained already, and this call differs ({changed}). One trainer is one model: '
                f"make another {type(self).__name__}. To train this model further, pass it as the other's model_name."
            )
        if self.manifest is None:
            self._decided_by = dict(parts)
            for known in ("parts", "fingerprint", "card"):
                self.__dict__.pop(known, None)
            self.parents = list(dict.fromkeys(parents))
            self._train = build
            self.find_or_make()
        return self

    def build(self, draft: Path) -> Kept:
        """Trains as the last call of `train` said, and saves the model."""
        if self._train is None:
            raise NotTrained(self.describe_missing())
        return self._train(draft)

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns what decides the model; known once `train` was called.

        Raises:
            NotTrained: It was not.
        """
        if self._decided_by is None:
            raise NotTrained(self.describe_missing())
        return self._decided_by

    def describe_missing(self) -> str:
        """Returns why there is no model yet."""
        return f'{type(self).__name__} "{self.name}" is not trained yet. Call its train(...) first, then use it.'

    def compute_fingerprint(self) -> str:
        """Returns the fingerprint of the trained model."""
        return self.fingerprint

    @property
    def resumable(self) -> bool:
        """Whether a training that was killed goes on where it was."""
        return True

    @property
    def model_path(self) -> str:
        """Folder of the trained model, which `HFTransformers` and transformers open."""
        return self.path

    @property
    def version(self) -> float:
        """Version of the trainer: raised when the same arguments give another model."""
        return float(self.result_version)

    @property
    def display_name(self) -> str:
        """Name for tables and logs."""
        return f"{self.name} ({type(self).__name__})"

    @property
    def base_model_card(self) -> str | None:
        """Address of the card of the model that training starts from, if it is on the Hub."""
        return None

    @property
    def license(self) -> str | None:
        """Licence of the model that training starts from, if it is known here."""
        return None

    @property
    def citation(self) -> list[str] | None:
        """Citations of the method."""
        return None

    def model_card(self) -> dict[str, Any]:
        """Returns what is known of the model's origin, node by node, oldest first.

        Raises:
            NotTrained: There is no model yet.
        """
        return {card.name: card.without_parents() for card in self.trained.card.lineage()}
