"""The base of all trainers: nodes that run when `train` is called, and are models afterwards."""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from datadreamer_like.errors import DefinitionError, NotTrained, SessionError
from datadreamer_like.graph import Node
from datadreamer_like.graph.manifest import Manifest
from datadreamer_like.graph.own_changes import Place
from datadreamer_like.graph.results import Kept
from datadreamer_like.models.trained.model_node import ModelNode


class Trainer(ModelNode, ABC):
    """Trains a model on columns when `train` is called, or loads the cached result.

    Once trained it can be used as a model: as a teacher, in a stage, or as the start of another trainer. A subclass
    implements `train`, which checks its arguments and calls `work`.

    The name is made unique within a session. For the other arguments see `HFOptions`.
    """

    kind: ClassVar = "trainer"
    result_version: ClassVar[int] = 1
    """Incremented when the same arguments give another model."""
    papers: ClassVar[Sequence[str]] = ()
    """The papers of the method, in BibTeX."""

    def __init__(
        self,
        name: str,
        force: bool = False,
        verbose: bool | None = None,
        log_level: int | None = None,
        *,
        progress_interval: float | None = 60,
    ) -> None:
        super().__init__(name, force=force, progress_interval=progress_interval)
        self._log_level = log_level or (logging.WARNING if verbose is False else None)
        self._decided_by: dict[str, str] | None = None
        self._train: Callable[[Path], Kept] | None = None
        # Of the functions and objects that are arguments of `train`: callbacks, rewards.
        self.argument_variables: list[Place] = []

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`, for tests and documentation; columns are lists of values."""
        raise NotImplementedError(f"{cls.__name__} has no example().")

    @abstractmethod
    def train(self, *args: Any, **kwargs: Any) -> Self:
        """Trains, or loads the cached result."""

    def train_on(self, columns: Collection[str]) -> Callable[..., Self]:
        """Returns the method that trains on columns of these names: `train`, or one of several of a subclass."""
        return self.train

    def need_session(self) -> None:
        """Raises `SessionError` if the trainer was made outside a session."""
        if self.session is None:
            raise SessionError(
                f'{type(self).__name__} "{self.name}" was made outside a session, so it cannot train. '
                "Make it inside `with DataDreamer(folder):`."
            )

    def work(self, parts: Mapping[str, str], parents: Iterable[Node], build: Callable[[Path], Kept]) -> Self:
        """Loads the cached model for `parts`, the fingerprints of all that determines it, or makes it with `build`.

        `build` saves the model in the given folder and returns `self.kept()`. A trainer that was already trained with
        other arguments is refused.
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
            _ = self.parts
            self._variables = self.argument_variables
            self._train = build
            self.find_or_make()
        return self

    def build(self, draft: Path) -> Kept:
        """Trains with the arguments of the last call of `train`, and saves the model."""
        assert self._train is not None, "only `work` starts a build"
        return self._train(draft)

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of everything that determines the model.

        Raises:
            NotTrained: `train` was not called yet.
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
        """Whether a killed training run resumes."""
        return True

    @property
    def model_path(self) -> str:
        """Folder of the trained model, which `HFTransformers` and transformers open."""
        return self.path

    @property
    def version(self) -> float:
        """Version of the trainer: incremented when the same arguments give another model."""
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
        return [*self.papers] or None

    def model_card(self) -> None:
        """Prints what is known of the model's lineage, oldest first: for each node the facts by heading.

        Scripts read them from `card`.

        Raises:
            NotTrained: There is no model yet.
        """
        if self.manifest is None:
            raise NotTrained(self.describe_missing())
        sys.stdout.write(self.card.text() + "\n")
