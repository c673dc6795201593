"""Training a reward model: one number that says how good an answer to a prompt is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, Unpack

import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from datadreamer_like.distillation import Objective, Outputs
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.evaluation.columns import named_columns
from datadreamer_like.evaluation.tasks.generation import Generation
from datadreamer_like.evaluation.tasks.rewards import RewardPairs, RewardScores, rewards_of
from datadreamer_like.evaluation.tasks.task import Task
from datadreamer_like.graph.output import Column
from datadreamer_like.kernels import preference_loss

from .fine_tune import TrainHFFineTune
from .training.options import TrainingOptions, takes_training_options

_CITATION = """@inproceedings{stiennon2020learning,
  title={Learning to Summarize with Human Feedback},
  author={Stiennon, Nisan and Ouyang, Long and Wu, Jeffrey and Ziegler, Daniel M. and Lowe, Ryan and Voss, Chelsea and
    Radford, Alec and Amodei, Dario and Christiano, Paul F.},
  booktitle={Advances in Neural Information Processing Systems 33},
  year={2020}
}"""


PREFERENCES = ("prompts", "chosen", "rejected")
"""Names of the columns of a trainer that learns from pairs of answers."""


@dataclass(frozen=True)
class _Preference(Objective):
    """The loss on pairs: `preference_loss`, with the batch's margins."""

    teacher: ClassVar[None] = None  # type: ignore[misc]

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Any, modules: nn.Module | None = None) -> Any:
        """Returns the loss of rewards [batch, 2]."""
        assert student.logits is not None
        return preference_loss(student.logits[:, 0], student.logits[:, 1], batch["margins"])


@dataclass(frozen=True)
class _Regression(Objective):
    """The mean squared error of rewards."""

    teacher: ClassVar[None] = None  # type: ignore[misc]

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Any, modules: nn.Module | None = None) -> Any:
        """Returns the loss of rewards [batch, 1]."""
        assert student.logits is not None
        return nn.functional.mse_loss(student.logits[:, 0].float(), batch["labels"])


class TrainHFRewardModel(TrainHFFineTune):
    """Trains a reward model, a sequence classifier with one output, on pairs of answers or on scored answers.

    On pairs the loss is `-log σ(r_chosen - r_rejected - margin)` (Stiennon et al. 2020, arXiv:2009.01325); with scores
    the margin is the difference of the two scores (Touvron et al. 2023, arXiv:2307.09288). On scores alone it is the
    mean squared error. The model is causal or an encoder; for the arguments and errors see `TrainHFFineTune`. The
    result is a reward for `TrainHFPPO`, `TrainHFGRPO` and `TrainHFRLOO`.

    Example:
        >>> trainer = TrainHFRewardModel("Reward", model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> trainer.train_with_pairs(  # doctest: +SKIP
        ...     train_prompts=train.output["prompt"], train_chosen=train.output["chosen"],
        ...     train_rejected=train.output["rejected"], validation_prompts=validation.output["prompt"],
        ...     validation_chosen=validation.output["chosen"], validation_rejected=validation.output["rejected"],
        ...     learning_rate=1e-5,
        ... )
        >>> trainer.score(["What is 2 + 2?"], ["4"])  # doctest: +SKIP
        [1.37]
    """

    several_devices = False
    papers: ClassVar[Sequence[str]] = (_CITATION,)
    _kind: type[Generation] = RewardPairs

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        pairs = ["the cat", "the dog"], ["sat on a mat", "ran to a tree"], ["ran", "sat"]
        return {**named_columns(PREFERENCES, pairs, pairs), "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}

    def train(self, *args: Any, **kwargs: Any) -> Self:
        """Trains on the columns that are given by name: see `train_with_pairs` and the other two.

        Raises:
            DefinitionError: The columns are those of none of the three.
        """
        if "train_generations" in kwargs:
            return self.train_with_scores(*args, **kwargs)
        if "train_chosen_scores" in kwargs:
            return self.train_with_pairs_and_scores(*args, **kwargs)
        if "train_chosen" in kwargs:
            return self.train_with_pairs(*args, **kwargs)
        raise DefinitionError(
            f'"{self.name}".train needs columns by name: train_prompts with train_chosen and train_rejected, or with '
            "train_generations and train_scores. Or call train_with_pairs, train_with_pairs_and_scores or "
            "train_with_scores."
        )

    @takes_training_options
    def train_with_pairs(
        self,
        train_prompts: Column,
        train_chosen: Column,
        train_rejected: Column,
        validation_prompts: Column,
        validation_chosen: Column,
        validation_rejected: Column,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains on pairs of a better and a worse answer, or loads the cached result, and returns the trainer.

        The validation rows choose the best epoch. For the options and errors see `TrainHFFineTune.train`.
        """
        train = (train_prompts, train_chosen, train_rejected)
        validation = (validation_prompts, validation_chosen, validation_rejected)
        return self._train_on(RewardPairs, PREFERENCES, train, validation, options)

    @takes_training_options
    def train_with_pairs_and_scores(
        self,
        train_prompts: Column,
        train_chosen: Column,
        train_chosen_scores: Column,
        train_rejected: Column,
        train_rejected_scores: Column,
        validation_prompts: Column,
        validation_chosen: Column,
        validation_chosen_scores: Column,
        validation_rejected: Column,
        validation_rejected_scores: Column,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains on pairs whose rewards should differ by as much as their scores; see `train_with_pairs`.

        Raises:
            DataError, ArgumentTypeError: A score is missing, infinite, or not a number.
        """
        names = (*PREFERENCES, "chosen_scores", "rejected_scores")
        train = (train_prompts, train_chosen, train_rejected, train_chosen_scores, train_rejected_scores)
        validation = (
            validation_prompts, validation_chosen, validation_rejected,
            validation_chosen_scores, validation_rejected_scores,
        )  # fmt: skip
        return self._train_on(RewardPairs, names, train, validation, options)

    @takes_training_options
    def train_with_scores(
        self,
        train_prompts: Column,
        train_generations: Column,
        train_scores: Column,
        validation_prompts: Column,
        validation_generations: Column,
        validation_scores: Column,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains on answers and their scores, by regression; see `train_with_pairs`.

        Raises:
            DataError, ArgumentTypeError: A score is missing, infinite, or not a number.
        """
        train = (train_prompts, train_generations, train_scores)
        validation = (validation_prompts, validation_generations, validation_scores)
        return self._train_on(RewardScores, ("prompts", "generations", "scores"), train, validation, options)

    def score(self, prompts: Sequence[str], generations: Sequence[str], *, batch_size: int = 32) -> list[float]:
        """Returns the reward of each generation, written after its prompt with the trained template."""
        return rewards_of(self.model, self.tokenizer, prompts, generations, batch_size=batch_size)

    def _train_on(
        self,
        kind: type[Generation],
        names: Sequence[str],
        train: Sequence[Column],
        validation: Sequence[Column],
        options: Mapping[str, Any],
    ) -> Self:
        self._kind = kind
        objective = _Preference() if kind is RewardPairs else _Regression()
        template = {"chat_prompt_template": self.chat_prompt_template, "system_prompt": self.system_prompt}
        return self.run_training(named_columns(names, train, validation), options, objective, template)

    def task_class(self, config: PretrainedConfig) -> type[Generation]:
        """Returns the class of the task; see `TrainHFFineTune.task_class`."""
        if config.is_encoder_decoder:
            raise MethodMisfit(
                f'"{self.name}": {self.source} is an encoder-decoder ({config.model_type}), which makes no reward '
                "model. Start from a causal model or an encoder."
            )
        return self._kind

    def load_model(self, config: PretrainedConfig, task: Task, options: dict[str, Any]) -> PreTrainedModel:
        """Returns the model with a head of one output."""
        labels = {"num_labels": 1, "id2label": {0: "reward"}, "label2id": {"reward": 0}}
        head = {**labels, "problem_type": "regression", "ignore_mismatched_sizes": True}
        return super().load_model(config, task, {**head, **options})

    def auto_class(self, config: PretrainedConfig) -> Any:
        """Returns the transformers class that loads the model."""
        return transformers.AutoModelForSequenceClassification

    def peft_task(self, config: PretrainedConfig) -> str:
        """Returns the task type of an adapter, by peft's name."""
        return "SEQ_CLS"

    def fill_card(self, metrics: Mapping[str, float], objective: Objective | None) -> None:
        """Records the origin of the model, the method and the metrics on the card."""
        super().fill_card(metrics, None)
        how = "regression on scores" if self._kind is RewardScores else "the loss of Bradley and Terry on pairs"
        self.card.facts["Method"] = f"Reward model, by {how}"
