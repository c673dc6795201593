"""Several classifiers as one model: predicted with, compared and used as a teacher like a trained one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.graph import Card

from .confidence import Confidence
from .model_node import as_trained_model
from .trained_model import TrainedModel

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from datadreamer_like.distillation import Ensemble


class EnsembleModel(TrainedModel):
    """Several classifiers of the same classes as one: the weighted mean of their probabilities.

    `predict`, `Compare` and objectives take it like any trained model. It has no files of its own: to ship it, distil
    it into one student, `objective=SoftTargets(ensemble)`.

    Args:
        members: Trainers, stages, `TrainedModel`s, folders or ids on the Hub; classes are matched by name.
        weights: One number above 0 for each member; None for equal ones.
        name: Display name.

    Raises:
        DefinitionError: There is no member, or a weight does not fit.
        NotTrained, ArgumentTypeError: A member is not trained yet, or is not a model.
        LabelError, MethodMisfit: The members have different classes, or are no classifiers; raised at the first use.

    Example:
        >>> both = EnsembleModel([first, second], name="Both")  # doctest: +SKIP
        >>> both.predict(["Parses command lines."]).labels  # doctest: +SKIP
        ['cli']
    """

    def __init__(
        self, members: Sequence[object], weights: Sequence[float] | None = None, *, name: str = "ensemble"
    ) -> None:
        if not members:
            raise DefinitionError("An EnsembleModel needs at least one member. Pass a list of trained classifiers.")
        self.members = [as_trained_model(each, f"members[{index}]") for index, each in enumerate(members)]
        self.weights = None if weights is None else list(weights)
        super().__init__(name, device=self.members[0].device)
        _ = self.ensemble  # checks the weights

    @property
    def ensemble(self) -> Ensemble:
        """The members as one teacher."""
        from datadreamer_like.distillation import Ensemble

        return Ensemble(cast("Any", self.members), self.weights)

    @property
    def teachers(self) -> list[TrainedModel]:
        """The members, for the lineage of what learns from them."""
        return self.members

    @property
    def config(self) -> Any:
        """The config of the first member, which has the classes in their order."""
        return self.members[0].config

    @cached_property
    def card(self) -> Card:
        """The members' cards are its parents."""
        return Card(self.path, "trainer", type(self).__name__, parents=[member.card for member in self.members])

    @cached_property
    def confidence(self) -> Confidence:
        """None was fitted."""
        return Confidence()

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the files of all members."""
        return sum(member.bytes_on_disk for member in self.members)

    @cached_property
    def model(self) -> Any:
        """The members' models in a `torch.nn.ModuleList`, loaded lazily."""
        from torch import nn

        return nn.ModuleList([member.model for member in self.members]).eval()

    @property
    def tokenizer(self) -> Any:
        """Raises `MethodMisfit`: each member reads texts with its own tokenizer."""
        raise MethodMisfit(
            f"{self!r} reads texts, each member with its own tokenizer, so it cannot be used where tokens are needed. "
            "Choose one of its members."
        )

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of the logits."""
        return self.labels

    @property
    def multi_label(self) -> bool:
        """Whether the members are multi-label classifiers."""
        return self.is_multi_label

    def class_logits(
        self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
    ) -> torch.Tensor:
        """Returns the logarithms of the mean probabilities [texts, classes], of multi-label models log-odds."""
        return self.ensemble.class_logits(texts, batch_size=batch_size, max_length=max_length)

    def logits(
        self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Returns what `class_logits` does, as an array; see `TrainedModel.logits`."""
        if isinstance(texts, str):
            return super().logits(texts)  # which refuses it
        found = self.class_logits(texts, batch_size=batch_size, max_length=max_length)
        return cast("np.ndarray[Any, np.dtype[np.float32]]", found.numpy())

    def unload_model(self) -> None:
        """Frees the members' memory; they are loaded again when needed."""
        super().unload_model()
        for member in self.members:
            member.unload_model()

    def export(
        self, format: str = "safetensors", to: str | Path = "", *, texts: Iterable[str] | None = None, **options: Any
    ) -> Path:
        """Raises `MethodMisfit`: an ensemble has no files of its own."""
        raise MethodMisfit(self._no_files())

    def why_not_export(self, format: str, **options: Any) -> str | None:
        """Returns why an ensemble cannot be exported: it has no files of its own."""
        return self._no_files()

    def publish_to_hf_hub(self, *args: Any, **options: Any) -> str:
        """Raises `MethodMisfit`: an ensemble has no files of its own."""
        raise MethodMisfit(self._no_files())

    def _no_files(self) -> str:
        return (
            f"{self!r} is several models, and has no files of its own to export. Export its members, or distil it into "
            "one student: objective=SoftTargets(ensemble)."
        )

    def __fingerprint__(self) -> tuple[Any, ...]:
        return type(self).__name__, self.members, self.weights

    def __repr__(self) -> str:
        return f"EnsembleModel({self.path}, {len(self.members)} members)"
