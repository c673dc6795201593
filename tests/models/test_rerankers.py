from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from subjects import Lengths, Parrot

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit, PromptTooLong
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.session import DataDreamer
from datadreamer_like.models import (
    LLM,
    BM25Retriever,
    CrossEncoderReranker,
    EmbeddingRetriever,
    HFTransformers,
    LLMReranker,
)
from datadreamer_like.models.retrievers.reranker import Reranker
from datadreamer_like.steps import DataSource, RAGPrompt, Retrieve

TEXTS = ["the cat sat", "a dog ran on the mat", "the cat ran to a dog", "a bird sang", "the mat"]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_models.word_pieces([*TEXTS, "query"])
    model = tiny_models.bert(tokenizer, num_labels=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6.0 if weight.dim() > 1 else 1.0)  # or all scores are near 0.5
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("cross-encoder"))


def by_hand(folder: Path, query: str, texts: list[str]) -> list[float]:
    """The sigmoid of the logit of each pair, from transformers alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model.eval()(**tokenizer(query, text, return_tensors="pt")).logits.item() for text in texts]
    return (1 / (1 + np.exp(-np.array(logits)))).tolist()


def test_texts_are_sorted_by_the_cross_encoders_scores(cross_encoder: Path) -> None:
    model = CrossEncoderReranker(BM25Retriever(TEXTS), cross_encoder, device="cpu")
    queries = ["the cat", "dog mat", "zzz", "bird"]
    for query, found in zip(queries, model.run(queries, k=3, batch_size=2), strict=True):
        candidates = BM25Retriever(TEXTS).run([query], k=5)[0]["indices"]
        expected = dict(zip(candidates, by_hand(cross_encoder, query, [TEXTS[n] for n in candidates]), strict=True))
        assert found["indices"] == sorted(candidates, key=lambda n: -expected[n])[:3]
        assert found["scores"] == pytest.approx([expected[n] for n in found["indices"]], abs=1e-5)
    assert pickle.loads(pickle.dumps(model)).run(queries) == model.run(queries)


def test_only_depth_texts_are_read_and_scores_are_found_again(cross_encoder: Path, tmp_path: Path) -> None:
    retriever = BM25Retriever(TEXTS, cache_folder_path=tmp_path)
    model = CrossEncoderReranker(retriever, cross_encoder, depth=2, device="cpu")
    (found,) = model.run(["the cat"], k=1)
    assert found["indices"][0] in BM25Retriever(TEXTS).run(["the cat"], k=2)[0]["indices"]
    assert len(model.run(["the cat"], k=3)[0]["indices"]) == 3  # k counts if it is more
    again = CrossEncoderReranker(retriever, cross_encoder, depth=2, device="cpu")
    assert again.run(["the cat"], k=3, cache_only=True) == model.run(["the cat"], k=3)
    assert fingerprint(again) == fingerprint(model)
    assert fingerprint(CrossEncoderReranker(retriever, cross_encoder, depth=3)) != fingerprint(model)


def test_a_model_with_several_scores_is_no_reranker(tmp_path: Path) -> None:
    tokenizer = tiny_models.word_pieces(TEXTS)
    folder = tiny_models.save(tiny_models.bert(tokenizer, num_labels=3), tokenizer, tmp_path)
    with pytest.raises(MethodMisfit, match="3 scores per pair"):
        CrossEncoderReranker(BM25Retriever(TEXTS), folder, device="cpu").run(["cat"])


class Scored(Reranker):
    """Sorts by the scores that a function gives."""

    model_name = "scored"

    def __init__(self, score: Callable[[str], Any], more: int = 0) -> None:
        super().__init__(BM25Retriever(TEXTS))
        self.score, self.more = score, more

    def score_pairs(self, pairs: Any, run: Any) -> Any:
        scores = [self.score(text) for _, text in pairs]
        return iter(scores[: self.more] if self.more < 0 else [*scores, *[0.0] * self.more])


def test_a_score_that_is_not_finite_fails_its_query_alone() -> None:
    found = list(Scored(lambda text: np.float32("nan" if "dog" in text else len(text))).results(["the", "bird", "dog"]))
    assert [result.error is None for result in found] == [False, True, False]
    assert "the score nan" in str(found[0].error)
    assert found[1].value["scores"] == [11.0]
    assert type(found[1].value["scores"][0]) is float


@pytest.mark.parametrize(
    ("score", "more", "match"),
    [(len, -1, "yields fewer scores"), (len, 1, "yields more scores"), (lambda text: None, 0, "yields None")],
)
def test_scores_that_do_not_belong_to_the_pairs_are_refused(score: Any, more: int, match: str) -> None:
    with pytest.raises(DefinitionError, match=match):
        Scored(score, more).run(["the", "bird"])


def test_an_llm_sorts_texts_by_the_probability_of_yes(tiny_causal_lm: Path) -> None:
    llm = HFTransformers(tiny_causal_lm, chat_prompt_template=None, device="cpu")
    prompt = "{text} {query}:"
    model = LLMReranker(BM25Retriever(TEXTS), llm, prompt=prompt, answers=("warm", "cold"))
    query = "the cat {text}"  # its braces are not a placeholder
    (found,) = model.run([query], k=5)
    expected = {}
    for position in found["indices"]:
        scores = [_logprob(tiny_causal_lm, f"{TEXTS[position]} {query}:", word) for word in (" warm", " cold")]
        expected[position] = np.exp(scores[0]) / np.exp(scores).sum()
    assert sorted(found["indices"]) == [0, 1, 2, 4]
    assert found["scores"] == pytest.approx([expected[position] for position in found["indices"]], abs=1e-4)
    assert found["scores"] == sorted(found["scores"], reverse=True)


def _logprob(folder: Path, prompt: str, answer: str) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt)["input_ids"]
    tail = tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids + tail])).logits[0].double().log_softmax(-1)
    return sum(logprobs[len(ids) - 1 + place, token].item() for place, token in enumerate(tail))


def test_a_query_whose_prompt_is_too_long_fails_alone(tiny_causal_lm: Path) -> None:
    texts = ["cat", "dog " * 200, "bird"]
    model = LLMReranker(BM25Retriever(texts), HFTransformers(tiny_causal_lm, device="cpu"))
    results = list(model.results(["cat", "dog", "bird"]))
    assert [type(result.error) for result in results] == [type(None), PromptTooLong, type(None)]
    assert results[0].value["indices"] == [0]


def test_what_is_no_reranker_is_refused(tiny_causal_lm: Path) -> None:
    retriever, llm = BM25Retriever(TEXTS), HFTransformers(tiny_causal_lm)

    class Mute(LLM):
        model_name = "mute"

    def refused(match: str, kind: type[Exception], *arguments: Any, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            LLMReranker(*arguments, **options)

    refused("takes retrievers", ArgumentTypeError, TEXTS, llm)
    refused("llm must be an LLM", ArgumentTypeError, retriever, "gpt")
    refused("gives no log-probabilities", DefinitionError, retriever, Mute())
    refused(r"must contain \{query\} and \{text\}", DefinitionError, retriever, llm, prompt="{text}?")
    refused("answers must be two texts", ArgumentTypeError, retriever, llm, answers=("yes",))
    refused("depth is 0", DefinitionError, retriever, llm, depth=0)


def test_steps_take_any_retriever_and_know_the_documents(tmp_path: Path, cross_encoder: Path) -> None:
    with DataDreamer(tmp_path / "out", verbose=False):
        corpus = DataSource("Corpus", data={"text": TEXTS})
        asked = DataSource("Asked", data={"query": ["the cat", "bird"]})
        for retriever in (
            CrossEncoderReranker(BM25Retriever(corpus.output["text"]), cross_encoder, device="cpu"),
            EmbeddingRetriever(corpus.output["text"], Lengths()),
        ):
            found = Retrieve("Found", inputs={"queries": asked.output["query"]}, args={"retriever": retriever, "k": 2})
            first = found.output["results"][0]
            assert first["texts"] == [TEXTS[index] for index in first["indices"]]
            assert "Corpus" in str(found.trace(0))
            args = {"retriever": retriever, "k": 1, "llm": Parrot()}
            answered = RAGPrompt("Answered", inputs={"prompts": asked.output["query"]}, args=args)
            assert f"Document: {first['texts'][0]}" in answered.output["prompts"][0]
