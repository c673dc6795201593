"""The choice of a judge for the models of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.models.trained.trained_model import TrainedModel

from ..judge import Judge
from .classification import ClassificationJudge
from .language import LanguageJudge

JUDGES: dict[str, type[Judge]] = {judge.kind: judge for judge in (ClassificationJudge, LanguageJudge)}
"""The judges, by kind of task."""


def judge_for(models: Mapping[str, TrainedModel]) -> type[Judge]:
    """Returns the judge for the models' common task, without loading one; raises `MethodMisfit` if there is none."""
    judges: dict[str, type[Judge]] = {}
    for name, model in models.items():
        found = [judge for judge in JUDGES.values() if model.task in judge.tasks]
        if not found:
            raise MethodMisfit(
                f"{name} does {model.task}; only classifiers and language models can be compared. Leave it out."
            )
        (judges[name],) = found
    common = Counter(judges.values()).most_common(1)[0][0]
    other = next(name for name in models if judges[name] is common)
    for name, model in models.items():
        if judges[name] is not common:
            raise MethodMisfit(
                f"{name} does {model.task}, but {other} does {models[other].task}; models are compared on one task. "
                f"Leave {name} out, or compare it with models for the same task."
            )
    return common
