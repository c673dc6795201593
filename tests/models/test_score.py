"""Scores of given texts: the sums of log-softmax that plain transformers give, from every engine."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flaky_server import FlakyServer, Reply

from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError, MalformedAnswer
from datadreamer_like.models import LLM, Answer, LlamaCPP, OpenAI, Scored
from datadreamer_like.models.llms.hf_transformers import HFTransformers
from datadreamer_like.models.llms.scoring import score_tree

PROMPTS = ["The cat sat", "A dog ran after the red", "Rain", "We drank hot tea in the garden. The"]
# Of different lengths, one the start of another, one of bytes within a character, and many for several batches.
TEXTS = [" on the warm mat.", " on the", " ball", " 😀", "?", *(f" {a} {b}" for a in "abcdefghi" for b in "jklmnop")]


def plainly(llm: HFTransformers, text: str, continuation: str) -> float:
    """One forward pass over the whole text, in float64."""
    ids = llm.tokenizer(text, add_special_tokens=False)["input_ids"]
    more = llm.tokenizer(continuation, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = llm.model(torch.tensor([ids + more])).logits[0].double()
    steps = logits.log_softmax(-1)[len(ids) - 1 : -1]
    return float(steps[torch.arange(len(more)), torch.tensor(more)].sum())


@pytest.fixture(scope="module")
def plain(tiny_causal_lm):
    return HFTransformers(tiny_causal_lm, chat_prompt_template="<bos>{{prompt}}", device="cpu")


def test_a_score_is_the_sum_of_log_probabilities_of_the_texts_tokens(plain):
    found = plain.score(PROMPTS, TEXTS, batch_size=3)
    assert found.shape == (len(PROMPTS), len(TEXTS))
    expected = [[plainly(plain, f"<bos>{prompt}", text) for text in TEXTS] for prompt in PROMPTS]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found[0].argmax() in (0, 1)  # what the model was trained to write


def test_texts_are_scored_after_the_chat_template(tiny_causal_lm):
    llm = HFTransformers(tiny_causal_lm, device="cpu")
    chat = [{"role": "user", "content": "Rain fell on the quiet town."}]
    texts = ["Rain fell", "A dog"]
    found = llm.score(["Rain fell on the quiet town.", chat], texts)
    expected = [plainly(llm, "<|user|>Rain fell on the quiet town.<eos><|assistant|>", text) for text in texts]
    np.testing.assert_allclose(found, [expected, expected], atol=1e-4)
    counts = next(llm.scores([chat], texts)).tokens
    assert counts == tuple(llm.count_tokens(text) for text in texts)


def test_a_sequence_to_sequence_model_scores_what_its_decoder_would_write(tiny_seq2seq):
    llm = HFTransformers(str(tiny_seq2seq), device="cpu")
    prompts, texts = ["Rain fell on the quiet town.<eos>", "A dog<eos>"], ["Rain fell on", "A dog ran after", "She"]

    def expected(prompt: str, text: str) -> float:
        labels = llm.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        inputs = llm.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():  # transformers' own loss: the mean negative log-likelihood of the labels
            return -float(llm.model(**inputs, labels=labels).loss) * labels.shape[1]

    np.testing.assert_allclose(
        llm.score(prompts, texts), [[expected(prompt, text) for text in texts] for prompt in prompts], atol=1e-4
    )


def float_gguf(folder: Path, to: Path) -> Path:
    """Writes a Llama and its byte-level BPE tokenizer as a GGUF file in float32."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, rules = model.config, json.loads(tokenizer.backend_tokenizer.to_str())
    writer = gguf.GGUFWriter(to, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = [tokenizer.convert_ids_to_tokens(token) for token in range(len(tokenizer))]
    special = set(tokenizer.all_special_tokens) | {token for token in tokens if token.startswith("<|")}
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in rules["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        values = tensor.float().numpy()
        for part, count in heads.items():  # llama.cpp rotates neighbours, transformers halves
            if part in name:
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def test_llamacpp_gives_the_scores_of_transformers(plain, tiny_causal_lm, tmp_path):
    pytest.importorskip("gguf")
    file = float_gguf(tiny_causal_lm, tmp_path / "tiny.gguf")
    llm = LlamaCPP(str(file), chat_prompt_template="<bos>{{prompt}}", context_length=64, slots=2, threads=1)
    texts = TEXTS[:12]
    try:
        found = llm.score(PROMPTS, texts)
        np.testing.assert_allclose(found, plain.score(PROMPTS, texts), atol=5e-3)
        # The rows that follow each other in a slot do not change each other.
        np.testing.assert_allclose(llm.score(PROMPTS[::-1], texts, force=True, concurrency=1), found[::-1], atol=5e-3)
        assert next(llm.scores(PROMPTS, texts)).tokens == tuple(plain.count_tokens(text) for text in texts)
        [lost] = llm.scores(["The cat " * 60], texts)
        assert "does not fit the context of 64" in str(lost.error)
    finally:
        llm.unload_model()


def test_llamacpp_scores_a_real_model_after_its_chat_template(smollm_gguf):
    llm = LlamaCPP(str(smollm_gguf), context_length=256, slots=2)
    prompts = ["Is the sky blue? Answer yes or no.", "Is 2 + 2 equal to 5? Answer yes or no."]
    try:
        found = llm.score(prompts, ["Yes", "No", "Banana"])
        answers = list(llm.answers(prompts, max_new_tokens=1, top_logprobs=400))
    finally:
        llm.unload_model()
    # The same engine's probabilities of the first token of an answer.
    first = [dict(answer.logprobs[0][0].top) for answer in answers]
    expected = [[tokens.get("Yes", math.nan), tokens.get("No", math.nan)] for tokens in first]
    np.testing.assert_allclose(found[:, :2], expected, atol=0.1)
    assert (found[:, 2] < found[:, :2].min(1)).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_tree_of_tokens_gives_the_sum_along_each_path(seed):
    draw = random.Random(seed)
    values: dict[tuple[int, ...], dict[int, float]] = {}

    def logprobs(path: tuple[int, ...]) -> dict[int, float]:
        return values.setdefault(path, {token: draw.uniform(-9, 0) for token in range(4)})

    asked = []

    def forced(path: tuple[int, ...], tokens: tuple[int, ...]) -> list[float]:
        asked.append(tokens)
        return [logprobs(path + tokens[:place])[token] for place, token in enumerate(tokens)]

    def relative(path: tuple[int, ...], tokens: Any) -> dict[int, float]:
        constant = draw.uniform(-5, 5)
        return {token: logprobs(path)[token] + constant for token in tokens if draw.random() < 0.8}

    sequences = [s for length in (1, 2, 3) for s in itertools.product(range(4), repeat=length) if draw.random() < 0.3]
    found = score_tree((7, 7), dict(enumerate(sequences)), forced, relative)
    for number, tokens in enumerate(sequences):
        expected = sum(logprobs((7, 7) + tokens[:place])[token] for place, token in enumerate(tokens))
        assert found[number] == pytest.approx(expected, abs=1e-9)
    assert len(asked) < sum(map(len, sequences))


class Counting(LLM):
    """Scores a text by its length, and counts what it is asked."""

    model_name = "counting"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []

    def answer_batch(self, requests: Any) -> Any:
        return [Answer(["yes"]) for _ in requests]

    def score_batch(self, requests: Any) -> Any:
        self.asked += [request.prompt for request in requests]
        return [
            Scored.failed(BadRequest("No.")) if request.prompt == "bad" else
            Scored(tuple(-float(len(text)) for text in request.continuations), (1,) * len(request.continuations))
            for request in requests
        ]  # fmt: skip


def test_scores_are_cached_with_their_texts_and_apart_from_answers(tmp_path):
    llm = Counting(tmp_path)
    assert llm.run(["a"]) == ["yes"]
    assert llm.score(["a", "b", "a"], ["x", "yy"]).tolist() == [[-1, -2]] * 3
    assert sorted(llm.asked) == ["a", "b"]
    again = Counting(tmp_path)
    assert again.score(["b", "a"], ["x", "yy"]).tolist() == [[-1, -2]] * 2
    assert again.asked == []
    again.score(["b"], ["yy", "x"])
    assert again.asked == ["b"]


def test_a_row_that_fails_is_missing_and_asked_again(tmp_path):
    llm = Counting(tmp_path)
    found = llm.score(["a", "bad"], ["x"])
    assert found[0, 0] == -1
    assert np.isnan(found[1, 0])
    with pytest.raises(BadRequest, match=r"No\."):
        llm.score(["bad"], ["x"], on_error="raise")
    assert llm.asked.count("bad") == 2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((["a"], "yes"), {}, ArgumentTypeError, "must be a list of texts"),
        ((["a"], [1]), {}, ArgumentTypeError, "must be a list of texts"),
        ((["a"], []), {}, DefinitionError, "at least one"),
        ((["a"], ["x", "x"]), {}, DefinitionError, "different texts"),
        ((["a"], ["x", ""]), {}, DefinitionError, "none of them empty"),
        (("a", ["x"]), {}, ArgumentTypeError, "one text"),
        ((["a"], ["x"]), {"temperature": 1.0}, ArgumentTypeError, 'no option "temperature" of score'),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, options, error, words):
    llm = Counting(tmp_path)
    with pytest.raises(error, match=words):
        llm.score(*arguments, **options)
    assert llm.asked == []


class Silent(LLM):
    model_name = "silent"

    def answer_batch(self, requests: Any) -> Any:
        raise AssertionError("nothing may be asked")


def test_a_model_without_log_probabilities_is_refused_before_any_request():
    with pytest.raises(DefinitionError, match=r"Silent \(silent\) gives no log-probabilities of given texts"):
        Silent().score(["a"], ["x"])
    with pytest.raises(DefinitionError, match="OpenAI's servers do not return those of a prompt"):
        OpenAI("gpt-5-mini", api_key="none").score(["a"], ["x"])


def echoes(body: dict[str, Any], logprobs: bool = True) -> Reply:
    """A server whose tokens are words with the blank before them, each of log-probability -len."""
    choices = []
    for index, text in enumerate(body["prompt"]):
        words = [("" if place == 0 else " ") + word for place, word in enumerate(f"{text} more".split(" "))]
        offsets = [sum(map(len, words[:place])) for place in range(len(words))]
        values = [None, *(-float(len(word)) for word in words[1:])]
        found = {"tokens": words, "token_logprobs": values, "text_offset": offsets, "top_logprobs": None}
        choices.append({
            "index": index, "text": "".join(words), "finish_reason": "length", "logprobs": found if logprobs else None,
        })  # fmt: skip
    usage = {"prompt_tokens": 9, "completion_tokens": len(choices), "total_tokens": 9 + len(choices)}
    reply = {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": choices[::-1]}
    return Reply(body=json.dumps({**reply, "usage": usage}).encode())


def test_a_server_that_echoes_log_probabilities_scores_all_texts_in_one_request(tmp_path):
    with FlakyServer(lambda body, before: echoes(body)) as server:
        llm = OpenAI("m", base_url=server.url, system_prompt="Be brief.", cache_folder_path=tmp_path)
        found = llm.score(["Is it good?", "Is it bad?"], [" yes", " not at all"])
        assert found.tolist() == [[-4.0, -4.0 - 3.0 - 4.0]] * 2
        assert len(server.requests) == 2
        assert sorted(request["prompt"][1] for request in server.requests) == [
            "Be brief.\n\nIs it bad? not at all",
            "Be brief.\n\nIs it good? not at all",
        ]
        assert server.requests[0]["echo"] is True
        assert next(llm.scores(["Is it good?"], [" yes", " not at all"])).tokens == (1, 3)
        assert len(server.requests) == 2
        with pytest.raises(BadRequest, match="one token of the server"):
            llm.score(["Is it good"], ["ness yes"], on_error="raise")
        [chat] = llm.scores([[{"role": "user", "content": "Hi"}]], [" yes"])
        assert "A chat cannot be scored" in str(chat.error)


def test_a_server_without_log_probabilities_of_a_prompt_is_refused_at_its_first_answer(tmp_path):
    with FlakyServer(lambda body, before: echoes(body, logprobs=False)) as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path)
        with pytest.raises(DefinitionError, match="returns no log-probabilities of a prompt's tokens"):
            llm.score(["a", "b", "c"], [" yes"], concurrency=1)
        assert len(server.requests) == 1


WITHOUT_MEANING = {
    "no index": lambda choice: choice.pop("index"),
    "a text": lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(-2, "-1"),
    "not a number": lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(-2, math.nan),
    "too few": lambda choice: choice["logprobs"].update(token_logprobs=[None]),
    "too few choices": lambda choice: None,
}


@pytest.mark.parametrize("name", WITHOUT_MEANING)
def test_log_probabilities_that_cannot_be_read_fail_their_row_alone(tmp_path: Path, name: str) -> None:
    def reply(body: dict[str, Any], before: int) -> Reply:
        answer = json.loads(echoes(body).body or b"")
        if "broken" in body["prompt"][0]:
            WITHOUT_MEANING[name](answer["choices"][-1])
            del answer["choices"][: name == "too few choices"]
        return Reply(body=json.dumps(answer).encode())

    with FlakyServer(reply) as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path)
        llm.max_tries = 1
        good, broken = llm.scores(["whole", "broken"], [" yes", " not at all"], concurrency=1)
        assert (good.logprobs, good.error) == ((-4.0, -11.0), None)
        assert isinstance(broken.error, MalformedAnswer)
        assert "cannot be read" in str(broken.error)
