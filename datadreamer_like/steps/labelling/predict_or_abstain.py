"""Labelling rows by a small classifier where it is certain, and by a fallback, such as an LLM step, elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datadreamer_like.errors import ArgumentTypeError, DataError, StepOutputError
from datadreamer_like.graph.output import Column, OutputDataset, OutputIterableDataset
from datadreamer_like.models.trained.model_node import ModelNode, as_trained_model
from datadreamer_like.models.trained.predictions import hand_over, warn_of_outside
from datadreamer_like.models.trained.trained_model import TrainedModel

from ..base.step import Step, SuperStep
from ..sources.data_source import DataSource

CLASSIFIER = (TrainedModel, ModelNode, str, Path)
"""What the argument `model` may be."""

_TEXTS_AT_ONCE = 1024


class PredictOrAbstain(SuperStep):
    """Labels texts by a classifier with a threshold where it is certain, and by a fallback elsewhere.

    Inputs: `texts`. Args: `model` (one made by the stage `Abstain`, or the folder it was exported to), `fallback` (a
    function that is given a column of the texts that are handed over, and returns a column, or a step with one output,
    of their labels, in order: an LLM step; None: their label is None), `batch_size`. Outputs: `texts`, `labels`,
    `answered` (whether the model answered), `probabilities` (of the model's most likely label; None for a multi-label
    model). A missing text has no label.

    Of the rows that the model answers, no more are wrong than `Abstain` guarantees; the fallback's answers come without
    a guarantee. Its labels are kept as they are; those that are not classes of the model are counted on the data card,
    and a warning shows the first with their rows. Rows on which it fails have no label. If no row is handed over, the
    fallback is not called.

    Example:
        >>> def ask(texts):  # doctest: +SKIP
        ...     args = {"llm": llm, "instruction": "Which topic? cli, net or web?", "max_new_tokens": 5}
        ...     return ProcessWithPrompt("Ask", inputs={"inputs": texts}, args=args).output["generations"]
        >>> step = PredictOrAbstain(  # doctest: +SKIP
        ...     "Topics", inputs={"texts": rows.output["text"]}, args={"model": sure, "fallback": ask}
        ... )
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="The texts.")
        self.register_arg("model", type=CLASSIFIER, help="A classifier with a threshold, fitted by the stage Abstain.")
        self.register_arg("fallback", required=False, help="Makes the labels of texts that are handed over.")
        self.register_arg("batch_size", required=False, default=32, type=int, help="Texts in a batch of the model.")
        self.register_output("texts", help="The texts.")
        self.register_output("labels", help="Their labels.")
        self.register_output("answered", help="Whether the model gave the label.")
        self.register_output("probabilities", help="The probability of the model's most likely label.")

    def configure(self) -> None:
        """Checks the arguments."""
        fallback = self.args["fallback"]
        if fallback is not None and not callable(fallback):
            raise ArgumentTypeError(
                f'"{self.name}": fallback must be a function of a column, such as one that makes an LLM step, or None; '
                f"not {fallback!r}."
            )

    def run(self) -> dict[str, list[Any]]:
        """Runs the model on all texts, then the fallback on those that it abstains from."""
        model = as_trained_model(self.args["model"], f'"{self.name}": model')
        texts = list(self.inputs["texts"])
        labels: list[Any] = [None] * len(texts)
        answered, chances = [False] * len(texts), list(labels)
        classes: list[str] = []
        known = [index for index, text in enumerate(texts) if text is not None]
        for start in range(0, len(known), _TEXTS_AT_ONCE):
            part = known[start : start + _TEXTS_AT_ONCE]
            found = model.predict_or_abstain([texts[index] for index in part], batch_size=self.args["batch_size"])
            classes = found.predictions.classes
            best = found.predictions.probabilities.max(axis=1).tolist()
            for row, index in enumerate(part):
                labels[index], answered[index] = found.labels[row], bool(found.answered[row])
                chances[index] = None if model.is_multi_label else best[row]
        fallback = self.args["fallback"]
        if fallback is not None:
            reasons: dict[int, str] = {}
            given = hand_over(
                [texts[index] for index in known],
                [labels[index] for index in known],
                [answered[index] for index in known],
                lambda left: self._asked(fallback, left, reasons),
            )
            labels = [None] * len(texts)
            for index, label in zip(known, given, strict=True):
                labels[index] = label
            left = [index for index in known if not answered[index]]
            for place, reason in reasons.items():
                # Whether it is asked for again, the fallback's step decides.
                self.usage.row_failed(left[place], DataError(reason))
        outside = warn_of_outside(labels, classes, self.name)
        if outside:
            asked = len(known) - sum(answered)
            self.register_data_card("Labels outside the classes", f"{outside:,} of {asked:,} from the fallback")
        share = sum(answered) / max(1, len(known))
        self.register_data_card("Coverage", f"{100 * share:.2f} % of {len(known):,} texts")
        return {"texts": texts, "labels": labels, "answered": answered, "probabilities": chances}

    def _asked(self, fallback: Callable[[Column], Any], texts: list[str], reasons: dict[int, str]) -> list[Any]:
        """Returns the fallback's labels of texts; why some have none goes to `reasons`, by position."""
        column = DataSource("Handed over", data={"texts": texts}).output["texts"]
        found: Any = fallback(column)
        if isinstance(found, Step):
            found = found.output
        whole = isinstance(found, OutputDataset | OutputIterableDataset) and not isinstance(found, Column)
        if whole and len(found.column_names) == 1:
            found = found[found.column_names[0]]
        if not isinstance(found, Column):
            raise StepOutputError(
                f'"{self.name}": fallback returned {found!r:.100}; it must return a column of labels, such as '
                'step.output["generations"].'
            )
        labels = list(found)
        asked = found.step.name.rpartition(" / ")[2]
        for place, reason in getattr(found.step, "errors", {}).items():
            if place < len(labels) and labels[place] is None:
                reasons[place] = f"{asked}: {reason}"
        return labels
