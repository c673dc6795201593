"""PPO's loop: the policy writes answers, they are rewarded, and a few steps are taken on the clipped losses.

A round is one batch of prompts. It is repeated in the data loader as often as steps are taken on its answers, so that
the loop of transformers does the rest: its epochs end with a round, and its checkpoints with everything of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.modeling_layers import GradientCheckpointingLayer

from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.distillation.tokens import padded, padded_inputs
from datadreamer_like.errors import check_number
from datadreamer_like.evaluation.tasks.examples import ShuffledBatches
from datadreamer_like.evaluation.tasks.prompts import text_of
from datadreamer_like.evaluation.tasks.task import run_model
from datadreamer_like.kernels import (
    adapted_kl_coef,
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    penalized_rewards,
    whitened,
)

from .loop import ObjectiveLoop, Run
from .pruned_adapters import as_saved
from .rewards import Reward


@dataclass(frozen=True)
class PPOOptions:
    """What decides PPO's steps, by the names of `TrainHFPPO.train`; `sampling` are arguments of `generate`."""

    sampling: Mapping[str, Any]
    temperature: float
    max_new_tokens: int | None
    length_sampler: Any
    ppo_epochs: int
    mini_batches: int
    gamma: float
    lam: float
    cliprange: float
    cliprange_value: float
    vf_coef: float
    adap_kl_target: float | None
    max_kl: float | None


@dataclass
class Answers:
    """Sampled answers with their prompts: `texts` and `prompts`, and the tokens of both, padded on the right.

    `input_ids` and `attention_mask` are [rows, seq]; `mask` [rows, seq - 1] is True where the next token is the
    answer's, as for all that is said of tokens.
    """

    prompts: list[str]
    texts: list[str]
    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor


@dataclass
class Round:
    """What the steps on a batch of answers need: the first two [rows, seq], the others [rows, seq - 1]."""

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, chosen: Tensor) -> Round:
        """Returns some of the rows."""
        return Round(*(getattr(self, field.name)[chosen] for field in fields(self)))


class Critic(nn.Module):
    """The value of each hidden state, and the coefficient of the KL penalty, which a checkpoint keeps with it."""

    kl_coef: Tensor

    def __init__(self, hidden_size: int, kl_coef: float) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.register_buffer("kl_coef", torch.tensor(float(kl_coef)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the values [..., seq] of hidden states [..., seq, hidden]."""
        return self.value(hidden.to(self.value.weight.dtype))[..., 0]  # type: ignore[no-any-return]


class RepeatedBatches(ShuffledBatches):
    """Random batches, each several `times` in a row."""

    def __init__(self, lengths: np.ndarray[Any, Any], batch_size: int, seed: int, times: int) -> None:
        super().__init__(lengths, batch_size, seed)
        self.times = times

    def __len__(self) -> int:
        return self.times * super().__len__()

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield from [batch] * self.times


class PolicyLoop(ObjectiveLoop):
    """The loop of PPO; `run.modules` is a `Critic`."""

    def __init__(self, run: Run, reward: Reward, ppo: PPOOptions, **options: Any) -> None:
        adapted = hasattr(run.model, "peft_config")
        # With an adapter the reference is the model without it.
        self.reference = None if adapted else copy.deepcopy(run.model).to(run.device).eval().requires_grad_(False)
        super().__init__(run, **options)
        assert isinstance(run.modules, Critic)
        self.critic = run.modules
        self.reward, self.ppo = reward, ppo
        self.steps = ppo.ppo_epochs * ppo.mini_batches
        self.taken = self.steps  # of the current round
        self.figures: dict[str, float] = {}
        stop = getattr(run.model.generation_config, "eos_token_id", None)
        stops = {run.task.tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])} - {None}
        self.stops = torch.tensor(sorted(stops), device=run.device)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the batches of prompts, each as often as steps are taken on it."""
        args, lengths = self.args, self.run.train.lengths
        return self.loader(self.run.train, RepeatedBatches(lengths, self._train_batch_size, args.seed, self.steps))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Takes a step without dropout, also in the layers that gradient checkpointing runs again for the gradient."""
        with ExitStack() as self._until_backward:
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the loss of a step, after a new round where the last one is over."""
        if self.taken == self.steps:
            self.round, self.taken = self.new_round(model, inputs), 0
        rows, part = len(self.round.input_ids), self.taken % self.ppo.mini_batches
        if part == 0:
            self.order = torch.randperm(rows).to(self.round.input_ids.device)
        self.taken += 1
        self._until_backward.enter_context(without_dropout(model))
        now = self.round.rows(self.order[part :: self.ppo.mini_batches] if part < rows else self.order)
        log_probs, values = self.log_probs_and_values(model, now)
        loss = clipped_policy_loss(log_probs, now.log_probs, now.advantages, now.mask, self.ppo.cliprange)
        loss = loss + self.ppo.vf_coef * clipped_value_loss(
            values, now.values, now.returns, now.mask, self.ppo.cliprange_value
        )
        return (loss, None) if return_outputs else loss

    @torch.no_grad()
    def new_round(self, model: Any, batch: Mapping[str, Tensor]) -> Round:
        """Returns answers of the policy with their advantages, and adapts the KL penalty."""
        ppo, kl_coef = self.ppo, float(self.critic.kl_coef)
        with eval_mode(model):
            answers = self.write(model, batch, self.run.train)
            log_probs, values = self.log_probs_and_values(model, answers)
            reference = self.reference_log_probs(model, answers)
        scores = self.scores(answers)
        rewards = penalized_rewards(log_probs, reference, scores, answers.mask, kl_coef)
        advantages, returns = generalized_advantages(rewards, values, answers.mask, ppo.gamma, ppo.lam)
        kl = mean_kl(log_probs, reference, answers.mask)
        self.figures = {"reward": float(scores.mean()), "kl": kl, "kl_coef": kl_coef}
        if ppo.adap_kl_target is not None:
            self.critic.kl_coef.fill_(adapted_kl_coef(kl_coef, kl, ppo.adap_kl_target))
        if ppo.max_kl is not None and kl > ppo.max_kl:
            self.control.should_training_stop = True
        kept = answers.input_ids, answers.attention_mask, answers.mask
        return Round(*kept, log_probs, values, whitened(advantages, answers.mask), returns)

    def write(self, model: Any, batch: Mapping[str, Tensor], examples: Any) -> Answers:
        """Returns sampled answers to a batch of prompts."""
        prompts, task = batch["input_ids"], self.run.task
        longest = prompts.shape[1]
        room = task.max_length - longest
        if self.ppo.length_sampler is not None:
            longest_answer = self.ppo.length_sampler()
            check_number(longest_answer, "The value that length_sampler returned", 1)
            room = min(room, int(longest_answer))
        written = self.accelerator.unwrap_model(model).generate(
            **{name: batch[name] for name in ("input_ids", "attention_mask")},
            max_new_tokens=min(room, self.ppo.max_new_tokens or room),
            **{"eos_token_id": self.stops.tolist() or None, "pad_token_id": task.padding, **self.ppo.sampling},
        )[:, longest:]
        # An answer goes up to the first token that ends it.
        ends = torch.isin(written, self.stops).int()
        lengths = ((ends.cumsum(1) - ends) == 0).sum(1).tolist()
        answers = [row[:length] for row, length in zip(written.cpu().numpy(), lengths, strict=True)]
        ids, kept = (batch[name].cpu().numpy() for name in ("input_ids", "attention_mask"))
        asked = [row[there.astype(bool)] for row, there in zip(ids, kept, strict=True)]
        pairs = list(zip(asked, answers, strict=True))
        tokens = padded_inputs([np.concatenate(pair) for pair in pairs], task.padding)
        mask = padded([np.repeat([0, 1], [len(prompt), len(answer)]) for prompt, answer in pairs], 0)
        found = {name: value.to(prompts.device) for name, value in {**tokens, "mask": mask[:, 1:].bool()}.items()}
        texts = task.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return Answers([text_of(examples, int(row)) for row in batch["rows"]], texts, **found)

    def log_probs_and_values(self, model: Any, answers: Answers | Round) -> tuple[Tensor, Tensor]:
        """Returns the log-probability of each token of the answers, and the value before it, [rows, seq - 1]."""
        outputs = run_model(model, tokens_of(answers), frozenset({"logits", "hidden_states"}), use_cache=False)
        assert outputs.logits is not None
        assert outputs.hidden_states is not None
        values = self.critic(outputs.hidden_states[-1][:, :-1]).float()
        return token_log_probs(outputs.logits, answers, self.ppo.temperature), values

    def reference_log_probs(self, model: Any, answers: Answers) -> Tensor:
        """Returns the reference's log-probability of each token, [rows, seq - 1]."""
        wants = frozenset({"logits"})
        if self.reference is not None:
            outputs = run_model(self.reference, tokens_of(answers), wants, use_cache=False)
        else:
            with self.accelerator.unwrap_model(model).disable_adapter():
                outputs = run_model(model, tokens_of(answers), wants, use_cache=False)
        assert outputs.logits is not None
        return token_log_probs(outputs.logits, answers, self.ppo.temperature)

    def scores(self, answers: Answers) -> Tensor:
        """Returns the reward of each answer [rows]."""
        return torch.tensor(self.reward(answers.prompts, answers.texts), device=answers.mask.device)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Returns the mean reward of answers to the validation prompts, and their KL to the reference.

        They are sampled as in training, with the same random numbers after each epoch.
        """
        model: Any = self.model
        scores: list[Tensor] = []
        kls: list[float] = []
        devices = [self.run.device] if self.run.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), eval_mode(model), as_saved(model, self.run.kept):
            torch.manual_seed(self.args.seed)
            for inputs in self.get_eval_dataloader():
                answers = self.write(model, self._prepare_inputs(inputs), self.run.validation)
                scores.append(self.scores(answers))
                log_probs, _ = self.log_probs_and_values(model, answers)
                kl = mean_kl(log_probs, self.reference_log_probs(model, answers), answers.mask)
                kls += [kl] * len(answers.texts)
        found = {"reward": float(torch.cat(scores).mean()), "kl": float(np.mean(kls))}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the figures of the last round to those of a step."""
        super().log({**logs, **self.figures} if "loss" in logs else logs, *args, **kwargs)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Switches dropout off inside the block, but not gradient checkpointing, which works in training mode only."""
    with eval_mode(model):
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # of the layer alone: its parts stay in eval mode
        yield


def tokens_of(answers: Answers | Round) -> dict[str, Tensor]:
    """Returns the inputs of a model."""
    return {"input_ids": answers.input_ids, "attention_mask": answers.attention_mask}


def token_log_probs(logits: Tensor, answers: Answers | Round, temperature: float) -> Tensor:
    """Returns the log-probability of each token of the answers [rows, seq - 1], 0 elsewhere.

    They are those of sampling at this temperature, from logits [rows, seq, vocabulary].
    """
    mask = answers.mask
    log_probs = (logits[:, :-1][mask].float() / temperature).log_softmax(-1)
    found = log_probs.gather(-1, answers.input_ids[:, 1:][mask][:, None])[:, 0]
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, found)


def mean_kl(log_probs: Tensor, reference: Tensor, mask: Tensor) -> float:
    """Returns the mean over answers of `log π - log π_ref`, summed over tokens: an estimate of the KL, in nats."""
    return float(((log_probs - reference) * mask).sum(1).mean())
