"""TrainHFRewardModel: steps are those of the formula on pairs, margins and scores; saved, loaded, resumed, adapted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from warm import printed_by

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MethodMisfit
from datadreamer_like.trainers import TrainHFRewardModel

from .conftest import Rows
from .test_dpo import PAIRS

SCORES = {"chosen_scores": [2.0, 1.5, 3.0, 1], "rejected_scores": [1.0, -0.5, 2.5, 0]}
ONE_STEP: dict[str, Any] = {
    "epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.0, "adam_epsilon": 1e-3,
}  # fmt: skip


def columns(rows: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The columns of both splits, by argument: `names` are the arguments' endings of the columns."""
    splits = {split: Rows(f"{split} rows", rows).output for split in ("train", "validation")}
    return {f"{split}_{ending}": output[name] for split, output in splits.items() for name, ending in names.items()}


def pairs(rows: dict[str, Any] = PAIRS) -> dict[str, Any]:
    endings = {"prompt": "prompts"}
    return columns(rows, {name: endings.get(name, name) for name in rows})


def scored(scores: list[Any]) -> dict[str, Any]:
    rows = {"prompts": PAIRS["prompt"], "generations": PAIRS["chosen"], "scores": scores}
    return columns(rows, {name: name for name in rows})


def reward(model: Any, tokenizer: Any, prompt: str, answer: str) -> torch.Tensor:
    """Of one answer, without padding."""
    text = f"<|user|>{prompt}<eos><|assistant|>{answer}<eos>"
    return model(torch.tensor([tokenizer.encode(text, add_special_tokens=False)])).logits[0, 0]


def by_formula(model: Any, tokenizer: Any, scores: dict[str, list[float]] | None) -> torch.Tensor:
    losses = []
    for row, (prompt, chosen, rejected) in enumerate(zip(*PAIRS.values(), strict=True)):
        margin = 0.0 if scores is None else scores["chosen_scores"][row] - scores["rejected_scores"][row]
        difference = reward(model, tokenizer, prompt, chosen) - reward(model, tokenizer, prompt, rejected)
        losses.append(torch.log1p(torch.exp(margin - difference)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("scores", [None, SCORES])
def test_a_step_on_pairs_is_that_of_the_formula(session, tiny_causal_lm, tmp_path, scores):
    start = TrainHFRewardModel("Start", str(tiny_causal_lm))
    start.train_with_pairs(**pairs(), **{**ONE_STEP, "learning_rate": 0.0})  # only its new head is used
    trainer = TrainHFRewardModel("Reward", start)
    if scores is None:
        trainer.train_with_pairs(**pairs(), **ONE_STEP)
    else:
        trainer.train_with_pairs_and_scores(**pairs({**PAIRS, **scores}), **ONE_STEP)
    model = AutoModelForSequenceClassification.from_pretrained(start.path)
    tokenizer = AutoTokenizer.from_pretrained(start.path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-3)
    by_formula(model, tokenizer, scores).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, trainer.model.get_parameter(name), atol=2e-5), name
    with torch.no_grad():
        wanted = by_formula(trainer.model, tokenizer, scores).item()
        better = [
            (reward(trainer.model, tokenizer, p, c) > reward(trainer.model, tokenizer, p, r)).item()
            for p, c, r in zip(*PAIRS.values(), strict=True)
        ]
    assert trainer.metrics["loss"] == pytest.approx(wanted, abs=1e-5)
    assert trainer.metrics["accuracy"] == sum(better) / 4
    assert trainer.model.config.num_labels == 1
    assert "stiennon2020learning" in "".join(trainer.card.citations)


def test_regression_learns_the_scores_and_says_them_in_a_fresh_process(session, tiny_causal_lm):
    scores = [2.0, -1.0, 0.5, 1]
    trainer = TrainHFRewardModel("Reward", str(tiny_causal_lm))
    trainer.train(**scored(scores), epochs=60, batch_size=4, learning_rate=5e-3)
    said = trainer.score(PAIRS["prompt"], PAIRS["chosen"], batch_size=3)
    assert said == pytest.approx(scores, abs=0.3)
    assert trainer.metrics["loss"] == pytest.approx(
        sum((a - b) ** 2 for a, b in zip(said, scores, strict=True)) / 4, abs=1e-4
    )
    errors = [abs(a - b) for a, b in zip(said, scores, strict=True)]
    assert trainer.metrics["mean_absolute_error"] == pytest.approx(sum(errors) / 4, abs=1e-4)
    one = [
        reward(trainer.model, trainer.tokenizer, *row).item()
        for row in zip(PAIRS["prompt"], PAIRS["chosen"], strict=True)
    ]
    assert said == pytest.approx(one, abs=1e-5)  # batches and padding change nothing
    script = (
        "import json, sys\nfrom datadreamer_like.models.trained.trained_model import TrainedModel\n"
        "from datadreamer_like.evaluation.tasks.rewards import rewards_of\n"
        "model, rows = TrainedModel.load(sys.argv[1]), json.loads(sys.argv[2])\n"
        "print(json.dumps(rewards_of(model.model, model.tokenizer, *rows)))"
    )
    rows = json.dumps([PAIRS["prompt"], PAIRS["chosen"]])
    assert json.loads(printed_by(script, str(trainer.path), rows)) == pytest.approx(said, abs=1e-5)


def test_an_encoder_and_an_adapter_learn_which_answer_is_better(session, tiny_encoder, tiny_causal_lm):
    from peft import LoraConfig

    rows = {
        "prompt": ["the tea was", "a day was", "the film was", "the day was"] * 2,
        "chosen": ["good", "fine", "great", "very good"] * 2,
        "rejected": ["bad", "poor", "awful", "very bad"] * 2,
    }
    encoder = TrainHFRewardModel("Encoder", str(tiny_encoder))
    encoder.train_with_pairs(**pairs(rows), epochs=15, batch_size=4, learning_rate=3e-3)
    assert encoder.metrics["accuracy"] == 1.0
    good, bad = encoder.score(["the tea was"] * 2, ["good", "awful"])
    assert good > bad
    adapter = TrainHFRewardModel("Adapter", str(tiny_causal_lm), peft_config=LoraConfig(r=8, target_modules=["q_proj"]))
    adapter.train_with_pairs(**pairs(), epochs=10, batch_size=4, learning_rate=2e-2)
    assert adapter.metrics["accuracy"] == 1.0
    assert not any("lora" in name for name, _ in adapter.model.named_parameters())
    difference = [
        a - b
        for a, b in zip(*(adapter.score(PAIRS["prompt"], PAIRS[kind]) for kind in ("chosen", "rejected")), strict=True)
    ]
    assert adapter.metrics["margin"] == pytest.approx(sum(difference) / 4, rel=1e-4)


def test_what_is_no_reward_is_refused_before_training(session, tiny_causal_lm, tiny_seq2seq):
    with pytest.raises(ArgumentTypeError, match="train_scores must contain numbers; row 0 has 'high'"):
        TrainHFRewardModel("A", str(tiny_causal_lm)).train(**scored(["high"] * 4))
    with pytest.raises(DataError, match="train_scores is inf in row 2"):
        TrainHFRewardModel("B", str(tiny_causal_lm)).train(**scored([1.0, 2.0, float("inf"), 0.0]))
    with pytest.raises(DataError, match="train_scores.* is None in row 0"):
        TrainHFRewardModel("C", str(tiny_causal_lm)).train(**scored([None, 2.0, 1.0, 0.0]))
    with pytest.raises(DataError, match="train_scores is the same in every row, so there is nothing to learn"):
        TrainHFRewardModel("G", str(tiny_causal_lm)).train(**scored([0.5] * 4))
    # Cut at 9 tokens, the answers no longer differ.
    alike = {"prompt": ["The cat"] * 2, "chosen": ["sat on a mat", "sat"], "rejected": ["sat on a tree", "sat"]}
    with pytest.raises(DataError, match="are the same in every row, after cutting at 9 tokens"):
        TrainHFRewardModel("F", str(tiny_causal_lm)).train_with_pairs(**pairs(alike), max_length=9, truncate=True)
    with pytest.raises(MethodMisfit, match=r"is an encoder-decoder \(t5\)"):
        TrainHFRewardModel("D", str(tiny_seq2seq)).train(**pairs())
    with pytest.raises(DefinitionError, match="needs columns by name: train_prompts with"):
        TrainHFRewardModel("E", str(tiny_causal_lm)).train(train_prompts=pairs()["train_prompts"])
