"""Models whose embedding lacks tokens of their tokenizer: refused before the first step by every trainer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainHFDPO,
    TrainHFFineTune,
    TrainHFRewardModel,
    TrainSentenceTransformer,
    TrainSetFitClassifier,
)

from .conftest import Rows

TEXTS = ["a good zebra", "a bad day", "a fine day", "a poor zebra"]
REFUSED = r"the id \d+, and \w+ has embeddings for the ids 0 to \d+.*resize_token_embeddings"


def widened(model: Path, folder: Path, **added: Any) -> str:
    """Copies a model with a tokenizer that has tokens more."""
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_special_tokens(added) if added else tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def columns(*values: list[str]) -> list[Any]:
    parts = [Rows(split, {f"c{index}": each for index, each in enumerate(values)}) for split in ("train", "validation")]
    return [part.output[f"c{index}"] for part in parts for index in range(len(values))]


PROMPTS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("kind", "method", "given"),
    [
        (TrainHFClassifier, "train", (TEXTS, PROMPTS)),
        (TrainEmbeddingClassifier, "train", (TEXTS, PROMPTS)),
        (TrainSetFitClassifier, "train", (TEXTS, ["x", "y", "x", "y"])),
        (TrainSentenceTransformer, "train_with_positive_pairs", (PROMPTS, TEXTS)),
        (TrainHFFineTune, "train", (PROMPTS, TEXTS)),
        (TrainHFDPO, "train", (PROMPTS, TEXTS, TEXTS[::-1])),
        (TrainHFRewardModel, "train_with_pairs", (PROMPTS, TEXTS, TEXTS[::-1])),
    ],
)
def test_models_without_a_token_are_refused(session, tiny_causal_lm, tiny_encoder, tmp_path, kind, method, given):
    causal = kind in (TrainHFFineTune, TrainHFDPO, TrainHFRewardModel)
    model = widened(tiny_causal_lm if causal else tiny_encoder, tmp_path)
    with pytest.raises(MethodMisfit, match=f"zebra' {REFUSED}"):
        getattr(kind("It", model), method)(*columns(*given))


def test_padding_without_an_embedding_is_refused_and_tokens_that_no_row_has_are_not(session, tiny_causal_lm, tmp_path):
    first, second = tmp_path / "padding", tmp_path / "unused"
    for folder in (first, second):
        folder.mkdir()
    given = columns(["a", "b"], ["c", "d"])
    with pytest.raises(MethodMisfit, match=re.escape("'<filling>'") + " " + REFUSED):
        TrainHFFineTune("Padded", widened(tiny_causal_lm, first, pad_token="<filling>")).train(*given)
    trained = TrainHFFineTune("Unused", widened(tiny_causal_lm, second)).train(*given, epochs=1)
    assert trained.metrics["loss"] > 0
