"""A prompting step with `logprobs=k` is the teacher's only run: its log-probabilities teach a fine-tune on its rows."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import tiny_models
import torch
from flaky_server import FlakyServer, Reply, completion
from transformers import AutoModelForCausalLM, AutoTokenizer

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Sampled, SoftTargets, StoredTeacher, TopK
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.models import HFTransformers, LlamaCPP, OpenAI
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.steps import DataSource, ProcessWithPrompt, Prompt
from datadreamer_like.trainers import TrainHFFineTune

PROMPTS = ["The cat sat on the warm mat.", "A dog ran after the red ball.", "Rain fell on the quiet town."] * 2
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def student(tiny_causal_lm, tmp_path_factory):
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_causal_lm)
    model = tiny_models.llama(tokenizer, hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    return str(tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("student")))


@pytest.fixture
def step(session, tiny_causal_lm):
    llm = HFTransformers(str(tiny_causal_lm), device="cpu")
    prompts = DataSource("Prompts", data={"prompts": PROMPTS}).output["prompts"]
    return Prompt("Answers", inputs={"prompts": prompts}, args={"llm": llm, "logprobs": 8, "max_new_tokens": 30})


def columns(first: Any, second: Any = None, prompts: str = "prompts") -> dict[str, Any]:
    second = second or first
    return {
        "train_input": first.output[prompts], "train_output": first.output["generations"],
        "validation_input": second.output[prompts], "validation_output": second.output["generations"],
    }  # fmt: skip


def history(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.manifest.result["history"]]


def test_the_generation_is_the_teachers_pass(step, tiny_causal_lm, student):
    """The loss is that of the same teacher asked for the generated rows, but at the end token, which has no signals."""
    generated = SoftTargets(StoredTeacher.from_step(step), temperature=1.0, alpha=1.0)
    first = TrainHFFineTune("Generated", student).train(**columns(step), objective=generated, **OPTIONS)
    asked = SoftTargets(StoredTeacher(TrainedModel.load(tiny_causal_lm), TopK(8)), temperature=1.0, alpha=1.0)
    second = TrainHFFineTune("Asked", student).train(**columns(step), objective=asked, **OPTIONS)
    assert history(first) == pytest.approx(history(second), rel=0.05)
    assert history(first)[-1] < history(first)[0]
    assert "bytes a token" in first.card.facts["Stored Teacher"]


def test_the_column_holds_the_models_log_probabilities(step, tiny_causal_lm):
    row = step.output[0]
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_causal_lm).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_causal_lm)
    start = tokenizer(f"<|user|>{row['prompts']}<eos><|assistant|>", return_tensors="pt")["input_ids"]
    answer = tokenizer(row["generations"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.cat((start, answer), 1)).logits[0, start.shape[1] - 1 : -1]
    best = logits.log_softmax(-1).topk(8)
    assert row["logprobs"]["tokens"] == [tokenizer.decode([token]) for token in answer[0].tolist()]
    assert [len(each) for each in row["logprobs"]["top_tokens"]] == [8] * answer.shape[1]
    torch.testing.assert_close(torch.tensor(row["logprobs"]["top_logprobs"]), best.values, rtol=1e-3, atol=1e-3)


def test_rows_may_be_filtered_shuffled_and_split(step, student):
    some = step.filter(lambda row: "cat" not in row["prompts"]).shuffle(seed=1)
    objective = SoftTargets(StoredTeacher.from_step(step), temperature=1.0, alpha=1.0)
    one = TrainHFFineTune("One", student).train(**columns(some, step), objective=objective, **OPTIONS)
    kept = SoftTargets(StoredTeacher.from_step(some, k=8), temperature=1.0, alpha=1.0)
    two = TrainHFFineTune("Two", student).train(**columns(some, some), objective=kept, **OPTIONS)
    assert all(map(math.isfinite, history(one) + history(two)))
    with pytest.raises(DefinitionError, match="Pass k=16"):
        StoredTeacher.from_step(some)


def test_a_student_may_learn_without_the_instruction(session, tiny_causal_lm, student):
    inputs = DataSource("Inputs", data={"inputs": PROMPTS}).output["inputs"]
    args = {
        "llm": HFTransformers(str(tiny_causal_lm), device="cpu"), "instruction": "Say it.", "logprobs": 4,
        "max_new_tokens": 8,
    }  # fmt: skip
    step = ProcessWithPrompt("Answers", inputs={"inputs": inputs}, args=args)
    objective = SoftTargets(StoredTeacher.from_step(step, prompts="inputs"), temperature=1.0, alpha=1.0)
    trainer = TrainHFFineTune("Student", student)
    trainer.train(**columns(step, prompts="inputs"), objective=objective, **OPTIONS)
    assert history(trainer)[-1] < history(trainer)[0]


def test_rows_and_tokenizers_that_do_not_match_are_refused(step, session, student, tmp_path):
    teacher = StoredTeacher.from_step(step)
    objective = SoftTargets(teacher, temperature=1.0, alpha=1.0)
    other = DataSource("Other", data={"prompts": ["Hello."], "generations": ["A dog."]})
    with pytest.raises(MethodMisfit, match=r'1 of the 4 rows have no signals in "?\'?Answers'):
        TrainHFFineTune("Other rows", student).train(**columns(other, step), objective=objective, **OPTIONS)
    letters: Any = tiny_models.byte_pairs(["a"], 262, ["<pad>", "<bos>", "<eos>"], pad_token="<pad>", bos_token="<bos>",
                                          eos_token="<eos>", model_max_length=128)  # fmt: skip
    model = tiny_models.llama(letters, hidden_size=32, num_hidden_layers=1)
    folder = str(tiny_models.save(model, letters, tmp_path / "letters"))
    with pytest.raises(MethodMisfit, match="of the teacher's family"):
        TrainHFFineTune("Letters", folder).train(**columns(step), objective=objective, **OPTIONS)
    with pytest.raises(DefinitionError, match=r"temperature 2.*stored for 1\."):
        TrainHFFineTune("Warm", student).train(**columns(step), objective=SoftTargets(teacher), **OPTIONS)
    with pytest.raises(DefinitionError, match='"Other" has no column logprobs'):
        StoredTeacher.from_step(other)
    with pytest.raises(DefinitionError, match="likeliest tokens only"):
        StoredTeacher(teacher.teacher, Sampled(4))


def test_arguments_of_the_step_that_do_not_fit_are_refused(session, tiny_causal_lm):
    llm = HFTransformers(str(tiny_causal_lm), device="cpu")
    prompts = DataSource("Prompts", data={"prompts": PROMPTS}).output["prompts"]
    for args, message in (
        ({"logprobs": 0}, "logprobs is 0"),
        ({"logprobs": 2, "n": 2}, "n must be 1"),
        ({"logprobs": 2, "top_logprobs": 2}, "not both"),
    ):
        with pytest.raises(DefinitionError, match=message):
            Prompt("Answers", inputs={"prompts": prompts}, args={"llm": llm, **args})


def test_a_step_without_the_argument_is_what_it_was(session, tiny_causal_lm):
    llm = HFTransformers(str(tiny_causal_lm), device="cpu")
    prompts = DataSource("Prompts", data={"prompts": PROMPTS}).output["prompts"]
    plain = Prompt("Answers", inputs={"prompts": prompts}, args={"llm": llm})
    assert "argument logprobs" not in plain.fingerprint_parts()
    assert plain.output.column_names == ["prompts", "generations"]


def test_a_server_with_openais_protocol_teaches_a_student_of_its_family(session, tiny_causal_lm, student):
    tokenizer: Any = AutoTokenizer.from_pretrained(student)

    def behave(request: dict[str, Any], before: int) -> Reply:
        assert (request["logprobs"], request["top_logprobs"]) == (True, 2)
        answer = completion(Reply(text="on the warm mat."), request)
        tokens = [tokenizer.decode([token]) for token in tokenizer("on the warm mat.")["input_ids"]]
        top = [[{"token": token, "logprob": -0.1}, {"token": " tree", "logprob": -2.6}] for token in tokens]
        answer["choices"][0]["logprobs"] = {
            "content": [
                {"token": token, "logprob": -0.1, "top_logprobs": each} for token, each in zip(tokens, top, strict=True)
            ]
        }
        return Reply(body=json.dumps(answer).encode())

    with FlakyServer(behave) as server:
        llm = OpenAI("m", base_url=server.url, api_key="none")
        prompts = DataSource("Prompts", data={"prompts": PROMPTS}).output["prompts"]
        step = Prompt("Answers", inputs={"prompts": prompts}, args={"llm": llm, "logprobs": 2})
        _ = step.output
    assert step.output[0]["logprobs"]["top_logprobs"][0] == [-0.1, -2.6]
    objective = SoftTargets(StoredTeacher.from_step(step), temperature=1.0, alpha=1.0)
    trainer = TrainHFFineTune("Student", student).train(**columns(step), objective=objective, **OPTIONS)
    assert history(trainer)[-1] < history(trainer)[0]


def test_a_server_without_log_probabilities_is_no_teacher(session, student):
    with FlakyServer(lambda request, before: Reply(text="on the mat.")) as server:
        llm = OpenAI("m", base_url=server.url, api_key="none")
        prompts = DataSource("Prompts", data={"prompts": PROMPTS}).output["prompts"]
        step = Prompt("Answers", inputs={"prompts": prompts}, args={"llm": llm, "logprobs": 2})
        assert step.output[0]["logprobs"] is None
    objective = SoftTargets(StoredTeacher.from_step(step), temperature=1.0, alpha=1.0)
    with pytest.raises(MethodMisfit, match="3 of the 3 rows have no signals.*without log-probabilities"):
        TrainHFFineTune("Student", student).train(**columns(step), objective=objective, **OPTIONS)


@pytest.mark.slow
def test_llama_cpp_returns_tokens_that_match_a_student_of_its_family(smollm_gguf, tmp_path):
    with DataDreamer(tmp_path, verbose=False):
        prompts = DataSource("Prompts", data={"prompts": ["Name a colour.", "Count to three."]}).output["prompts"]
        args = {"llm": LlamaCPP(str(smollm_gguf)), "logprobs": 5, "max_new_tokens": 12}
        row = Prompt("Answers", inputs={"prompts": prompts}, args=args).output[0]
    assert "".join(row["logprobs"]["tokens"]).strip().startswith(row["generations"].strip()[:10])
    assert all(len(each) == 5 for each in row["logprobs"]["top_logprobs"])
    assert all(sum(map(math.exp, each)) <= 1.001 for each in row["logprobs"]["top_logprobs"])
