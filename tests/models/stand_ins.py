"""Small modules in place of petals and vllm, where these are not installed, with the part of their API that is used.

They run a real model by transformers, so that what is tested here is the boundary: what they are given, and how their
results are read.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any


@contextmanager
def stand_in(name: str) -> Iterator[list[Any]]:
    """Makes `import petals` or `import vllm` find a stand-in, unless the package is there; yields what it is given."""
    given: list[Any] = []
    if name not in MAKE or importlib.util.find_spec(name) is not None:
        yield given
        return
    modules = MAKE[name](given)
    try:
        for module in modules:
            module.__spec__ = ModuleSpec(module.__name__, None, is_package=True)
            sys.modules[module.__name__] = module
        yield given
    finally:
        for module in modules:
            sys.modules.pop(module.__name__, None)


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


# petals 2.2: https://github.com/bigscience-workshop/petals


def make_petals(given: list[Any]) -> list[ModuleType]:
    class AutoDistributedModelForCausalLM:
        @classmethod
        def from_pretrained(cls, name: str, *, active_adapter: str | None = None, **options: Any) -> Any:
            from transformers import AutoModelForCausalLM

            given.append({"name": name, "active_adapter": active_adapter, **options})
            options.pop("initial_peers", None)
            return AutoModelForCausalLM.from_pretrained(name, **options)

    return [module("petals", AutoDistributedModelForCausalLM=AutoDistributedModelForCausalLM)]


# vLLM: https://docs.vllm.ai/en/stable/api/vllm/


@dataclass
class SamplingParams:
    n: int = 1
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: Any = None
    detokenize: bool = True
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.n > 1:
            raise ValueError("n must be 1 when using greedy sampling")


@dataclass
class EngineArgs:
    model: str = ""
    dtype: str = "auto"
    max_model_len: int | None = None
    swap_space: float = 4
    rope_scaling: Any = None


def make_vllm(given: list[Any]) -> list[ModuleType]:
    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            given.append({"model": model, **options})
            self.model = AutoModelForCausalLM.from_pretrained(model).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(model)

        def generate(self, inputs: Any, options: Any, *, use_tqdm: bool, lora_request: Any) -> list[Any]:
            assert not use_tqdm
            given.extend(options)
            given.append(lora_request)
            return [self.one(each["prompt_token_ids"], option) for each, option in zip(inputs, options, strict=True)]

        def one(self, ids: list[int], options: SamplingParams) -> Any:
            import torch

            with torch.no_grad():
                written = self.model.generate(torch.tensor([ids]), max_new_tokens=options.max_tokens, do_sample=False)[
                    0
                ][len(ids) :].tolist()
                logprobs = self.model(torch.tensor([ids + written])).logits[0].log_softmax(-1)
            places = [self.place(row, token) for row, token in zip(logprobs, [*ids, *written][1:], strict=False)]
            text = self.tokenizer.decode(written, skip_special_tokens=True)
            reason = "length" if len(written) == options.max_tokens else "stop"
            found = places[len(ids) - 1 :] if options.logprobs is not None else None
            each = SimpleNamespace(text=text, token_ids=written, logprobs=found, finish_reason=reason)
            before = None if options.prompt_logprobs is None else [None, *places[: len(ids) - 1]]
            return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=before, outputs=[each] * options.n)

        def place(self, row: Any, token: int) -> dict[int, Any]:
            best = int(row.argmax())
            rank = int((row > row[token]).sum()) + 1
            return {
                each: SimpleNamespace(
                    logprob=float(row[each]),
                    rank=1 if each == best else rank,
                    decoded_token=self.tokenizer.decode([each]),
                )
                for each in dict.fromkeys((token, best))
            }

    parameters = module("vllm.sampling_params", StructuredOutputsParams=lambda json: {"json": json})
    request = module("vllm.lora.request", LoRARequest=lambda name, number, path: (name, number, path))
    return [
        module("vllm", LLM=LLM, EngineArgs=EngineArgs, SamplingParams=SamplingParams),
        parameters,
        module("vllm.lora", request=request),
        request,
    ]


MAKE = {"petals": make_petals, "vllm": make_vllm}
