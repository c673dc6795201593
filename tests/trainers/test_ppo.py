"""TrainHFPPO: it reaches a known optimum, stays where the penalty says so, and its first step is the formula's."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MethodMisfit
from datadreamer_like.trainers import TrainHFPPO, TrainHFRewardModel

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
    trainer.train(**prompts(), reward_model=share_of_b, **FAST, epochs=15, init_kl_coef=0.0, adap_kl_ctrl=False)
    assert trainer.metrics["reward"] > 0.9  # 1 at the optimum, 1/9 at the start
    assert not any("objective" in name for name, _ in trainer.model.named_parameters())
    ids = trainer.tokenizer(["c a"], return_tensors="pt")["input_ids"]
    written = trainer.model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert trainer.tokenizer.decode(written).split() == ["b"] * 4
