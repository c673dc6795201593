"""What `Compare` shows on request: coverage and agreement of classifiers, pairs and answers of language models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, LabelError
from datadreamer_like.evaluation import expected_calibration_error, fit_threshold, rouge_l
from datadreamer_like.models import LLM
from datadreamer_like.models.llms.generation import Answer
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.stages import Calibrate, Compare
from datadreamer_like.steps.sources.data_source import DataSource
from datadreamer_like.trainers import TrainHFRewardModel

from .conftest import LABELS, classifier, save

Column = Callable[[str], Any]
QUICK: dict[str, Any] = {
    "repeats": 1, "threads": 1, "latency_texts": 1, "throughput_texts": 2, "resamples": 50,
}  # fmt: skip


def logits_by_name(folder: Path, texts: list[str]) -> Any:
    """Logits, with the classes in the order of `LABELS`."""
    model = TrainedModel(folder)
    return model.logits(texts).astype(np.float64)[:, [model.labels.index(label) for label in LABELS]]


def test_classifiers_show_calibration_coverage_and_agreement(
    session: DataDreamer, good: Path, poor: Path, column: Column
):
    compared = Compare(
        "Cost", [good, poor], column("text"), column("label"), teacher=good, max_error=0.1, confidence=0.9, **QUICK
    )
    truth = np.array([LABELS.index(label) for label in column("label")])
    taught = log_softmax(logits_by_name(good, list(column("text"))), axis=1)
    for folder, row in zip((good, poor), compared.rows, strict=True):
        found = log_softmax(logits_by_name(folder, list(column("text"))), axis=1)
        chances = np.exp(found).max(1)
        right = found.argmax(1) == truth
        assert row["calibration_error"] == pytest.approx(expected_calibration_error(np.exp(found), truth), abs=1e-5)
        bound = fit_threshold(np.log(chances / (1 - chances)), right, max_error=0.1, confidence=0.9)
        assert row["coverage"] == pytest.approx(bound.coverage)
        assert row["agreement"] == pytest.approx((found.argmax(1) == taught.argmax(1)).mean())
        assert row["divergence"] == pytest.approx((np.exp(taught) * (taught - found)).sum(1).mean(), abs=1e-5)
    first, other = compared.rows
    assert (first["agreement"], first["divergence"]) == (1.0, pytest.approx(0, abs=1e-6))
    assert other["divergence"] > 0.1
    shown = str(compared)
    for text in ("ECE", "coverage", "agreement", "KL", "at most 10 % of", "the same label as good"):
        assert text in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_columns_without_figures_are_not_shown(session: DataDreamer, good: Path, column: Column):
    shown = str(Compare("Cost", [good], column("text"), column("label"), **QUICK))
    assert "ECE" in shown
    assert not [text for text in ("coverage", "agreement", "KL") if text in shown]


def test_calibrated_model_is_compared_at_its_temperature(session: DataDreamer, good: Path, column: Column):
    calibrated = Calibrate("Calibrated", good, column("text"), column("label"))
    compared = Compare("Cost", [good, calibrated], column("text"), column("label"), **QUICK)
    before, after = compared.rows
    assert before["accuracy"] == after["accuracy"]
    for row, temperature in ((before, 1.0), (after, calibrated.temperature)):
        chances = np.exp(log_softmax(logits_by_name(good, list(column("text"))) / temperature, axis=1))
        truth = [LABELS.index(label) for label in column("label")]
        assert row["calibration_error"] == pytest.approx(expected_calibration_error(chances, truth), abs=1e-5)


def test_language_models_show_pairs_and_what_they_write(session: DataDreamer, tiny_causal_lm: Path):
    tokens = AutoTokenizer.from_pretrained(tiny_causal_lm)
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    prompts = ["The cat sat on the warm mat.", "A dog ran after the red ball.", "Rain fell on the quiet town."]
    answers = [prompts[0], prompts[1], "Snow fell on the quiet town."]
    worse = ["The train was late again today.", "mat", prompts[2]]
    made = DataSource("Pairs", data={"prompt": prompts, "chosen": answers, "rejected": worse}).output
    compared = Compare(
        "Pairs", [tiny_causal_lm], made["prompt"], made["chosen"], rejected=made["rejected"], generate=2,
        max_new_tokens=24, **QUICK,
    )  # fmt: skip

    def bits(prompt: str, answer: str) -> float:
        before, whole = f"<|user|>{prompt}<eos><|assistant|>", f"<|user|>{prompt}<eos><|assistant|>{answer}<eos>"
        start = len(tokens(before, add_special_tokens=False)["input_ids"])
        ids = tokens(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            likely = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[start - 1 :]
        return -float(likely.sum()) / len(answer.encode())

    wins = [bits(p, a) < bits(p, b) for p, a, b in zip(prompts, answers, worse, strict=True)]
    (row,) = compared.rows
    assert row["win_rate"] == pytest.approx(np.mean(wins))
    assert 0 < sum(wins) < 3

    said = []
    for prompt in prompts[:2]:
        ids = tokens(f"<|user|>{prompt}<eos><|assistant|>", add_special_tokens=False, return_tensors="pt")
        ids.pop("token_type_ids", None)
        out = model.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=tokens.pad_token_id)
        said.append(tokens.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    name = compared.rows[0]["model"]
    assert compared.generations[name] == [*said, None]
    assert row["exact_match"] == np.mean([a.strip() == b for a, b in zip(said, answers, strict=False)])
    assert row["rouge_l"] == pytest.approx(np.mean([rouge_l(a, b) for a, b in zip(said, answers, strict=False)]))
    shown = str(compared)
    assert "win rate" in shown
    assert "greedy answers to 2 rows" in shown
    again = Compare("Again", [tiny_causal_lm], made["prompt"], made["chosen"], **QUICK)
    assert "win rate" not in str(again)
    with pytest.raises(DefinitionError, match="generated no answers"):
        _ = again.generations


class Biased(LLM):
    """Prefers the longer answer in both orders if one is twice as long, else whatever is shown first."""

    model_name = "biased"

    def answer_batch(self, requests: Any) -> list[Answer]:
        found = []
        for request in requests:
            text = str(request.prompt)
            first, second = text.split("Response A: ")[1].split("\n\nWhich")[0].split("\n\nResponse B: ")
            longer = len(second) > 2 * len(first)
            found.append(Answer([f"Response {'B' if longer else 'A'}."]))
        return found


def by_length(prompt: str, a: str, b: str) -> str:
    """What `Biased` finds once its bias is cancelled."""
    return "a" if len(a) > 2 * len(b) else "b" if len(b) > 2 * len(a) else "tie"


@pytest.mark.parametrize("judge", ["a function", "an LLM", "a reward model"])
def test_a_judge_gives_the_win_rate_of_generated_answers_with_its_interval(
    session: DataDreamer, tiny_causal_lm: Path, tmp_path: Path, judge: str
):
    tokens = AutoTokenizer.from_pretrained(tiny_causal_lm)
    other = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    with torch.no_grad():
        other.get_output_embeddings().weight[tokens.eos_token_id] += 1.0  # shorter answers, now and then
    other.save_pretrained(tmp_path / "other")
    tokens.save_pretrained(tmp_path / "other")
    texts = [f"{start} {end}" for start in ("The cat sat", "A dog ran", "Rain fell") for end in ("down.", "on.", "x")]
    made = DataSource("Prompts", data={"prompt": texts, "answer": texts, "other": texts[::-1]}).output

    if judge == "a reward model":
        judges: dict[str, Any] = {judge: TrainHFRewardModel("Reward", str(tiny_causal_lm)).train_with_pairs(
            *(made["prompt"], made["answer"], made["other"]) * 2, epochs=1, batch_size=9, learning_rate=1e-3
        )}  # fmt: skip
    else:
        judges = {"a function": by_length, "an LLM": Biased()}
    compared = Compare(
        "Judged", [tiny_causal_lm, tmp_path / "other"], made["prompt"], made["answer"], generate=9, max_new_tokens=12,
        names=["first", "second"], judge=judges[judge], **{**QUICK, "resamples": 2000},
    )  # fmt: skip
    first, second = (compared.generations[name] for name in ("first", "second"))
    pairs = list(zip(texts, second, first, strict=True))
    points = [{"a": 1.0, "b": 0.0, "tie": 0.5}[by_length(*pair)] for pair in pairs]
    if judge == "a reward model":
        rewards = [judges[judge].score(texts, answers) for answers in (second, first)]
        points = [(a > b) + 0.5 * (a == b) for a, b in zip(*rewards, strict=True)]
        assert judges[judge] in compared.parents
    assert 0 < np.mean(points) < 1
    found = compared.rows[1]["preferred"]
    assert found.value == pytest.approx(np.mean(points))
    drawn = np.random.default_rng(1).choice(points, (4000, 9)).mean(1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.06)
    assert compared.rows[0]["preferred"] is None
    assert "preferred" in str(compared)
    assert "answers that the judge finds better than those of first" in " ".join(str(compared).split())


def test_a_judge_that_cannot_judge_is_refused(session: DataDreamer, byte_lm: Path, good: Path, column: Column):
    def compare(judge: Any, model: Path = byte_lm, generate: int = 2) -> Compare:
        pair = column("text"), column("label")
        return Compare("Judged", [model, model], *pair, generate=generate, max_new_tokens=2, judge=judge, **QUICK)

    with pytest.raises(ArgumentTypeError, match="judge is 'gpt'; it must be an LLM"):
        compare("gpt")
    with pytest.raises(DefinitionError, match="Pass generate="):
        compare(by_length, generate=0)
    with pytest.raises(DefinitionError, match="is not an option of comparing models for classification"):
        compare(by_length, good)
    with pytest.raises(ArgumentTypeError, match="judge returned 'left'; it must return"):
        compare(lambda prompt, a, b: "left")


def test_options_that_do_not_fit_are_named_before_a_model_runs(
    session: DataDreamer, good: Path, byte_lm: Path, column: Column, tmp_path: Path
):
    def compare(model: Path = good, labels: bool = True, **options: Any) -> Compare:
        return Compare("Cost", [model], column("text"), column("label") if labels else None, **QUICK, **options)

    with pytest.raises(DataError, match=r"There are 100 rows.*needs at least 149"):
        compare(max_error=0.02)
    with pytest.raises(DefinitionError, match="max_error is 0"):
        compare(max_error=0)
    with pytest.raises(DefinitionError, match="generate is not an option of comparing models for classification"):
        compare(generate=3)
    with pytest.raises(DefinitionError, match="teacher is not an option of comparing models for language modelling"):
        compare(byte_lm, teacher=good)
    with pytest.raises(DefinitionError, match="generate needs answers to compare with"):
        compare(byte_lm, labels=False, generate=3)
    other = save(classifier(1, [*LABELS, "stones"]), tmp_path / "other")
    with pytest.raises(LabelError, match="stones"):
        compare(teacher=other)
