"""Training embedders: from pairs, triplets and scores, and from teachers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Self, Unpack, cast

from datadreamer_like.errors import DefinitionError, check_number, did_you_mean
from datadreamer_like.evaluation.columns import named_columns
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import by_position
from datadreamer_like.models.llms.chat_template import AUTO, Auto

from .training.embedder import EmbedderTrainer
from .training.embedding_teachers import embedder_of, scorer_of
from .training.options import TRAIN_DEFAULTS, TrainingOptions
from .training.sentence_losses import LossMaker, checked_loss, with_margin

Reduction = Literal["pca", "projection"]
"""How embeddings of different sizes are compared; see `TrainSentenceTransformer.train_with_teacher`."""

_OPTIONS = {**{name: TRAIN_DEFAULTS[name] for name in ("truncate", "epochs", "batch_size")}, "loss": AUTO}
_OPTIONS |= {**{name: value for name, value in TRAIN_DEFAULTS.items() if name not in _OPTIONS}, "seed": 42}
_TRIPLET_OPTIONS = {"truncate": True, "margin": AUTO, **{n: v for n, v in _OPTIONS.items() if n != "truncate"}}
_COLUMNS = {
    "train_with_triplets": ("anchors", "positives", "negatives"),
    "train_with_positive_pairs": ("anchors", "positives"),
    "train_with_labeled_pairs": ("anchors", "others", "labels"),
    "train_with_teacher": ("texts",),
    "train_with_margins": ("queries", "positives", "negatives"),
}


class TrainSentenceTransformer(EmbedderTrainer):
    """Trains an embedder with sentence-transformers' losses, from labelled texts or from a teacher.

    There is one method for each kind of columns: `train_with_positive_pairs`, `train_with_triplets`,
    `train_with_labeled_pairs`, and for teachers `train_with_teacher` and `train_with_margins`; `train` chooses it by
    the names of the columns. The result opens in sentence-transformers and in `SentenceTransformersEmbedder(trainer)`.

    Reimers and Gurevych 2019, arXiv:1908.10084.

    Args:
        model_name: Id on the Hub, folder, trainer, stage or `TrainedModel` to start from. A plain encoder gets mean
            pooling.
        layers: Start from these layers only: their number, spread evenly, or their indices from 0; see `cut_layers`.
        **options: See `HFOptions`; further ones go to `from_pretrained`.

    Raises:
        MissingExtra: sentence-transformers is not installed.

    Example:
        >>> student = TrainSentenceTransformer("Small", "sentence-transformers/all-MiniLM-L6-v2", layers=3)
        >>> student.train_with_teacher(  # doctest: +SKIP
        ...     train.output["text"], validation.output["text"], teacher="sentence-transformers/all-MiniLM-L6-v2",
        ...     learning_rate=1e-4,
        ... )
        >>> student.model.encode(["A parser for command lines."]).shape  # doctest: +SKIP
        (1, 384)
    """

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        anchors, others = ["a cat", "a dog", "the sun"], ["the cat sat", "the dog ran", "a warm day"]
        columns = _COLUMNS["train_with_positive_pairs"]
        return {**named_columns(columns, *[(anchors, others)] * 2), "epochs": 2, "batch_size": 3, "learning_rate": 1e-3}

    def train(self, *args: Any, **kwargs: Any) -> Self:
        """Trains with the method whose columns these are, by name; see those methods.

        Raises:
            DefinitionError: No method has these columns.
        """
        names = [name for name in kwargs if name.startswith(("train_", "validation_"))]
        return self.train_on(names if not args else ())(**kwargs)

    def train_on(self, columns: Collection[str]) -> Callable[..., Self]:
        """Returns the method that trains on columns of these names, such as "train_anchors".

        Raises:
            DefinitionError: No method has these columns.
        """
        given = {name.removeprefix("train_") for name in columns if name.startswith("train_")}
        for method, names in _COLUMNS.items():
            if given == {*names}:
                return cast("Callable[..., Self]", getattr(self, method))
        listed = "; ".join(
            f"{method}({', '.join(f'train_{name}' for name in names)})" for method, names in _COLUMNS.items()
        )
        raise DefinitionError(
            f'"{self.name}": an embedder is trained by a method for its columns. There are: {listed}.'
        )

    @by_position(_OPTIONS)
    def train_with_positive_pairs(
        self,
        train_anchors: Column,
        train_positives: Column,
        validation_anchors: Column,
        validation_positives: Column,
        *,
        loss: LossMaker | Auto = AUTO,
        matryoshka_dims: Sequence[int] | None = None,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains on pairs of texts that belong together, such as questions and answers.

        Args:
            train_anchors: Training texts.
            train_positives: A similar text for each; for SimCSE (Gao et al. 2021, arXiv:2104.08821) the text itself,
                whose two embeddings differ by dropout.
            validation_anchors: Validation texts, used to choose the best epoch. The metrics are recall and mean
                reciprocal rank of retrieving each text's pair among all pairs' second texts.
            validation_positives: A similar text for each.
            loss: A loss of sentence-transformers for pairs. AUTO is `MultipleNegativesRankingLoss` (Henderson et al.
                2017, arXiv:1705.00652; van den Oord et al. 2018, arXiv:1807.03748), in which the other positives of a
                batch are the negatives: use large batches, in which no text repeats.
            matryoshka_dims: Train so that the first so many numbers of an embedding are embeddings too (Kusupati et al.
                2022, arXiv:2205.13147), such as [384, 128, 32].
            **options: See `TrainingOptions`; also fields of `SentenceTransformerTrainingArguments`.

        Raises:
            DefinitionError, ArgumentTypeError: Columns do not go together, or an option is unknown or of the wrong
                type; `matryoshka_dims` are not sizes up to the embeddings' own.
            DataError: A value is missing, or the rows differ in nothing that is compared, such as triplets whose
                negatives are the positives, or scores that are all the same.
            DataDreamerError: See `TrainHFClassifier.train`.
        """
        columns = _named(_COLUMNS["train_with_positive_pairs"], locals())
        self._check_batch(loss, "MultipleNegativesRankingLoss", options)
        how = {"loss": checked_loss(loss, "MultipleNegativesRankingLoss"), "matryoshka_dims": matryoshka_dims}
        return self.run_kind("positive pairs", columns, options, how)

    @by_position(_TRIPLET_OPTIONS)
    def train_with_triplets(
        self,
        train_anchors: Column,
        train_positives: Column,
        train_negatives: Column,
        validation_anchors: Column,
        validation_positives: Column,
        validation_negatives: Column,
        *,
        margin: float | Auto = AUTO,
        loss: LossMaker | Auto = AUTO,
        matryoshka_dims: Sequence[int] | None = None,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains on texts, each with a similar and a dissimilar one.

        Args:
            train_anchors: Training texts.
            train_positives: A similar text for each.
            train_negatives: A dissimilar text for each.
            validation_anchors: Validation texts, used to choose the best epoch. The metric is the share of triplets
                whose positive is closer than the negative, by cosine.
            validation_positives: A similar text for each.
            validation_negatives: A dissimilar text for each.
            margin: How much closer the positive must be; AUTO for the default of the loss, 5 for `TripletLoss`. It
                measures by the Euclidean distance, which for embeddings of length 1 is at most 2.
            loss: A loss of sentence-transformers for triplets. AUTO is `TripletLoss`,
                `max(‖a - p‖ - ‖a - n‖ + margin, 0)` (Schroff et al. 2015, arXiv:1503.03832).
            matryoshka_dims: See `train_with_positive_pairs`.
            **options: See `TrainingOptions`.

        Raises:
            DataDreamerError: See `train_with_positive_pairs`.
        """
        columns = _named(_COLUMNS["train_with_triplets"], locals())
        if margin is not AUTO:
            check_number(margin, f'"{self.name}": margin', over=True)
        found = checked_loss(loss, "TripletLoss")
        if margin is not AUTO:
            found = with_margin(found, float(margin), self.name)
        return self.run_kind("triplets", columns, options, {"loss": found, "matryoshka_dims": matryoshka_dims})

    @by_position(_OPTIONS)
    def train_with_labeled_pairs(
        self,
        train_anchors: Column,
        train_others: Column,
        train_labels: Column,
        validation_anchors: Column,
        validation_others: Column,
        validation_labels: Column,
        *,
        loss: LossMaker | Auto = AUTO,
        matryoshka_dims: Sequence[int] | None = None,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains on pairs of texts with a similarity.

        Args:
            train_anchors: Training texts.
            train_others: Another text for each.
            train_labels: How similar they are: numbers, higher for more, or 1 for similar and 0 for different pairs.
            validation_anchors: Validation texts, used to choose the best epoch. The metrics are the correlations of the
                cosine with the labels.
            validation_others: Another text for each.
            validation_labels: How similar they are.
            loss: A loss of sentence-transformers for pairs with a number. AUTO is `CoSENTLoss`, which learns the order
                of the pairs in a batch, at any scale; `CosineSimilarityLoss` learns numbers from -1 to 1.
            matryoshka_dims: See `train_with_positive_pairs`.
            **options: See `TrainingOptions`.

        Raises:
            DataDreamerError: See `train_with_positive_pairs`.
        """
        columns = _named(_COLUMNS["train_with_labeled_pairs"], locals())
        self._check_batch(loss, "CoSENTLoss", options)
        how = {"loss": checked_loss(loss, "CoSENTLoss"), "matryoshka_dims": matryoshka_dims}
        return self.run_kind("labeled pairs", columns, options, how)

    def _check_batch(self, loss: LossMaker | Auto, default: str, options: Mapping[str, Any]) -> None:
        if loss is AUTO and options.get("batch_size") == 1:
            raise DefinitionError(
                f'"{self.name}": batch_size is 1, but {default} compares the pairs of a batch, so there would be '
                "nothing to learn. Raise batch_size, or pass another loss."
            )

    def train_with_teacher(
        self,
        train_texts: Column,
        validation_texts: Column,
        *,
        teacher: Any,
        reduction: Reduction | Auto = AUTO,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the embedder to give the teacher's embeddings, by their mean squared error; texts need no labels.

        Reimers and Gurevych 2020, arXiv:2004.09813; Kim et al. 2023, arXiv:2301.12005. The teacher embeds each text
        once a session, for all students.

        Args:
            train_texts: Training texts.
            validation_texts: Validation texts, used to choose the best epoch.
            teacher: An embedder, a `SentenceTransformer`, a trainer, or its folder or id on the Hub.
            reduction: How embeddings of different sizes are compared. "pca" projects the teacher's on their principal
                directions, found on the training texts without centring, so that the student's have the same products;
                it needs a student that is not larger. "projection" trains a linear map from the student's to the
                teacher's, which is discarded afterwards. AUTO is "pca" where it is possible.
            **options: See `TrainingOptions`.

        Raises:
            MethodMisfit, UnknownModel: The teacher cannot be loaded.
            DataDreamerError: See `train_with_positive_pairs`.
        """
        if reduction is not AUTO and reduction not in ("pca", "projection"):
            hint = did_you_mean(str(reduction), ("pca", "projection"))
            raise DefinitionError(f'"{self.name}": reduction must be "pca" or "projection", not {reduction!r}.{hint}')
        columns = {"train_texts": train_texts, "validation_texts": validation_texts}
        how = {"teacher": embedder_of(teacher, self.device), "reduction": reduction}
        return self.run_kind("teacher", columns, options, how, teacher)

    def train_with_margins(
        self,
        train_queries: Column,
        train_positives: Column,
        train_negatives: Column,
        validation_queries: Column,
        validation_positives: Column,
        validation_negatives: Column,
        *,
        teacher: Any,
        scale: float = 1.0,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the embedder to tell two documents apart for a query by as much as a cross-encoder does (MarginMSE).

        Hofstätter et al. 2020, arXiv:2010.02666: the mean squared error between the margins
        `scale (q · p - q · n)` and `teacher(q, p) - teacher(q, n)`, of the teacher's scores before any activation. The
        documents need no labels: "positive" and "negative" only name their order. The teacher scores each pair once a
        session.

        Args:
            train_queries: Training queries.
            train_positives: A document for each.
            train_negatives: Another document for each.
            validation_queries: Validation queries, used to choose the best epoch. The metric is the share of rows
                whose positive is closer.
            validation_positives: A document for each.
            validation_negatives: Another document for each.
            teacher: A `CrossEncoder` with one score, a trainer, or its folder or id on the Hub.
            scale: Multiplies the student's margins; 1 is the paper's. A student whose embeddings have length 1 has
                margins between -2 and 2, so it needs one that reaches the teacher's.
            **options: See `TrainingOptions`.

        Raises:
            MethodMisfit: The teacher gives several numbers for a pair.
            DefinitionError: The student's embeddings have length 1, and `scale` is 1.
            DataDreamerError: See `train_with_positive_pairs`.
        """
        columns = _named(_COLUMNS["train_with_margins"], locals())
        check_number(scale, f'"{self.name}": scale', over=True)
        how = {"teacher": scorer_of(teacher, self.device), "scale": float(scale)}
        return self.run_kind("margins", columns, options, how, teacher)


def _named(names: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The columns among the arguments of a method, training ones first."""
    return {f"{split}_{name}": arguments[f"{split}_{name}"] for split in ("train", "validation") for name in names}
