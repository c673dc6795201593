"""Reinforcement learning from a reward model or a function, by proximal policy optimization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Self, Unpack

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_number
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import by_position
from datadreamer_like.models.llms.chat_template import AUTO, Auto

from .policy import PolicyTrainer, check_sampling
from .training.loop import Fit, Run, fit
from .training.options import TrainingOptions
from .training.policy_loop import Critic, PolicyLoop, PPOOptions
from .training.rewards import Reward, RewardModel

_CITATIONS = [
    """@article{schulman2017proximal,
  title={Proximal Policy Optimization Algorithms},
  author={Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg},
  journal={arXiv preprint arXiv:1707.06347},
  year={2017}
}""",
    """@article{ziegler2019finetuning,
  title={Fine-Tuning Language Models from Human Preferences},
  author={Ziegler, Daniel M. and Stiennon, Nisan and Wu, Jeffrey and Brown, Tom B. and Radford, Alec and Amodei, Dario
    and Christiano, Paul and Irving, Geoffrey},
  journal={arXiv preprint arXiv:1909.08593},
  year={2019}
}""",
]
_POSITIONS = {
    "reward_model_tokenizer": None, "max_new_tokens": None, "temperature": 1.0, "top_p": 1.0,
    "generation_kwargs": None, "truncate": True, "epochs": 3.0, "batch_size": 8, "optimizer": AUTO,
    "learning_rate": 1e-5, "weight_decay": 0.01, "lr_scheduler": None, "seed": 42, "length_sampler": None,
    "init_kl_coef": 0.2, "adap_kl_ctrl": True, "adap_kl_target": 6.0, "max_kl": AUTO,
}  # fmt: skip


class TrainHFPPO(PolicyTrainer):
    """Trains a causal language model by reinforcement learning: its answers are rewarded by a model or a function.

    Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) as for language models (Ziegler et al. 2019,
    arXiv:1909.08593; Stiennon et al. 2020, arXiv:2009.01325): the model answers a batch of prompts; each token costs
    its `β (log π - log π_ref)`, and the last one gets the reward; a value head, which is not saved, estimates what is
    still to come; and some steps are taken on the clipped losses. The reference is the model that training starts
    from. For the arguments and errors see `TrainHFFineTune`.

    Example:
        >>> trainer = TrainHFPPO("Aligned", model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_prompts=train.output["prompt"], validation_prompts=validation.output["prompt"],
        ...     reward_model=reward_trainer, max_new_tokens=32,
        ... )
    """

    papers: ClassVar[Sequence[str]] = _CITATIONS
    ppo: PPOOptions
    _kl_coef: float
    decided: ClassVar = {"metric_for_best_model", "greater_is_better"}

    @by_position(_POSITIONS)
    def train(  # type: ignore[override]  # prompts and a reward, no answers
        self,
        train_prompts: Column,
        validation_prompts: Column,
        reward_model: RewardModel,
        *,
        reward_model_tokenizer: Any = None,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generation_kwargs: Mapping[str, Any] | None = None,
        optimizer: object = AUTO,
        lr_scheduler: object = None,
        length_sampler: Callable[[], int] | None = None,
        init_kl_coef: float = 0.2,
        adap_kl_ctrl: bool = True,
        adap_kl_target: float = 6.0,
        max_kl: float | Auto | None = AUTO,
        ppo_epochs: int = 4,
        mini_batch_size: int | None = None,
        gamma: float = 1.0,
        lam: float = 0.95,
        cliprange: float = 0.2,
        cliprange_value: float = 0.2,
        vf_coef: float = 0.1,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the model, or loads the cached result, and returns the trainer.

        Args:
            train_prompts: Prompts to answer; an epoch answers each once.
            validation_prompts: Prompts whose mean reward chooses the best epoch.
            reward_model: What rewards an answer: a `TrainHFRewardModel`, another trainer or stage, a `TrainedModel`, a
                folder or Hub id of a reward model, a transformers model, or a function. A function takes the texts,
                each a prompt with its answer, or as two parameters the prompts and the answers, and returns a number
                for each.
            reward_model_tokenizer: The tokenizer of a transformers model.
            max_new_tokens: The longest answer in tokens; None for what is left of `max_length`.
            temperature: Of sampling; the losses are those of the policy at this temperature.
            top_p: Share of the most likely tokens that are sampled from. Below 1 the losses are not exact.
            generation_kwargs: Further arguments of transformers' `generate`.
            optimizer: Accepted for DataDreamer scripts; use `optim`.
            lr_scheduler: Accepted for DataDreamer scripts; use `lr_scheduler_type`.
            length_sampler: Returns the longest answer of each batch.
            init_kl_coef: β, the price of a nat of distance to the reference.
            adap_kl_ctrl: Adapt β after each batch, so that the distance comes to `adap_kl_target`.
            adap_kl_target: KL of an answer to aim at, in nats.
            max_kl: Stop training at a KL above this; AUTO for 1.5 times the target of an adaptive β, else None.
            ppo_epochs: Passes over a batch of answers.
            mini_batch_size: Answers in a step; None for the batch size.
            gamma: γ, the discount of a token.
            lam: λ of the advantages: 1 is unbiased, lower values have less variance.
            cliprange: ε of the policy's loss.
            cliprange_value: ε of the value's loss.
            vf_coef: Weight of the value's loss.
            **options: See `TrainingOptions`; the default `learning_rate` is 1e-5. `max_length` is that of a prompt with
                its answer; prompts that are too long are left out.

        Raises:
            MethodMisfit: The model is not a causal language model, or the reward model has not exactly one output.
            ArgumentTypeError, DataError: The function does not return one finite number for each answer.
            DataDreamerError: See `TrainHFFineTune.train`.
        """
        what = f'"{self.name}".train'
        if optimizer is not AUTO or lr_scheduler is not None:
            raise DefinitionError(f"{what} makes its optimizer itself. Pass optim= and lr_scheduler_type=, by name.")
        if length_sampler is not None and not callable(length_sampler):
            raise ArgumentTypeError(f"{what}: length_sampler must be a function, not {length_sampler!r}.")
        sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0, "repetition_penalty": 1.0}
        if isinstance(generation_kwargs, Mapping):
            sampling |= generation_kwargs
        check_sampling(what, sampling["temperature"], sampling["top_p"], generation_kwargs)
        batch_size = options.get("batch_size", 8)
        for name, value, least, limits in (
            ("init_kl_coef", init_kl_coef, 0, {}),
            ("adap_kl_target", adap_kl_target, 0, {"over": True}),
            ("ppo_epochs", ppo_epochs, 1, {"whole": True}),
            ("mini_batch_size", mini_batch_size, 1, {"whole": True, "optional": True}),
            ("cliprange", cliprange, 0, {"over": True}),
            ("cliprange_value", cliprange_value, 0, {"over": True}),
            ("vf_coef", vf_coef, 0, {}),
            ("gamma", gamma, 0, {}),
            ("lam", lam, 0, {}),
            ("max_kl", None if max_kl is AUTO else max_kl, 0, {"over": True, "optional": True}),
        ):
            check_number(value, f"{what}: {name}", least, **limits)
        for name, value in (("gamma", gamma), ("lam", lam)):
            if value > 1:
                raise DefinitionError(f"{what}: {name} is {value}; it must be at most 1.")
        reward = Reward.of(reward_model, reward_model_tokenizer, self.name)
        automatic = 1.5 * adap_kl_target if adap_kl_ctrl else None
        self.ppo = PPOOptions(
            sampling={"do_sample": True, **sampling},
            temperature=float(sampling["temperature"]),
            max_new_tokens=max_new_tokens,
            length_sampler=length_sampler,
            ppo_epochs=ppo_epochs,
            mini_batches=-(-batch_size // (mini_batch_size or batch_size)),
            gamma=float(gamma),
            lam=float(lam),
            cliprange=float(cliprange),
            cliprange_value=float(cliprange_value),
            vf_coef=float(vf_coef),
            adap_kl_target=float(adap_kl_target) if adap_kl_ctrl else None,
            max_kl=automatic if isinstance(max_kl, Auto) else max_kl,
        )
        self._kl_coef = float(init_kl_coef)
        own = {**asdict(self.ppo), "init_kl_coef": self._kl_coef}
        columns = {"train_prompts": train_prompts, "validation_prompts": validation_prompts}
        return self.run_policy(columns, reward, max_new_tokens, options, own)

    def fit_policy(self, run: Run) -> Fit:
        """Trains `run.model` with PPO's loop, and a value head."""
        critic = Critic(run.model.config.get_text_config().hidden_size, self._kl_coef)
        return fit(
            replace(run, modules=critic),
            lambda **options: PolicyLoop(reward=self.reward, ppo=self.ppo, **options),
            metric_for_best_model="reward",
            greater_is_better=True,
        )

    def fill_card(self, metrics: Mapping[str, float], objective: Objective | None) -> None:
        """Records the origin of the model and of the reward, the method and the metrics on the card."""
        super().fill_card(metrics, objective)
        kind = "fixed" if self.ppo.adap_kl_target is None else f"for a KL of {self.ppo.adap_kl_target:g}"
        self.card.facts["Method"] = f"PPO with a KL coefficient of {self._kl_coef:g} ({kind})"
