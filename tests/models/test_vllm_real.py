"""vLLM itself, in this process and as a server, where it is installed: `make test-vllm`."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datadreamer_like.errors import BadRequest, PromptTooLong
from datadreamer_like.models import VLLM, HFTransformers, VLLMServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm has an environment of its own"),
]

ENGINE: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 128, "max_num_seqs": 8}
# What the tiny model was trained on: it repeats a sentence of a chat, and continues a plain text.
CHATS = ["The cat sat on the warm mat.", "A dog ran after the red ball.", "Rain fell on the quiet town."]
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["yes", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(tiny_for_vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLM]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    llm = VLLM(str(tiny_for_vllm), cache_folder_path=tmp_path_factory.mktemp("vllm"), **ENGINE)
    yield llm
    llm.unload_model()
    for child in multiprocessing.active_children():
        child.join(300)
        assert not child.is_alive()


@pytest.fixture(scope="module")
def peer(tiny_for_vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> HFTransformers:
    return HFTransformers(str(tiny_for_vllm), cache_folder_path=tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="module")
def server(tiny_for_vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_for_vllm), "--port", str(port),
        "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--max-model-len", "128",
        "--max-num-seqs", "8", "--host", "127.0.0.1",
    ]  # fmt: skip
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "PYTHONPATH": ""}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(1500):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            except OSError:
                time.sleep(1)
        yield VLLMServer("tiny", base_url=f"http://127.0.0.1:{port}/v1", cache_folder_path=log.parent)
    finally:
        process.terminate()
        process.wait(300)


def test_greedy_chats_and_their_log_probabilities_are_those_of_transformers(llm: VLLM, peer: HFTransformers) -> None:
    ours, theirs = (list(each.answers(CHATS, max_new_tokens=16, top_logprobs=2)) for each in (llm, peer))
    assert [answer.text for answer in ours] == CHATS
    for one, other in zip(ours, theirs, strict=True):
        assert (one.text, one.finish_reasons) == (other.text, other.finish_reasons)
        assert (one.prompt_tokens, one.completion_tokens) == (other.prompt_tokens, other.completion_tokens)
        # vLLM reports the end token, too.
        mine, its = (answer.logprobs[0] for answer in (one, other))  # type: ignore[index]
        np.testing.assert_allclose(
            [each.logprob for each in mine[: len(its)]], [each.logprob for each in its], atol=1e-3
        )
        assert [len(each.top) for each in mine] == [2] * len(mine)
        assert all(each.top[0][1] >= each.top[1][1] for each in mine)
    np.testing.assert_allclose(llm.score(CHATS, ["The", "A"]), peer.score(CHATS, ["The", "A"]), atol=1e-3)


def test_a_seed_repeats_samples_and_n_of_them_differ(llm: VLLM) -> None:
    (first,) = llm.run(["Tell"], n=3, seed=1, **SAMPLED)
    assert llm.run(["Tell"], n=3, seed=1, force=True, **SAMPLED) == [first]
    assert len(set(first)) > 1
    assert llm.run(["Tell"], n=3, seed=100, **SAMPLED) != [first]
    assert llm.run(["Tell", "Tell"], seed=1, **SAMPLED)[0] == first[0]


def test_stop_bias_and_a_long_prompt(llm: VLLM) -> None:
    (stopped,) = llm.answers(CHATS[:1], max_new_tokens=16, stop=["warm"])
    assert stopped.text == "The cat sat on the"
    assert stopped.finish_reasons == ["stop"]
    first = llm.tokenizer("The", add_special_tokens=False)["input_ids"][0]
    (banned,) = llm.run(CHATS[:1], max_new_tokens=1, logit_bias={first: -100.0})
    assert not banned.startswith("T")
    long, fine = llm.answers(["the cat " * 200, CHATS[1]], max_new_tokens=16)
    assert isinstance(long.error, PromptTooLong)
    assert fine.text == CHATS[1]


def test_guided_decoding_keeps_to_a_schema(llm: VLLM) -> None:
    answers = list(llm.answers(["x", "y"], max_new_tokens=60, schema=SCHEMA, seed=2, temperature=1.0, top_p=1.0))
    for answer in answers:
        assert answer.error is None
        found = json.loads(answer.text or "")
        assert set(found) == {"yes", "kind"}
        assert found["kind"] in ("a", "b")
        assert isinstance(found["yes"], bool)


def test_it_loads_again_after_it_was_unloaded(llm: VLLM) -> None:
    before = llm.run(CHATS, max_new_tokens=16)
    llm.unload_model()
    assert llm.run(CHATS, max_new_tokens=16, force=True) == before


def test_a_lora_adapter_answers_as_in_transformers(tiny_for_vllm: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    targets = ["q_proj", "v_proj", "down_proj"]
    base = AutoModelForCausalLM.from_pretrained(tiny_for_vllm)
    adapted = get_peft_model(base, LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2.0)
    adapted.save_pretrained(tmp_path / "adapter")
    options: dict[str, Any] = {"adapter_name": str(tmp_path / "adapter"), "cache_folder_path": tmp_path}
    llm, peer = VLLM(str(tiny_for_vllm), **options, **ENGINE), HFTransformers(str(tiny_for_vllm), **options)
    ours = llm.run(CHATS, max_new_tokens=6)
    llm.unload_model()
    assert ours == peer.run(CHATS, max_new_tokens=6)
    assert ours != [" ".join(chat.split()[:6]) for chat in CHATS]


def test_the_server_answers_as_the_engine_in_transformers_does(server: VLLMServer, peer: HFTransformers) -> None:
    ours, theirs = (list(each.answers(CHATS, max_new_tokens=16, top_logprobs=2)) for each in (server, peer))
    assert [answer.text for answer in ours] == CHATS
    for one, other in zip(ours, theirs, strict=True):
        assert (one.prompt_tokens, one.completion_tokens) == (other.prompt_tokens, other.completion_tokens)
        assert one.finish_reasons == ["stop"]
        assert one.cost == 0.0
        mine, its = (answer.logprobs[0] for answer in (one, other))  # type: ignore[index]
        np.testing.assert_allclose(
            [each.logprob for each in mine[: len(its)]], [each.logprob for each in its], atol=1e-3
        )


def test_the_server_takes_n_seed_stop_bias_and_schema(server: VLLMServer) -> None:
    (first,) = server.run(["Tell"], n=3, seed=1, **SAMPLED)
    assert server.run(["Tell"], n=3, seed=1, force=True, **SAMPLED) == [first]
    assert len(set(first)) > 1
    assert server.run(CHATS[:1], max_new_tokens=16, stop=["warm"]) == ["The cat sat on the"]
    # Greedily the tiny model may write blanks until the end, which JSON allows.
    (answer,) = server.answers(["x"], max_new_tokens=60, schema=SCHEMA, seed=2, temperature=1.0, top_p=1.0)
    assert answer.error is None
    assert set(json.loads(answer.text or "")) == {"yes", "kind"}
    (long,) = server.answers(["the cat " * 200], max_new_tokens=16)
    assert isinstance(long.error, BadRequest)


def test_the_server_scores_as_the_model_does_without_a_chat_template(server: VLLMServer, tiny_for_vllm: Path) -> None:
    plain = HFTransformers(str(tiny_for_vllm), chat_prompt_template=None)
    found = server.score(["The cat sat on", "A dog ran"], [" the", " after"])
    np.testing.assert_allclose(found, plain.score(["The cat sat on", "A dog ran"], [" the", " after"]), atol=1e-3)
