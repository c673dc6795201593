"""The base of trainers whose model answers prompts and is rewarded for it: PPO, GRPO and RLOO."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

from transformers import PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from datadreamer_like.distillation import Objective, TeacherModel
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_number
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.tasks.prompts import Prompts
from datadreamer_like.evaluation.tasks.task import row_limit
from datadreamer_like.models.trained.prompt_template import set_prompt_template

from .fine_tune import TrainHFFineTune
from .training.loop import Fit, Run
from .training.options import Training
from .training.rewards import Reward
from .training.signals import unload_teacher


class PolicyTrainer(TrainHFFineTune):
    """Base of trainers of a policy: a subclass writes `train`, which ends with `run_policy`, and `fit_policy`."""

    max_new_tokens: int | None = None
    reward: Reward

    several_devices = False

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        prompts = ["the cat", "the dog"]
        options = {"max_new_tokens": 4, "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}
        return {"train_prompts": prompts, "validation_prompts": prompts, "reward_model": count_of_a, **options}

    def run_policy(
        self,
        columns: Mapping[str, object],
        reward: Reward,
        max_new_tokens: int | None,
        options: Mapping[str, Any],
        own: Mapping[str, object],
    ) -> Self:
        """Finds the model for the arguments of `train`, or trains it; see `HFTrainer.run_training`."""
        check_number(max_new_tokens, f'"{self.name}".train: max_new_tokens', 1, whole=True, optional=True)
        self.reward, self.max_new_tokens = reward, max_new_tokens
        template = {"chat_prompt_template": self.chat_prompt_template, "system_prompt": self.system_prompt}
        shared = {"reward_model": reward.scorer, "max_new_tokens": max_new_tokens}
        return self.run_training(columns, {"learning_rate": 1e-5, **options}, own={**template, **shared, **own})

    def fit_policy(self, run: Run) -> Fit:
        """Trains `run.model` in place; the reward is on its device."""
        raise NotImplementedError

    def fit(self, run: Run) -> Fit:
        """Trains the policy with the reward model in memory."""
        with unload_teacher(self.reward.scorer):
            self.reward.to(run.device)
            fitted = self.fit_policy(run)
        self.reward.warn_if_constant()
        return fitted

    def make_task(
        self, config: PretrainedConfig, tokenizer: Tokenizer, columns: Columns, training: Training, objective: Objective
    ) -> Prompts:
        """Returns a task of prompts, with the prompt template in the tokenizer."""
        self.check_causal(config, self.source)
        set_prompt_template(tokenizer, self.chat_prompt_template, self.system_prompt)
        limit, new_tokens = row_limit(config, tokenizer, training.max_length), self.max_new_tokens or 1
        if new_tokens >= limit:
            raise DefinitionError(
                f'"{self.name}".train: max_new_tokens is {new_tokens:,}, which leaves no room for a prompt within '
                f"{limit:,} tokens. Lower it."
            )
        return Prompts(tokenizer, limit, training.truncate, new_tokens)

    def fill_card(self, metrics: Mapping[str, float], objective: Objective | None) -> None:
        """Records the origin of the model and of the reward, the method and the metrics on the card."""
        super().fill_card(metrics, objective)
        scorer = self.reward.scorer
        said = getattr(scorer, "__qualname__", type(scorer).__name__)
        self.card.facts["Reward"] = repr(scorer) if self.reward.is_model else f"the function {said}"
        if self.reward.is_model and not isinstance(scorer, TeacherModel) and scorer.node is None:
            self.card.register("Model Name", scorer.path)


_DECIDED = {"max_new_tokens", "max_length", "num_return_sequences", "num_beams", "do_sample"}


def check_sampling(
    what: str, temperature: object, top_p: object, generation_kwargs: object, decided: Collection[str] = ()
) -> None:
    """Checks how a policy samples its answers; `what` names the call, `decided` are further arguments that it sets.

    Raises:
        ArgumentTypeError, DefinitionError: A value is out of range, or `generation_kwargs` decide what is decided.
    """
    if generation_kwargs is not None and not isinstance(generation_kwargs, Mapping):
        raise ArgumentTypeError(f"{what}: generation_kwargs must be a dictionary, not {generation_kwargs!r:.100}.")
    if refused := sorted({*_DECIDED, *decided} & {*(generation_kwargs or {})}):
        raise DefinitionError(
            f'{what} decides "{refused[0]}" of generation_kwargs itself: it samples answers of up to max_new_tokens at '
            "its own temperature. Leave it out."
        )
    check_number(temperature, f"{what}: temperature", over=True)
    check_number(top_p, f"{what}: top_p", 0, 1, over=True)


def count_of_a(texts: list[str]) -> list[float]:
    """Rewards the letter a; the reward of the examples."""
    return [float(text.count("a")) for text in texts]
