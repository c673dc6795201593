from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
from stand_ins import stand_in

from datadreamer_like.errors import MissingExtra
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import HFTransformers, Petals


def test_it_has_datadreamers_arguments() -> None:
    assert list(inspect.signature(Petals.__init__).parameters)[1:10] == [
        "model_name", "chat_prompt_template", "system_prompt", "revision", "trust_remote_code", "device", "dtype",
        "adapter_name", "cache_folder_path",
    ]  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("petals") is not None, reason="petals is installed")
def test_it_says_that_petals_cannot_be_installed_and_what_to_use() -> None:
    with pytest.raises(MissingExtra, match=r"cannot be installed any more.*Use HFTransformers .*VLLM or HFAPIEndpoint"):
        Petals("bigscience/bloom")


def test_where_petals_is_installed_its_model_answers(tiny_causal_lm: Path, tmp_path: Path) -> None:
    with stand_in("petals") as given:
        llm = Petals(
            str(tiny_causal_lm), adapter_name="me/tuned", initial_peers=["/ip4/10.0.0.1"], cache_folder_path=tmp_path
        )
        plain = Petals(str(tiny_causal_lm))
        prompts = ["The cat sat on", "A dog"]
        peer = HFTransformers(str(tiny_causal_lm), cache_folder_path=tmp_path)
        assert llm.run(prompts, max_new_tokens=6) == peer.run(prompts, max_new_tokens=6)
    assert given[0]["name"] == str(tiny_causal_lm)
    assert (given[0]["active_adapter"], given[0]["initial_peers"]) == ("me/tuned", ["/ip4/10.0.0.1"])
    assert len({fingerprint(llm), fingerprint(plain), fingerprint(peer)}) == 3
