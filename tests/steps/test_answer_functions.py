"""What functions of a script may do with answers: raise, return odd values, change what they get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from engines import Echo

from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.graph import DataDreamer
from datadreamer_like.steps import (
    DataFromAttributedPrompt,
    DataSource,
    FewShotPrompt,
    FilterWithPrompt,
    JudgeGenerationPairsWithPrompt,
    JudgePairsWithPrompt,
    Prompt,
    RankWithPrompt,
    Step,
)

ROWS = ["cat", "dog", "owl", "ant"]


class Unsaid(Exception):
    def __str__(self) -> str:
        raise ValueError("this exception has no message")


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error("an owl")

    return function


def only_owl(odd: Callable[..., Any], usual: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: (odd if "OWL" in str(values[0]) else usual)(*values)


def pets(**columns: Any) -> Any:
    return DataSource("Pets", data={"pet": ROWS, **columns}).output


ERRORS = [ValueError, KeyError, StopIteration, StopAsyncIteration, AssertionError, RecursionError, MemoryError, Unsaid]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", ["post_process", "parse"])
def test_a_function_that_raises_fails_one_row(session: DataDreamer, name: str, error: type[Exception]) -> None:
    args = {"llm": Echo(), name: only_owl(raising(error), lambda *_: "fine")}
    made = Prompt("Ask", {"prompts": pets()["pet"]}, args)
    assert list(made.output["generations"]) == ["fine", "fine", None, "fine"]
    assert list(made.errors) == [2]
    assert f"{name} raised {error.__name__}" in made.errors[2]
    assert "'OWL'" in made.errors[2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["post_process", "parse"])
def test_an_interrupt_in_a_function_ends_the_run(session: DataDreamer, name: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        Prompt("Ask", {"prompts": pets()["pet"]}, {"llm": Echo(), name: raising(error)})


ODD: list[Callable[[], Any]] = [
    object,
    lambda: len,
    lambda: {1, "a"},
    lambda: [1, "a"],
    lambda: {"a": 1},
    lambda: b"x",
    lambda: 2**70,
    lambda: "half \ud83d",
    lambda: np.zeros((2, 2)),
    lambda: iter("ab"),
    lambda: "seven",
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["post_process", "parse"])
def test_a_value_that_fits_no_column_or_not_this_one_fails_its_row(session: DataDreamer, name: str, odd: Any) -> None:
    args = {"llm": Echo(), name: only_owl(lambda *_: odd(), lambda *_: 7)}
    made = Prompt("Ask", {"prompts": pets()["pet"]}, args)
    assert list(made.output["generations"]) == [7, 7, None, 7]
    assert f"{name} returned " in made.errors[2]
    assert "'OWL'" in made.errors[2]


def test_values_that_go_together_are_one_column(session: DataDreamer) -> None:
    values = {"CAT": 1, "DOG": None, "OWL": 2.5, "ANT": np.float32(3)}
    made = Prompt("Ask", {"prompts": pets()["pet"]}, {"llm": Echo(), "post_process": values.get})
    assert list(made.output["generations"]) == [1.0, None, 2.5, 3.0]
    assert not made.errors


def test_a_function_may_change_what_it_gets(session: DataDreamer) -> None:
    def parse(answer: Any, row: dict[str, Any]) -> int:
        answer.texts.clear()
        row["tags"].append("seen")
        row["pet"] = "gone"
        return len(row["tags"])

    source = pets(tags=[["a"], ["b"], ["c"], ["d"]])
    args = {"llm": Echo(), "instruction": "Go.", "parse": parse, "sort": False}
    made = RankWithPrompt("Rank", {"inputs": source["pet"]}, args)
    assert list(made.output["tags"]) == [["a"], ["b"], ["c"], ["d"]]
    assert list(made.output["pet"]) == ROWS
    assert list(made.output["scores"]) == [2.0] * 4


NEITHER = ["maybe", float("nan"), np.array([1, 0]), pd.NA, {"keep": False}, (False, "why")]


@pytest.mark.parametrize("odd", NEITHER, ids=repr)
@pytest.mark.parametrize("name", ["filter_func", "parse"])
@pytest.mark.parametrize("several", [{}, {"n": 2}])
def test_what_is_neither_true_nor_false_keeps_no_row(session: DataDreamer, name: str, odd: Any, several: dict) -> None:
    args = {"llm": Echo(), "instruction": "Go.", name: lambda *_: odd, **several}
    kept = FilterWithPrompt("Keep", {"inputs": pets()["pet"]}, args)
    assert kept.output.num_rows == 0
    assert len(kept.errors) == 4
    assert f"{name} returned " in kept.errors[0]


@pytest.mark.parametrize(
    ("result", "keeps"),
    [(True, 4), (np.bool_(False), 0), (1, 4), (0, 0), (None, 0), ("Yes.", 4), ("no", 0), ([], 0), (["x"], 4)],
)
def test_filter_functions_return_something_true_or_false(session: DataDreamer, result: Any, keeps: int) -> None:
    args = {"llm": Echo(), "instruction": "Go.", "filter_func": lambda text: result}
    kept = FilterWithPrompt("Keep", {"inputs": pets()["pet"]}, args)
    assert (kept.output.num_rows, kept.errors) == (keeps, {})


@pytest.mark.parametrize("odd", ["high", float("nan"), float("inf"), 10**400, [1], len], ids=repr)
def test_what_is_not_a_score_fails_its_row(session: DataDreamer, odd: Any) -> None:
    args = {"llm": Echo(lambda prompt: "OWL" if "owl" in prompt else "x"), "instruction": "Go."}
    ranked = RankWithPrompt("Rank", {"inputs": pets()["pet"]}, args | {"parse": only_owl(lambda *_: odd, lambda *_: 1)})
    assert list(ranked.output["scores"]) == [1.0, 1.0, 1.0, None]
    assert ranked.output["pet"][3] == "owl"


def test_several_texts_are_filtered_and_ranked_as_one_or_each(session: DataDreamer) -> None:
    llm = Echo(lambda prompt: "cat" if "cat" in prompt else "dog")  # answers "cat 0" and "cat 1"
    args = {"llm": llm, "instruction": "Go.", "n": 2}
    second = {**args, "post_process": lambda texts: texts[1], "filter_func": lambda text: text == "cat 1"}
    kept = FilterWithPrompt("One", {"inputs": pets()["pet"]}, second)
    assert list(kept.output["pet"]) == ["cat"]
    for name, post_process in {"Each": lambda texts: [text[-1] for text in texts], "Sum": lambda texts: 0.5}.items():
        ranked = RankWithPrompt(name, {"inputs": pets()["pet"]}, {**args, "post_process": post_process})
        assert list(ranked.output["scores"]) == [0.5] * 4


# Judges


def judged(kind: Any = JudgePairsWithPrompt, reply: Any = None, **args: Any) -> Any:
    data = {"prompts": ["?"] * 20, "a": [f"good {i}" for i in range(20)], "b": [f"bad {i}" for i in range(20)]}
    source = DataSource("Pairs", data=data).output
    names = ("prompts", "a", "b") if kind is JudgeGenerationPairsWithPrompt else ("a", "b")

    def better(prompt: str) -> str:
        label = args.get("a_label") or ("Response A:" if len(names) == 3 else "Input A:")
        other = args.get("b_label") or label.replace("A:", "B:")
        return (label if f"{label} good" in prompt else other).rstrip(":")

    made = kind("Judge", {name: source[name] for name in names}, {"llm": Echo(reply or better), **args})
    return made, set(made.output["judgements"])


def swapped_of(made: Any) -> list[bool]:
    return ["bad" in prompt.split("good")[0] for prompt in made.output["judge_prompts"]]


@pytest.mark.parametrize(
    ("kind", "args", "label"),
    [
        (JudgePairsWithPrompt, {}, "Input A"),
        (JudgeGenerationPairsWithPrompt, {}, "Response A"),
        (JudgePairsWithPrompt, {"a_label": "Human:", "b_label": "Model:"}, "Human"),
        (JudgePairsWithPrompt, {"n": 3, "reply": lambda prompt: f"Input {'AB'['Input A: bad' in prompt]}."}, "Input A"),
        (JudgePairsWithPrompt, {"judgement_func": lambda text: text[-1]}, "Input A"),
        (JudgePairsWithPrompt, {"judgement_func": lambda text: text}, "Input A"),
        (JudgePairsWithPrompt, {"parse": lambda answer, row: answer.text}, "Input A"),
    ],
)  # fmt: skip
def test_a_judgement_is_the_label_of_the_winner_wherever_it_was_shown(
    session: DataDreamer, kind: Any, args: dict[str, Any], label: str
) -> None:
    made, judgements = judged(kind, **args)
    assert judgements == {label}
    assert len(set(swapped_of(made))) == 2


def test_a_function_of_two_arguments_gets_the_order_and_makes_the_judgement(session: DataDreamer) -> None:
    made, judgements = judged(judgement_func=lambda generation, swapped: f"{generation[-1]} {swapped}")
    assert judgements == {"A False", "B True"}
    assert [judgement.endswith("True") for judgement in made.output["judgements"]] == swapped_of(made)


@pytest.mark.parametrize("odd", [3, True, ["Input A"], len], ids=repr)
@pytest.mark.parametrize("name", ["judgement_func", "parse"])
def test_a_judgement_that_is_not_a_text_fails_its_row(session: DataDreamer, name: str, odd: Any) -> None:
    made, judgements = judged(**{name: lambda *values, odd=odd: odd} if name == "parse" else {name: lambda text: odd})
    assert judgements == {None}
    assert f"{name} returned " in made.errors[0]


def test_equal_labels_are_refused(session: DataDreamer) -> None:
    with pytest.raises(DefinitionError, match='both "Text"'):
        judged(a_label="Text:", b_label="text")


# What scripts written for DataDreamer pass


def test_a_list_of_combinations_is_used_in_its_order(session: DataDreamer) -> None:
    combinations = [{"size": "big", "pet": "dog"}, {"pet": "cat", "size": "small"}]
    args = {"llm": Echo(), "instruction": "A {size} {pet}.", "attributes": combinations, "n": 3}
    made = DataFromAttributedPrompt("Write", args=args)
    assert list(made.output["prompts"]) == ["A big dog.", "A small cat.", "A big dog."]
    assert list(made.output["attributes"]) == [combinations[0], combinations[1], combinations[0]]


@pytest.mark.parametrize(
    ("attributes", "kind", "says"),
    [
        ([{"pet": "dog"}, {"size": "big"}], DefinitionError, "element 1 of attributes has size"),
        ([{"pet": "dog"}, "cat"], ArgumentTypeError, "element 1 of attributes is 'cat'"),
        ([{"pet": "dog", "size": "big"}], DefinitionError, 'does not use the attribute "size"'),
        ([], DefinitionError, "no attributes"),
        ([{}], DefinitionError, "has none"),
    ],
)
def test_combinations_that_do_not_fit(session: DataDreamer, attributes: Any, kind: Any, says: str) -> None:
    llm = Echo()
    with pytest.raises(kind, match=says):
        DataFromAttributedPrompt("W", args={"llm": llm, "instruction": "A {pet}.", "attributes": attributes, "n": 1})
    assert not llm.asked


def test_a_step_takes_arguments_of_any_name_and_registers_a_name_again(session: DataDreamer) -> None:
    class Open(Step):
        def setup(self) -> None:
            self.register_arg("size", required=False, default=1)
            self.register_arg("**kwargs", required=False)
            self.register_output("args")

        def run(self) -> Any:
            return [str(self.args)]

    class Larger(Open):
        def setup(self) -> None:
            super().setup()
            self.register_arg("size", required=False, default=2)

    assert Open("Open", args={"colour": 3}).args == {"size": 1, "colour": 3}
    assert Larger("Larger").args == {"size": 2}


class NumbersOnly(Echo):
    """Its context takes a number of new tokens, never None, as in classes written for DataDreamer."""

    def get_max_context_length(self, max_new_tokens: Any) -> int:
        return 100 - max_new_tokens


def test_the_number_of_new_tokens_is_a_number(session: DataDreamer) -> None:
    rows: Iterator[Any] | Any = pets()
    inputs = {"input_examples": rows["pet"], "output_examples": rows["pet"], "inputs": rows["pet"]}
    made = FewShotPrompt("Few", inputs, {"llm": NumbersOnly()})
    assert not made.errors
