from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engines import Echo

from datadreamer_like.errors import (
    ArgumentTypeError,
    DefinitionError,
    EmptyDataset,
    ModelError,
    StepOutputError,
    StepOutputTypeError,
)
from datadreamer_like.graph import DataDreamer, OutputIterableDataset
from datadreamer_like.models import LLM, Answer, Request
from datadreamer_like.steps import (
    DataFromAttributedPrompt,
    DataFromPrompt,
    DataSource,
    FewShotPrompt,
    FilterWithPrompt,
    JudgeGenerationPairsWithPrompt,
    JudgePairsWithPrompt,
    ProcessWithPrompt,
    Prompt,
    PromptStep,
    RankWithPrompt,
)
from datadreamer_like.testing import FakeLLM


@pytest.fixture
def pets(session: DataDreamer) -> DataSource:
    return DataSource("Pets", data={"pet": ["cat", "dog", "owl"], "legs": [4, 4, 2]})


def lazily(rows: list[dict[str, Any]]) -> DataSource:
    passes: list[int] = []

    def generator() -> Iterator[dict[str, Any]]:
        passes.append(1)
        yield from rows

    source = DataSource("Lazy", data=generator)
    source.passes = passes
    passes.clear()
    return source


def test_prompt_sends_prompts_as_they_are(pets: DataSource) -> None:
    made = Prompt("Ask", inputs={"prompts": pets.output["pet"]}, args={"llm": Echo()})
    assert made.output.column_names == ["prompts", "generations"]
    assert list(made.output["prompts"]) == ["cat", "dog", "owl"]
    assert list(made.output["generations"]) == ["CAT", "DOG", "OWL"]
    assert made.card.models == ["echo"]


def test_outputs_can_be_renamed(pets: DataSource) -> None:
    made = Prompt("Ask", {"prompts": pets.output["pet"]}, {"llm": Echo()}, {"generations": "answers"})
    assert made.output.column_names == ["prompts", "answers"]


def test_several_answers_are_a_list_and_post_processed_together(pets: DataSource) -> None:
    made = []
    for post_process in (None, lambda texts: [text.lower() for text in texts], lambda texts: texts[0], len):
        args = {"llm": Echo(), "n": 2, "post_process": post_process}
        made.append(Prompt("Ask", inputs={"prompts": pets.output["pet"]}, args=args).output["generations"][0])
    assert made == [["CAT 0", "CAT 1"], ["cat 0", "cat 1"], "CAT 0", 2]


@pytest.mark.parametrize("step", [Prompt, ProcessWithPrompt])
def test_a_failed_row_holds_none_and_the_rest_goes_on(pets: DataSource, step: type) -> None:
    llm = Echo(lambda prompt: None if "dog" in prompt else "fine")
    name = "prompts" if step is Prompt else "inputs"
    args = {"llm": llm, "post_process": len} | ({"instruction": "Go."} if step is ProcessWithPrompt else {})
    made = step("Ask", inputs={name: pets.output["pet"]}, args=args)
    assert list(made.output["generations"]) == [4, None, 4]
    assert made.errors == {1: "it will not say"}
    again = ProcessWithPrompt(
        "Again", inputs={"inputs": made.output["generations"]}, args={"llm": llm, "instruction": "Go on."}
    )
    assert list(again.output["generations"]) == ["fine", None, "fine"]
    assert again.output["prompts"][1] is None


@pytest.mark.parametrize("made", [["a", "b"], ["a", "b", "c", "d"], [], ("a", None)])
def test_prompts_are_one_per_row(pets: DataSource, made: Any) -> None:
    class Own(PromptStep):
        def setup(self) -> None:
            self.register_input("pets")
            self.register_llm()
            self.register_prompt_outputs()

        def prompts(self, batch: Any) -> Any:
            return made

    with pytest.raises(StepOutputError, match=rf'"Ask": prompts\(\) returned {len(made)} values for the 3 rows'):
        Own("Ask", inputs={"pets": pets.output["pet"]}, args={"llm": Echo()})


@pytest.mark.parametrize(("answers", "words"), [(["a", "b"], "fewer"), (["a", "b", "c", "d"], "more")])
def test_an_llm_that_overrides_run_answers_each_prompt(pets: DataSource, answers: list[str], words: str) -> None:
    class Own(LLM):
        def run(self, prompts: Any, **options: Any) -> Any:
            return iter(answers[: len(list(prompts)) + 1])

    with pytest.raises(DefinitionError, match=f"returned {words} answers than prompts were sent"):
        Prompt("Ask", inputs={"prompts": pets.output["pet"]}, args={"llm": Own()})


class CutOff(Echo):
    """Answers with texts, but marks the row as failed."""

    def answer_batch(self, requests: Sequence[Request]) -> list[Answer]:
        return [replace(answer, error=ModelError("cut off")) for answer in super().answer_batch(requests)]


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"n": 2},
        {"output_schema": {"type": "object", "properties": {"name": {"type": "string"}}}},
        {"post_process": len},
        {"lazy": True},
    ],
)
@pytest.mark.parametrize("step", [Prompt, ProcessWithPrompt])
def test_a_failed_row_holds_none_also_if_its_answer_has_a_text(pets: DataSource, step: type, args: dict) -> None:
    name = "prompts" if step is Prompt else "inputs"
    args = args | {"llm": CutOff()} | ({"instruction": "Go."} if step is ProcessWithPrompt else {})
    made = step("Ask", inputs={name: pets.output["pet"]}, args=args)
    assert list(made.output["generations"]) == [None] * 3
    assert made.errors == dict.fromkeys(range(3), "cut off")


def test_failures_are_told_by_row_also_after_rows_that_are_not_asked_about(session: DataDreamer) -> None:
    texts = [None, "a", None, None, "fail 4", "b", None, "fail 7", None]
    source = DataSource("Texts", data={"text": texts})
    llm = Echo(lambda prompt: None if "fail" in prompt else "fine")
    made = Prompt("Ask", inputs={"prompts": source.output["text"]}, args={"llm": llm, "batch_size": 2})
    assert list(made.output["prompts"]) == texts
    assert [index for index, text in enumerate(made.output["generations"]) if text] == [1, 5]
    assert sorted(made.errors) == [4, 7]


def test_failures_of_a_lazy_step_are_its_own(session: DataDreamer) -> None:
    source = DataSource("Texts", data={"text": [None, "fail 1", "a", "fail 3"]})
    llm = Echo(lambda prompt: None if "fail" in prompt else "fine")
    first = Prompt("Ask", inputs={"prompts": source.output["text"]}, args={"llm": llm, "lazy": True})
    made = Prompt("Again", inputs={"prompts": first.output["generations"]}, args={"llm": llm})
    assert list(made.output["generations"]) == [None, None, "fine", None]
    assert sorted(first.errors) == [1, 3]
    assert not made.errors


def test_all_rows_failed(session: DataDreamer) -> None:
    source = DataSource("Nothing", data={"text": [None, None]})
    made = Prompt("Ask", inputs={"prompts": source.output["text"]}, args={"llm": Echo()})
    assert list(made.output["generations"]) == [None, None]


def test_lazy_asks_in_each_pass(pets: DataSource) -> None:
    llm = Echo()
    made = Prompt("Ask", inputs={"prompts": pets.output["pet"]}, args={"llm": llm, "lazy": True, "force": True})
    assert isinstance(made.output, OutputIterableDataset)
    assert not llm.asked
    assert list(made.output["generations"]) == ["CAT", "DOG", "OWL"]
    assert list(made.output["generations"]) == ["CAT", "DOG", "OWL"]
    assert len(llm.asked) == 6


def test_further_arguments_go_to_the_llm(pets: DataSource) -> None:
    llm = Echo()
    Prompt("Ask", {"prompts": pets.output["pet"]}, {"llm": llm, "max_new_tokens": 7, "stop": ["x"], "seed": 3})
    assert llm.asked[0].sampling.max_new_tokens == 7
    assert llm.asked[0].sampling.stop == ("x",)
    assert llm.asked[0].seed == 3


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"temperatures": 1.0}, 'no argument "temperatures".*Did you mean "temperature"'),
        ({"postprocess": len}, 'Did you mean "post_process"'),
        ({"return_generator": True}, 'no argument "return_generator"'),
        ({"top_p": 2.0}, '"top_p" cannot be 2.0'),
        ({"llm": "gpt"}, "expected LLM"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(pets: DataSource, args: dict, says: str) -> None:
    llm = Echo()
    with pytest.raises(DefinitionError, match=says):
        Prompt("Ask", inputs={"prompts": pets.output["pet"]}, args={"llm": llm, **args})
    assert not llm.asked


def test_process_with_prompt_puts_the_input_before_the_instruction(pets: DataSource) -> None:
    llm = Echo()
    made = ProcessWithPrompt("Praise", {"inputs": pets.output["pet"]}, {"llm": llm, "instruction": "Praise it."})
    assert made.output.column_names == ["inputs", "prompts", "generations"]
    assert made.output["prompts"][0] == "Input: cat\n\nInstruction: Praise it."
    assert made.card.prompts == ["Praise it."]
    other = ProcessWithPrompt(
        "Other",
        {"inputs": pets.output["pet"]},
        {"llm": llm, "instruction": "Go.", "input_label": "", "instruction_label": "Task:", "sep": " | "},
    )
    assert other.output["prompts"][0] == "cat | Task: Go."


def test_data_from_prompt_gets_different_answers(session: DataDreamer, caplog: pytest.LogCaptureFixture) -> None:
    count = iter(range(100))
    llm = Echo(lambda prompt: f"{next(count)}")
    made = DataFromPrompt("Write", args={"llm": llm, "instruction": "Write.", "n": 5})
    assert list(made.output["prompts"]) == ["Write."] * 5
    assert sorted(made.output["generations"]) == ["0", "1", "2", "3", "4"]
    assert llm.asked[0].sampling.temperature == llm.asked[0].sampling.top_p == 1.0
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        DataFromPrompt("Same", args={"llm": llm, "instruction": "Write.", "n": 5, "temperature": 0})
    assert "so rows repeat" in caplog.text
    with pytest.raises(DefinitionError, match="at least 1 row"):
        DataFromPrompt("None", args={"llm": llm, "instruction": "Write.", "n": 0})


def attributed(llm: Echo, inputs: dict | None = None, **args: Any) -> DataFromAttributedPrompt:
    base = {
        "llm": llm,
        "instruction": "A {size} {pet}.",
        "attributes": {"size": ["big", "small"], "pet": ["cat", "dog"]},
    }
    return DataFromAttributedPrompt("Write", inputs=inputs, args={**base, "n": 5, **args})


def test_attributes_fill_the_holes_in_every_combination(session: DataDreamer) -> None:
    made = attributed(Echo())
    assert made.output.column_names == ["attributes", "prompts", "generations"]
    assert list(made.output["prompts"]) == ["A big cat.", "A big dog.", "A small cat.", "A small dog.", "A big cat."]
    assert made.output["attributes"][3] == {"size": "small", "pet": "dog"}
    escaped = attributed(Echo(), instruction="{{{size}}} {pet} as {{}}", n=1)
    assert escaped.output["prompts"][0] == "{big} cat as {}"


@pytest.mark.parametrize(
    ("args", "kind", "says"),
    [
        ({"instruction": "A {sizes} {pet}."}, DefinitionError, 'placeholder {sizes}.*Did you mean "size"'),
        ({"instruction": "A {size}."}, DefinitionError, 'does not use the attribute "pet"'),
        ({"instruction": "A {size} {pet} {"}, DefinitionError, "Double braces"),
        ({"instruction": "A {size} {pet} {}"}, DefinitionError, "no such attribute"),
        ({"instruction": "A {size} {pet} {examples}"}, DefinitionError, "there are no examples"),
        ({"attributes": {}}, DefinitionError, "no attributes"),
        ({"attributes": {"size": [1, "big"], "pet": ["cat"]}}, StepOutputTypeError, "key size, mixes int and str"),
        ({"attributes": {"size": [1], "pet": ["cat", None, True]}}, StepOutputTypeError, "key pet, mixes bool and str"),
        ({"attributes": {"size": [], "pet": ["cat"]}}, DefinitionError, 'attribute "size" has no values'),
        ({"attributes": {"size": "big", "pet": ["cat"]}}, ArgumentTypeError, "expected a list"),
        ({"examples": {"cat": ["x"]}}, DefinitionError, "Name it"),
        ({"examples": {"cat": ["x"]}, "examples_attribute": "pte"}, DefinitionError, 'Did you mean "pet"'),
        ({"examples": {"cat": ["x"]}, "examples_attribute": "pet"}, DefinitionError, "no example has the pet 'dog'"),
    ],
)
def test_wrong_attributes(session: DataDreamer, args: dict, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        attributed(Echo(), **args)


def test_prompts_are_seeded_with_real_examples_of_their_attribute(session: DataDreamer) -> None:
    real = DataSource(
        "Real", data={"text": [f"{p} {i}" for i in range(6) for p in ("cat", "dog")], "p": ["cat", "dog"] * 6}
    )
    inputs = {"examples": real.output["text"], "example_attributes": real.output["p"]}
    args = {"examples_attribute": "pet", "num_examples": 2, "n": 12}
    made = attributed(Echo(), inputs, **args)
    shown = [prompt.splitlines() for prompt in made.output["prompts"]]
    assert all(
        lines[-1] == f"A {row['size']} {row['pet']}."
        for lines, row in zip(shown, made.output["attributes"], strict=True)
    )
    cats = [line for lines in shown for line in lines[:-1] if "cat" in line]
    assert all(line.startswith("Example: cat ") for line in cats)
    # Six prompts about cats show two of six texts each: every text twice, none before all were shown.
    assert len(set(cats[:6])) == len(set(cats[6:])) == 6
    assert made.parents == [real]
    placed = attributed(Echo(), inputs, **args, instruction="Like:\n{examples}\nNow a {size} {pet}.", example_label="-")
    lines = placed.output["prompts"][0].splitlines()
    assert (lines[0], lines[3], lines[1][:5]) == ("Like:", "Now a big cat.", "- cat")
    same, other = (attributed(Echo(), inputs, **args, seed=seed) for seed in (0, 1))
    assert list(same.output["prompts"]) == list(made.output["prompts"]) != list(other.output["prompts"])
    by_hand = attributed(Echo(), examples={"cat": ["c"], "dog": ["d"]}, examples_attribute="pet", n=2)
    assert list(by_hand.output["prompts"]) == ["Example: c\nA big cat.", "Example: d\nA big dog."]


def test_as_many_seeds_as_fit(session: DataDreamer) -> None:
    texts = ["one two three four", "five six seven eight", "nine ten eleven twelve"]
    made = attributed(Echo(context=15), examples={"cat": texts, "dog": texts}, examples_attribute="pet", n=2)
    assert [len(prompt.splitlines()) for prompt in made.output["prompts"]] == [3, 3]


def few_shot(pets: DataSource, llm: Echo, **args: Any) -> FewShotPrompt:
    examples = DataSource("Examples", data={"in": ["ant", "bee", None], "out": ["six legs", "two wings", "none"]})
    return FewShotPrompt(
        "Legs",
        inputs={
            "input_examples": examples.output["in"],
            "output_examples": examples.output["out"],
            "inputs": pets.output["pet"],
        },
        args={"llm": llm, **args},
    )


def test_few_shot_prompt_shows_examples_then_the_input(pets: DataSource) -> None:
    made = few_shot(pets, Echo(), instruction="Say it.")
    assert made.output.column_names == ["inputs", "prompts", "generations"]
    assert made.output["prompts"][0] == (
        "Say it.\n\nInput: ant\nOutput: six legs\nInput: bee\nOutput: two wings\nInput: cat\nOutput:"
    )
    assert few_shot(pets, Echo(), max_in_context_examples=1).output["prompts"][0] == (
        "Input: ant\nOutput: six legs\nInput: cat\nOutput:"
    )


def test_few_shot_prompt_fits_the_context(pets: DataSource) -> None:
    assert few_shot(pets, Echo(context=12)).output["prompts"][0].count("Output:") == 2
    for least in ({"max_new_tokens": 8}, {"min_in_context_examples": 2}):  # by default, at least one
        made = few_shot(pets, Echo(context=12), **least)
        assert list(made.output["generations"]) == [None, None, None]
        assert "in-context example" in made.errors[0]
    for none in ("min_in_context_examples", "max_in_context_examples"):
        made = few_shot(pets, Echo(context=12), max_new_tokens=8, **{none: 0})
        assert made.output["prompts"][0] == "Input: cat\nOutput:"
    with pytest.raises(DefinitionError, match='"Legs.*min_in_context_examples is 3, and there are 2'):
        few_shot(pets, Echo(), min_in_context_examples=3)


def test_a_context_window_that_was_given_decides_the_prompts(pets: DataSource) -> None:
    made = []
    for window in (None, 12, 40):
        llm = Echo(context=window)
        llm.max_context_length = window
        made.append(few_shot(pets, llm))
    assert len({step.fingerprint for step in made}) == 3
    assert [step.output["prompts"][0].count("Output:") for step in made[1:]] == [2, 3]


def test_few_shot_without_examples(pets: DataSource) -> None:
    nothing = DataSource("Nothing", data={"in": [None], "out": ["x"]})
    with pytest.raises(EmptyDataset, match="no examples"):
        FewShotPrompt(
            "Legs",
            {
                "input_examples": nothing.output["in"],
                "output_examples": nothing.output["out"],
                "inputs": pets.output["pet"],
            },
            {"llm": Echo()},
        )


def test_filter_keeps_whole_rows(pets: DataSource, caplog: pytest.LogCaptureFixture) -> None:
    replies = {"cat": "**Yes.**", "dog": "no", "owl": "maybe"}
    llm = Echo(lambda prompt: next(said for pet, said in replies.items() if pet in prompt))
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        kept = FilterWithPrompt("Keep", {"inputs": pets.output["pet"]}, {"llm": llm, "instruction": "Is it soft?"})
    assert list(kept.output) == [{"pet": "cat", "legs": 4}]
    assert "Keep: 1 of its rows failed" in caplog.text
    assert list(kept.errors) == [2]
    assert "The last answer was: 'maybe'" in kept.errors[2]
    assert llm.prompts[0] == "Input: cat\n\nInstruction: Is it soft? Answer with one word: yes or no."
    FilterWithPrompt("Said", {"inputs": pets.output["pet"]}, {"llm": llm, "instruction": "Soft? Say yes or no."})
    assert "Input: owl\n\nInstruction: Soft? Say yes or no." in llm.prompts
    own = FilterWithPrompt(
        "Own", {"inputs": pets.output["pet"]}, {"llm": llm, "instruction": "Soft?", "filter_func": lambda a: a != "no"}
    )
    assert list(own.output["pet"]) == ["cat", "owl"]
    assert "Input: owl\n\nInstruction: Soft?" in llm.prompts


def test_filter_reads_iterable_rows_once(session: DataDreamer) -> None:
    rows = lazily([{"generations": f"text {i}", "prompts": i} for i in range(2_500)])
    llm = Echo(lambda prompt: "yes" if prompt.split()[2].endswith("7") else "no")
    kept = FilterWithPrompt("Keep", {"inputs": rows.output["generations"]}, {"llm": llm, "instruction": "Seven?"})
    assert list(kept.output["prompts"]) == [i for i in range(2_500) if i % 10 == 7]
    assert kept.output.column_names == ["generations", "prompts"]
    assert rows.passes == [1]


def test_filter_drops_rows_without_an_answer(pets: DataSource) -> None:
    llm = Echo(lambda prompt: None if "dog" in prompt else "yes")
    kept = FilterWithPrompt("Keep", {"inputs": pets.output["pet"]}, {"llm": llm, "instruction": "Soft?", "lazy": True})
    assert list(kept.output["pet"]) == ["cat", "owl"]
    voted = FilterWithPrompt(
        "Vote", {"inputs": pets.output["pet"]}, {"llm": Echo(lambda prompt: "no"), "instruction": "Soft?", "n": 3}
    )
    assert list(voted.output) == []


def test_rank_sorts_and_cuts(pets: DataSource) -> None:
    llm = Echo(
        lambda prompt: next(s for p, s in (("cat", "Score: 3"), ("dog", "dunno"), ("owl", "9/10")) if p in prompt)
    )
    inputs = {"inputs": pets.output["pet"]}
    ranked = RankWithPrompt("Rank", inputs, {"llm": llm, "instruction": "How wise?"})
    assert list(ranked.output) == [
        {"pet": "owl", "legs": 2, "scores": 9.0},
        {"pet": "cat", "legs": 4, "scores": 3.0},
        {"pet": "dog", "legs": 4, "scores": None},
    ]
    assert llm.prompts[0].endswith("How wise? Answer with one number and nothing else.")
    args = {"llm": llm, "instruction": "How wise?"}
    assert list(RankWithPrompt("Up", inputs, {**args, "reverse": False}).output["pet"]) == ["cat", "owl", "dog"]
    assert list(RankWithPrompt("Plain", inputs, {**args, "sort": False}).output["pet"]) == ["cat", "dog", "owl"]
    assert list(RankWithPrompt("Cut", inputs, {**args, "score_threshold": 4}).output["pet"]) == ["owl"]
    with pytest.raises(DefinitionError, match="score_threshold is nan"):
        RankWithPrompt("Never", inputs, {**args, "score_threshold": float("nan")})
    own = RankWithPrompt("Own", inputs, {**args, "instruction": "Go.", "post_process": len, "lazy": True})
    assert list(own.output["scores"]) == [8.0, 5.0, 4.0]
    with pytest.raises(DefinitionError, match='already has a column "scores"'):
        RankWithPrompt("Twice", {"inputs": ranked.output["pet"]}, args)


@pytest.mark.parametrize(
    ("options", "failed"),
    [
        ({}, [3, 4]), ({"reverse": False}, [3, 4]), ({"lazy": True}, [3, 4]), ({"sort": False}, [0, 3]),
        ({"score_threshold": 2.0}, [0, 3]),  # dropped: their positions among the inputs
    ],
)  # fmt: skip
def test_the_errors_of_rank_are_those_of_its_rows(tmp_path: Path, options: dict[str, Any], failed: list[int]) -> None:
    for _ in range(2):
        with DataDreamer(tmp_path, verbose=False):
            rows = DataSource("Rows", data={"text": ["bad", "1", "3", "bad too", "2"]})
            llm = Echo(lambda prompt: None if "bad" in prompt else prompt.split()[1])
            args = {"llm": llm, "instruction": "Give a number.", **options}
            ranked = RankWithPrompt("Rank", {"inputs": rows.output["text"]}, args)
            scores = list(ranked.output["scores"])
            assert list(ranked.errors) == failed
            assert set(ranked.errors.values()) == {"it will not say"}
            if "score_threshold" not in options:
                assert [scores[index] for index in failed] == [None, None]


def test_rank_of_many_iterable_rows(session: DataDreamer) -> None:
    rows = lazily([{"n": i} for i in range(2_500)])
    llm = Echo(lambda prompt: str(int(prompt.split()[1]) * 7919 % 2_500))
    ranked = RankWithPrompt("Rank", {"inputs": rows.output["n"]}, {"llm": llm, "instruction": "Give a number."})
    assert list(ranked.output["scores"]) == [float(i) for i in reversed(range(2_500))]
    assert [n * 7919 % 2_500 for n in ranked.output["n"]] == list(reversed(range(2_500)))


def test_judges_show_either_first_and_name_the_winner(session: DataDreamer) -> None:
    source = DataSource("Pairs", data={"a": [f"good {i}" for i in range(40)], "b": [f"bad {i}" for i in range(40)]})
    llm = Echo(lambda prompt: "Input A" if "Input A: good" in prompt else "Input B")
    judged = JudgePairsWithPrompt("Judge", {"a": source.output["a"], "b": source.output["b"]}, {"llm": llm})
    assert judged.output.column_names == ["a", "b", "judge_prompts", "judge_generations", "judgements"]
    assert set(judged.output["judgements"]) == {"Input A"}
    first = sum(prompt.startswith("Input A: good") for prompt in judged.output["judge_prompts"])
    assert 8 < first < 32
    fixed = JudgePairsWithPrompt(
        "Fixed",
        {"a": source.output["a"], "b": source.output["b"]},
        {"llm": llm, "randomize_order": False, "judgement_func": lambda text: text[-1]},
    )
    assert fixed.output["judge_prompts"][0] == (
        "Input A: good 0\n\nInput B: bad 0\n\nInstruction: Which input is better? Respond with 'Input A' or 'Input B'."
    )
    assert set(fixed.output["judgements"]) == {"Input A"}


def test_judging_generations_and_unreadable_answers(session: DataDreamer) -> None:
    source = DataSource("Pairs", data={"p": ["x", "y", "z"], "a": ["1", None, "1"], "b": ["2", "2", "2"]})
    inputs = {"prompts": source.output["p"], "a": source.output["a"], "b": source.output["b"]}
    llm = Echo(lambda prompt: None if "Prompt: z" in prompt else "Both are fine.")
    judged = JudgeGenerationPairsWithPrompt(
        "Judge", inputs, {"llm": llm, "instruction": "Pick.", "randomize_order": False}
    )
    assert judged.output.column_names == ["prompts", "a", "b", "judge_prompts", "judge_generations", "judgements"]
    assert judged.output["judge_prompts"][0] == "Prompt: x\n\nResponse A: 1\n\nResponse B: 2\n\nInstruction: Pick."
    assert list(judged.output["judgements"]) == [None, None, None]


def test_inputs_of_different_lengths_are_refused(session: DataDreamer, pets: DataSource) -> None:
    other = DataSource("Two", data={"x": ["1", "2"]})
    with pytest.raises(DefinitionError, match="different numbers of rows"):
        JudgePairsWithPrompt("Judge", {"a": pets.output["pet"], "b": other.output["x"]}, {"llm": Echo()})
    lazy = DataSource("Lazy", data=lambda: iter([{"x": "1"}]))
    with pytest.raises(DefinitionError, match="different numbers of rows"):
        JudgePairsWithPrompt("Judge", {"a": pets.output["pet"], "b": lazy.output["x"]}, {"llm": Echo()})


def test_columns_of_one_iterable_step_are_read_in_one_pass(session: DataDreamer) -> None:
    rows = lazily([{"a": "x", "b": str(i)} for i in range(1_500)])
    JudgePairsWithPrompt("Judge", {"a": rows.output["a"], "b": rows.output["b"]}, {"llm": Echo()})
    assert rows.passes == [1]


# What the ancestor got wrong: what decides an answer decides the step's result.


def test_a_changed_llm_reruns_the_step_and_a_renamed_source_does_not(tmp_path: Path) -> None:
    def run(source: str, llm: Echo, **args: Any) -> int:
        with DataDreamer(tmp_path, verbose=False):
            pets = DataSource(source, data={"pet": ["cat", "dog"]})
            made = Prompt("Ask", inputs={"prompts": pets.output["pet"]}, args={"llm": llm, **args})
            assert list(made.output["generations"]) == ["CAT", "DOG"]
            return len(llm.asked)

    assert run("Pets", Echo()) == 2
    assert run("Pets", Echo()) == 0
    assert run("Animals", Echo()) == 0
    assert run("Pets", Echo(system_prompt="Be brief.")) == 2
    assert run("Pets", Echo(), temperature=0.5) == 2
    assert run("Pets", Echo(), batch_size=1, lazy=False) == 0


def test_a_chat_without_messages_fails_its_row_alone(session: DataDreamer) -> None:
    rows = DataSource("Chats", data={"chat": [[], [{"role": "user", "content": "cat"}]]})
    llm = FakeLLM(lambda prompt: "x")
    llm.takes_images = True
    for images in ({}, {"images": rows.map(lambda row: {"image": None}, name="None").output["image"]}):
        asked = Prompt("Ask", inputs={"prompts": rows.output["chat"], **images}, args={"llm": llm})
        assert list(asked.output["generations"]) == [None, "x"]
        assert asked.errors == {0: "The prompt is an empty list, but a chat has at least one message."}


def test_what_a_post_processing_function_closes_over_reruns_the_step(tmp_path: Path) -> None:
    def run(mark: str) -> list[str]:
        with DataDreamer(tmp_path, verbose=False):
            pets = DataSource("Pets", data={"pet": ["cat"]})
            args = {"llm": Echo(), "post_process": lambda text: text + mark}
            return list(Prompt("Ask", inputs={"prompts": pets.output["pet"]}, args=args).output["generations"])

    assert run("!") == ["CAT!"]
    assert run("?") == ["CAT?"]


def test_a_prompt_step_with_the_real_llm(session: DataDreamer, smollm_gguf: Path, pets: DataSource) -> None:
    from datadreamer_like.models.llms.llamacpp import LlamaCPP

    llm = LlamaCPP(str(smollm_gguf))
    made = ProcessWithPrompt(
        "Praise",
        inputs={"inputs": pets.output["pet"]},
        args={"llm": llm, "instruction": "Say something nice about this animal.", "max_new_tokens": 12},
    )
    llm.unload_model()
    assert all(isinstance(text, str) and text for text in made.output["generations"])
    assert made.card.completion_tokens > 0
