"""All judges, and the one that a list of models needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.models.trained.trained_model import TrainedModel

from .classification import ClassificationJudge
from .judge import Judge
from .language_modelling import LanguageJudge

JUDGES: dict[str, type[Judge]] = {judge.kind: judge for judge in (ClassificationJudge, LanguageJudge)}
"""The judges, by the kind of task that they judge."""


def judge_for(models: Sequence[TrainedModel], names: Sequence[str]) -> type[Judge]:
    """Returns the judge of the models' task; no model is loaded for that.

    Raises:
        MethodMisfit: One of the models does something else than the others, or what no judge judges.
    """
    kinds: list[str] = []
    for model, name in zip(models, names, strict=True):
        kind = next((kind for kind, judge in JUDGES.items() if model.task in judge.tasks), None)
        if kind is None:
            raise MethodMisfit(
                f"{name} does {model.task}; what can be compared are classifiers and language models. Leave it out."
            )
        kinds.append(kind)
    common = Counter(kinds).most_common(1)[0][0]
    for model, name, kind in zip(models, names, kinds, strict=True):
        if kind != common:
            other = names[kinds.index(common)]
            raise MethodMisfit(
                f"{name} does {model.task}, but {other} does {models[kinds.index(common)].task}; models are compared "
                f"on one task. Leave {name} out, or compare it with models of its own kind."
            )
    return JUDGES[common]
