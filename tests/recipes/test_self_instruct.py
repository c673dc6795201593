"""Self-Instruct: what a prompt shows, which instructions are kept, and that a killed run asks nothing twice."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset
from datadreamer_like.evaluation import rouge_l
from datadreamer_like.models import Answer
from datadreamer_like.recipes import SelfInstruct
from datadreamer_like.steps import DataSource
from datadreamer_like.testing import FakeLLM

SEED = [
    ("Sort these words by length.", "a bee cat", "a, bee, cat", False),
    ("Decide whether the review is good.", "I loved it.", "good", True),
    ("Translate the sentence into French.", "Yes.", "Oui.", False),
    ("Give three uses of an old newspaper.", "", "Packing, art, fires.", False),
]
NEW = [
    "Explain why the sky looks blue at noon",
    "Describe the image of a cat in detail",  # a keyword
    "Sort these long words by length",  # similar to the seed
    "Label an email as spam or ham",
    "Go home",  # too short
    "Write a program that adds two numbers",
    "- odd beginning of a new task",
    "Explain why the sky looks blue at dawn",  # similar to the first
]


def answer(prompt: str) -> str:
    if prompt.startswith("Below"):
        first = int(re.search(r"tasks (\d+) to", prompt)[1])
        return "\n".join(f"Task {first + place}: {task}" if place else f" {task}" for place, task in enumerate(NEW))
    task = re.findall(r"Task: (.+)", prompt)[-1]
    if prompt.startswith("Is this"):
        return "Yes." if "Label" in task else "No."
    return "Class label: spam\nInput: Buy now!" if "Label" in task else "Input: (none)\nOutput: Light scatters."


def seed(tasks: Any = SEED, kinds: bool = True) -> dict[str, Any]:
    names = ["instructions", "inputs", "outputs", "is_classification"]
    rows = DataSource("Seed rows", {name: [task[place] for task in tasks] for place, name in enumerate(names)}).output
    return {name: rows[name] for name in (names if kinds else names[:3])}


def test_only_new_and_valid_instructions_are_kept_and_the_others_have_a_reason(session):
    grown = SelfInstruct("Grown", FakeLLM(answer), **seed(), rounds=3, prompts_per_round=2)
    rows = list(grown.rows.output)
    assert [row["instruction"] for row in rows] == [NEW[0], NEW[3]]
    assert rows[0] == {"instruction": NEW[0], "is_classification": False, "input": "", "output": "Light scatters."}
    assert rows[1] == {"instruction": NEW[3], "is_classification": True, "input": "Buy now!", "output": "spam"}
    # The second prompt proposed the same; the second round kept nothing, so that there is no third.
    assert grown.rounds == [
        {"round": 1, "prompts": 2, "proposed": 16, "invalid": 8, "similar": 6, "kept": 2},
        {"round": 2, "prompts": 2, "proposed": 16, "invalid": 8, "similar": 8, "kept": 0},
    ]
    reasons = {each["instruction"]: each["reason"] for each in grown.rejected if each["round"] == 1}
    assert "image" in reasons[NEW[1]]
    assert "fewer than 4 words" in reasons[NEW[4]] or "4" in reasons[NEW[4]]
    assert reasons[NEW[5]] == "asks for a program"
    assert reasons[NEW[6]] == "begins with punctuation"
    pool = [task[0] for task in SEED] + [NEW[0], NEW[3]]
    for text in (NEW[2], NEW[7]):
        assert reasons[text] == "similar to an earlier text"
        assert max(rouge_l(text, other) for other in pool) >= 0.7
    assert "similar to an earlier text 14" in str(grown)


def test_a_preview_counts_the_prompts_that_it_sends(tmp_path):
    llm = FakeLLM(answer)
    with DataDreamer(tmp_path / "output", verbose=False, preview=2):
        grown = SelfInstruct("Grown", llm, **seed(), rounds=1, prompts_per_round=5)
    assert grown.rounds == [{"round": 1, "prompts": 2, "proposed": 2, "invalid": 1, "similar": 0, "kept": 1}]
    assert sum(prompt.startswith("Below") for prompt in llm.prompts) == 2


def test_a_prompt_shows_six_tasks_of_the_seed_and_two_that_were_made(session):
    many = [(f"Do the thing number {place} with word{place}", "x", "y", False) for place in range(9)]
    llm = FakeLLM(answer)
    SelfInstruct("Grown", llm, **seed(many), rounds=2, prompts_per_round=3)
    prompts = [prompt for prompt in llm.prompts if prompt.startswith("Below")]
    shown = [re.findall(r"^Task \d+: (.+)$", prompt, re.MULTILINE) for prompt in prompts]
    first, second = shown[:3], shown[3:]
    assert second
    assert all(len(set(each)) == 8 for each in shown)
    assert all(sum(task.startswith("Do the thing") for task in each) == 8 for each in first)
    assert all(sum(task.startswith("Do the thing") for task in each) == 6 for each in second)
    assert all(prompt.endswith("\nTask 9:") for prompt in prompts)


def test_instances_are_shown_for_their_own_kind_and_classification_has_the_label_first(session):
    llm = FakeLLM(answer)
    SelfInstruct("Grown", llm, **seed(), rounds=1, prompts_per_round=1)
    asked = [prompt for prompt in llm.prompts if prompt.startswith("Write an example")]
    (plain,) = (prompt for prompt in asked if NEW[0] in prompt)
    (labels,) = (prompt for prompt in asked if NEW[3] in prompt)
    assert "Translate" in plain
    assert "review" not in plain
    assert "Class label: good\nInput: I loved it." in labels
    assert "Translate" not in labels


def test_tasks_without_an_answer_are_dropped_and_counted(session):
    def stubborn(prompt: str) -> str:
        if (prompt.startswith("Is this") and NEW[0] in prompt) or "Answer again" in prompt:
            return "Perhaps."
        return answer(prompt)

    grown = SelfInstruct("Grown", FakeLLM(stubborn), **seed(kinds=False), rounds=1, prompts_per_round=1)
    assert list(grown.rows.output["instruction"]) == [NEW[3]]
    last = [each for each in grown.rejected if each["round"] is None]
    assert last == [{"instruction": NEW[0], "round": None, "reason": "no answer whether it is classification"}]


def run(folder: Path, dies_at: int) -> None:
    """What each process runs, one request at a time; it dies when it is asked for one too many."""
    asked = folder.with_suffix(".txt")

    def reply(prompt: str) -> str:
        with asked.open("a") as file:
            file.write(json.dumps(prompt) + "\n")
        if len(asked.read_text().splitlines()) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)  # answers that come at once do not wait for the one before to be on disk
        return answer(prompt)

    class Same(FakeLLM):
        def identity(self) -> dict[str, Any]:
            return {}

    with DataDreamer(folder, verbose=False):
        grown = SelfInstruct("Grown", Same(reply), **seed(), rounds=2, prompts_per_round=2, concurrency=1)
        folder.with_suffix(".json").write_text(json.dumps([[*grown.rows.output], grown.rejected, grown.rounds]))


@pytest.mark.timeout(600)
def test_a_killed_run_asks_only_for_what_it_has_no_answer_to(tmp_path):
    def call(name: str, dies_at: int = 0) -> list[str]:
        process = CONTEXT.Process(target=run, args=(tmp_path / name, dies_at))
        process.start()
        process.join(timeout=200)
        assert process.exitcode == (-signal.SIGKILL if dies_at else 0)
        return (tmp_path / f"{name}.txt").read_text().splitlines()

    whole = call("whole")
    call("cut", 2)
    call("cut", 5)
    asked = call("cut")
    assert len(asked) <= len(whole) + 2  # the two requests in flight
    assert {*asked} == {*whole}
    assert (tmp_path / "cut.json").read_text() == (tmp_path / "whole.json").read_text()
    assert call("cut") == asked


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"llm": None}, ArgumentTypeError, "llm must be an LLM"),
        ({"max_new_token": 5}, DefinitionError, '"Grown" has no argument "max_new_token".*mean "max_new_tokens"'),
        ({"prompt_per_round": 5}, DefinitionError, '"Grown" has .*mean "prompts_per_round"'),
        ({"rounds": 0}, DefinitionError, "rounds is 0"),
        ({"threshold": 1.5}, DefinitionError, "threshold is 1.5"),
        ({"keywords": "image"}, ArgumentTypeError, "keywords must be a list of texts"),
        ({"llm": FakeLLM(lambda prompt: "")}, DataError, "proposed no task in round 1"),
        ({"llm": FakeLLM(lambda prompt: "Task 5: Draw an image of a red cat")}, DataError, "no instruction passed"),
    ],
)
def test_what_makes_no_sense_is_refused(session, more, error, message):
    with pytest.raises(error, match=message):
        SelfInstruct("Grown", **{"llm": FakeLLM(answer), **seed(), **more})


def test_an_answer_that_was_cut_off_before_its_first_task_has_none(session):
    llm = FakeLLM(lambda prompt: Answer(["Task 5:"], finish_reasons=["length"]))
    with pytest.raises(DataError, match="proposed no task in round 1"):
        SelfInstruct("Tasks", llm, **seed(), rounds=1, prompts_per_round=1)


def test_a_seed_without_tasks_or_with_a_missing_one_is_refused_before_any_prompt(session):
    llm = FakeLLM(answer)
    rows = DataSource("Rows", {"text": [*"abc"]})
    none = rows.filter(lambda row: False).save(name="None").output["text"]
    with pytest.raises(EmptyDataset, match="instructions.* has no rows"):
        SelfInstruct("Grown", llm, none, none, none)
    with pytest.raises(DataError, match="outputs is None in row 1"):
        SelfInstruct("Grown", llm, **seed([*SEED[:1], ("Do it.", "", None, False)]))
    assert not llm.asked


def test_an_llm_that_refuses_everything_ends_with_the_reason(session):
    with pytest.raises(DataError, match=r"said of no instruction whether it is classification.* 1\. .*step"):
        SelfInstruct("Grown", FakeLLM(lambda prompt: "I cannot do that"), **seed(), rounds=1, prompts_per_round=1)


def test_instructions_in_chinese_pass_the_filters_and_near_copies_do_not(session):
    tasks = ["写一首关于秋天的诗歌", "列出三种会游泳的鸟类", "写一首关于冬天的诗歌"]

    def chinese(prompt: str) -> str:
        if prompt.startswith("Below"):
            return "\n".join(f"Task {place}: {task}" for place, task in enumerate(tasks, 2))
        return "No" if prompt.startswith("Is this") else "Input: (none)\nOutput: 结果"

    seeds = seed([("请判断这条评论是正面的还是负面的", "好", "正面", True)])
    grown = SelfInstruct("Grown", FakeLLM(chinese), **seeds, rounds=1, prompts_per_round=1)
    assert list(grown.rows.output["instruction"]) == tasks[:2]
    assert [each["reason"] for each in grown.rejected] == ["similar to an earlier text"]
