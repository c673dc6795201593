"""The losses and figures of embedders, by the kind of their columns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, require_extra
from datadreamer_like.graph.output import Column
from datadreamer_like.models.llms.chat_template import AUTO

require_extra("embed", "torch", "sentence_transformers", what="Training an embedder")

from sentence_transformers.sentence_transformer import evaluation, losses  # noqa: E402
from sentence_transformers.util import pairwise_dot_score  # noqa: E402

LossMaker = Callable[[Any], nn.Module]
"""A loss class of sentence-transformers, or a function that returns a loss for a model."""


def checked_loss(loss: Any, default: str) -> LossMaker:
    """Returns an argument `loss`, for AUTO the class named `default`; raises `ArgumentTypeError` if it is none."""
    if loss is AUTO:
        return cast("LossMaker", getattr(losses, default))
    if isinstance(loss, nn.Module) or not callable(loss):
        raise ArgumentTypeError(
            "loss must be a loss class of sentence-transformers, or a function that returns a loss for a model, not "
            f"{loss!r}. Pass options as in functools.partial(losses.TripletLoss, triplet_margin=1.0)."
        )
    return cast("LossMaker", loss)


def with_margin(loss: LossMaker, margin: float, name: str) -> LossMaker:
    """Returns a loss with a margin; raises `DefinitionError`, which names the trainer, if it has none."""
    parameters = inspect.signature(loss).parameters
    for argument in ("triplet_margin", "margin"):
        if argument in parameters:
            return partial(loss, **{argument: margin})
    raise DefinitionError(f'"{name}": {getattr(loss, "__name__", loss)} has no margin. Leave margin out.')


def loss_of(how: Mapping[str, Any], model: Any, projection: int | None) -> nn.Module:
    """Returns the loss of a call of `TrainSentenceTransformer`, whose arguments are `how`.

    `projection` is the size to which a trained map takes the embeddings, if any.
    """
    if how["kind"] == "teacher":
        return cast("nn.Module", losses.EmbedDistillLoss(model, distance_metric="mse", projection_dim=projection))
    if how["kind"] == "margins":
        similarity = partial(_scaled_product, scale=how["scale"])
        return cast("nn.Module", losses.MarginMSELoss(model, similarity_fct=similarity))
    found: nn.Module = how["loss"](model)
    if how["matryoshka_dims"]:
        found = losses.MatryoshkaLoss(model, found, how["matryoshka_dims"])
    return found


def evaluator_for(kind: str, columns: Mapping[str, Column], batch_size: int) -> Any:
    """Returns what measures a model on the validation rows besides the loss; None for a teacher's embeddings.

    It is None for equal scores, too.
    """
    quiet: dict[str, Any] = {"write_csv": False, "show_progress_bar": False, "batch_size": 2 * batch_size}
    if kind == "teacher":
        return None
    parts: list[list[Any]] = [list(column.values()) for column in columns.values()]
    quiet |= {"similarity_fn_names": ["cosine"]} if kind != "positive pairs" else {}
    if kind in ("triplets", "margins"):
        return evaluation.TripletEvaluator(anchors=parts[0], positives=parts[1], negatives=parts[2], **quiet)
    if kind == "labeled pairs":
        scores = [float(score) for score in parts[2]]
        if len({*scores}) < 2:  # nothing to correlate with; `Texts` warns of it
            return None
        return evaluation.EmbeddingSimilarityEvaluator(parts[0], parts[1], scores, **quiet)
    documents = {text: str(index) for index, text in enumerate(dict.fromkeys(parts[1]))}
    wanted: dict[str, set[str]] = {}
    for query, document in zip(*parts, strict=True):
        wanted.setdefault(query, set()).add(documents[document])
    queries: dict[str, Any] = {str(index): query for index, query in enumerate(wanted)}
    return evaluation.InformationRetrievalEvaluator(
        queries,
        dict[str, Any]({index: text for text, index in documents.items()}),
        {index: wanted[query] for index, query in queries.items()},
        mrr_at_k=[10], ndcg_at_k=[10], accuracy_at_k=[1], precision_recall_at_k=[1], map_at_k=[10],
        score_functions={"cosine": _cosine}, **quiet,
    )  # fmt: skip


def _scaled_product(queries: torch.Tensor, documents: torch.Tensor, scale: float) -> torch.Tensor:
    return scale * pairwise_dot_score(queries, documents)


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(first, dim=-1) @ nn.functional.normalize(second, dim=-1).T
