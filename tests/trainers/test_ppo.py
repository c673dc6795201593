"""TrainHFPPO: it reaches a known optimum, stays where the penalty says so, and its first step is the formula's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MethodMisfit, StorageError
from datadreamer_like.trainers import TrainHFPPO, TrainHFRewardModel
from datadreamer_like.trainers.training.policy_loop import PolicyLoop

from .conftest import Rows

LETTERS = ["a", "b", "c", "d", "e", "f"]


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random Llama of one layer that writes letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["<pad>", "<unk>", "<eos>", *LETTERS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", model_max_length=32
    )
    model = tiny_models.llama(tokenizer, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("speller"))


def prompts(count: int = 16) -> dict[str, Any]:
    texts = [" ".join(LETTERS[(i + j) % 6] for j in range(1 + i % 3)) for i in range(count)]
    splits = {split: Rows(f"{split} prompts", {"text": texts}).output["text"] for split in ("train", "validation")}
    return {f"{split}_prompts": column for split, column in splits.items()}


def share_of_b(prompts: list[str], answers: list[str]) -> list[float]:
    """1 for an answer of four b's."""
    return [answer.split().count("b") / 4 for answer in answers]


FAST: dict[str, Any] = {"max_new_tokens": 4, "batch_size": 16, "learning_rate": 1e-2, "weight_decay": 0.0}


def test_a_policy_that_is_rewarded_for_one_token_learns_to_write_it(session, speller):
    trainer = TrainHFPPO("Bees", str(speller))
    trainer.train(**prompts(64), reward_model=share_of_b, **FAST, epochs=6, init_kl_coef=0.0, adap_kl_ctrl=False)
    assert trainer.metrics["reward"] > 0.9  # 1 at the optimum, 1/9 at the start
    assert not any("objective" in name for name, _ in trainer.model.named_parameters())
    ids = trainer.tokenizer(["c a"], return_tensors="pt")["input_ids"]
    written = trainer.model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert trainer.tokenizer.decode(written).split() == ["b"] * 4


def chance_of_b(model: Any, tokenizer: Any) -> torch.Tensor:
    """The probability that the first token after each prompt is a b, without padding."""
    found = []
    with torch.no_grad():
        for i in range(16):
            text = " ".join(LETTERS[(i + j) % 6] for j in range(1 + i % 3))
            logits = model(tokenizer([text], return_tensors="pt")["input_ids"]).logits[0, -1]
            found.append(logits.softmax(-1)[tokenizer.convert_tokens_to_ids("b")])
    return torch.stack(found)


def is_b(prompts: list[str], answers: list[str]) -> list[float]:
    return [float(answer.strip() == "b") for answer in answers]


def test_the_penalty_leads_to_the_optimum_with_it(session, speller):
    beta = 0.5
    trainer = TrainHFPPO("Some bees", str(speller))
    trainer.train(
        **prompts(128), reward_model=is_b, max_new_tokens=1, batch_size=64, learning_rate=2e-3, weight_decay=0.0,
        epochs=30, init_kl_coef=beta, adap_kl_ctrl=False,
    )  # fmt: skip
    start = AutoModelForCausalLM.from_pretrained(speller).eval()
    before, after = (chance_of_b(model, trainer.tokenizer) for model in (start, trainer.model))
    # π* is proportional to π_ref exp(r / β).
    gain = torch.tensor(1 / beta).exp()
    optimum = before * gain / (1 - before + before * gain)
    assert optimum.mean() > 0.4
    assert (after.mean() - optimum.mean()).abs() < 0.07


def test_a_large_penalty_keeps_the_policy_at_the_reference(session, speller):
    trainer = TrainHFPPO("No bees", str(speller))
    slow = {**FAST, "learning_rate": 2e-3}  # the first round has only a score, as the policy is the reference
    trainer.train(**prompts(64), reward_model=share_of_b, **slow, epochs=6, init_kl_coef=100.0, adap_kl_ctrl=False)
    start = AutoModelForCausalLM.from_pretrained(speller).eval()
    before, after = (chance_of_b(model, trainer.tokenizer) for model in (start, trainer.model))
    assert (after - before).abs().max() < 0.05
    assert abs(trainer.metrics["kl"]) < 0.1


def test_an_answer_ends_with_the_token_that_ends_it(session, speller):
    """The shortest answer is the best: the token that ends it is part of what is learned."""
    trainer = TrainHFPPO("Silent", str(speller))
    trainer.train(
        **prompts(64), reward_model=shortness, **FAST, epochs=8, init_kl_coef=0.0, adap_kl_ctrl=False
    )  # fmt: skip
    assert trainer.metrics["reward"] > -0.4  # 0 at the optimum, about -3 at the start


def shortness(prompts: list[str], answers: list[str]) -> list[float]:
    return [-float(len(answer.split())) for answer in answers]


class Noted:
    """A reward that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[str]]] = []

    def __fingerprint__(self) -> str:
        return "noted"

    def __call__(self, prompts: list[str], answers: list[str]) -> list[float]:
        self.asked.append((prompts, answers))
        return [float(answer.count("a")) - 0.5 * float(answer.count("c")) for answer in answers]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_first_step_is_that_of_the_formula(session, speller, temperature):
    reward = Noted()
    trainer = TrainHFPPO("Step", str(speller))
    trainer.train(
        **prompts(8), reward_model=reward, max_new_tokens=4, batch_size=8, epochs=1, ppo_epochs=1,
        temperature=temperature, learning_rate=1e-2, weight_decay=0.0, adam_epsilon=1e-3, lam=0.9, gamma=0.8,
        vf_coef=0.5, generation_kwargs={"suppress_tokens": [0, 1, 2]},  # so that each answer is four letters
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(speller)
    tokenizer = AutoTokenizer.from_pretrained(speller)
    asked, answers = reward.asked[0]
    assert sorted(asked) == sorted(" ".join(LETTERS[(i + j) % 6] for j in range(1 + i % 3)) for i in range(8))
    scores = [answer.count("a") - 0.5 * answer.count("c") for answer in answers]
    log_probs, advantages = [], []
    for prompt, answer, score in zip(asked, answers, scores, strict=True):
        ids, written = tokenizer.encode(prompt), tokenizer.encode(answer)
        assert len(written) == 4
        logits = model(torch.tensor([ids + written])).logits[0, len(ids) - 1 : -1] / temperature
        log_probs.append(logits.log_softmax(-1).gather(-1, torch.tensor(written)[:, None])[:, 0])
        # At the start all values are 0 and the policy is the reference, so only the score counts.
        advantages.append(torch.tensor([(0.9 * 0.8) ** (3 - token) * score for token in range(4)]))
    raw = torch.stack(advantages)
    white = (raw - raw.mean()) / raw.std(correction=0)
    loss = -(torch.stack(log_probs) * white).mean()  # its gradient is the policy's: the ratio is 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-3)
    loss.backward()
    # The value head's gradient takes part in the clipping of the norm.
    with torch.no_grad():
        hidden = torch.cat([
            model(torch.tensor([tokenizer.encode(p) + tokenizer.encode(a)]), output_hidden_states=True)
            .hidden_states[-1][0, len(tokenizer.encode(p)) - 1 : -1] for p, a in zip(asked, answers, strict=True)
        ])  # fmt: skip
    error = -raw.flatten()[:, None] / raw.numel() * 0.5
    head = torch.cat([(error * hidden).sum(0), error.sum(0)])
    total = torch.stack([*(weight.grad.norm() for weight in model.parameters()), head.norm()]).norm()
    for weight in model.parameters():
        weight.grad *= min(1.0, 1.0 / (total.item() + 1e-6))
    optimizer.step()
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, trainer.model.get_parameter(name), atol=3e-5), name


def float64_log_probs(model: Any, row: Any, temperature: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Each next token's log-probability [seq - 1], and the last hidden states [seq - 1, hidden], of a row of ids."""
    with torch.no_grad():
        outputs = model(row[None], output_hidden_states=True)
    logits = outputs.logits[0, :-1].numpy() / temperature
    log_probs = logits - logits.max(-1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    return np.take_along_axis(log_probs, row[1:, None].numpy(), -1)[:, 0], outputs.hidden_states[-1][0, :-1].numpy()


class Audited(PolicyLoop):
    """PPO's loop, which computes each round and loss again: in float64, row by row, with sums as in the papers."""

    rounds = 0
    clipped = 0
    distance = 0.0

    def again(self, model: Any, ids: Any, attention: Any) -> Iterator[tuple[Any, Any, Any]]:
        weight, bias = (part.detach().double().numpy() for part in self.critic.value.parameters())
        now, start = (copy.deepcopy(each).double().eval() for each in (model, self.reference))
        for row, there in zip(ids, attention.bool(), strict=True):
            log_probs, hidden = float64_log_probs(now, row[there], self.ppo.temperature)
            reference, _ = float64_log_probs(start, row[there], self.ppo.temperature)
            yield log_probs, reference, hidden @ weight[0] + bias[0]

    def new_round(self, model: Any, batch: Any) -> Any:
        beta, noted = float(self.critic.kl_coef), self.reward.scorer
        made = super().new_round(model, batch)
        scores = noted(*noted.asked[-1])
        gamma, lam, advantages, returns, kls = self.ppo.gamma, self.ppo.lam, [], [], []
        for index, (log_probs, reference, values) in enumerate(self.again(model, made.input_ids, made.attention_mask)):
            said = made.mask[index, : len(log_probs)].numpy()
            log_probs, reference, values = log_probs[said], reference[said], np.append(values[said], 0.0)
            count = len(log_probs)
            rewards = -beta * (log_probs - reference)
            rewards[-1] += scores[index]
            errors = rewards + gamma * values[1:] - values[:-1]
            own = [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, count)) for t in range(count)]
            advantages.append(np.array(own))
            returns.append(advantages[-1] + values[:-1])
            kls.append((log_probs - reference).sum())
        flat = np.concatenate(advantages)
        white = (flat - flat.mean()) / flat.std()
        np.testing.assert_allclose(made.advantages[made.mask], white, atol=2e-4)
        np.testing.assert_allclose(made.returns[made.mask], np.concatenate(returns), atol=2e-5)
        assert not made.advantages[~made.mask].any()
        kl = float(np.mean(kls))
        change = 1 + 0.1 * np.clip(kl / self.ppo.adap_kl_target - 1, -0.2, 0.2)
        assert float(self.critic.kl_coef) == pytest.approx(beta * change, rel=1e-4)
        Audited.rounds, Audited.distance = Audited.rounds + 1, max(Audited.distance, abs(kl))
        Audited.lengths = {len(each) for each in advantages}
        return made

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        part = (self.taken - 1) % self.ppo.mini_batches
        now = self.round.rows(self.order[part :: self.ppo.mini_batches])
        surrogate, squares = [], []
        for index, (log_probs, _, values) in enumerate(self.again(model, now.input_ids, now.attention_mask)):
            said = now.mask[index, : len(log_probs)].numpy()
            rows = (now.log_probs, now.values, now.advantages, now.returns)
            old, before, advantage, target = (each[index, : len(said)].double().numpy()[said] for each in rows)
            ratio, low, high = np.exp(log_probs[said] - old), 1 - self.ppo.cliprange, 1 + self.ppo.cliprange
            Audited.clipped += int(((ratio < low) | (ratio > high)).sum())
            surrogate.append(np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage))
            near = np.clip(values[said], before - self.ppo.cliprange_value, before + self.ppo.cliprange_value)
            squares.append(np.maximum((values[said] - target) ** 2, (near - target) ** 2))
        wanted = -np.concatenate(surrogate).mean() + self.ppo.vf_coef * 0.5 * np.concatenate(squares).mean()
        assert loss.item() == pytest.approx(wanted, abs=1e-4)
        return loss


def test_later_rounds_and_steps_are_those_of_the_formulas(session, speller, monkeypatch):
    monkeypatch.setattr("datadreamer_like.trainers.ppo.PolicyLoop", Audited)
    TrainHFPPO("Audited", str(speller)).train(
        **prompts(16), reward_model=Noted(), max_new_tokens=5, batch_size=8, mini_batch_size=4, epochs=2, ppo_epochs=2,
        learning_rate=1e-2, weight_decay=0.0, lam=0.9, gamma=0.8, vf_coef=0.5, temperature=1.5, init_kl_coef=0.3,
        cliprange=0.1, cliprange_value=0.05, adap_kl_target=0.5, max_kl=None,
    )  # fmt: skip
    assert Audited.rounds == 4
    assert Audited.clipped > 5  # so that the later steps are other than plain policy gradients
    assert Audited.distance > 0.05
    assert len(Audited.lengths) > 1  # some answers ended early


def test_an_adapter_has_the_model_without_it_as_reference(session, speller):
    from peft import LoraConfig

    lora = LoraConfig(r=8, target_modules=["down_proj", "lm_head"])
    trainer = TrainHFPPO("Bees", str(speller), peft_config=lora)
    trainer.train(
        **prompts(64), reward_model=is_b, max_new_tokens=1, batch_size=16, learning_rate=3e-2, epochs=6,
        init_kl_coef=0.05, mini_batch_size=8,
    )  # fmt: skip
    assert trainer.metrics["reward"] > 0.8
    start = AutoModelForCausalLM.from_pretrained(speller).eval()
    before, after = (chance_of_b(model, trainer.tokenizer).double() for model in (start, trainer.model))
    # KL of the choice b or not is below that of all tokens, and close to it where nearly all answers are b.
    least = (after * (after / before).log() + (1 - after) * ((1 - after) / (1 - before)).log()).mean().item()
    assert least - 0.3 < trainer.metrics["kl"] < least + 1.0


def test_a_reward_model_teaches_what_it_was_trained_on(session, speller, tmp_path):
    texts = ["a b", "c d", "e f", "b b"]
    rows = Rows("Scored", {"p": texts * 4, "g": ["b b b b"] * 8 + ["c c a e"] * 8, "s": [1.0] * 8 + [0.0] * 8}).output
    reward = TrainHFRewardModel("Reward", str(speller))
    reward.train_with_scores(*(rows[name] for name in "pgs" * 2), epochs=30, learning_rate=1e-2, batch_size=16)
    assert reward.metrics["mean_absolute_error"] < 0.1
    trainer = TrainHFPPO("Bees", str(speller))
    trainer.train(**prompts(64), reward_model=reward, **FAST, epochs=6, init_kl_coef=0.0, adap_kl_ctrl=False)
    said = trainer.card.facts
    assert said["Reward"] == "TrainedModel('Reward')"
    assert "Reward" in [card.name for card in trainer.card.lineage()]
    assert {"schulman2017proximal", "ziegler2019finetuning"} <= {
        c.split("{")[1].split(",")[0] for c in trainer.card.citations
    }
    history = [entry["reward"] for entry in trainer.manifest.result["history"]]
    assert max(history) == pytest.approx(trainer.metrics["reward"], abs=1e-6)
    assert max(history) > 0.5 + history[0] - 0.5 * abs(history[0])
    loaded = {"reward_model": reward.model, "reward_model_tokenizer": reward.tokenizer}
    again = TrainHFPPO("Bees of a loaded model", str(speller))
    again.train(**prompts(64), **loaded, **FAST, epochs=1, init_kl_coef=0.0, adap_kl_ctrl=False)
    first = trainer.manifest.result["history"][0]["reward"]
    assert again.metrics["reward"] == pytest.approx(first, abs=0.3)


def reads_names(*, prompts: list[str], completions: list[str]) -> list[float]:
    """A reward function as trl calls it."""
    return [0.0] * len(prompts)


def test_prompts_of_one_token_are_answered_and_the_model_checked_on_saving(session, speller):
    column = Rows("Letters", {"text": LETTERS}).output["text"]
    trainer = TrainHFPPO("Bees", str(speller))
    trainer.train(column, column, share_of_b, max_new_tokens=2, epochs=1, learning_rate=1e-2)
    assert trainer.metrics["reward"] >= 0

    def double(module: Any, given: Any, output: Any) -> None:
        output.logits = 2 * output.logits

    class Spoiled(TrainHFPPO):
        def fit_policy(self, run: Any) -> Any:
            found = super().fit_policy(run)
            run.model.register_forward_hook(double)
            return found

    with pytest.raises(StorageError, match="does not give the logits of the trained one"):
        Spoiled("Spoiled", str(speller)).train(column, column, share_of_b, max_new_tokens=2, epochs=1)


def test_what_does_not_reward_is_refused(session, speller, tiny_seq2seq, tiny_causal_lm):
    def train(name: str, start: Any = speller, **options: Any) -> None:
        given = {"reward_model": is_b, "max_new_tokens": 2, "epochs": 1, **options}
        TrainHFPPO(name, str(start)).train(**prompts(), **given)

    with pytest.raises(MethodMisfit, match=r"is not a causal language model \(t5\), and TrainHFPPO"):
        train("A", tiny_seq2seq)
    with pytest.raises(MethodMisfit, match="the reward_model, LlamaForCausalLM, is not a reward model"):
        train("B", reward_model=str(tiny_causal_lm))
    with pytest.raises(DefinitionError, match="needs its reward_model_tokenizer"):
        train("C", reward_model=AutoModelForCausalLM.from_pretrained(speller))
    with pytest.raises(ArgumentTypeError, match="reward_model is of type int"):
        train("D", reward_model=3)
    with pytest.raises(DataError, match="returned 1 numbers for 8 generations"):
        train("E", reward_model=lambda texts: [1.0])
    with pytest.raises(ArgumentTypeError, match="must return a list of numbers, not None"):
        train("F", reward_model=lambda texts: None)
    with pytest.raises(DataError, match="returned nan for"):
        train("G", reward_model=lambda texts: [float("nan")] * len(texts))
    with pytest.raises(ArgumentTypeError, match="must return a list of numbers, not {0: 1.0"):
        train("G2", reward_model=lambda texts: dict.fromkeys(range(len(texts)), 1.0))
    with pytest.raises(ArgumentTypeError, match="the reward_model, reads_names, is called by position"):
        train("G3", reward_model=reads_names)
    with pytest.raises(ArgumentTypeError, match="It takes others: missing a required argument: 'golds'"):
        train("G4", reward_model=lambda prompts, answers, golds: [0.0] * len(golds))
    with pytest.raises(DefinitionError, match="The value that length_sampler returned is 0; it must be at least 1"):
        train("G5", length_sampler=lambda: 0)
    with pytest.raises(DefinitionError, match="temperature is 0; it must be over 0"):
        train("H", temperature=0)
    with pytest.raises(DefinitionError, match=r"lam is 1\.5; it must be at most 1"):
        train("I", lam=1.5)
    with pytest.raises(DefinitionError, match='decides "num_beams" of generation_kwargs itself'):
        train("J", generation_kwargs={"num_beams": 2})
    with pytest.raises(DefinitionError, match="max_new_tokens is 40, which leaves no room"):
        train("K", max_new_tokens=40)
    with pytest.raises(DefinitionError, match="makes its optimizer itself. Pass optim= and lr_scheduler_type="):
        train("L", optimizer=torch.optim.AdamW)


def test_training_stops_where_the_policy_went_too_far(session, speller):
    trainer = TrainHFPPO("Bees", str(speller))
    trainer.train(**prompts(), reward_model=share_of_b, **FAST, epochs=15, init_kl_coef=0.0, max_kl=0.5)
    assert trainer.manifest.result["epochs"] < 10
    assert trainer.metrics["kl"] < 4
