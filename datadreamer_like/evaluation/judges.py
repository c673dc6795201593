"""All judges, and the choice of a judge for a list of models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.models.trained.trained_model import TrainedModel

from .classification import ClassificationJudge
from .judge import Judge
from .language_modelling import LanguageJudge

JUDGES: dict[str, type[Judge]] = {judge.kind: judge for judge in (ClassificationJudge, LanguageJudge)}
"""The judges, by kind of task."""


def judge_for(models: Sequence[TrainedModel], names: Sequence[str]) -> type[Judge]:
    """Returns the judge for the models' task, without loading a model.

    Raises:
        MethodMisfit: The models have different tasks, or one that no judge handles.
    """
    kinds: list[str] = []
    for model, name in zip(models, names, strict=True):
        kind = next((kind for kind, judge in JUDGES.items() if model.task in judge.tasks), None)
        if kind is None:
            raise MethodMisfit(
                f"{name} does {model.task}; only classifiers and language models can be compared. Leave it out."
            )
        kinds.append(kind)
    common = Counter(kinds).most_common(1)[0][0]
    for model, name, kind in zip(models, names, kinds, strict=True):
        if kind != common:
            other = names[kinds.index(common)]
            raise MethodMisfit(
                f"{name} does {model.task}, but {other} does {models[kinds.index(common)].task}; models are compared "
                f"on one task. Leave {name} out, or compare it with models for the same task."
            )
    return JUDGES[common]
