"""SynthIE: connected sets of facts, which texts are kept, figures counted by hand, and the other direction."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset
from datadreamer_like.models import LlamaCPP
from datadreamer_like.recipes import SynthIE
from datadreamer_like.recipes.synthie import draw_facts, fact_scores, read_facts, write_facts
from datadreamer_like.steps import DataSource
from datadreamer_like.testing import FakeLLM
from datadreamer_like.trainers import TrainHFFineTune

PEOPLE, TOWNS = [f"person{place}" for place in range(6)], [f"town{place}" for place in range(3)]
FACTS = [(person, "lives in", TOWNS[place % 3]) for place, person in enumerate(PEOPLE)]
FACTS += [(town, "is in", "land") for town in TOWNS[:2]]
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "max_new_tokens": 24}


NAMES, CITIES = ["Ada", "Bruno", "Carla", "David"], ["Lisbon", "Oslo", "Vienna"]


def untrained(words: str, folder: Path, width: int) -> Path:
    tokenizer = tiny_models.word_pieces([words] * 4)
    tokenizer.eos_token = "[SEP]"
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=width, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, eos_token_id=3,
    )  # fmt: skip
    return tiny_models.save(transformers.T5ForConditionalGeneration(config), tokenizer, folder)


@pytest.fixture(scope="session")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = " ".join([*PEOPLE, *TOWNS, "lives in is land | ; . and"])
    return untrained(words, tmp_path_factory.mktemp("encoder-decoder"), 16)


def answer(prompt: str) -> str:
    """States each fact, but those of person3; from a text it finds the first fact alone."""
    if prompt.startswith("Write"):
        facts = read_facts(prompt.split("Facts:\n")[-1].split("\nText:")[0])
        return " and ".join(" ".join(fact) for fact in facts if "person3" not in fact) + "."
    text = re.findall(r"Text: (.*)", prompt)[-1]
    found = re.match(r"(\w+) (lives in|is in) (\w+)", text)
    return " | ".join(found.groups()) if found else "nothing"


def made(model: Path, **more: Any) -> SynthIE:
    test = DataSource(
        "Test",
        {"text": ["person1 lives in town1.", "town0 is in land."], "facts": [[list(FACTS[1])], [list(FACTS[6])]]},
    ).output
    given = {
        "llm": FakeLLM(answer), "facts": FACTS,
        "trainer": partial(TrainHFFineTune, model_name=str(model), device="cpu"),
        "test_input": test["text"], "test_output": test["facts"], "rows": 12, **QUICK, **more,
    }  # fmt: skip
    return SynthIE("Made", **given)


def test_sets_are_connected_and_different_and_rare_relations_occur_as_often_as_others():
    sets = draw_facts(FACTS * 1 + [(f"x{place}", "knows", f"y{place}") for place in range(200)], 300, (1, 3), seed=1)
    assert len({frozenset(each) for each in sets}) == len(sets)
    for facts in sets:
        ends = {facts[0][0], facts[0][2]}
        assert len(set(facts)) == len(facts) <= 3
        for fact in facts[1:]:
            assert ends & {fact[0], fact[2]}
            ends |= {fact[0], fact[2]}
    counts = Counter(fact[1] for facts in sets[:60] for fact in facts)
    assert max(counts.values()) < 3 * min(counts.values())  # of 208 facts, 200 are of one relation
    assert draw_facts(FACTS, 50, (1, 3), seed=2) == draw_facts(FACTS, 50, (1, 3), seed=2)
    assert all(len(each) == 2 for each in draw_facts(FACTS, 10, (2, 2)))


def test_facts_are_written_and_read_and_scored():
    assert read_facts(write_facts(FACTS)) == FACTS
    assert read_facts("- a | b | c\nno fact\na | b | c; | x | y") == [("a", "b", "c")]
    found = [[("A", "b", "c"), ("x", "y", "z")], []]
    gold = [[("a", "b", "c")], [("d", "e", "f"), ("g", "h", "i")]]
    assert fact_scores(found, gold) == {"precision": 1 / 2, "recall": 1 / 3, "f1": pytest.approx(0.4)}
    dotted = [("Ada", "died in", "Washington D.C."), (".NET", "runs on", "Linux"), ("water", "freezes at", "-1")]
    assert fact_scores([read_facts(write_facts(dotted))], [dotted])["f1"] == 1
    assert fact_scores([[]], [[FACTS[0]]]) == {"precision": 0, "recall": 0, "f1": 0}


def test_a_text_learns_the_facts_it_was_written_for_and_one_that_leaves_some_out_is_dropped(session, encoder_decoder):
    texts = [f"{fact[0]} {fact[1]} {fact[2]} and more" for fact in FACTS]
    texts = DataSource("Texts", {"text": [None, texts[0], "", *texts[1:]]}).output["text"]
    both = made(encoder_decoder, forward=texts)
    rows = list(both.rows.output)
    assert 2 <= len(rows) < 12
    for row in rows:
        assert read_facts(row["target"]) == [tuple(fact) for fact in row["facts"]]
        assert row["text"] == " and ".join(" ".join(fact) for fact in row["facts"]) + "."
        assert "person3" not in row["text"]
    assert [read_facts(row["target"]) for row in both.forward_rows.output] == [[fact] for fact in FACTS]
    first, second = both.table.rows
    assert first["calls"] == 12
    assert second["calls"] == len(FACTS)
    assert 0 <= first["f1"] <= 1
    assert "text, then facts" in str(both)
    assert len(both.extract(["person1 lives in town1."])) == 1


def test_the_full_run_after_a_preview_asks_for_the_other_rows_only(tmp_path: Path, encoder_decoder: Path):
    asked, calls = [], []
    for preview in (4, None):
        llm = FakeLLM(answer)
        with DataDreamer(tmp_path / "output", verbose=False, preview=preview):
            calls.append(made(encoder_decoder, llm=llm).table.rows[0]["calls"])
        asked.append(llm.prompts)
    assert calls == [4, 12]
    assert [len(each) for each in asked] == [4, 12 - 4]
    assert not {*asked[0]} & {*asked[1]}


def test_what_makes_no_sense_is_refused(session, encoder_decoder):
    llm = FakeLLM(answer)
    missing = DataSource("Missing", {"facts": ["a | b | c", None]}).output["facts"]
    blank = DataSource("Blank", {"text": [" ", None]}).output["text"]
    for more, error, message in (
        ({"facts": []}, EmptyDataset, "there are no facts"),
        ({"facts": [("a", "b")]}, DefinitionError, r"facts\[0\] is \('a', 'b'\)"),
        ({"facts": [("a", "b", "c | d")]}, DefinitionError, "must not contain"),
        ({"facts": [3]}, DefinitionError, r"facts\[0\] is 3"),
        ({"examples": ["text"]}, DefinitionError, r"examples\[0\] is 'text'; expected a text and its facts"),
        ({"examples": [("text", [3])]}, DefinitionError, r"examples\[0\]\[1\]\[0\] is 3"),
        ({"test_output": missing}, ArgumentTypeError, r'"Made": test_output\[1\] must be'),
        ({"forward": blank}, EmptyDataset, "forward has no texts"),
        ({"facts_per_row": (9, 9)}, DataError, "no set of 9 that are connected"),
        ({"facts_per_row": (2, 1)}, DefinitionError, r"facts_per_row\[1\] is 1"),
        ({"facts_per_row": 3}, ArgumentTypeError, "facts_per_row must be two numbers"),
        ({"rows": 1}, DefinitionError, "rows is 1"),
        ({"epoch": 1}, DefinitionError, 'Did you mean "epochs"'),
    ):
        with pytest.raises(error, match=message):
            made(encoder_decoder, **{"llm": llm, **more})
    assert not llm.asked
    with pytest.raises(DataError, match="of 12 answers of the LLM, 0 could be used"):
        made(encoder_decoder, llm=FakeLLM(lambda prompt: "Well."))


def test_fewer_sets_of_facts_than_rows_are_said(session, encoder_decoder, caplog):
    with pytest.raises(DataError, match="of 4 answers of the LLM"):
        made(encoder_decoder, llm=FakeLLM(lambda prompt: "Well."), facts=FACTS[:2] + FACTS[6:7])
    assert "Made: 4 different sets were drawn, fewer than the 12 rows asked for" in caplog.text


@pytest.fixture
def homes(tmp_path) -> dict[str, Any]:
    """Facts of one kind, one for each text, and a student that knows their words."""
    words = " ".join([*NAMES, *CITIES, "lives in | ; . the city of home is resides"])
    facts = [(name, "lives in", city) for name in NAMES for city in CITIES]
    return {"model": untrained(words, tmp_path, 64), "facts": facts, "facts_per_row": (1, 1)}


@pytest.mark.slow
def test_texts_that_the_real_llm_wrote_state_their_facts(session, homes, smollm_gguf):
    llm = LlamaCPP(str(smollm_gguf))
    it = made(**homes, llm=llm, examples=[("The home of Ken is in Rome.", [("Ken", "lives in", "Rome")])])
    llm.unload_model()
    rows = list(it.rows.output)
    assert len(rows) >= 6  # of twelve; such a model leaves something out of a few
    for row in rows:
        ((subject, relation, target),) = row["facts"]
        assert row["target"] == f"{subject} | {relation} | {target}"
        assert subject in row["text"]
        assert target in row["text"]
        assert "Facts:" not in row["text"]


def test_a_student_finds_the_facts_of_texts(session, homes):
    it = made(**homes, llm=FakeLLM(answer), epochs=25, batch_size=1, learning_rate=2e-3)
    rows = list(it.rows.output)
    gold = [[tuple(fact) for fact in row["facts"]] for row in rows]
    # One fact for all texts, or facts of other texts, would be right in about one of nine.
    assert fact_scores(it.extract([row["text"] for row in rows]), gold)["f1"] > 0.5
