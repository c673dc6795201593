"""An option that neither a class nor the library behind it has is refused where the object is made."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import stand_in

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph import DataDreamer
from datadreamer_like.models import (
    VLLM,
    BM25Retriever,
    CrossEncoderReranker,
    HFClassificationTaskModel,
    HFTransformers,
    LlamaCPP,
    OpenAI,
    OpenAIEmbedder,
    Petals,
    SentenceTransformersEmbedder,
    TogetherEmbedder,
    TrainedModel,
)
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainEmbeddingClassifier, TrainHFFineTune


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that opens a connection."""

    def refuse(*given: Any, **options: Any) -> Any:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("devise", ' Did you mean "device"?'),
        ("quantisation_config", ' Did you mean "quantization_config"?'),
        ("atn_implementation", ' Did you mean "attn_implementation"?'),
        ("attention_dropuot", ' Did you mean "attention_dropout"?'),
        ("colour", ""),
        ("torch_dtype", " Give dtype instead."),
        ("chat_template", " Give chat_prompt_template instead."),
        ("max_new_tokens", " It is an option of run."),
    ],
)
def test_hftransformers_refuses_what_from_pretrained_does_not_have(
    tiny_causal_lm: Path, option: str, hint: str
) -> None:
    with pytest.raises(DefinitionError) as raised:
        HFTransformers(tiny_causal_lm, **{option: 1})
    assert f'HFTransformers has no option "{option}"' in str(raised.value)
    assert str(raised.value).endswith(hint or ".")


def test_real_options_of_from_pretrained_still_pass(tiny_causal_lm: Path) -> None:
    options = {"attn_implementation": "eager", "attention_dropout": 0.25, "low_cpu_mem_usage": True, "token": "hf_x"}
    llm = HFTransformers(tiny_causal_lm, **options)
    assert llm.model.config.attention_dropout == 0.25
    assert llm.model.config._attn_implementation == "eager"


def test_every_class_that_passes_options_on_names_the_nearest_one(
    tiny_causal_lm: Path, minilm_path: Path, smollm_gguf: Path
) -> None:
    found = BM25Retriever(["a", "b"])
    makes = [
        lambda **options: HFClassificationTaskModel(tiny_causal_lm, **options),
        lambda **options: SentenceTransformersEmbedder(minilm_path, **options),
        lambda **options: CrossEncoderReranker(found, minilm_path, **options),
        lambda **options: HFTransformers(smollm_gguf, **options),
    ]
    for make in makes:
        with pytest.raises(DefinitionError, match=r'no option "devise".*Did you mean "device"'):
            make(devise="cpu")
    for make, name, meant in (
        (OpenAI, "organisation", "organization"),
        (OpenAIEmbedder, "organisation", "organization"),
        (TogetherEmbedder, "dimension", "dimensions"),
    ):
        with pytest.raises(DefinitionError, match=f'{make.__name__} has no option "{name}".*Did you mean "{meant}"'):
            make("m", api_key="key", **{name: "3"})
    with pytest.raises(DefinitionError, match=r'LlamaCPP has no option "thread".*Did you mean "threads"'):
        LlamaCPP(smollm_gguf, thread=2)
    with pytest.raises(DefinitionError, match=r'OpenAI has no option "temperature"\. It is an option of run'):
        OpenAI("m", api_key="key", temperature=0.5)


def test_sentence_transformers_refuses_unknown_model_kwargs_and_takes_known_ones(minilm_path: Path) -> None:
    with pytest.raises(DefinitionError, match='no option "attn_implementtion".*Did you mean "attn_implementation"'):
        SentenceTransformersEmbedder(minilm_path, model_kwargs={"attn_implementtion": "eager"})
    embedder = SentenceTransformersEmbedder(
        minilm_path, device="cpu", truncate_dim=8, model_kwargs={"attn_implementation": "eager"}
    )
    assert np.asarray(embedder.compute(["a"])).shape == (1, 8)


def test_a_model_on_the_hub_is_not_asked_for_and_only_names_like_a_known_one_are_refused(no_hub: None) -> None:
    with pytest.raises(DefinitionError, match='Did you mean "device"'):
        HFTransformers("me/model", devise="cpu")
    assert HFTransformers("me/model", is_decoder=True).kwargs == {"is_decoder": True}
    assert HFTransformers("me/model", hidden_colour=1).kwargs  # may be a name of its config
    assert HFTransformers("me/model", attn_implementation="sdpa", subfolder="small").kwargs


def test_a_name_that_only_loading_can_refuse_is_a_clear_error(tiny_causal_lm: Path) -> None:
    llm = HFTransformers(tiny_causal_lm)
    llm.kwargs = {"hidden_colour": 1}  # as for a model that was fetched from the Hub meanwhile
    with pytest.raises(DefinitionError, match=r'from_pretrained has no option "hidden_colour" for'):
        _ = llm.model


def test_a_model_with_code_of_its_own_may_take_any_option(tiny_causal_lm: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_causal_lm / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "own.Own"}}))
    assert HFTransformers(tmp_path, trust_remote_code=True, colour="red").kwargs == {"colour": "red"}
    with pytest.raises(DefinitionError, match='no option "colour"'):
        HFTransformers(tmp_path, colour="red")


def test_vllm_and_petals_ask_the_library_that_takes_the_options(tiny_causal_lm: Path) -> None:
    with stand_in("vllm"):
        assert VLLM(str(tiny_causal_lm), max_model_len=64, rope_scaling=None).kwargs
        with pytest.raises(DefinitionError, match='VLLM has no option "max_modle_len".*Did you mean "max_model_len"'):
            VLLM(str(tiny_causal_lm), max_modle_len=64)
    with stand_in("petals"):
        assert Petals(str(tiny_causal_lm), initial_peers=["/ip4/127.0.0.1"]).kwargs
        with pytest.raises(DefinitionError, match='Did you mean "initial_peers"'):
            Petals(str(tiny_causal_lm), initial_peer=["/ip4/127.0.0.1"])


def test_trainers_refuse_what_from_pretrained_does_not_take(tiny_causal_lm: Path, tmp_path: Path) -> None:
    with DataDreamer(tmp_path, verbose=False):
        for option, hint in (
            ("devise", 'Did you mean "device"'),
            ("epochs", "It is an option of train"),
            ("colour", ""),
        ):
            for kind in (TrainHFFineTune, TrainEmbeddingClassifier):
                with pytest.raises(DefinitionError, match=f'{kind.__name__} has no option "{option}".*{hint}'):
                    kind("Student", model_name=tiny_causal_lm, **{option: 3})
        trainer = TrainHFFineTune("Student", tiny_causal_lm, attention_dropout=0.1, attn_implementation="eager")
        assert set(trainer.further) == {"attention_dropout", "attn_implementation"}
        later = TrainHFFineTune("Later", TrainedModel(tiny_causal_lm), colour=1)
        column = DataSource("Rows", {"a": ["The cat sat.", "A dog ran."]}).output["a"]
        with pytest.raises(DefinitionError, match='TrainHFFineTune has no option "colour"'):
            later.train(column, column, column, column)
