"""Conversations: which tokens carry loss, with every kind of chat template, and what a model learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MethodMisfit
from datadreamer_like.evaluation.tasks.chats import Chats
from datadreamer_like.models.trained.prompt_template import set_prompt_template
from datadreamer_like.trainers import TrainHFFineTune

from .conftest import Rows


def chat(*texts: str, system: str = "") -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}, *messages] if system else messages


TALK = chat("The cat", "sat.", "The dog", "ran.")
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}[A]{% generation %}{{ m['content'] }}{{ eos_token }}"
    "{% endgeneration %}{% else %}[U]{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[A]{% endif %}"
)
BRACKETS = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
DROPPING = (
    "{% for m in messages %}{% if loop.last or m['role'] != 'assistant' %}[{{ m['content'] }}]{% else %}(...)"
    "{% endif %}{% endfor %}"
)


def encoded(tokenizer: Any, folder: Path, talks: Any, turns: Any = "all", name: str = "a", **options: Any) -> Any:
    rows = Rows(name, {"talk": talks}).output
    return Chats(tokenizer, options.pop("max_length", 64), turns=turns).encode(
        {"train_input": rows["talk"]}, folder / name
    )


def targets(tokenizer: Any, row: Any) -> list[str]:
    """The texts that carry loss, one for each run of tokens."""
    runs: list[list[int]] = []
    before = IGNORED_LABEL
    for token in row["labels"].tolist():
        if token != IGNORED_LABEL:
            if before == IGNORED_LABEL:
                runs.append([])
            runs[-1].append(token)
        before = token
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("template", "whole", "turns"),
    [
        (
            {},
            "<|user|>The cat<eos><|assistant|>sat.<eos><|user|>The dog<eos><|assistant|>ran.<eos>",
            ["sat.<eos>", "ran.<eos>"],
        ),
        ({"template": "Q {{prompt}} A "}, "Q The cat A sat.<eos>Q The dog A ran.<eos>", ["sat.<eos>", "ran.<eos>"]),
        ({"template": BRACKETS}, "[The cat][sat.][The dog][ran.]<eos>", ["[sat.]", "[ran.]<eos>"]),
        ({"template": MARKED}, "[U]The cat[A]sat.<eos>[U]The dog[A]ran.<eos>", ["sat.<eos>", "ran.<eos>"]),
    ],
    ids=["own", "text", "brackets", "marked"],
)
def test_turns_of_the_assistant_carry_loss(tiny_causal_lm, tmp_path, template, whole, turns):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    set_prompt_template(tokenizer, **template)
    (row,) = encoded(tokenizer, tmp_path, [TALK])
    assert tokenizer.decode(row["input_ids"].tolist()) == whole
    assert targets(tokenizer, row) == turns
    (last,) = encoded(tokenizer, tmp_path, [TALK], "last", "b")
    assert tokenizer.decode(last["input_ids"].tolist()) == whole
    assert targets(tokenizer, last) == turns[-1:]


def test_the_last_turn_alone_is_what_a_prompt_and_its_answer_are(tiny_causal_lm, tmp_path):
    from datadreamer_like.evaluation.tasks.generation import CausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    (talk,) = encoded(tokenizer, tmp_path, [chat("The cat", "sat.")])
    rows = Rows("pair", {"prompt": ["The cat"], "answer": ["sat."]}).output
    (pair,) = CausalLM(tokenizer, 64).encode({"p": rows["prompt"], "a": rows["answer"]}, tmp_path / "pair")
    assert talk["input_ids"].tolist() == pair["input_ids"].tolist()
    assert talk["labels"].tolist() == pair["labels"].tolist()


def test_templates_that_drop_earlier_answers_teach_the_last_one_only(tiny_causal_lm, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    set_prompt_template(tokenizer, DROPPING)
    with pytest.raises(MethodMisfit, match='writes the turns before the last one differently.*assistant_turns="last"'):
        encoded(tokenizer, tmp_path, [TALK])
    (row,) = encoded(tokenizer, tmp_path, [TALK], "last", "b")
    assert tokenizer.decode(row["input_ids"].tolist()) == "[The cat](...)[The dog][ran.]<eos>"
    assert targets(tokenizer, row) == ["[ran.]<eos>"]


def test_a_conversation_is_cut_at_its_end(tiny_causal_lm, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    (whole,) = encoded(tokenizer, tmp_path, [TALK])
    length = len(whole["input_ids"]) - 3
    (row,) = encoded(tokenizer, tmp_path, [TALK], name="b", max_length=length)
    assert row["input_ids"].tolist() == whole["input_ids"].tolist()[:length]
    assert row["labels"].tolist() == whole["labels"].tolist()[:length]


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "text": ("Hi", ArgumentTypeError, r"train_input: row 1 is 'Hi', of type str\..*list of messages"),
    "texts": (["Hi"], ArgumentTypeError, "row 1 is .*of type list"),
    "open": (chat("Hi"), DataError, "the conversation of row 1 does not end with a turn of the assistant"),
    "empty": ([], DataError, "row 1 does not end"),
    "no role": (
        [{"content": "Hi"}],
        DataError,
        'message 0 of row 1 must have the texts "role" and "content"; it has c',
    ),
    "parts": ([{"role": "user", "content": [1]}], DataError, "message 0 of row 1 must have the texts"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_conversation_is_refused_with_its_row(tiny_causal_lm, kind):
    value, error, words = BAD[kind]
    task = Chats(AutoTokenizer.from_pretrained(tiny_causal_lm), 64)
    with pytest.raises(error, match=words):
        task.checked([(TALK,), (value,)], "train_input", 0)


TALKS = [chat("The cat", "sat.", "And", "ran."), chat("A dog", "ran.", system="Rain"), chat("The cat", "sat.")] * 3
OPTIONS: dict[str, Any] = {"epochs": 6, "batch_size": 3, "learning_rate": 3e-3}


@pytest.mark.parametrize("packing", [False, True])
def test_a_model_learns_conversations_and_is_prompted_with_their_template(session, tiny_causal_lm, packing):
    rows = Rows("Talks", {"talk": TALKS}).output["talk"]
    more = {"packing": True, "max_length": 64} if packing else {}
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm)).train(rows, None, rows, None, **OPTIONS, **more)
    losses = [entry["loss"] for entry in trainer.manifest.result["history"]]
    assert losses[-1] < 0.7 * losses[0]
    other = TrainHFFineTune("Last", str(tiny_causal_lm))
    other.train(rows, None, rows, None, **OPTIONS, **more, assistant_turns="last")
    assert other.fingerprint != trainer.fingerprint


def test_what_cannot_learn_conversations_is_refused(session, tiny_causal_lm, tiny_seq2seq):
    rows = Rows("Talks", {"talk": TALKS, "text": ["a"] * 9}).output
    talk = rows["talk"]
    with pytest.raises(MethodMisfit, match="encoder-decoder, which learns no conversations"):
        TrainHFFineTune("T5", str(tiny_seq2seq)).train(talk, None, talk, None)
    with pytest.raises(MethodMisfit, match="The tokenizer has no chat template"):
        TrainHFFineTune("Bare", str(tiny_causal_lm), chat_prompt_template=None).train(talk, None, talk, None)
    with pytest.raises(DefinitionError, match='assistant_turns must be "all" or "last"'):
        TrainHFFineTune("Turns", str(tiny_causal_lm)).train(talk, None, talk, None, assistant_turns="first")
    with pytest.raises(ArgumentTypeError, match="row 0 is 'a', of type str"):
        TrainHFFineTune("Texts", str(tiny_causal_lm)).train(rows["text"], None, rows["text"], None)
    with pytest.raises(ArgumentTypeError, match="validation_output"):
        TrainHFFineTune("Half", str(tiny_causal_lm)).train(rows["text"], rows["text"], rows["text"], None)
