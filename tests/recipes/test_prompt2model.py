"""Prompt2Model: reading a prompt, ranking cards, the rows it trains on, and the parts by themselves."""

from __future__ import annotations

import math
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, prompt_of
from hub_server import Blob
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, HubError, UnknownColumn
from datadreamer_like.models import BM25Retriever, OpenAI
from datadreamer_like.recipes import HubCard, ParsedPrompt, Prompt2Model, hub_cards, parse_prompt, rank_cards
from datadreamer_like.steps import DataSource
from datadreamer_like.testing import FakeLLM
from datadreamer_like.trainers import TrainHFClassifier, TrainLinearClassifier

PROMPT = """Say if a review is positive or negative.

Input: the tea was good
Output: positive

Input: bad
Output: negative"""
LINEAR = partial(TrainLinearClassifier, char_ngrams=None, max_features=100)
LABELS = ["positive", "negative"]


def answer(prompt: str) -> str:
    if prompt.startswith("Describe"):
        return "A small encoder of English sentences."
    if prompt.startswith("Write"):
        label = re.search(r'Its output is "(\w+)"', prompt)[1]
        word = {"positive": "good", "negative": "bad"}[label]
        return f" the film was {word} {abs(hash_of(prompt)) % 50}\nOutput: {label.upper()}.\n\nInput: more"
    return "neither"


def hash_of(text: str) -> int:
    return sum(map(ord, text))


def given(**more: Any) -> dict[str, Any]:
    test = DataSource("Test", {"text": ["a good day", "a bad day", "good", "bad"], "label": LABELS * 2}).output
    return {
        "llm": FakeLLM(answer), "prompt": PROMPT, "trainer": LINEAR, "labels": LABELS, "rows": 20,
        "test_input": test["text"], "test_output": test["label"], **more,
    }  # fmt: skip


def test_a_prompt_with_marked_demonstrations_is_read_without_the_llm(session):
    llm = FakeLLM([{"instruction": "Translate.", "demonstrations": [{"input": "yes", "output": "oui"}]}])
    demonstrations = (("the tea was good", "positive"), ("bad", "negative"))
    assert parse_prompt("One", llm, PROMPT) == ParsedPrompt("Say if a review is positive or negative.", demonstrations)
    assert not llm.asked
    assert parse_prompt("Other", llm, "Translate, like yes to oui") == ParsedPrompt("Translate.", (("yes", "oui"),))
    with pytest.raises(DataError, match="found no instruction"):
        parse_prompt("None", FakeLLM([{"instruction": " ", "demonstrations": []}]), "Hm")


def test_models_are_ranked_by_bm25_times_the_logarithm_of_their_downloads():
    cards = [
        HubCard("one", "answers questions on text", downloads=10),
        HubCard("two", "answers questions in French", downloads=0),
        HubCard("three", "answers long questions on text", downloads=10_000, megabytes=500),
        HubCard("huge", "answers questions on text", downloads=10**9, megabytes=9000), HubCard("other", "draws charts"),
    ]  # fmt: skip
    few = [*cards[:3], cards[4]]
    (found,) = BM25Retriever([f"{card.name} {card.description}" for card in few]).run(["questions on text"], k=4)
    expected = {few[place].name: score for place, score in zip(found["indices"], found["scores"], strict=True)}
    ranked = rank_cards("questions on text", cards, popularity=True, max_megabytes=3000)
    assert {card.name: score for card, score in ranked} == pytest.approx(
        {card.name: expected[card.name] * math.log(1 + card.downloads) for card in few if card.name in expected}
    )
    assert [card.name for card, _ in ranked] == ["three", "one", "two"]
    assert [card.name for card, _ in rank_cards("charts", cards)] == ["other"]
    with pytest.raises(EmptyDataset, match="All 1 cards"):
        rank_cards("text", cards[3:4], max_megabytes=100)
    with pytest.raises(ArgumentTypeError, match="list of HubCard"):
        rank_cards("text", ["one"])


def test_it_trains_on_made_and_found_rows_and_is_measured_next_to_the_llm(session, tmp_path: Path):
    (tmp_path / "films.csv").write_text("review,kind\na fine good film,positive\nso bad,negative\nodd,mixed\n")
    cards = [
        HubCard("sums", "sums of numbers", "sums.csv", input_column="a", output_column="b"),
        HubCard("films", "a review of a film, positive or negative", str(tmp_path / "films.csv"), input_column="review",
             output_column="kind"),
    ]  # fmt: skip
    made = Prompt2Model("Made", **given(datasets=cards, control=True))
    assert made.dataset is cards[1]
    rows = list(made.rows.output)
    found = [(row["input"], row["output"]) for row in rows if row["source"] == "films"]
    assert sorted(found) == [("a fine good film", "positive"), ("so bad", "negative")]
    own = [row for row in rows if row["source"] == "made"]
    assert {row["output"] for row in own} == {*LABELS}
    assert all(("good" in row["input"]) == (row["output"] == "positive") for row in own)
    assert len({row["input"] for row in own}) == len(own)
    assert made.metrics["student"] == {"exact_match": 1.0}
    assert made.student.name.endswith(", student")
    assert made.metrics["the LLM, prompted"]["exact_match"] == 0.0
    assert "Dataset: films." in str(made)


def test_no_text_is_trained_on_and_tested(session, tmp_path: Path):
    found = "review,kind\n The FILM was good,negative\na Good day ,positive\nother,negative\n"
    (tmp_path / "films.csv").write_text(found)
    card = HubCard("films", "a review of a film, positive or negative", str(tmp_path / "films.csv"),
                   input_column="review", output_column="kind")  # fmt: skip

    def write(prompt: str) -> str:
        label, number = re.search(r'Its output is "(\w+)"', prompt)[1], hash_of(prompt) % 50
        return f"{'the film was good' if number % 2 else f'{label} {number}'}\nOutput: {label}"

    llm = FakeLLM(lambda prompt: write(prompt) if prompt.startswith("Write") else "x")
    made = Prompt2Model("Made", **given(llm=llm, datasets=[card]))
    rows = {row["input"].strip().lower(): row for row in made.rows.output}
    assert len(rows) == len(made.rows.output)
    assert rows.keys() > {"the film was good", "other"}
    assert rows["the film was good"]["source"] == "films"
    assert "a good day" not in rows
    assert made.left_out == {"repeated": 1, "in the test": 1}
    assert "1 rows left out: repeated." in str(made)


def test_of_equal_inputs_the_most_frequent_output_is_kept_and_of_those_as_frequent_the_shortest(session):
    said = [("x", "not good"), ("x", "bad"), ("y", "not good"), ("y", "not good"), ("y", "bad")]
    said += [(f"other {number}", ("not good", "bad")[number % 2]) for number in range(15)]
    llm = FakeLLM(["Input: {}\nOutput: {}".format(*pair) for pair in said])
    made = Prompt2Model("Made", **given(llm=llm, labels=None, rounds=1))
    kept = {row["input"]: row["output"] for row in made.rows.output}
    assert (kept["x"], kept["y"]) == ("bad", "not good")


def test_later_rounds_show_rows_of_earlier_ones(session):
    llm = FakeLLM(answer)
    Prompt2Model("Made", **given(llm=llm, rounds=2, temperatures=(0.2, 0.8)))
    written = [request for request in llm.asked if str(request.prompt).startswith("Write")]
    assert [request.sampling.temperature for request in written] == pytest.approx([0.2] * 10 + [0.8] * 10)
    assert not any("the film was" in request.prompt for request in written[:10])
    assert all("the film was" in request.prompt for request in written[10:])


def run_with_server(folder: Path, url: str, films: Path) -> Any:
    """What one process makes, with data and a control; it asks a server."""
    card = HubCard("films", "a review, positive or negative", str(films), input_column="review", output_column="kind")
    with DataDreamer(folder, verbose=False):
        llm = OpenAI("m", base_url=url, api_key="none")
        made = Prompt2Model("Made", **given(llm=llm, datasets=[card], control=True))
        said = made.student.predict(["a good day"]).probabilities.tolist()
        return [*made.rows.output], made.metrics, made.left_out, said


def run_until_killed(folder: Path, url: str, films: Path) -> None:
    run_with_server(folder, url, films)


@pytest.mark.parametrize("moment", [14, 22])  # in the second round, and in the control
def test_killed_at_any_request_it_pays_for_no_answer_twice(tmp_path: Path, moment: int):
    (tmp_path / "films.csv").write_text("review,kind\na fine good film,positive\nso bad,negative\n")
    killed: list[Any] = []

    def behave(body: dict[str, Any], before: int) -> Reply:
        if killed and server.seen.total() - calm >= moment:
            killed.pop().kill()
        return Reply(answer(prompt_of(body)), seconds=0.02)

    with FlakyServer(behave) as server:
        calm = 0
        whole = run_with_server(tmp_path / "whole", server.url, tmp_path / "films.csv")
        calm, expected = server.seen.total(), server.seen.copy()
        arguments = (tmp_path / "cut", server.url, tmp_path / "films.csv")
        process = CONTEXT.Process(target=run_until_killed, args=arguments)
        killed.append(process)
        process.start()
        process.join(timeout=120)
        assert process.exitcode == -signal.SIGKILL
        assert run_with_server(*arguments) == whole
        asked = server.seen - expected
        assert asked.keys() == expected.keys()
        assert calm <= asked.total() <= calm + 2 * server.most_at_once
        run_with_server(*arguments)
        assert server.seen - expected == asked


def test_the_base_model_is_the_best_card(session, tiny_encoder):
    models = [
        HubCard("charts", "draws charts", "nowhere"),
        HubCard("tiny", "an encoder of sentences", str(tiny_encoder), 5),
    ]
    made = Prompt2Model(
        "Made", **given(models=models, trainer=partial(TrainHFClassifier, device="cpu"), epochs=1, batch_size=8)
    )
    assert made.model is models[1]
    assert str(made.student.source) == str(tiny_encoder)


def test_where_no_card_fits_the_most_popular_base_model_that_is_small_enough_is_taken(session, caplog):
    taken = []

    def trainer(name: str, model_name: str) -> TrainLinearClassifier:
        taken.append(model_name)
        return LINEAR(name)

    models = [
        HubCard("huge", "xyzzy", downloads=90, megabytes=9000),
        HubCard("rare", "plugh", downloads=1),
        HubCard("known", "plover", downloads=5, megabytes=90),
    ]
    made = Prompt2Model("Made", **given(models=models, trainer=trainer))
    assert made.model is models[2]
    assert taken[-1] == "known"
    assert 'no card of a model shares a word with the task; "known" is taken' in caplog.text


def test_a_dataset_without_the_columns_of_its_card_is_refused_before_the_llm_is_asked_for_rows(session, tmp_path: Path):
    (tmp_path / "films.csv").write_text("review,mood\nthe film was good,good\n", encoding="utf-8")
    card = HubCard(
        "films",
        "say if the film review is good",
        str(tmp_path / "films.csv"),
        input_column="text",
        output_column="mood",
    )
    arguments = given(datasets=[card])
    with pytest.raises(UnknownColumn, match='the card "films" names the column "text".* has: review, mood'):
        Prompt2Model("Made", **arguments)
    assert arguments["llm"].prompts == []


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"prompt": " "}, ArgumentTypeError, "prompt must be a text"),
        ({"datasets": []}, EmptyDataset, "datasets is empty"),
        ({"models": ["bert"]}, ArgumentTypeError, "models must be a list of HubCard"),
        ({"test_output": None}, DefinitionError, "pass test_input and test_output, or neither"),
        ({"labels": ["a", "a"]}, DefinitionError, "different texts"),
        ({"labels": ["a", " "]}, DefinitionError, "none blank"),
        ({"labels": ["a", "A"]}, DefinitionError, "differ by more than case"),
        ({"labels": ["a"]}, DefinitionError, "two or more"),
        ({"temperatures": (1.0,)}, ArgumentTypeError, "temperatures must be two numbers"),
        ({"temperatures": (0.5, -1.0)}, DefinitionError, "temperatures is -1.0"),
        ({"datasets": None, "rows": 3}, DefinitionError, "rows is 3; it must be at least 4"),
        ({"learning_rat": 1}, DefinitionError, "learning_rat"),
        ({"llm": FakeLLM(lambda prompt: "I cannot."), "labels": None}, DataError, "0 rows could be used"),
    ],
)
def test_what_makes_no_sense_is_refused(session, more, error, message):
    with pytest.raises(error, match=message):
        Prompt2Model("Made", **given(**more))


def test_cards_of_the_hub_are_those_that_a_search_finds_most_downloaded_first(hub_server, monkeypatch, tmp_path):
    hub_server.connect(monkeypatch, tmp_path)
    page = b"---\nlicense: mit\n---\nReads reviews of films."
    for number, name in enumerate(("a/sentiment-small", "b/sentiment-large", "c/translation")):
        repo = hub_server.add_repo("model", name)
        for _ in range(number):  # this server counts commits as downloads
            repo.add("main", {"README.md": Blob(page, large=False)}, "a page")
    found = hub_cards("model", "sentiment")
    assert [(card.name, card.downloads) for card in found] == [("b/sentiment-large", 2), ("a/sentiment-small", 1)]
    assert "Reads reviews of films." in found[0].description
    assert "films" not in found[1].description  # it has no page
    assert [card.name for card in hub_cards("dataset", "imdb", limit=1)] == ["stanfordnlp/imdb"]


def test_cards_of_the_hub_need_a_kind_and_an_answer(hub_server, monkeypatch, tmp_path):
    with pytest.raises(DefinitionError, match='expected "model" or "dataset"'):
        hub_cards("space", "x")
    hub_server.connect(monkeypatch, tmp_path)
    hub_server.fail("GET /api/models", times=9, status=403)
    with pytest.raises(HubError, match="cannot be searched for models"):
        hub_cards("model", "sentiment")
