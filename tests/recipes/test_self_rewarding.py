"""Self-rewarding: pairs by mean scores, iterations from model to model, and judges that give none."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset
from datadreamer_like.models import Answer, HFTransformers, Rejected
from datadreamer_like.recipes import SelfRewarding
from datadreamer_like.recipes.self_rewarding import _score
from datadreamer_like.steps import DataSource
from datadreamer_like.testing import FakeLLM
from datadreamer_like.trainers import TrainHFDPO

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
SMALL: dict[str, Any] = {"candidates": 3, "judgements": 2, "max_new_tokens": 6, "temperature": 1.0}
TEXTS = ["the cat sat on the mat", "a dog ran to the tree", "the bird sang in the tree", "a cat and a dog"]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_models.word_pieces(TEXTS)
    tokenizer.eos_token = "[SEP]"
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {**tiny_models.SIZES, "vocab_size": len(tokenizer), "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(eos_token_id=3, pad_token_id=0, **sizes))
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("language-model"))


def points(prompt: str) -> int:
    """What the judge thinks: the number of letters of the response, in five steps."""
    response = re.search(r"Response: (.*?)\n\nExplain", prompt, re.DOTALL)[1]
    return len(response) % 6


def prompts(count: int = 6) -> Any:
    return DataSource("Prompts", {"prompt": [f"{TEXTS[place % 4]} {place}" for place in range(count)]}).output["prompt"]


def taught(model: Path, judge: Any, **more: Any) -> SelfRewarding:
    llm = partial(HFTransformers, device="cpu", chat_prompt_template=None)
    trainer = partial(TrainHFDPO, device="cpu")
    given = {"prompts": prompts(), "trainer": trainer, "judge": judge, "llm": llm, **SMALL, **QUICK, **more}
    return SelfRewarding("Taught", str(model), **given)


def test_best_and_worst_by_mean_score_are_pairs_and_each_model_starts_from_the_one_before(tmp_path, language_model):
    for _ in range(2):
        judge = FakeLLM(lambda prompt: f"It is so. Score: {points(prompt)}")
        with DataDreamer(tmp_path / "output", verbose=False):
            made = taught(language_model, judge, iterations=2)
            rows = [list(each.output) for each in made.pairs]
            table = str(made)
    with DataDreamer(tmp_path / "output", verbose=False).plan() as plan:
        taught(language_model, judge, iterations=2)
    assert not judge.asked  # the second run, and the plan
    assert {node.state for node in plan.nodes} == {"cached"}
    assert [node.name for node in plan.nodes if "iteration" in node.name] == [
        "Taught, iteration 1",
        "Taught, iteration 2",
    ]
    assert len(made.students) == 2
    for number, pairs in enumerate(rows, 1):
        assert len(pairs) >= 2
        for pair in pairs:
            for which in ("chosen", "rejected"):
                assert pair[f"{which}_score"] == len(pair[which]) % 6
            assert pair["chosen_score"] > pair["rejected_score"]
        facts = made.iterations[number - 1]
        assert facts["pairs"] + facts["equal"] == 6
        assert facts["margin"] == pytest.approx(
            sum(pair["chosen_score"] - pair["rejected_score"] for pair in pairs) / len(pairs)
        )
    assert "margin" in table
    assert made.students[0] in made.students[1].parents or made.students[1].source != made.students[0].source


def test_scores_of_several_judgements_are_averaged_and_unreadable_ones_left_out(session, language_model):
    seen: dict[str, int] = {}

    def judge(prompt: str) -> str:
        seen[prompt] = seen.get(prompt, 0) + 1
        return ["Score: 5", "no idea", f"**Score**: {points(prompt)}/5"][seen[prompt] % 3]

    made = taught(language_model, FakeLLM(judge), iterations=1, judgements=3)
    for pair in made.pairs[0].output:
        for which in ("chosen", "rejected"):
            assert pair[f"{which}_score"] == (5 + len(pair[which]) % 6) / 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [("", "gave no score to any"), ("Score: 9", "gave no score to any"), ("Score: 3", "0 have candidates with")],
)
def test_a_judge_that_tells_nothing_apart_is_one_clear_error(session, language_model, reply, message):
    with pytest.raises(DataError, match=message):
        taught(language_model, FakeLLM(lambda prompt: reply), iterations=1)


def test_wrong_arguments_are_refused_before_any_work(session, language_model):
    judge = FakeLLM()
    none = DataSource("Some", {"text": ["a"]}).filter(lambda row: False).save(name="None").output["text"]
    for more, error, message in (
        ({"prompts": none}, EmptyDataset, "prompts.* has no rows"),
        ({"judge": "gpt"}, ArgumentTypeError, "judge must be an LLM"),
        ({"judge_prompt": "Rate {response}"}, DefinitionError, "must have the placeholders"),
        ({"candidates": 1}, DefinitionError, "candidates is 1"),
        ({"temperature": 0}, DefinitionError, "temperature is 0"),
        ({"dpo_betta": 1}, DefinitionError, 'Did you mean "dpo_beta"'),
        ({"trainer": "dpo"}, ArgumentTypeError, "trainer must be a function"),
    ):
        with pytest.raises(error, match=message):
            taught(language_model, **{"judge": judge, **more})
    assert not judge.asked
    assert not list(session.folder.glob("taught*"))


def test_a_preview_judges_as_many_candidates_as_it_has_rows(tmp_path, language_model):
    judge = FakeLLM(lambda prompt: f"Score: {points(prompt)}")
    with DataDreamer(tmp_path / "output", verbose=False, preview=9):
        made = taught(language_model, judge, iterations=1)
    assert [each["judged"] for each in made.iterations] == [9]
    few = DataDreamer(tmp_path / "output", verbose=False, preview=2)
    with few, pytest.raises(DataError, match="in a preview, more rows"):
        taught(language_model, judge, iterations=1)


@pytest.mark.parametrize(
    ("said", "points"),
    [
        ("It is relevant: 1 point.\nScore: <3>", 3.0),
        ("Score (0-5): 4", 4.0),
        ("Score: 3. A perfect score 5 would need more.", 3.0),
        ("Score: 2\n\nNote that a score: 5 needs an expert.", 2.0),
        ("The score is 4 out of 5.", 4.0),
        ("Relevance: score 1\nDetail: score 2\nScore: 3", 3.0),
        ("Score: -1", None),
        ("Score: 7", None),
        ("I can't help with that.", None),
    ],
)
def test_the_points_of_a_judgement_are_those_it_concludes_with(said: str, points: float | None) -> None:
    found = _score(Answer([said]), {})
    assert isinstance(found, Rejected) if points is None else found == points
