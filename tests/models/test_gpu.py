"""Language models and embedders on a GPU: answers as on a CPU, and batches that are halved when its memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from datadreamer_like.llms import HFTransformers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPTS = ["the cat sat on", "a", "the dog and the mat", "on the mat the cat"]
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0, "seed": 0}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Lets this process have 64 MiB of the device's memory."""
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + (64 << 20)) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("model", ["tiny_causal_lm", "tiny_seq2seq"])
def test_greedy_answers_are_those_of_the_cpu(model: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(model))
    llm = HFTransformers(folder)
    assert llm.model.device.type == "cuda"
    assert llm.run(PROMPTS, **OPTIONS) == HFTransformers(folder, device="cpu").run(PROMPTS, **OPTIONS)
    half = HFTransformers(folder, dtype=torch.bfloat16)
    assert None not in half.run(PROMPTS, **OPTIONS)


@pytest.mark.usefixtures("little_memory")
def test_a_batch_that_does_not_fit_in_memory_is_halved(tiny_causal_lm: Path) -> None:
    llm = HFTransformers(str(tiny_causal_lm), chat_prompt_template=None)
    prompts = [f"the cat sat on the mat {' and the dog' * 20} {row}" for row in range(2048)]
    found = llm.run(prompts, **OPTIONS | {"max_new_tokens": 2}, batch_size=2048)
    assert len(found) == 2048
    assert None not in found
    with pytest.raises(torch.OutOfMemoryError):
        llm.run(prompts, **OPTIONS | {"max_new_tokens": 2}, batch_size=2048, adaptive_batch_size=False, force=True)
