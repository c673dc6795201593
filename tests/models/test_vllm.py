"""`VLLM` with vLLM itself where it is installed (`CONTEXT` suits its CPU build), else with a stand-in for its API."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import stand_in

from datadreamer_like.errors import DefinitionError, MissingExtra, PromptTooLong, Unavailable
from datadreamer_like.models import VLLM, HFTransformers

IS_REAL = importlib.util.find_spec("vllm") is not None
CONTEXT: dict[str, Any] = {"dtype": "float32"} | ({"enforce_eager": True, "max_model_len": 128} if IS_REAL else {})
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
def given() -> Iterator[list[Any]]:
    """What vLLM was given; empty with vLLM itself."""
    with stand_in("vllm") as found:
        yield found


@pytest.fixture
def llm(given: list[Any], tiny_for_vllm: Path, tmp_path: Path) -> Iterator[VLLM]:
    """A model whose engine, a process of its own, ends with the test."""
    llm = VLLM(str(tiny_for_vllm), cache_folder_path=tmp_path, **CONTEXT)
    yield llm
    llm.unload_model()


def test_it_has_datadreamers_arguments() -> None:
    assert list(inspect.signature(VLLM.__init__).parameters)[1:11] == [
        "model_name", "chat_prompt_template", "system_prompt", "revision", "trust_remote_code", "device", "dtype",
        "quantization", "swap_space", "cache_folder_path",
    ]  # fmt: skip


@pytest.mark.skipif(IS_REAL, reason="vllm is installed")
def test_without_vllm_the_command_that_installs_it_is_named() -> None:
    with pytest.raises(MissingExtra, match=r'VLLM needs vllm.*pip install "datadreamer-like\[vllm\]"'):
        VLLM("m")


def test_it_writes_and_scores_what_transformers_does(llm: VLLM, tiny_for_vllm: Path, tmp_path: Path) -> None:
    peer = HFTransformers(str(tiny_for_vllm), cache_folder_path=tmp_path)
    prompts = ["The cat sat on", "A dog"]
    assert llm.run(prompts, max_new_tokens=6) == peer.run(prompts, max_new_tokens=6)
    assert llm.run(["A dog"], max_new_tokens=6, n=2) == [llm.run(["A dog"], max_new_tokens=6) * 2]
    ours, theirs = (list(each.answers(prompts, max_new_tokens=6, top_logprobs=1)) for each in (llm, peer))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.prompt_tokens, one.completion_tokens) == (other.prompt_tokens, other.completion_tokens)
        mine, its = ([each.logprob for each in answer.logprobs[0]] for answer in (one, other))  # type: ignore[index]
        np.testing.assert_allclose(mine, its, atol=1e-4)
        assert one.cost == 0.0
    np.testing.assert_allclose(
        llm.score(prompts, ["mat", "red sun"]), peer.score(prompts, ["mat", "red sun"]), atol=1e-4
    )


def test_a_prompt_that_is_too_long_fails_alone(llm: VLLM) -> None:
    long, fine = llm.answers(["the cat " * 200, "A dog"], max_new_tokens=4)
    assert isinstance(long.error, PromptTooLong)
    assert fine.text is not None
    with pytest.raises(DefinitionError, match="leaves no room"):
        llm.run(["a"], max_new_tokens=100_000)


@pytest.mark.skipif(IS_REAL, reason="shows what the stand-in was given")
def test_the_engine_gets_the_options_in_its_own_names(given: list[Any], tiny_for_vllm: Path, tmp_path: Path) -> None:
    llm = VLLM(str(tiny_for_vllm), device=[0, 1], quantization="awq", max_model_len=64, cache_folder_path=tmp_path)
    options: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["."], "repetition_penalty": 1.1}
    list(llm.answers(["A dog"], max_new_tokens=4, seed=3, logit_bias={1: 2.0}, top_k=5, schema=SCHEMA, **options))
    engine, sampling, adapter = given[:3]
    assert engine == {
        "model": str(tiny_for_vllm), "revision": None, "trust_remote_code": False, "dtype": "auto",
        "quantization": "awq", "tensor_parallel_size": 2, "enable_lora": False, "max_model_len": 64,
    }  # fmt: skip
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.stop) == (0.5, 0.9, 2, ["."])
    assert (sampling.max_tokens, sampling.seed, sampling.logit_bias, sampling.top_k) == (4, 3, {1: 2.0}, 5)
    assert sampling.repetition_penalty == 1.1
    assert json.loads(sampling.structured_outputs["json"]) == SCHEMA
    assert adapter is None


def test_one_gpu_is_chosen_by_cudas_own_variable(given: list[Any]) -> None:
    with pytest.raises(DefinitionError, match="CUDA_VISIBLE_DEVICES"):
        VLLM("m", device="cuda:1")


@pytest.mark.skipif(IS_REAL, reason="kills no engine")
def test_an_engine_that_died_ends_the_run_and_keeps_the_answers_before(
    given: list[Any], tiny_for_vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm

    class EngineDeadError(Exception):  # vllm.v1.engine.exceptions
        pass

    generate, calls = vllm.LLM.generate, 0

    def dying(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise EngineDeadError("EngineCore encountered an issue.")
        return generate(self, *args, **options)

    monkeypatch.setattr(vllm.LLM, "generate", dying)
    llm = VLLM(str(tiny_for_vllm), cache_folder_path=tmp_path, **CONTEXT)
    prompts = ["A dog", "The cat", "Rain fell"]
    with pytest.raises(Unavailable, match=r"has died: EngineCore .* run again"):
        llm.run(prompts, max_new_tokens=4, batch_size=1)
    monkeypatch.setattr(vllm.LLM, "generate", generate)
    stored = len(given)
    assert None not in llm.run(prompts, max_new_tokens=4, batch_size=1)
    assert sum(isinstance(each, type(given[1])) for each in given[stored:]) == 2
