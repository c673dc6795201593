"""What `run` of models takes and gives, and the properties that scripts read of them, as DataDreamer documents."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flaky_server import FlakyServer, Reply, error
from subjects import First, Lengths, Lower, Parrot

import datadreamer_like
from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, BadRequest, ModelError, Unavailable
from datadreamer_like.models import HFTransformers, OpenAI

SAID = "Yes. 7. Response A"
SHARED: dict[str, Any] = {
    "batch_size": 1, "batch_scheduler_buffer_size": 2, "adaptive_batch_size": True, "progress_interval": None,
    "force": True, "verbose": False, "log_level": 20,
}  # fmt: skip
FOUND = {"indices": [0], "texts": ["one"], "scores": [1.0]}

# A model, the name of the number of its inputs, and the result of each input.
MODELS: dict[str, tuple[Callable[[], Any], str, Any]] = {
    "llm": (Parrot, "total_num_prompts", SAID),
    "embedder": (Lengths, "total_num_texts", np.array([3.0, 1.0], dtype=np.float32)),
    "retriever": (lambda: First(["one"]), "total_num_queries", FOUND),
    "task model": (Lower, "total_num_texts", "one"),
}


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return type(found) is np.ndarray and found.dtype == expected.dtype and bool((found == expected).all())
    return bool(type(found) is type(expected) and found == expected)


@pytest.mark.parametrize("what", MODELS)
def test_run_gives_a_list_or_a_generator_of_one_result_per_input(what: str) -> None:
    make, total, expected = MODELS[what]
    made = make().run(["one", "one"])
    assert isinstance(made, list)
    assert all(same(each, expected) for each in made)
    lazily = make().run(iter(["one", "one"]), **SHARED, **{total: 2}, return_generator=True)
    assert isinstance(lazily, types.GeneratorType)
    assert [same(each, expected) for each in lazily] == [True, True]


@pytest.mark.parametrize("what", ["llm", "embedder", "task model"])
def test_cache_only_raises_for_what_is_not_cached(what: str) -> None:
    with DataDreamer(":memory:"), pytest.raises(ModelError):
        MODELS[what][0]().run(["one"], cache_only=True)


@pytest.mark.parametrize("what", ["model_card", "license", "citation"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_a_model_does_not_state_is_none(kind: str, what: str) -> None:
    assert getattr(MODELS[kind][0](), what) is None


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_has_a_version_a_name_and_an_icon_and_unloads(kind: str) -> None:
    model = MODELS[kind][0]()
    assert isinstance(model.version, float)
    assert isinstance(model.display_name, str)
    assert isinstance(model.display_icon, str)
    assert model.unload_model() is None


def test_an_llm_takes_its_options_by_position() -> None:
    asked: list[Any] = []

    class Listens(Parrot):
        def answer_batch(self, requests: Any) -> Any:
            asked.extend(request.sampling for request in requests)
            return super().answer_batch(requests)

    assert Listens().run(["one"], 5, 0.5, 0.9, 2, ["."], None, {1: -1.0}) == [[SAID, SAID]]
    (sampling,) = asked
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.n) == (5, 0.5, 0.9, 2)
    assert (sampling.stop, sampling.logit_bias) == ((".",), {1: -1.0})
    with pytest.raises(ArgumentTypeError, match="max_new_tokens twice"):
        Parrot().run(["one"], 5, max_new_tokens=5)


def test_embedders_and_retrievers_take_theirs_by_position() -> None:
    assert len(Lengths().run(["one"], True, "Say: ", 1)) == 1
    assert First(["one", "two"]).run(["q"], 2, 1)[0]["texts"] == ["one", "two"]


def test_transformers_models_halve_their_batches_unless_they_are_asked_not_to() -> None:
    assert HFTransformers.default_adaptive_batch_size
    assert not OpenAI.default_adaptive_batch_size


def test_a_call_of_the_client_is_sent_again_after_a_temporary_failure() -> None:
    with FlakyServer(lambda body, before: error(503, "busy", headers={"retry-after": "0"})) as server:
        llm = OpenAI("m", base_url=server.url, api_key="key")
        messages: Any = [{"role": "user", "content": "Hi"}]
        llm.max_tries = 3
        with pytest.raises(Unavailable):
            llm.retry_wrapper(func=llm.client.chat.completions.create, model="m", messages=messages)
        assert len(server.requests) == 3
        llm.retry_on_fail = False
        with pytest.raises(Unavailable):
            llm.retry_wrapper(llm.client.chat.completions.create, model="m", messages=messages)
        assert len(server.requests) == 4
        llm.unload_model()


def test_a_call_of_the_client_gives_what_it_gives_and_is_not_repeated_for_a_lasting_failure() -> None:
    def answer(body: dict[str, Any], before: int) -> Any:
        if before == 0:
            return error(503, "busy", headers={"retry-after": "0"})
        return Reply("fine") if before == 1 else error(400, "no")

    with FlakyServer(answer) as server:
        llm = OpenAI("m", base_url=server.url, api_key="key")
        call: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
        assert llm.retry_wrapper(llm.client.chat.completions.create, **call).choices[0].message.content == "fine"
        with pytest.raises(BadRequest):
            llm.retry_wrapper(llm.client.chat.completions.create, **call)
        assert len(server.requests) == 3
        llm.unload_model()


def test_the_package_states_its_version() -> None:
    assert datadreamer_like.__version__.count(".") == 2
