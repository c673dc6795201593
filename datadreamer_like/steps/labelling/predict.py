"""Labelling rows by a classifier, with its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import getattr_static
from pathlib import Path
from typing import Any

from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.rows import Batch
from datadreamer_like.models.trained.model_node import ModelNode, as_trained_model
from datadreamer_like.models.trained.predictions import Predictions, decisions, probabilities
from datadreamer_like.models.trained.trained_model import TrainedModel

from ..base.lazy_rows import LazyRowBatches
from ..base.step import Step


class Predict(Step):
    """Labels texts by a classifier: a trained model, or a teacher that reads texts, such as `ScoreLabels(llm, ...)`.

    Inputs: `texts`. Args: `model` (a trainer, a stage, a `TrainedModel`, a folder, an id on the Hub, or a
    `distillation.TextTeacher`), `batch_size`, `max_length` (in tokens; None for the model's own limit), `lazy`.
    Outputs: `texts`, `labels` (texts, also of classes that are numbers; lists for a multi-label model),
    `probabilities` (of the label; None for a multi-label model), `soft_labels` (mappings from class to probability,
    which `TrainHFClassifier` takes as labels). A missing text has none.

    Example:
        >>> said = Predict("Topics", inputs={"texts": rows.output["text"]}, args={"model": teacher})  # doctest: +SKIP
        >>> sure = said.filter(lambda row: row["probabilities"] >= 0.9)  # doctest: +SKIP
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="The texts.")
        self.register_arg("model", help="The classifier.")
        self.register_arg("batch_size", required=False, default=32, type=int, help="Texts in a batch of the model.")
        self.register_arg("max_length", required=False, type=int, help="Maximum length of a text in tokens.")
        self.register_arg("lazy", required=False, default=False, type=bool, help="Generate the rows lazily.")
        self.register_output("texts", help="The texts.")
        self.register_output("labels", help="Their labels.")
        self.register_output("probabilities", help="The probability of the label.")
        self.register_output("soft_labels", help="The probability of each class.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"texts": ["a cat", "a dog", None]}, "args": {"model": example_teacher()}}

    def configure(self) -> None:
        """Checks the model."""
        check_classifier(self.args["model"], f'"{self.name}": model')

    def run(self) -> LazyRowBatches:
        """Names the model on the card, and labels the texts."""
        self.register_data_card(DataCardType.MODEL_NAME, shown_model(self.args["model"]))
        return super().run()  # type: ignore[no-any-return]

    def process(self, batch: Batch) -> Batch:
        """Labels each text."""
        texts = batch["texts"]
        known = [index for index, text in enumerate(texts) if text is not None]
        options = {"batch_size": self.args["batch_size"], "max_length": self.args["max_length"]}
        found = predictions(self.args["model"], [texts[index] for index in known], **options)
        labels: list[Any] = [None] * len(texts)
        chances, soft = list(labels), list(labels)
        single = not found.labels or not isinstance(found.labels[0], list)
        for index, label, row in zip(known, found.labels, found.probabilities.tolist(), strict=True):
            labels[index], soft[index] = label, dict(zip(found.classes, row, strict=True))
            chances[index] = max(row) if single else None
        return {"texts": texts, "labels": labels, "probabilities": chances, "soft_labels": soft}


def can_classify(model: object) -> bool:
    """Whether an object is a trained model, names one, or is a teacher that reads texts."""
    is_model = isinstance(model, TrainedModel | ModelNode | str | Path)
    return is_model or getattr_static(model, "class_logits", None) is not None


def check_classifier(model: object, what: str) -> None:
    """Checks that a model, called `what`, can classify texts.

    Raises:
        ArgumentTypeError: It cannot.
        NotTrained: It is a trainer that is not trained yet.
    """
    if isinstance(model, TrainedModel | ModelNode | str | Path):
        as_trained_model(model, what)
    elif not can_classify(model):
        raise ArgumentTypeError(
            f"{what} is of type {type(model).__name__}. Pass a trained classifier, or an object with `classes` and "
            "`class_logits(texts)`, such as distillation.ScoreLabels."
        )


def shown_model(model: Any) -> str:
    """Returns a classifier's name for a card: that of its node, its folder, or itself."""
    node = model if isinstance(model, ModelNode) else getattr(model, "node", None)
    return node.name if isinstance(node, ModelNode) else str(getattr(model, "path", model))


def predictions(
    model: Any, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
) -> Predictions:
    """Returns what a classifier that `check_classifier` accepts says of texts."""
    if isinstance(model, TrainedModel | ModelNode | str | Path):
        return as_trained_model(model).predict(texts, batch_size=batch_size, max_length=max_length)
    from datadreamer_like.distillation import teacher_logits_for_texts

    multi, classes = bool(getattr(model, "multi_label", False)), [str(name) for name in model.classes]
    options: Any = {"batch_size": batch_size, "max_length": max_length, "called": f"{model!r:.100}"}
    logits = teacher_logits_for_texts(model, texts, **options).double().numpy()
    return Predictions(classes, decisions(logits, classes, multi), probabilities(logits, multi).astype("float32"))


def example_teacher() -> Any:
    """Returns a teacher that knows two texts, for examples."""
    from datadreamer_like.distillation import Probabilities

    return Probabilities(["a cat", "a dog"], [{"cat": 0.9, "dog": 0.1}, {"cat": 0.4, "dog": 0.6}])
