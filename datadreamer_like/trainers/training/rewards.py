"""What rewards a policy: a reward model, or a function of the script."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from datadreamer_like.distillation import TeacherModel
from datadreamer_like.distillation.teacher import move_teacher
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError
from datadreamer_like.evaluation.tasks.rewards import check_reward_model, rewards_of
from datadreamer_like.models.trained.model_node import ModelNode, as_trained_model
from datadreamer_like.models.trained.trained_model import TrainedModel

logger = logging.getLogger("datadreamer_like")

RewardModel = Any
"""A `TrainHFRewardModel`, another trainer or stage, a `TrainedModel`, a folder or an id on the Hub, a transformers
model (with a `reward_model_tokenizer`), or a function. A function takes the texts, each a prompt with its generation,
or as two parameters the prompts and the generations; it returns one number for each."""


@dataclass(frozen=True)
class Reward:
    """A checked reward: `scorer` is what decides it, a function, a `TrainedModel` or a `TeacherModel`.

    `given` has the lowest and the highest reward until now, and of how many.
    """

    scorer: Any
    name: str
    given: dict[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, reward_model: RewardModel, tokenizer: Any, name: str) -> Reward:
        """Checks the arguments `reward_model` and `reward_model_tokenizer` of the trainer `name`.

        Raises:
            ArgumentTypeError, DefinitionError: It is none of the above, or lacks its tokenizer, or has one too many.
            NotTrained: The trainer is not trained yet.
        """
        loaded = isinstance(reward_model, torch.nn.Module)
        if loaded != (tokenizer is not None):
            raise DefinitionError(
                f'"{name}".train: a reward_model that is a transformers model needs its reward_model_tokenizer, and '
                "nothing else takes one."
            )
        if loaded:
            return cls(TeacherModel(reward_model, tokenizer), name)
        if isinstance(reward_model, ModelNode | TrainedModel | str) or not callable(reward_model):
            return cls(as_trained_model(reward_model, "reward_model"), name)
        _parameters(reward_model, f'"{name}".train: the reward_model')
        return cls(reward_model, name)

    @property
    def is_model(self) -> bool:
        """Whether a reward model gives it."""
        return isinstance(self.scorer, TrainedModel | TeacherModel)

    def to(self, device: torch.device) -> None:
        """Moves a reward model to a device.

        Raises:
            MethodMisfit: The model is no reward model.
        """
        if self.is_model:
            check_reward_model(self.scorer.model, f'"{self.name}": the reward_model')
            move_teacher(self.scorer.model, device)

    def __call__(self, prompts: Sequence[str], generations: Sequence[str]) -> list[float]:
        """Returns one number for each generation.

        Raises:
            ArgumentTypeError, DataError: A function returned something else, or a number that is not finite.
        """
        if self.is_model:
            return self._noted(rewards_of(self.scorer.model, self.scorer.tokenizer, prompts, generations))
        what = f'"{self.name}": the reward function'
        if _parameters(self.scorer, what) > 1:
            found = self.scorer(list(prompts), list(generations))
        else:
            found = self.scorer([prompt + generation for prompt, generation in zip(prompts, generations, strict=True)])
        try:
            rewards = [float(value) for value in found] if not isinstance(found, str | Mapping) else None
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"{what} must return a list of numbers, not {found!r:.80}.") from error
        if rewards is None:
            raise ArgumentTypeError(f"{what} must return a list of numbers, not {found!r:.80}.")
        if len(rewards) != len(generations):
            raise DataError(f"{what} returned {len(rewards)} numbers for {len(generations)} generations.")
        wrong = next((index for index, value in enumerate(rewards) if not math.isfinite(value)), None)
        if wrong is not None:
            raise DataError(f"{what} returned {rewards[wrong]} for {generations[wrong]!r:.80}; it must be finite.")
        return self._noted(rewards)

    def warn_if_constant(self) -> None:
        """Warns if all answers had one reward, which tells none of them from the others."""
        if self.given and self.given["lowest"] == self.given["highest"]:
            logger.warning(
                '"%s": the reward was %g for all %s answers, so nothing was learned from it. Check the reward, or give '
                "prompts of which the model answers some better than others.",
                self.name, self.given["lowest"], f"{int(self.given['count']):,}",
            )  # fmt: skip

    def _noted(self, rewards: list[float]) -> list[float]:
        given = self.given
        given["lowest"] = min([*rewards, given.get("lowest", math.inf)])
        given["highest"] = max([*rewards, given.get("highest", -math.inf)])
        given["count"] = given.get("count", 0) + len(rewards)
        return rewards


def _parameters(function: Callable[..., Any], what: str) -> int:
    """Returns how many arguments a function is given, 1 or 2; `what` it is, for messages.

    Raises:
        ArgumentTypeError: It cannot be called with them.
    """
    kinds = inspect.Parameter
    by_position = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin without a signature
        return 1
    needed = [one for one in signature.parameters.values() if one.kind in by_position and one.default is one.empty]
    count = 2 if len(needed) > 1 else 1
    try:
        signature.bind(*range(count))
    except TypeError as error:
        raise ArgumentTypeError(
            f"{what}, {getattr(function, '__name__', function)!s:.80}, is called by position with the texts, each a "
            f"prompt with its answer, or as two parameters the prompts and the answers. It takes others: {error}."
        ) from error
    return count
