"""Active learning: which rows to have labelled next."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, MethodMisfit, did_you_mean
from datadreamer_like.graph.card import DataCardType

from ..base.lazy_rows import From, Traced
from ..base.step import Step
from .predict import check_classifier, example_teacher, predictions, shown_model

Array = np.ndarray[Any, np.dtype[np.float64]]
By = Literal["margin", "entropy", "committee", "random"]
_TEXTS_AT_ONCE = 1024


class ChooseRowsToLabel(Step):
    """Chooses the rows whose labels would teach a classifier most, by what it says of them now; no teacher is asked.

    Inputs: `texts`. Args: `n` (how many), `models` (a list of classifiers of the same classes), `by`, `exclude` (texts
    that are labelled already), `seed`, `batch_size`, `max_length`. Outputs: `texts`, in the order of choice, and
    `scores`. A text that occurs several times is chosen once; missing ones are not chosen.

    | `by` | chooses the highest | |
    | --- | --- | --- |
    | margin | `1 - (p_1 - p_2)`, of the two likeliest classes | Scheffer et al. 2001 |
    | entropy | entropy of the probabilities, in nats | after Lewis and Gale 1994 |
    | committee | mean KL of each model to the mean of all, in nats | McCallum and Nigam 1998 |
    | random | no model: the control | |

    The first two are of the mean of the models' probabilities. Equal scores are drawn by `seed`. If fewer texts than
    `n` are left, all of them are chosen.

    Example:
        >>> args = {"models": [student], "n": 100, "by": "margin"}  # doctest: +SKIP
        >>> ChooseRowsToLabel("Next", inputs={"texts": pool.output["text"]}, args=args)  # doctest: +SKIP
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="The texts to choose from.")
        self.register_arg("n", type=int, help="How many to choose.")
        self.register_arg("models", required=False, default=[], type=list, help="The classifiers.")
        self.register_arg("by", required=False, default="margin", type=str, help="What to choose by.")
        self.register_arg("exclude", required=False, default=[], type=list, help="Texts that are not chosen.")
        self.register_arg("seed", required=False, default=0, type=int, help="Seed of random choices.")
        self.register_arg("batch_size", required=False, default=32, type=int, help="Texts in a batch of the models.")
        self.register_arg("max_length", required=False, type=int, help="Maximum length of a text in tokens.")
        self.register_output("texts", help="The chosen texts.")
        self.register_output("scores", help="What they were chosen by.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"texts": ["a cat", "a dog"]}, "args": {"models": [example_teacher()], "n": 1}}

    def configure(self) -> None:
        """Checks the arguments."""
        by, models, n = self.args["by"], self.args["models"], self.args["n"]
        check_choice(by, f'"{self.name}"')
        if n < 1:
            raise DefinitionError(f'"{self.name}": n is {n}; it must be at least 1.')
        needed = {"random": 0, "committee": 2}.get(by, 1)
        if len(models) < needed:
            raise DefinitionError(
                f'"{self.name}": argument "models" has {len(models)} classifiers; choosing by {by} needs {needed} or '
                'more. Pass trained classifiers, or by="random".'
            )
        for index, model in enumerate(models):
            check_classifier(model, f'"{self.name}": models[{index}]')

    def run(self) -> Traced:
        """Scores the texts that are left, and chooses."""
        for model in self.args["models"]:
            self.register_data_card(DataCardType.MODEL_NAME, shown_model(model))
        seen = set(self.args["exclude"])
        places: dict[str, int] = {}
        missing, excluded = 0, 0
        for place, text in enumerate(self.inputs["texts"]):
            if text is None:
                missing += 1
            elif not isinstance(text, str):
                raise ArgumentTypeError(f'"{self.name}": texts has {text!r} in row {place}, which is not a text.')
            elif text in seen:
                excluded += 1
            else:
                places.setdefault(text, place)
        if not places:
            raise EmptyDataset(
                f'"{self.name}": no text is left to choose from: {excluded:,} rows have a text of `exclude`, and '
                f"{missing:,} have none. Stop here, or add texts to the pool."
            )
        texts = list(places)
        scores = self._scores(texts)
        order = np.random.default_rng(self.args["seed"]).permutation(len(texts))
        chosen = order[np.argsort(-scores[order], kind="stable")][: self.args["n"]]
        rows = {"texts": [texts[index] for index in chosen], "scores": scores[chosen].tolist()}
        return Traced(rows, From("texts", [places[texts[index]] for index in chosen]))

    def _scores(self, texts: list[str]) -> Array:
        if self.args["by"] == "random":
            return np.zeros(len(texts))
        self.usage.total_rows, parts = len(texts), []
        options = {"batch_size": self.args["batch_size"], "max_length": self.args["max_length"]}
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = texts[start : start + _TEXTS_AT_ONCE]
            said = [predictions(model, part, **options) for model in self.args["models"]]
            if any(isinstance(found.labels[0], list) for found in said):
                raise MethodMisfit(f'"{self.name}": models has a multi-label classifier; rows have one label here.')
            first = said[0].classes
            if any(sorted(found.classes) != sorted(first) for found in said):
                raise MethodMisfit(f'"{self.name}": the models have different classes. Train them on the same labels.')
            aligned = [found.probabilities[:, [found.classes.index(name) for name in first]] for found in said]
            parts.append(uncertainty(np.stack(aligned).astype(np.float64), self.args["by"]))
            self.usage.add(rows=len(part))
        return np.concatenate(parts)


def check_choice(by: object, where: str) -> None:
    """Raises `DefinitionError` unless `by` is one of the ways to choose rows."""
    if by not in get_args(By):
        hint = did_you_mean(str(by), get_args(By))
        raise DefinitionError(f'{where}: there is no choice by "{by}". There are: {", ".join(get_args(By))}.{hint}')


def uncertainty(probabilities: Array, by: str) -> Array:
    """Returns a score for each row [rows], from probabilities [models, rows, classes]; see `ChooseRowsToLabel`."""
    mean = probabilities.mean(0)
    if by == "margin":
        best = np.sort(mean, axis=-1)
        margins: Array = 1 - (best[:, -1] - best[:, -2])
        return margins
    if by == "entropy":
        return _entropy(mean)
    # The mean KL to the mean is the entropy of the mean less the mean entropy.
    divergence: Array = np.maximum(_entropy(mean) - _entropy(probabilities).mean(0), 0.0)
    return divergence


def _entropy(probabilities: Array) -> Array:
    found: Array = -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(-1)
    return found
