"""The stage that puts the zeros of a pruned model on the weights of another: a lottery ticket."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from datadreamer_like.errors import MethodMisfit, check_number
from datadreamer_like.evaluation.costs import size_of
from datadreamer_like.formats import layouts, mark_sparse
from datadreamer_like.formats.sparse import sparse_names
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


class Rewind(Stage, ModelNode):
    """A sparse model with the weights of another one: those that the pruned model kept, at the values they had before.

    Frankle and Carbin 2018, arXiv:1803.03635: the weights that pruning leaves, reset to their initial values, are a
    "winning ticket". All weights come from `to`, and those that are zero in a sparse tensor of `model` are zero. A
    model that was not pruned gives the weights of `to`.

    Args:
        model: The pruned model: a trainer, a stage, a `TrainedModel`, a folder, or an id on the Hub. It is not changed.
        to: The model with the earlier weights, of the same architecture, dense.
        random_mask: Seed with which the zeros of each tensor change places, as a control; None leaves them in place.

    Raises:
        SessionError: There is no session.
        NotTrained: A model is a trainer that was not trained yet.
        MethodMisfit: The models have different tensors, or `to` is pruned or quantized.

    Example:
        >>> ticket = Rewind("Ticket", pruned, to=start)  # doctest: +SKIP
        >>> TrainHFClassifier("Trained ticket", model_name=ticket).train(...)  # doctest: +SKIP
    """

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments; see `Stage.example`."""
        return {"model": model, "to": model}

    @only_known
    def __init__(
        self,
        name: str,
        model: object,
        to: object,
        *,
        random_mask: int | None = None,
        force: bool = False,
        progress_interval: float | None = 60,
    ) -> None:
        super().__init__(name, force=force, progress_interval=progress_interval)
        self.source = model_argument(model, f'"{self.name}": model', weights=True)
        self.to = model_argument(to, f'"{self.name}": to', weights=True)
        check_number(random_mask, f'"{self.name}": random_mask', 0, whole=True, optional=True)
        self.random_mask = random_mask
        self.device, self.dtype = self.to.device, self.to.dtype
        self.parents = origins([self.source, self.to], [])
        self.find_or_make()

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of everything that determines the result, by name."""
        return class_part(type(self)) | {
            "model": fingerprint(self.source, "model"),
            "to": fingerprint(self.to, "to"),
            "argument random_mask": fingerprint(self.random_mask, "random_mask"),
        }

    def build(self, draft: Path) -> Kept:
        """Copies the weights, zeroes those that were pruned, and saves the model."""
        import torch

        random = None if self.random_mask is None else torch.Generator().manual_seed(self.random_mask)
        with quiet(), loaded(self.source) as source, loaded(self.to) as to:
            before = size_of(to.model)
            if layouts(to.model):
                raise MethodMisfit(f'"{self.name}": to is pruned or quantized. Pass the model as it was before.')
            ticket: Any = deepcopy(to.model)
            pruned = dict(source.model.named_parameters())
            weights = dict(ticket.named_parameters())
            names = sparse_names(source.model)
            for name in names:
                if name not in weights or weights[name].shape != pruned[name].shape:
                    raise MethodMisfit(
                        f'"{self.name}": {name} of the pruned model is missing in `to`, or of another shape. Both '
                        "must be of one architecture: pass the model from which the training of `model` started."
                    )
                kept = pruned[name].detach().cpu() != 0
                if random is not None:
                    kept = kept.flatten()[torch.randperm(kept.numel(), generator=random)].view(kept.shape)
                weights[name].data.masked_fill_(~kept.to(weights[name].device), 0.0)
            if names:
                mark_sparse(ticket, names)
            self.card.facts.update(before.facts(size_of(ticket)))
            self.card.register("Citation Information", "Rewind: arXiv:1803.03635")
            if self.to.node is None:
                self.card.register("Model Name", self.to.path)
                self.card.base_model = self.to.card.base_model or self.to.path
            folder = draft / self.MODEL_FOLDER
            TrainedModel.save(ticket, source.tokenizer, folder)
            copy_modules(self.to.path, folder)
            write_card(folder, self.card)
        return self.kept()
