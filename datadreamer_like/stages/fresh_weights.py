"""The stage that takes a model's architecture, and draws its weights anew."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from datadreamer_like.errors import MethodMisfit, check_number
from datadreamer_like.formats import layouts
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.positions import only_known
from datadreamer_like.graph.results import Kept
from datadreamer_like.models.quiet import quiet
from datadreamer_like.models.trained.embedder_files import copy_modules
from datadreamer_like.models.trained.model_files import write_card
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.models.trained.trained_model import TrainedModel, loaded

from .stage import Stage, model_argument, origins


class FreshWeights(Stage, ModelNode):
    """A model of the same architecture, tokenizer and classes, with new random weights: the start of an honest control.

    Weights are drawn as transformers draws those of a new model of the config. Nothing that the model has learned is
    left, pretraining included.

    Args:
        model: A trainer, a stage, a `TrainedModel`, a folder, or an id on the Hub. It is not changed.
        seed: Seed of the weights.

    Raises:
        SessionError: There is no session.
        NotTrained: The model is a trainer that was not trained yet.
        MethodMisfit: The model is pruned or quantized, or no transformers model of its own architecture.

    Example:
        >>> start = FreshWeights("Nothing learned", teacher, seed=1)  # doctest: +SKIP
        >>> TrainHFClassifier("From scratch", model_name=start).train(...)  # doctest: +SKIP
    """

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments; see `Stage.example`."""
        return {"model": model}

    @only_known
    def __init__(
        self, name: str, model: object, *, seed: int = 0, force: bool = False, progress_interval: float | None = 60
    ) -> None:
        super().__init__(name, force=force, progress_interval=progress_interval)
        self.source = model_argument(model, f'"{self.name}": model', weights=True)
        check_number(seed, f'"{self.name}": seed', 0, whole=True)
        self.seed = seed
        self.device, self.dtype = self.source.device, self.source.dtype
        self.parents = origins([self.source], [])
        self.find_or_make()

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of everything that determines the result, by name."""
        own = {"model": fingerprint(self.source, "model"), "argument seed": fingerprint(self.seed, "seed")}
        return class_part(type(self)) | own

    def build(self, draft: Path) -> Kept:
        """Draws the weights, and saves the model."""
        import torch
        from transformers import PreTrainedModel

        with quiet(), loaded(self.source), torch.random.fork_rng():
            model: Any = self.source.model
            plain = isinstance(model, PreTrainedModel) and not getattr(model.config, "reads_texts", False)
            if not plain or layouts(model) or getattr(model, "is_quantized", False):
                raise MethodMisfit(
                    f'"{self.name}": {self.source!r} is pruned, quantized, or has no weights that transformers can '
                    "draw anew. Pass the model that it was made of."
                )
            torch.manual_seed(self.seed)
            fresh = type(model)(deepcopy(model.config))
            self.card.base_model = self.source.card.base_model
            if self.source.node is None:
                self.card.register("Model Name", self.source.path)
            folder = draft / self.MODEL_FOLDER
            TrainedModel.save(fresh, self.source.tokenizer, folder)
            if learned := copy_modules(self.source.path, folder):
                raise MethodMisfit(
                    f'"{self.name}": the weights of {", ".join(learned)} in {self.source!r} are not drawn anew. Pass '
                    "an embedder whose other modules have no weights, such as pooling and normalisation."
                )
            write_card(folder, self.card)
        return self.kept()
