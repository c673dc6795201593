"""Steps of several rounds: what each round asks, when it stops, what is asked again, and what fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import Echo

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph import DataDreamer
from datadreamer_like.models import LLM, Answer, LlamaCPP, Rejected
from datadreamer_like.steps import (
    CheckGrounding,
    Conversation,
    CritiqueAndRevise,
    DataSource,
    Evolve,
    Personas,
    Transform,
)
from datadreamer_like.steps.rounds.check_grounding import read_claims
from datadreamer_like.steps.rounds.evolve import eliminated, read_evolved
from datadreamer_like.steps.rounds.personas import read_persona


def make(kind: Any, llm: LLM, inputs: dict[str, list[Any]], **args: Any) -> Any:
    columns = DataSource("Rows", data=inputs).output
    return kind("It", inputs={name: columns[name] for name in inputs}, args={"llm": llm, **args})


class ByPart(Echo):
    """Answers by the first of some texts that a prompt contains."""

    def __init__(self, replies: dict[str, Any], name: str = "by part") -> None:
        super().__init__(self.said)
        self.replies = replies
        self.name = name

    def identity(self) -> dict[str, object]:
        return {"name": self.name}

    def said(self, prompt: str) -> str | None:
        reply = next((reply for part, reply in self.replies.items() if part in prompt), None)
        return reply(prompt) if callable(reply) else reply


# Critique and revision


def critic_wants(plusses: int) -> Callable[[str], str]:
    return lambda prompt: "Yes." if prompt.count("+") >= plusses else "No. Add a plus."


@pytest.mark.parametrize(("plusses", "rounds"), [(0, 2), (1, 2), (2, 2), (2, 3)])
def test_an_answer_is_revised_until_the_critic_is_content_or_the_rounds_are_over(
    session: DataDreamer, plusses: int, rounds: int
) -> None:
    revise = lambda prompt: prompt.split("Answer:\n")[1].split("\n\n")[0] + "+"  # noqa: E731
    llm = ByPart(
        {"Write the answer anew": revise, "Is this answer good": critic_wants(plusses), "2 + 2": None, "cat": "a"}
    )
    row = next(iter(make(CritiqueAndRevise, llm, {"prompts": ["Name a cat."]}, rounds=rounds).output))
    critiques = min(rounds, plusses + 1)
    assert row == {
        "prompts": "Name a cat.",
        "answers": "a",
        "revised": "a" + "+" * min(plusses, rounds),
        "critiques": ["No. Add a plus."] * min(plusses, rounds) + ["Yes."] * (critiques - min(plusses, rounds)),
        "content": plusses < rounds,
    }
    assert len(llm.asked) == 1 + critiques + min(plusses, rounds)


def test_given_answers_another_critic_and_criteria_are_used(session: DataDreamer) -> None:
    critic = ByPart({"Is it short? {{ x }}": "No, longer."}, "critic")
    llm = ByPart({"No, longer.": "a longer one"}, "llm")
    inputs = {"prompts": ["Name a cat.", "Name a dog.", None], "answers": ["Tom", None, "x"]}
    made = make(CritiqueAndRevise, llm, inputs, critic=critic, criteria="Is it short? {{ x }}", rounds=1)
    assert list(made.output["revised"]) == ["a longer one", None, "x"]
    assert list(made.output["content"]) == [False, None, None]
    assert (len(critic.asked), len(llm.asked)) == (1, 1)


def test_a_critic_that_says_neither_is_asked_again_and_then_its_row_fails(session: DataDreamer) -> None:
    critic = ByPart({"bad": "Hm.", "good": lambda prompt: "Yes." if "must start with yes" in prompt else "Hm."})
    made = make(CritiqueAndRevise, critic, {"prompts": ["good", "bad"], "answers": ["1", "2"]}, rounds=2)
    assert list(made.output["content"]) == [True, None]
    assert list(made.output["revised"]) == ["1", "2"]
    assert list(made.errors) == [1]
    assert "Critique 1" in made.errors[1]


def test_an_empty_answer_is_none_and_an_empty_revision_keeps_the_answer_before_it(session: DataDreamer) -> None:
    llm = ByPart({"Is this answer good": "No.", "Criticism": " ", "silent": "", "": "A cat."})
    made = make(CritiqueAndRevise, llm, {"prompts": ["Name a cat.", "silent"]}, rounds=1)
    assert list(made.output["answers"]) == ["A cat.", None]
    assert list(made.output["revised"]) == ["A cat.", None]
    assert "Revision 1: It is empty" in made.errors[0]
    assert "Answer: It is empty" in made.errors[1]


def test_a_rerun_of_rounds_sends_nothing_and_another_criterion_only_what_it_changes(tmp_path: Path) -> None:
    counts = []
    for criteria in ("a", "a", "b"):
        with DataDreamer(tmp_path, verbose=False):
            llm = ByPart({"Is this answer good": "Yes.", "cat": "a cat"})
            make(CritiqueAndRevise, llm, {"prompts": ["Name a cat."]}, criteria=criteria)
            counts.append(len(llm.asked))
    assert counts == [2, 0, 1]


CHAT = [{"role": "user", "content": "Name a cat."}, {"role": "assistant", "content": "Which?"}]


def test_a_chat_is_answered_as_a_chat_and_its_critic_reads_lines(session: DataDreamer) -> None:
    llm = ByPart({"Is this answer good": "Yes.", "cat": "Tom"})
    made = make(CritiqueAndRevise, llm, {"prompts": [CHAT]}, rounds=1)
    assert list(made.output["answers"]) == ["Tom"]
    judged, answered = llm.prompts
    assert answered == str(CHAT)
    assert judged.startswith("Task:\nuser: Name a cat.\nassistant: Which?\n\nAnswer:\nTom\n")


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("kind", "name"), [(Evolve, "instructions"), (Conversation, "openings")])
def test_a_chat_is_not_a_text_to_start_from(session: DataDreamer, kind: Any, name: str, lazy: bool) -> None:
    llm = Echo()
    chats = DataSource("Chats", data={"id": [1]}).map(lambda row: {name: CHAT}, lazy=lazy)
    try:
        made = kind("It", inputs={name: chats.output[name]}, args={"llm": llm})
    except DefinitionError as error:
        said = str(error)
    else:
        said = made.errors[0]
    assert f'the input "{name}" has lists or dictionaries; expected texts' in said
    assert llm.prompts == []


# Grounding

FACTS = "Tom is a cat. Tom is blue."


def test_the_share_of_supported_claims_is_that_of_the_verdicts(session: DataDreamer) -> None:
    def verdict(prompt: str) -> str:
        source, claim = prompt.split("Claim:\n")
        return "yes" if claim.split("\n")[0] in source else "No."

    llm = ByPart({
        "Claim:": verdict,
        "first": "1. Tom is a cat.\n2. Tom is blue.\n3) Tom is red.",
        "second": "NONE",
        "third": "Here are the claims:\n- Tom is red.\n- Tom is red.",
    })  # fmt: skip
    inputs = {"answers": ["first", "second", "third", None], "sources": [FACTS, FACTS, FACTS, FACTS]}
    made = make(CheckGrounding, llm, inputs)
    assert list(made.output["claims"]) == [
        ["Tom is a cat.", "Tom is blue.", "Tom is red."], [], ["Tom is red."], None,
    ]  # fmt: skip
    assert list(made.output["supported"]) == [[True, True, False], [], [False], None]
    assert list(made.output["share"]) == [2 / 3, None, 0.0, None]
    assert made.errors == {}


def test_a_judge_that_answers_neither_leaves_its_claim_open_and_its_row_named(session: DataDreamer) -> None:
    llm = ByPart({"odd": "Perhaps.", "Claim:": "Yes.", "alpha": "even", "beta": "even\nodd"})
    made = make(CheckGrounding, llm, {"answers": ["alpha", "beta"], "sources": [["s", "t"], ["s"]]})
    assert list(made.output["supported"]) == [[True], [True, None]]
    assert list(made.output["share"]) == [1.0, 1.0]
    assert list(made.errors) == [1]
    assert any("s\n\nt" in prompt for prompt in llm.prompts)


MAPPING = {"title": "Tom", "facts": ["Tom is a cat.", None]}
IN_JSON = '{"title": "Tom", "facts": ["Tom is a cat.", null]}'


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (MAPPING, IN_JSON),
        ([MAPPING, MAPPING], f"[{IN_JSON}, {IN_JSON}]"),
        ([{"role": "user", "content": "Tom is a cat."}], "user: Tom is a cat."),
        (["Tom is a cat.", "é"], "Tom is a cat.\n\né"),
        ({"indices": [4, 0], "texts": ["Tom is a cat.", "é"], "scores": [0.5, 0.0]}, "Tom is a cat.\n\né"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_the_judge_reads_fields_as_json_and_of_what_was_retrieved_the_texts(
    session: DataDreamer, source: Any, shown: str, lazy: bool
) -> None:
    llm = ByPart({"Claim:": "Yes.", "alpha": "Tom is a cat.", "beta": "NONE"})
    rows = DataSource("Rows", data={"answers": ["alpha", "beta", "alpha"]})
    given = rows.map(lambda row, index: {"sources": source if index < 2 else None}, with_indices=True, lazy=lazy)
    inputs = {"answers": rows.output["answers"], "sources": given.output["sources"]}
    made = CheckGrounding("It", inputs=inputs, args={"llm": llm})
    assert list(made.output["sources"]) == [source, source, None]
    assert list(made.output["share"]) == [1.0, None, None]
    assert [prompt.split("\n\nClaim:")[0] for prompt in llm.prompts if "Claim:" in prompt] == [f"Source:\n{shown}"]


def test_a_blank_text_or_a_missing_source_is_not_asked_about(session: DataDreamer) -> None:
    llm = ByPart({"Claim:": "Yes", "": "- a claim"})
    inputs = {"answers": ["a", " ", "b", "c", None], "sources": ["s", "s", None, "", "s"], "questions": [None] * 5}
    made = make(CheckGrounding, llm, inputs)
    assert list(made.output["claims"]) == [["a claim"], None, None, None, None]
    assert list(made.output["share"]) == [1.0, None, None, None, None]
    assert len(llm.asked) == 2
    sources = [["s"], [], ["", None]]
    made = make(CheckGrounding, llm, {"answers": ["d", "e", "\u200b"], "sources": sources}, judge=ByPart({"": "Yes"}))
    assert list(made.output["share"]) == [1.0, None, None]
    found = [{"indices": [], "texts": [], "scores": []}, {"indices": [0], "texts": ["s"], "scores": [0.5]}]
    made = make(CheckGrounding, llm, {"answers": ["f", "g"], "sources": found})
    assert list(made.output["share"]) == [None, 1.0]
    cook = ByPart({"": "A cook"})
    people = make(Personas, cook, {"texts": ["\ufeff", "soup", None, "\n"]}, expansions=1)
    assert list(people.output["personas"]) == [None, "A cook", None, None] * 2
    assert people.usage.failed_rows == 6
    assert len(cook.asked) == 2


def test_a_blank_prompt_answer_or_row_is_not_sent(session: DataDreamer) -> None:
    llm = ByPart({"Is this answer good": "Yes.", "": "{}"})
    chats = [[{"role": "user", "content": text}] for text in ("a", " ")]
    made = make(CritiqueAndRevise, llm, {"prompts": [*chats, []]})
    assert list(made.output["answers"]) == ["{}", None, None]
    assert len(llm.asked) == 2
    llm.asked.clear()
    made = make(CritiqueAndRevise, llm, {"prompts": ["", "a", " "]})
    assert list(made.output["answers"]) == [None, "{}", None]
    assert len(llm.asked) == 2
    made = make(CritiqueAndRevise, llm, {"prompts": ["a", "a", "\t"], "answers": ["b", " ", "b"]})
    assert list(made.output["content"]) == [True, None, None]
    assert len(llm.asked) == 3
    rows = {"review": ["", "b", "c"], "stars": [None, None, 1]}
    made = make(Transform, llm, rows, task="t", plan="p", max_follow_ups=0)
    assert len(llm.asked) == 5
    assert list(made.errors) == [1, 2]


def test_without_any_claims_there_are_no_verdicts(session: DataDreamer) -> None:
    made = make(CheckGrounding, ByPart({"": "NONE"}), {"answers": ["a", "b"], "sources": ["s", "s"]})
    assert list(made.output["share"]) == [None, None]


@pytest.mark.parametrize("text", ["", "Claims:", "\n\n"])
def test_an_answer_without_claims_is_asked_again(text: str) -> None:
    assert isinstance(read_claims(Answer([text]), {}), Rejected)


# Evolution


def test_failed_evolutions_are_kept_out_of_the_next_round(session: DataDreamer) -> None:
    rounds = {"seed a": "harder a", "seed b": "harder b", "seed c": "the rewritten prompt", "harder a": "hardest a"}

    def evolve(prompt: str) -> str:
        instruction = prompt.replace("\\n", "\n").split("Instruction:\n")[1]
        return rounds.get(instruction.split("\n\n")[0], "?")

    def compare(prompt: str) -> str:
        return "Yes." if "harder b" in prompt else "No."

    llm = ByPart({
        "Second instruction:": compare, "Instruction:": evolve, "harder": "A long answer.", "hardest": "Sorry, no.",
        "?": "the, and.",
    })  # fmt: skip
    made = make(Evolve, llm, {"instructions": ["seed a", "seed b", "seed c"]}, rounds=2, operations=["deepen"])
    found = [(row["rounds"], row["seeds"], row["instructions"], row["eliminated"]) for row in made.output]
    assert found == [
        (1, "seed a", "harder a", None),
        (1, "seed b", "harder b", "no more than the earlier instruction"),
        (1, "seed c", None, "no usable instruction was written"),
        (2, "seed a", "hardest a", "the answer is an apology"),
        (2, "seed b", "harder b", "no more than the earlier instruction"),
        (2, "seed c", None, "no usable instruction was written"),
    ]
    assert set(made.output["operations"]) == {"deepen"}


def test_an_evolution_that_was_not_compared_is_not_taken_and_its_row_fails(session: DataDreamer) -> None:
    llm = ByPart({"Second instruction:": None, "Instruction:": lambda prompt: "harder", "harder": "An answer."})
    made = make(Evolve, llm, {"instructions": ["seed"]}, rounds=2)
    assert list(made.output["eliminated"]) == ["not compared with the earlier instruction"] * 2
    assert list(made.errors) == [0, 1]
    assert all(f"Comparison {index + 1}: " in error for index, error in made.errors.items())


def test_a_missing_or_blank_text_is_not_sent_and_its_rows_fail(session: DataDreamer) -> None:
    llm = ByPart({"Second instruction:": "No.", "Instruction:": "harder", "": "An answer."})
    texts = ["", "seed", None, " \n"]
    made = make(Evolve, llm, {"instructions": texts}, rounds=2)
    assert list(made.output["instructions"]) == [None, "harder", None, None] * 2
    assert list(made.output["seeds"]) == texts * 2
    assert list(made.output["eliminated"]) == ["there is no instruction", None, *["there is no instruction"] * 2] * 2
    assert list(made.errors) == [0, 2, 3, 4, 6, 7]
    assert made.errors[4] == 'the input "instructions" has no text.'
    assert made.card.failed_rows == 6
    talked = make(Conversation, llm, {"openings": texts}, turns=1)
    assert list(talked.output["turns"]) == [0, 1, 0, 0]
    assert list(talked.errors) == [0, 2, 3]


def test_operations_are_drawn_by_their_seed(session: DataDreamer) -> None:
    llm = ByPart({"Second instruction:": "No.", "Instruction:": "another", "another": "An answer."})
    drawn = [
        list(
            make(Evolve, llm, {"instructions": [f"q{i}" for i in range(40)]}, rounds=1, draw_seed=seed).output[
                "operations"
            ]
        )
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 6
    with pytest.raises(DefinitionError, match="no operation 'depen'. Did you mean \"deepen\""):
        make(Evolve, llm, {"instructions": ["q"]}, operations=["depen"])


@pytest.mark.parametrize(
    ("made", "answer", "equal", "why"),
    [
        ("x", "word " * 90 + "sorry", False, None),
        ("x", "I am sorry, I cannot.", False, "the answer is an apology"),
        ("x", "... the, of!", False, "the answer has only punctuation and stop words"),
        ("x", "Answer", None, "not compared with the earlier instruction"),
        ("x", None, False, "no answer"),
        (None, None, None, "no usable instruction was written"),
        ("x", "Answer", True, "no more than the earlier instruction"),
    ],
)
def test_each_of_the_four_cases_eliminates(made: Any, answer: Any, equal: Any, why: str | None) -> None:
    assert eliminated(made, answer, equal) == why


def test_an_evolved_instruction_loses_its_label_and_must_not_copy_the_prompt() -> None:
    row = {"instruction": "Write a poem."}
    assert read_evolved(Answer(['**Rewritten instruction:** "Write a sonnet."']), row) == "Write a sonnet."
    for unusable in (
        Answer(["Improve the given prompt."]),
        Answer(["That answer cannot be used. Write the instruction. Answer again."]),
        Answer(["Write a sonnet about the"], finish_reasons=["length"]),
    ):
        assert isinstance(read_evolved(unusable, row), Rejected)
    about_prompts = {"instruction": "Improve the given prompt."}
    assert read_evolved(Answer(["Improve the given prompt twice."]), about_prompts) == "Improve the given prompt twice."


# Personas, conversations, transformations


def test_personas_lead_to_others_and_refusals_are_asked_again(session: DataDreamer) -> None:
    llm = ByPart({
        "Describe a person.": "A baker.", "bread": "I'm sorry, I can't.", "A baker.": "A miller.", "ships": "A sailor.",
        "A sailor.": "A captain.",
    })  # fmt: skip
    made = make(Personas, llm, {"texts": ["On bread", "On ships"]}, expansions=1, relations=["friend {{ x }}"])
    assert [tuple(row.values()) for row in made.output] == [
        ("On bread", "A baker.", 0), ("On ships", "A sailor.", 0), ("On bread", "A miller.", 1),
        ("On ships", "A captain.", 1),
    ]  # fmt: skip
    assert any("friend {{ x }} of this persona" in prompt for prompt in llm.prompts)
    repeated = [read_persona(Answer([prompt]), {}) for prompt in llm.prompts if "specific" in prompt]
    assert {type(each) for each in repeated} == {Rejected}


class Chat(LLM):
    """Answers with how many messages it has seen, as the user until `until`; keeps what it was asked."""

    model_name = "chat"

    def __init__(self, role: str, until: int = 99) -> None:
        super().__init__()
        self.role, self.until = role, until
        self.asked: list[Any] = []

    def identity(self) -> dict[str, Any]:
        return {"role": self.role}

    def answer_batch(self, requests: Any) -> list[Answer]:
        self.asked += [request.prompt for request in requests]
        return [Answer([self.said(request.prompt)]) for request in requests]

    def said(self, prompt: Any) -> str:
        over = self.role == "user" and prompt[2]["content"] == "short" and len(prompt) >= self.until
        return "Thanks. <END>" if over else f"{self.role} after {len(prompt)}"


def test_a_conversation_alternates_and_ends_when_the_user_says_so(session: DataDreamer) -> None:
    assistant, user = Chat("assistant"), Chat("user", until=4)
    inputs = {"openings": ["short", "long", None], "personas": ["A baker.", None, None]}
    made = make(Conversation, assistant, inputs, user=user, turns=2, system_prompt="Be kind.", keep_system=True)
    roles = ["system", "user", "assistant", "user", "assistant"]
    short, long, none = made.output
    assert [message["role"] for message in long["messages"]] == roles
    assert [message["content"] for message in long["messages"]] == [
        "Be kind.", "long", "assistant after 2", "user after 4", "assistant after 4",
    ]  # fmt: skip
    assert [message["content"] for message in short["messages"]] == ["Be kind.", "short", "assistant after 2"]
    assert [(row["turns"], row["ended"]) for row in (short, long)] == [(1, True), (2, False)]
    assert none == {"messages": None, "turns": 0, "ended": False}
    asked = next(prompt for prompt in user.asked if prompt[2]["content"] == "short")
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "user"]
    assert "The person: A baker." in asked[0]["content"]
    assert "<END> alone" in asked[0]["content"]
    assert list(made.errors) == [2]


def test_a_conversation_in_which_an_answer_fails_keeps_what_was_said(session: DataDreamer) -> None:
    llm = ByPart({"Say your first": "And then?", "'And then?'": None, "hello": "Hi."})
    made = make(Conversation, llm, {"openings": ["hello"]}, turns=2)
    (row,) = made.output
    assert [message["content"] for message in row["messages"]] == ["hello", "Hi."]
    assert "Assistant 2" in made.errors[0]


def test_rows_are_transformed_by_a_plan_that_sees_some_of_them(session: DataDreamer) -> None:
    def execute(prompt: str) -> str:
        if "{{ stars }}" in prompt.split("Row of the dataset:")[1]:
            return '{"skip": "no review"}'
        if "broken" in prompt and "must be one JSON" not in prompt:
            return "input: broken"
        return 'Here it is: {"input": "I want my money back", "output": "complaint"}'

    llm = ByPart({"Row of the dataset:": execute, "numbered plan": "1. Use {{ review }}."})
    inputs: dict[str, list[Any]] = {"review": ["Bad.", "broken", "{{ stars }}"], "stars": [1, 2, None]}
    examples = [{"input": "Where is it?", "output": "question"}]
    inputs |= {"name": ["a", "b", "c"], "found": [True, False, True]}
    made = make(Transform, llm, inputs, task="Intents {x}", examples=examples, num_planned=2)
    assert list(made.output["output"]) == ["complaint", "complaint", None]
    assert list(made.output["skipped"]) == [None, None, "no review"]
    plan = next(prompt for prompt in llm.prompts if "numbered plan" in prompt)
    assert '{"review": "broken", "stars": 2, "name": "b", "found": false}' in plan
    assert "{{ stars }}" not in plan
    rows = [prompt for prompt in llm.prompts if "Row of the dataset:" in prompt]
    assert all("1. Use {{ review }}." in prompt for prompt in rows)
    assert all(json.dumps(examples[0]) in prompt for prompt in rows)
    assert "1. Use {{ review }}." in str(made.card.text())


def test_a_row_that_repeats_an_example_is_asked_again_and_a_schema_is_not_for_the_plan(session: DataDreamer) -> None:
    schema = {"type": "object", "properties": {"input": {"type": "string"}, "output": {"enum": ["praise", "question"]}}}

    def execute(prompt: str) -> str:
        if "Good." in prompt and "repeats an example" in prompt:
            return '{"input": "I like it", "output": "praise"}'
        return '{"input": " Where is it? ", "output": "question"}'

    llm = ByPart({"Row of the dataset:": execute, "numbered plan": "1. Say it."})
    examples = [{"input": "Where is it?", "output": "question"}]
    made = make(Transform, llm, {"review": ["Good.", "Bad."]}, task="Intents", examples=examples, schema=schema)
    assert list(made.output["input"]) == ["I like it", None]
    assert list(made.output["skipped"]) == [None, None]
    assert "repeats an example of the task" in made.errors[1]
    (planned,) = (request for request in llm.asked if "numbered plan" in str(request.prompt))
    assert planned.sampling.schema is None
    assert all(request.sampling.schema == schema for request in llm.asked if request is not planned)


def test_marks_in_a_task_and_in_a_plan_are_text(session: DataDreamer) -> None:
    plan = "1. Take <row> and <examples>, not <plan>."
    llm = ByPart({"Row of the dataset:": '{"input": "a", "output": "b"}', "numbered plan": plan})
    made = make(Transform, llm, {"review": ["Bad."]}, task="Tags such as <row>, <plan>", examples=[])
    assert list(made.output["output"]) == ["b"]
    (prompt,) = (prompt for prompt in llm.prompts if "Row of the dataset:" in prompt)
    assert "Task: Tags such as <row>, <plan>" in prompt
    assert plan in prompt


@pytest.mark.parametrize(
    ("kind", "inputs", "args", "message"),
    [
        (Evolve, {"instructions": ["a"]}, {"rounds": 0}, "rounds is 0; expected 1 or more"),
        (Evolve, {"instructions": ["a"]}, {"n": 2}, "n is 2; each prompt has one answer"),
        (Conversation, {"openings": ["a"]}, {"end": " "}, "end is empty"),
        (Personas, {"texts": ["a"]}, {"relations": [3]}, r"relations is \[3\]"),
        (Transform, {"input": ["a"]}, {"task": "t"}, '"input" has the name of an output'),
        (Transform, {"my text": ["a"]}, {"task": "t"}, "no template can use"),
        (Transform, {"a": ["a"]}, {"task": "t", "examples": [{"x": 1}]}, "element 0 of examples"),
        (CritiqueAndRevise, {"prompts": ["a"]}, {"temprature": 1}, 'Did you mean "temperature"'),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(
    session: DataDreamer, kind: Any, inputs: dict[str, Any], args: dict[str, Any], message: str
) -> None:
    llm = Echo()
    with pytest.raises(DefinitionError, match=message):
        make(kind, llm, inputs, **args)
    assert llm.asked == []


def test_rows_of_rounds_lead_back_to_their_inputs(session: DataDreamer) -> None:
    llm = ByPart({"Is this answer good": "Yes.", "cat": "Tom", "dog": "Rex"})
    trace = str(make(CritiqueAndRevise, llm, {"prompts": ["Name a cat.", "Name a dog."]}).trace(1))
    assert "input: Rows (DataSource), row 1" in trace
    assert "Rex" in trace


# With the real LLM


@pytest.fixture(scope="module")
def smollm(smollm_gguf: Path) -> Iterator[LlamaCPP]:
    """SmolLM2-135M-Instruct, loaded once."""
    llm = LlamaCPP(str(smollm_gguf))
    yield llm
    llm.unload_model()


def test_the_real_llm_talks_with_itself(session: DataDreamer, smollm: LlamaCPP) -> None:
    inputs = {"openings": ["Which animal is the fastest?"], "personas": ["A child who loves cats."]}
    options = {"turns": 2, "max_new_tokens": 16, "temperature": 0.0, "system_prompt": "You are a helpful assistant."}
    talks = make(Conversation, smollm, inputs, **options)
    (row,) = talks.output
    roles, texts = zip(*((each["role"], each["content"]) for each in row["messages"]), strict=True)
    assert roles == ("user", "assistant") * row["turns"]
    assert texts[0] == "Which animal is the fastest?"
    assert len(set(texts)) == len(texts)  # nobody repeats the other
    assert row["ended"] == (row["turns"] == 1)
    assert talks.errors == {}


def test_the_real_llm_evolves_an_instruction_or_the_step_says_why_not(session: DataDreamer, smollm: LlamaCPP) -> None:
    seeds = ["Name three animals."]
    evolved = make(
        Evolve, smollm, {"instructions": seeds}, rounds=1, operations=["concretize", "breadth"], max_new_tokens=20
    )
    rows = list(evolved.output)
    assert [row["seeds"] for row in rows] == seeds
    for row in rows:
        assert row["operations"] in ("concretize", "breadth")
        assert row["instructions"] != row["seeds"]
        assert row["answers"] or row["eliminated"]
    assert evolved.card.completion_tokens > 10
