"""LLMs run in this process by vLLM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import DefinitionError, Unavailable, require_extra

from ..known_options import refuse_unknown
from ..model import free_memory
from .answer_text import AnswerText, answer_of
from .chat_template import AUTO, Auto
from .generation import Answer, Request, Sampling, TokenLogprob
from .hf_calls import CallReader, check_parses_calls
from .hf_transformers import OTHER_NAMES, HFTransformers

if TYPE_CHECKING:
    import torch

# Arguments of vllm.LLM that scripts give most, so that vllm need not be imported to know them.
_ENGINE_OPTIONS = frozenset({
    "dtype", "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "kv_cache_dtype", "load_format",
    "max_model_len", "max_num_batched_tokens", "max_num_seqs", "seed", "tensor_parallel_size", "tokenizer",
})  # fmt: skip


class VLLM(HFTransformers):
    """A causal language model run by vLLM in this process, with continuous batching and paged attention.

    Answers can be constrained to a JSON schema. Give `batch_size` some hundreds: vLLM schedules the requests of a batch
    itself.

    Args:
        model_name, chat_prompt_template, system_prompt, revision, trust_remote_code, dtype: See `HFTransformers`.
        device: A list of as many GPUs as the model is split over (`tensor_parallel_size`); None is one. vLLM takes the
            first ones that `CUDA_VISIBLE_DEVICES` lists.
        quantization: vLLM's name of a quantization method, such as "awq" or "bitsandbytes".
        swap_space: Ignored: vLLM no longer swaps to the CPU's memory.
        adapter_name: LoRA adapter for the model: a folder, or a trainer with a `peft_config`.
        cache_folder_path: Folder for cached answers, instead of the session's.
        **kwargs: Further arguments of `vllm.LLM`, such as `max_model_len` or `gpu_memory_utilization`.

    Raises:
        MissingExtra: vllm is not installed.
        DefinitionError: `device` names a single GPU other than the first.

    Example:
        >>> llm = VLLM("Qwen/Qwen3-8B", max_model_len=8192)  # doctest: +SKIP
        >>> llm.run(["Name three colours."], max_new_tokens=20, batch_size=500)  # doctest: +SKIP
        ['Red, blue and green.']
    """

    enforces_schemas = True
    extra_options = frozenset({"top_k", "min_p", "presence_penalty", "frequency_penalty"})

    def __init__(
        self,
        model_name: Any,
        chat_prompt_template: str | Auto | None = AUTO,
        system_prompt: str | Auto | None = AUTO,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: int | str | torch.device | list[int | str | torch.device] | None = None,
        dtype: str | torch.dtype | None = None,
        quantization: str | None = None,
        swap_space: int = 1,
        cache_folder_path: str | Path | None = None,
        *,
        adapter_name: Any = None,
        **kwargs: Any,
    ) -> None:
        require_extra("vllm", "vllm", what="VLLM")
        if not isinstance(device, list) and str(device).removeprefix("cuda:") not in ("None", "0", "cuda", "cpu"):
            raise DefinitionError(
                f"device={device!r}: vLLM takes the first GPUs that CUDA_VISIBLE_DEVICES lists. Set that variable, and "
                "leave device out."
            )
        super().__init__(
            model_name,
            chat_prompt_template,
            system_prompt,
            revision,
            trust_remote_code,
            dtype=dtype,
            adapter_name=adapter_name,
            cache_folder_path=cache_folder_path,
            **kwargs,
        )
        self.tensor_parallel_size = len(device) if isinstance(device, list) else 1
        self.quantization = quantization

    def check_kwargs(self) -> None:
        """Refuses `kwargs` that `vllm.LLM` does not take.

        Raises:
            DefinitionError: A name is unknown.
        """
        if unusual := self.kwargs.keys() - _ENGINE_OPTIONS:  # only then is vllm imported here
            import vllm

            known = {*signature(vllm.LLM).parameters, *signature(vllm.EngineArgs).parameters} - {"model", "kwargs"}
            refuse_unknown(type(self), unusual, known, "vllm.LLM", OTHER_NAMES)

    @cached_property
    def model(self) -> Any:
        """The engine, a `vllm.LLM`."""
        import vllm

        options = {
            "revision": self._source.revision,
            "trust_remote_code": self.trust_remote_code,
            "dtype": "auto" if self.dtype is None else str(self.dtype).removeprefix("torch."),
            "quantization": self.quantization,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enable_lora": self._adapter is not None,
        }
        return vllm.LLM(model=self._source.name, **{**options, **self.kwargs})

    def identity(self) -> dict[str, Any]:
        """Returns what `HFTransformers` does, and the quantization."""
        return {**super().identity(), "quantization": self.quantization}

    def check(self, sampling: Sampling) -> None:
        """Refuses tokens that the model does not have, and more new tokens than the context has room for."""
        self.check_logit_bias(sampling)
        if sampling.tools:
            check_parses_calls(self)
        self.check_room(sampling, self._context_length)

    def answer_ids(self, requests: Sequence[Request], ids: list[list[int]]) -> Sequence[Answer]:
        """Answers requests with the same sampling options, whose prompts' token ids all fit the context."""
        sampling = requests[0].sampling
        options = [
            self._sampling_params(sampling, request.seed, self._context_length - len(own))
            for request, own in zip(requests, ids, strict=True)
        ]
        outputs, readers = self._generate(ids, options), self.call_readers(requests)
        return [_answer(output, sampling, reader) for output, reader in zip(outputs, readers, strict=True)]

    def score_ids(self, prompts: list[list[int]], continuations: list[list[list[int]]]) -> list[list[float]]:
        """Returns the log-probability of each continuation of each prompt, all as token ids that fit the context."""
        import vllm

        pairs = [(ids, own) for ids, texts in zip(prompts, continuations, strict=True) for own in texts]
        options = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._generate([ids + own for ids, own in pairs], [options] * len(pairs))
        scores = iter(
            sum(place[token].logprob for place, token in zip(output.prompt_logprobs[len(ids) :], own, strict=True))
            for output, (ids, own) in zip(outputs, pairs, strict=True)
        )
        return [[next(scores) for _ in texts] for texts in continuations]

    def _generate(self, prompts: list[list[int]], options: list[Any]) -> list[Any]:
        adapter = None
        if self._adapter is not None:
            from vllm.lora.request import LoRARequest

            adapter = LoRARequest("adapter", 1, self._adapter.name)
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        try:
            return list(self.model.generate(inputs, options, use_tqdm=False, lora_request=adapter))
        except Exception as error:
            if type(error).__name__ != "EngineDeadError":
                raise
            self.unload_model()
            raise Unavailable(
                f"vLLM's engine of {self.display_name} has died: {error} Its log has the reason, often that memory ran "
                "out. All answers before are kept: lower gpu_memory_utilization or max_model_len, and run again."
            ) from error

    def _sampling_params(self, sampling: Sampling, seed: int | None, room: int) -> Any:
        import vllm

        schema = {}
        if sampling.schema is not None:
            from vllm.sampling_params import StructuredOutputsParams

            schema = {"structured_outputs": StructuredOutputsParams(json=json.dumps(sampling.schema))}
        return vllm.SamplingParams(
            # vLLM refuses several greedy answers, which are the same.
            n=1 if sampling.deterministic else sampling.n,
            max_tokens=sampling.max_new_tokens or room,
            temperature=0.0 if sampling.deterministic else sampling.temperature,
            top_p=1.0 if sampling.deterministic else sampling.top_p,
            seed=seed,
            stop=list(sampling.stop),
            repetition_penalty=sampling.repetition_penalty or 1.0,
            logit_bias=dict(sampling.logit_bias) if sampling.logit_bias else None,
            logprobs=sampling.top_logprobs,
            **{name: value for name, value in sampling.extra.items() if value is not None},
            **schema,
        )

    def unload_model(self) -> None:
        """Frees the model's memory; it is loaded again when it is needed."""
        super().unload_model()
        free_memory()


def _answer(output: Any, sampling: Sampling, reader: CallReader | None) -> Answer:
    written = list(output.outputs) * (sampling.n if sampling.deterministic else 1)
    logprobs = None
    if sampling.top_logprobs is not None:
        logprobs = [_logprobs(each.token_ids, each.logprobs or (), sampling.top_logprobs) for each in written]
    found = [
        AnswerText(each.text) if reader is None else reader.read(each.token_ids, each.text, each.finish_reason)
        for each in written
    ]
    return answer_of(
        found,
        prompt_tokens=len(output.prompt_token_ids),
        completion_tokens=sum(len(each.token_ids) for each in output.outputs),
        finish_reasons=[each.finish_reason for each in written],
        logprobs=logprobs,
        cost=0.0,
    )


def _logprobs(tokens: Sequence[int], places: Sequence[Any], most: int) -> list[TokenLogprob]:
    found = []
    for token, place in zip(tokens, places, strict=True):
        best = sorted(place.values(), key=lambda each: each.rank)[:most]
        chosen = place[token]
        likeliest = tuple((each.decoded_token, each.logprob) for each in best)
        found.append(TokenLogprob(chosen.decoded_token, chosen.logprob, likeliest))
    return found
