"""Which labels of a dataset are likely wrong, by confident learning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    check_number,
    require_extra,
    with_article,
)

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class LabelSuspects:
    """What `label_suspects` finds, for rows in their order and classes in that of `classes`.

    Attributes:
        classes: The labels that occur, sorted.
        error_probabilities: [rows], the probability that the given label is wrong.
        suggested: The likeliest true label of each row.
        is_suspect: Bool [rows], the rows that confident learning would remove.
        probabilities: [rows, classes], the probability of each true label: soft labels without the noise.
        joint: [given classes, true classes], the estimated joint distribution of given and true labels.
    """

    classes: tuple[str, ...]
    error_probabilities: Floats
    suggested: list[str]
    is_suspect: Bools
    probabilities: Floats
    joint: Floats

    @property
    def noise_rate(self) -> float:
        """Estimated share of wrong labels."""
        return 1.0 - float(np.trace(self.joint))


def label_suspects(
    examples: Sequence[str] | np.ndarray[Any, Any],
    labels: Sequence[Any],
    *,
    classifier: Any = None,
    trusted: Sequence[bool] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> LabelSuspects:
    """Finds labels that are likely wrong: confident learning, Northcutt, Jiang and Chuang 2021, arXiv:1911.00068.

    The joint distribution and the suspects are those of the authors' library, cleanlab. A classifier is trained on all
    folds but one and predicts that one, so that no row is judged by a model that has seen its label. A class's
    threshold is the mean predicted probability of the class among the rows that have its label; a row counts for the
    likeliest class above its threshold, and those counts, scaled to the numbers of given labels, are the joint
    distribution of given and true labels. As many rows of each cell off the diagonal as it holds are suspects, those
    first whose predictions prefer the other class most (pruning by noise rate).

    The probabilities are the posterior of that noise model, `P(true = k | x, given = i) ∝ P(given = i | true = k)
    P(k | x)`, with the predictions' temperature fitted so that the given labels are likeliest.

    Noise that depends on the class alone is found best; labels that are wrong in the same way wherever they are, such
    as all rows of a topic that the labeller does not know, look right to any classifier trained on them.

    Args:
        examples: Features [rows, dims], such as the embeddings of a frozen encoder, or texts.
        labels: The given labels; a class has at least `folds` rows.
        classifier: A scikit-learn estimator with `predict_proba`, trained on copies; by default a logistic regression,
            for texts on their TF-IDF.
        trusted: Rows whose labels are known to be right, as True or False: they are trained on in each fold, and are no
            suspects. Of a class whose rows are all trusted, nothing is learnt about labels that should be it.
        folds: Number of parts, 2 or more.
        seed: Of the random parts.

    Raises:
        MissingExtra: cleanlab is not installed.
        DefinitionError: Examples, labels and `trusted` differ in number, or `folds` is below 2.
        ArgumentTypeError: The classifier has no `predict_proba`, the examples are one text, a label is a list or
            dictionary, or a value of `trusted` is neither True nor False.
        DataError: A feature is not finite, a text is missing or none has a word, all rows are trusted, a label is
            missing, or a class has fewer rows than there are folds.

    Example:
        >>> found = label_suspects(embeddings, labels)  # doctest: +SKIP
        >>> kept = np.flatnonzero(~found.is_suspect)  # doctest: +SKIP
    """
    require_extra("quality", "cleanlab", what="label_suspects")
    from cleanlab.count import estimate_joint
    from cleanlab.filter import find_label_issues

    features, texts = _checked(examples, labels, classifier, folds)
    names = [str(label) for label in labels]
    classes, given = np.unique(names, return_inverse=True)
    sure = np.array([_is_trusted(each) for each in ([None] * len(names) if trusted is None else trusted)], dtype=bool)
    if len(sure) != len(names):
        raise DefinitionError(f"There are {len(names):,} labels and {len(sure):,} values of trusted; pass one a row.")
    if len(sure) and sure.all():
        raise DataError("All rows are trusted, so there is no label to check. Trust some of them only.")
    counts = np.bincount(given[~sure], minlength=len(classes))
    rare = [f'"{classes[place]}" ({counts[place]})' for place in np.flatnonzero((counts < folds) & (counts > 0))]
    if len(classes) < 2:
        only = f'All labels are "{classes[0]}"' if len(classes) else "There are no labels"
        raise DataError(f"{only}, so there is one class only, and no other that a label could be. Add rows of others.")
    if rare:
        more = f" and {len(rare) - 10:,} more" if len(rare) > 10 else ""
        raise DataError(
            f"These classes have fewer rows than the {folds} folds: {', '.join(rare[:10])}{more}. Each class needs a "
            "row for each fold: lower folds, or leave such classes out."
        )
    if texts and classifier is None and not any(re.search(r"\w\w", str(text)) for text in examples):
        raise DataError("No text of examples has a word, so there is nothing to tell classes by. Check the column.")
    model = classifier if classifier is not None else _default_classifier(texts)
    predicted = _out_of_fold(model, features, given, sure, len(classes), folds, seed)
    joint = estimate_joint(given[~sure], predicted[~sure])
    noise = joint + 1 / (len(classes) * max(len(names), 1))  # a cell without a count is rare, not impossible
    posterior = _posterior(predicted, given, noise / noise.sum(0), sure)
    suspects = np.zeros(len(names), dtype=bool)
    suspects[~sure] = find_label_issues(given[~sure], predicted[~sure], n_jobs=1)
    rows = np.arange(len(names))
    posterior[sure] = np.eye(len(classes))[given[sure]]
    return LabelSuspects(
        tuple(str(name) for name in classes),
        1.0 - posterior[rows, given],
        [str(classes[place]) for place in posterior.argmax(1)],
        suspects,
        posterior,
        joint,
    )


def _checked(examples: Any, labels: Sequence[Any], classifier: Any, folds: int) -> tuple[Any, bool]:
    if isinstance(examples, str):
        raise ArgumentTypeError("examples is one text; it must be a list of texts, or features [rows, dims].")
    texts = len(examples) > 0 and isinstance(examples[0], str)
    features = np.asarray(examples, dtype=object if texts else None)
    if len(features) != len(labels):
        raise DefinitionError(f"There are {len(features):,} examples and {len(labels):,} labels; pass one a row.")
    check_number(folds, "folds", 2, whole=True)
    if classifier is not None and not hasattr(classifier, "predict_proba"):
        raise ArgumentTypeError(
            f"{with_article(type(classifier), 'A')} has no predict_proba. Pass a scikit-learn classifier that has."
        )
    if not texts and (features.ndim != 2 or not np.isfinite(features.astype(np.float64)).all()):
        raise DataError("examples must be texts, or finite features [rows, dims].")
    if texts and (other := next((text for text in examples if not isinstance(text, str)), "")) != "":
        raise DataError(f"examples holds {other!r:.100} among texts. Leave rows without a text out.")
    for row, label in enumerate(labels):
        if label is None or (isinstance(label, float) and np.isnan(label)):
            raise DataError(f"A label is {label}, in row {row}. Leave rows without a label out.")
        if isinstance(label, (list, tuple, dict, set, np.ndarray)):
            raise ArgumentTypeError(f"The label of row {row} is {label!r:.100}; expected one label, such as a text.")
    return features, texts


def _is_trusted(value: Any) -> bool:
    if value is None or (isinstance(value, (bool, int, float, np.generic)) and value in (0, 1)):
        return bool(value)
    raise ArgumentTypeError(f"trusted holds {value!r:.100}; expected True or False.")


def _default_classifier(texts: bool) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if texts:
        return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0))
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


def _out_of_fold(model: Any, features: Any, given: Any, sure: Bools, classes: int, folds: int, seed: int) -> Floats:
    """Predicted probabilities [rows, classes]; trusted rows are trained on in each fold, and keep their label."""
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold

    found: Floats = np.eye(classes)[given]
    known, asked = np.flatnonzero(sure), np.flatnonzero(~sure)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(asked, given[asked]):
        rows = np.concatenate([asked[train], known])
        fitted = clone(model).fit(features[rows], given[rows])
        predicted = np.zeros((len(test), classes))
        predicted[:, fitted.classes_] = fitted.predict_proba(features[asked[test]])
        found[asked[test]] = predicted
    return found


def _posterior(predicted: Floats, given: Any, noise: Floats, sure: Bools) -> Floats:
    """The posterior of true labels [rows, classes]; `noise` [given, true] is `P(given | true)`."""
    logs = np.log(np.maximum(predicted, 1e-12))
    likelihoods = noise[given]

    def weighed(temperature: float) -> Floats:
        scaled = np.exp((logs - logs.max(1, keepdims=True)) / temperature)
        found: Floats = likelihoods * scaled / scaled.sum(1, keepdims=True)
        return found

    def surprise(temperature: float) -> float:
        return -float(np.log(weighed(temperature)[~sure].sum(1)).mean())

    found = weighed(min(np.geomspace(0.1, 10.0, 61).tolist(), key=surprise))
    found /= found.sum(1, keepdims=True)
    return found
