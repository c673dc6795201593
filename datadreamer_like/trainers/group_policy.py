"""Policies that compare several answers to each prompt, GRPO and RLOO: trl's loops over our prompts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import DefinitionError, check_number, require_extra
from datadreamer_like.evaluation.tasks.examples import sorted_batches
from datadreamer_like.evaluation.tasks.prompts import text_of
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import by_position
from datadreamer_like.models.trained.prompt_template import has_template

from .policy import PolicyTrainer, check_sampling
from .training.loop import Fit, Run, fit
from .training.options import TRAIN_DEFAULTS, TrainingOptions
from .training.policy_loop import RepeatedBatches
from .training.rewards import Reward, RewardModel
from .training.trl_loop import TRLLoop

require_extra("trl", "trl", what="TrainHFGRPO and TrainHFRLOO")

import datasets  # noqa: E402
from trl.trainer.grpo_config import GRPOConfig  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.rloo_config import RLOOConfig  # noqa: E402
from trl.trainer.rloo_trainer import RLOOTrainer  # noqa: E402
from trl.trainer.utils import add_fused_lm_head  # noqa: E402

_POSITIONS = {
    "reward_model_tokenizer": None,
    "max_new_tokens": 256,
    **TRAIN_DEFAULTS,
    "learning_rate": 1e-5,
    "seed": 42,
}


class GroupPolicyTrainer(PolicyTrainer):
    """Base of trainers that sample several answers to a prompt; see `TrainHFGRPO` and `TrainHFRLOO`."""

    result_version = 2
    loop: ClassVar[type[_GroupLoop]]
    method: ClassVar[str]
    decided: ClassVar = {
        "max_completion_length", "reward_weights", "model_init_kwargs", "shuffle_dataset", "generation_batch_size",
        "sync_ref_model", "cast_lm_head_to_fp32", "metric_for_best_model", "greater_is_better",
        "per_device_eval_batch_size", "num_generations_eval",
    }  # fmt: skip
    _answers: int = 8

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        return {**super().example(), "batch_size": 4, "num_generations": 2}

    @by_position(_POSITIONS)
    def train(  # type: ignore[override]  # prompts and a reward, no answers
        self,
        train_prompts: Column,
        validation_prompts: Column,
        reward_model: RewardModel,
        *,
        reward_model_tokenizer: Any = None,
        max_new_tokens: int = 256,
        num_generations: int = 8,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the model, or loads the cached result, and returns the trainer.

        Args:
            train_prompts: Prompts to answer.
            validation_prompts: Prompts whose mean reward chooses the best epoch.
            reward_model: What rewards an answer; see `TrainHFPPO.train`.
            reward_model_tokenizer: The tokenizer of a transformers model.
            max_new_tokens: The longest answer in tokens.
            num_generations: Answers to each prompt, at least 2. They divide the answers of a step, `batch_size` times
                `gradient_accumulation_steps`.
            **options: See `TrainingOptions`; the default `learning_rate` is 1e-5. Also fields of trl's config, such as
                `beta` (the price of the KL to the reference), `temperature` and `num_iterations`.

        Raises:
            MethodMisfit: The model is not a causal language model, or the reward model has not exactly one output.
            ArgumentTypeError, DataError: The function does not return one finite number for each answer.
            DataDreamerError: See `TrainHFFineTune.train`.
        """
        what, given = f'"{self.name}".train', cast("dict[str, Any]", dict(options))
        check_number(num_generations, f"{what}: num_generations", 2, whole=True)
        sampling = (given.get("temperature", 1.0), given.get("top_p", 1.0), given.get("generation_kwargs"))
        check_sampling(what, *sampling, decided=("temperature",))  # that of the losses
        check_number(given.get("beta"), f"{what}: beta", 0, optional=True)
        steps = given.get("steps_per_generation") or given.get("gradient_accumulation_steps") or 1
        sampled = given.get("batch_size", 8) * steps
        if isinstance(sampled, int) and sampled % num_generations:
            raise DefinitionError(
                f"{what}: {sampled} answers are sampled at once, which are no whole groups of num_generations="
                f"{num_generations}. Make batch_size a multiple of it."
            )
        reward = Reward.of(reward_model, reward_model_tokenizer, self.name)
        self._answers = num_generations
        columns = {"train_prompts": train_prompts, "validation_prompts": validation_prompts}
        return self.run_policy(columns, reward, max_new_tokens, options, {"num_generations": num_generations})

    def fit_policy(self, run: Run) -> Fit:
        """Trains `run.model` with trl's loop."""
        return fit(
            run,
            lambda **options: self.loop(reward=self.reward, **options),
            self.arguments,
            num_generations=self._answers,
            max_completion_length=self.max_new_tokens,
            per_device_eval_batch_size=self._answers * max(1, run.training.batch_size // self._answers),
            activation_checkpointing=False,  # trl's default saves memory, but costs a fifth of the time
            metric_for_best_model="reward",
            greater_is_better=True,
        )

    def fill_card(self, metrics: Mapping[str, float], objective: Objective | None) -> None:
        """Records the origin of the model and of the reward, the method and the metrics on the card."""
        super().fill_card(metrics, objective)
        self.card.facts["Method"] = f"{self.method} with trl, {self._answers} answers to a prompt"


class _GroupLoop(TRLLoop):
    """trl's loop over our prompts: each batch has all answers to its prompts, as often as steps are taken on them."""

    temperature: float  # set by trl

    def __init__(self, run: Run, reward: Reward, **options: Any) -> None:
        def rewarded(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
            return reward([_content(each) for each in prompts], [_content(each) for each in completions])

        rewarded.__name__ = "reward"
        args, adapted = options["args"], hasattr(run.model, "peft_config")
        # trl would load the reference by the name of the model, which does not find that of a GGUF file.
        beta, args.beta = args.beta, 0.0
        reference = copy.deepcopy(run.model).eval() if beta and not adapted else None
        # trl checks a dataset that it then does not read.
        first = datasets.Dataset.from_dict({"prompt": [""]})
        super().__init__(
            run,
            reward_funcs=rewarded,
            train_dataset=first,
            eval_dataset=first,
            processing_class=run.task.tokenizer,
            **options,
        )
        args.beta = self.beta = beta
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the training batches in the order of the epoch."""
        args: Any = self.args
        size, times = (
            args.generation_batch_size // args.num_generations,
            args.num_iterations * args.steps_per_generation,
        )
        batches = _GroupBatches(self.run.train.lengths, size, args.seed, times, args.num_generations)
        return self._prompts(self.run.train, batches)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Returns the validation batches, longest prompts first."""
        args: Any = self.args
        batches = sorted_batches(self.run.validation.lengths, args.eval_batch_size // args.num_generations)
        repeated = [np.repeat(batch, args.num_generations).tolist() for batch in batches]
        return self._prompts(self.run.validation, repeated)

    def _prompts(self, examples: Any, batches: Any) -> DataLoader[Any]:
        chat = has_template(self.run.task.tokenizer)

        def collate(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
            texts = [text_of(examples, row["row"]) for row in rows]
            return [{"prompt": [{"role": "user", "content": text}] if chat else text} for text in texts]

        loader: DataLoader[Any] = DataLoader(examples, batch_sampler=batches, collate_fn=collate)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns the metrics, with the mean reward; answers are sampled with the same random numbers each time."""
        devices = [self.run.device] if self.run.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **kwargs)


class _GroupBatches(RepeatedBatches):
    """Batches of prompts, each prompt once for each of its `answers`; the last batch is filled with prompts of it."""

    def __init__(self, lengths: Any, batch_size: int, seed: int, times: int, answers: int) -> None:
        super().__init__(lengths, batch_size, seed, times)
        self.answers = answers

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield np.repeat(np.resize(batch, self.batch_size), self.answers).tolist()


class _GRPOLoop(_GroupLoop, GRPOTrainer):
    pass


class _RLOOLoop(_GroupLoop, RLOOTrainer):
    pass


def _content(text: Any) -> str:
    return text if isinstance(text, str) else str(text[-1]["content"])


class TrainHFGRPO(GroupPolicyTrainer):
    """Trains a causal language model by group relative policy optimization: its answers compete with each other.

    Shao et al. 2024, arXiv:2402.03300: some answers to each prompt are rewarded, and the advantage of each is its
    reward less the mean of its group, over the standard deviation. No value is learned. The loop and the losses are
    trl's: with `beta`, it weighs the KL to the reference by the ratio of the probabilities (DeepSeek-AI 2025,
    arXiv:2512.02556), and the paper's is `use_bias_correction_kl=False`. For the arguments and errors see
    `TrainHFFineTune`.

    Raises:
        MissingExtra: trl is not installed.

    Example:
        >>> trainer = TrainHFGRPO("Solver", model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_prompts=train.output["question"], validation_prompts=validation.output["question"],
        ...     reward_model=lambda questions, answers: [float("42" in answer) for answer in answers],
        ... )
    """

    arguments: ClassVar[type[TrainingArguments]] = GRPOConfig
    loop: ClassVar[type[_GroupLoop]] = _GRPOLoop
    method: ClassVar[str] = "GRPO"
    papers: ClassVar[Sequence[str]] = (
        """@article{shao2024deepseekmath,
  title={DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models},
  author={Shao, Zhihong and Wang, Peiyi and Zhu, Qihao and Xu, Runxin and Song, Junxiao and Bi, Xiao and Zhang, Haowei
    and Zhang, Mingchuan and Li, Y. K. and Wu, Y. and Guo, Daya},
  journal={arXiv preprint arXiv:2402.03300},
  year={2024}
}""",
    )


class TrainHFRLOO(GroupPolicyTrainer):
    """Trains a causal language model by REINFORCE, with the other answers to a prompt as the baseline of each.

    Ahmadian et al. 2024, arXiv:2402.14740: the advantage of an answer is its reward less the mean reward of the other
    answers to its prompt (leave one out). No value is learned. The loop and the losses are trl's. For the arguments and
    errors see `TrainHFFineTune`.

    Raises:
        MissingExtra: trl is not installed.

    Example:
        >>> trainer = TrainHFRLOO("Aligned", model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_prompts=train.output["prompt"], validation_prompts=validation.output["prompt"],
        ...     reward_model=reward_trainer, num_generations=4,
        ... )
    """

    arguments: ClassVar[type[TrainingArguments]] = RLOOConfig
    loop: ClassVar[type[_GroupLoop]] = _RLOOLoop
    method: ClassVar[str] = "RLOO"
    papers: ClassVar[Sequence[str]] = (
        """@article{ahmadian2024back,
  title={Back to Basics: Revisiting {REINFORCE} Style Optimization for Learning from Human Feedback in {LLMs}},
  author={Ahmadian, Arash and Cremer, Chris and Gall{\\'e}, Matthias and Fadaee, Marzieh and Kreutzer, Julia and
    Pietquin, Olivier and {\\"U}st{\\"u}n, Ahmet and Hooker, Sara},
  journal={arXiv preprint arXiv:2402.14740},
  year={2024}
}""",
    )
