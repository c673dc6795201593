"""LLMs run in this process by Hugging Face transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datadreamer_like.errors import BadRequest, DefinitionError, MethodMisfit, PromptTooLong, require_extra

from ..known_options import options_of_run, refuse_unknown_loading
from ..model import check_spelling, checked_device, free_memory, placed
from ..trained.hf_source import HOW_FETCHED, adapter_source, hf_source, loading, with_adapter
from ..trained.model_facts import is_bidirectional, model_max_length
from .chat_template import AUTO, Auto, checked, given_text, is_text_template, plain_prompt
from .generation import Answer, GenerationOptions, Request, Sampling
from .hf_calls import CallReader, check_parses_calls, checked_response_template
from .image_parts import with_texts_only
from .llm import LLM
from .scoring import Scored, ScoreRequest
from .tool_messages import openai_messages, openai_tools

if TYPE_CHECKING:
    import torch

OTHER_NAMES = {
    "chat_template": "Give chat_prompt_template instead.",
    **options_of_run(GenerationOptions),
}


class HFTransformers(LLM):
    """A causal or sequence-to-sequence language model, run by transformers on the CPU or a GPU.

    Prompts are batched by length. With `seed=...` a prompt gets the same answer in any batch, and with `num_beams` its
    n answers are the best beams, the likeliest first. JSON schemas are not supported; use `LlamaCPP` or an API.

    Args:
        model_name: A folder, a trainer or stage or trained model, a `.gguf` file (its weights are unpacked), or a Hub
            id. Models pruned and quantized by this package can be loaded.
        chat_prompt_template: `AUTO` uses the tokenizer's chat template, or the plain prompt if it has none; None uses
            the plain prompt; a text with `{{prompt}}` (and `{{system_prompt}}`) is filled in; other text is Jinja code
            over `messages`.
        system_prompt: The system message; `AUTO` and None send none, but the template may add its own.
        revision, trust_remote_code: Branch, tag or commit on the Hub; whether code in its repository may run.
        device: Device of the model; a list of GPUs spreads it over them; None uses a GPU if there is one.
        device_map: accelerate's device map, instead of `device`.
        dtype: Data type of the weights, such as "bfloat16"; by default float32 on the CPU and the model's own on a GPU.
        quantization_config: transformers' quantization config, applied while loading.
        adapter_name: PEFT adapter for the model, loaded with `adapter_kwargs`: a folder, a Hub id, a trainer with a
            `peft_config` or its `model_path`.
        response_template: How calls of tools are read from the model's texts, if its tokenizer does not have it: see
            "response parsing" in transformers' documentation.
        **kwargs: Further arguments of `from_pretrained`, among them values for the model's config.

    Raises:
        MissingExtra: torch, transformers or, for an adapter, peft is not installed.
        DefinitionError: `from_pretrained` takes no argument of a name in `kwargs` for this model.
        UnknownModel: The path does not exist.
        MethodMisfit: The model is an encoder; raised when it is first used.

    Example:
        >>> llm = HFTransformers("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
        >>> llm.run(["Name three colours."], max_new_tokens=20, batch_size=32)  # doctest: +SKIP
        ['Red, blue and green.']
    """

    extra_options = frozenset({"top_k", "min_p", "num_beams"})
    default_adaptive_batch_size = True
    tool_choices = frozenset({"auto"})

    def __init__(
        self,
        model_name: str | os.PathLike[str] | Any,
        chat_prompt_template: str | Auto | None = AUTO,
        system_prompt: str | Auto | None = AUTO,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: int | str | torch.device | list[int | str | torch.device] | None = None,
        device_map: Mapping[str, Any] | str | None = None,
        dtype: str | torch.dtype | None = None,
        quantization_config: Any = None,
        adapter_name: str | os.PathLike[str] | Any | None = None,
        adapter_kwargs: Mapping[str, Any] | None = None,
        cache_folder_path: str | Path | None = None,
        *,
        response_template: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(cache_folder_path)
        require_extra("train", "torch", "transformers", what=type(self).__name__)
        if adapter_name is not None:
            require_extra("train", "peft", what="An adapter")
        if type(quantization_config).__name__ == "BitsAndBytesConfig":
            require_extra("qlora", "bitsandbytes", what="HFTransformers with a BitsAndBytesConfig")
        self._source = hf_source(model_name, revision)
        if self._source.gguf_file is not None:
            require_extra("gguf", "gguf", what="HFTransformers with a .gguf file")
        self._adapter = adapter_source(adapter_name) if adapter_name is not None else None
        self.model_name = str(model_name) if isinstance(model_name, str | os.PathLike) else self._source.name
        self.chat_prompt_template = checked("chat_prompt_template", chat_prompt_template)
        self.system_prompt = given_text(checked("system_prompt", system_prompt))
        self.trust_remote_code = trust_remote_code
        self.device = device
        self.device_map = device_map
        check_spelling(device, dtype)
        self.dtype = dtype
        self.quantization_config = quantization_config
        self.adapter_kwargs = dict(adapter_kwargs or {})
        self.response_template = checked_response_template(response_template)
        self.kwargs = kwargs
        self.check_kwargs()

    def check_kwargs(self) -> None:
        """Refuses `kwargs` that nothing takes; a subclass that passes them to another library asks that one.

        Raises:
            DefinitionError: A name is unknown.
        """
        refuse_unknown_loading(type(self), self.kwargs.keys(), self._source, self._loading_options, instead=OTHER_NAMES)

    # Loaded lazily.

    @cached_property
    def config(self) -> Any:
        """The model's transformers config."""
        from transformers import AutoConfig

        with loading(self._source):
            config = AutoConfig.from_pretrained(self._source.name, **self._loading_options)
        if is_bidirectional(config) and not self.kwargs.get("is_decoder"):
            raise MethodMisfit(
                f"{self._source.name} is an encoder ({config.model_type}) and writes no text. Give a causal or "
                "encoder-decoder model."
            )
        return config

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; a given Jinja template replaces its chat template."""
        from transformers import AutoTokenizer

        with loading(self._source):
            tokenizer = AutoTokenizer.from_pretrained(self._source.name, **self._loading_options)
        if tokenizer.pad_token is None:
            # Without any of these `generate` pads with a masked id.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        # A decoder continues at the end of a row, so it needs padding on the left.
        tokenizer.padding_side = "right" if self.config.is_encoder_decoder else "left"
        template = given_text(self.chat_prompt_template)
        if template is not None and not is_text_template(template):
            tokenizer.chat_template = template
        if self.response_template is not None:
            tokenizer.response_template = self.response_template
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """The model, in evaluation mode, on its device."""
        import transformers

        # Lets transformers load models that this package has pruned and quantized.
        import datadreamer_like.formats  # noqa: F401

        kind = "AutoModelForSeq2SeqLM" if self.config.is_encoder_decoder else "AutoModelForCausalLM"
        device, placing = placed(self.device, self.device_map)
        with loading(self._source, weights=True):
            model = getattr(transformers, kind).from_pretrained(
                self._source.name, **{**self._loading_options, **self._typing(device), **placing, **self.kwargs}
            )
        if self._adapter is not None:
            model = with_adapter(model, self._adapter, self.adapter_kwargs)
        if not placing and self.quantization_config is None:
            model = model.to(device)
        return model.eval()

    @property
    def _loading_options(self) -> dict[str, Any]:
        options: dict[str, Any] = self._source.fetching(self.trust_remote_code, self.kwargs)
        return options

    def _typing(self, device: Any) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self.quantization_config is not None:
            options["quantization_config"] = self.quantization_config
        if self.dtype is not None:
            options["dtype"] = self.dtype
        elif getattr(self.config, "quantization_config", None) is None:
            # CPUs without bf16 units are several times slower in bf16 than in float32.
            options["dtype"] = "float32" if str(device) == "cpu" else "auto"
        return options

    # Called by the pipeline.

    @property
    def takes_chat(self) -> bool:
        """Whether the tokenizer's chat template is applied to a text."""
        template = self.chat_prompt_template
        return template is not None and not is_text_template(template) and self.tokenizer.chat_template is not None

    def identity(self) -> dict[str, Any]:
        """Returns the model's digest or name, and all options that decide an answer."""
        config, reading = self.quantization_config, self.response_template
        return {
            "model": self._source.identity,
            "adapter": self._adapter.identity if self._adapter is not None else None,
            "adapter_kwargs": self.adapter_kwargs,
            "chat_prompt_template": self.chat_prompt_template,
            "system_prompt": self.system_prompt,
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantization_config": getattr(config, "to_dict", lambda: config)(),
            "kwargs": {name: value for name, value in self.kwargs.items() if name not in HOW_FETCHED},
            **({} if reading is None else {"response_template": reading}),
        }

    def translated(self, options: GenerationOptions) -> GenerationOptions:
        """Takes `do_sample` of transformers: False is greedy decoding, True changes nothing."""
        given: dict[str, Any] = dict(options)
        if given.pop("do_sample", True) is False:
            given["temperature"] = 0.0
        return cast("GenerationOptions", given)

    def check(self, sampling: Sampling) -> None:
        """Refuses a schema, a device that this machine lacks, and more new tokens than the context has room for."""
        if sampling.schema is not None:
            raise DefinitionError(
                "HFTransformers cannot constrain answers to a schema. Use LlamaCPP or an API, or describe the schema "
                "in the prompt and check the answers."
            )
        if sampling.tools:
            check_parses_calls(self)
        for device in self.device if isinstance(self.device, list) else [self.device or "cpu"]:
            checked_device(device)
        beams = sampling.extra.get("num_beams") or 1
        if beams > 1 and (not sampling.deterministic or sampling.top_logprobs is not None):
            raise DefinitionError(
                f"num_beams={beams} is for greedy decoding without log-probabilities. Set top_p=0.0 and leave "
                "top_logprobs out, or leave num_beams out."
            )
        if 1 < beams < sampling.n:
            raise DefinitionError(
                f"n={sampling.n} asks for more answers than num_beams={beams} has. Raise num_beams, or lower n."
            )
        self.check_logit_bias(sampling)
        if not self.config.is_encoder_decoder:
            self.check_room(sampling, self._context_length)
        if self.system_prompt is not None and self.takes_chat:
            try:
                self._fitting_ids(Request("Hello", sampling), self._context_length)
            except PromptTooLong:
                pass
            except BadRequest as error:  # every prompt would fail
                raise DefinitionError(
                    f"{error} With system_prompt={self.system_prompt[:60]!r} it refuses every prompt: leave "
                    "system_prompt out, or pass another chat_prompt_template."
                ) from error

    def check_logit_bias(self, sampling: Sampling) -> None:
        """Refuses, for `check`, tokens that the model does not have."""
        sampling.check_tokens(self.config.get_text_config().vocab_size, self.display_name)

    def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Answers requests with the same sampling options; a prompt that is too long fails alone."""
        sampling = requests[0].sampling
        room = self.get_max_context_length(sampling.max_new_tokens or 1)
        answers: dict[int, Answer] = {}
        ids: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            try:
                ids[index] = self._fitting_ids(request, room)
            except BadRequest as error:
                answers[index] = Answer.failed(error)
        if ids:
            answers |= zip(ids, self.answer_ids([requests[i] for i in ids], list(ids.values())), strict=True)
        return [answers[index] for index in range(len(requests))]

    def answer_ids(self, requests: Sequence[Request], ids: list[list[int]]) -> Sequence[Answer]:
        """Answers requests with the same sampling options, whose prompts' token ids all fit the context."""
        from .hf_generate import generate

        sampling, seeds = requests[0].sampling, [request.seed for request in requests]
        readers = self.call_readers(requests)
        return generate(self.model, self.tokenizer, ids, sampling, seeds, self._context_length, readers)

    def call_readers(self, requests: Sequence[Request]) -> list[CallReader | None]:
        """Returns what reads the answers to requests with tools; None for the others."""
        return [
            CallReader(self.tokenizer, self._text(request)[0], request.tools) if request.tools else None
            for request in requests
        ]

    def _fitting_ids(self, request: Request, room: int) -> list[int]:
        try:
            ids = self._ids(request)
        except (ValueError, TypeError) as error:
            raise BadRequest(f"The prompt cannot be turned into tokens: {error}") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            raise BadRequest(f"The chat template refuses the prompt: {error}.") from error
        if len(ids) > room:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens; {self.display_name} has room for {room} in addition to the new "
                "ones. Shorten it, or lower max_new_tokens."
            )
        return ids

    def score_batch(self, requests: Sequence[ScoreRequest]) -> Sequence[Scored]:
        """Scores the same continuations after several prompts; a prompt that is too long fails alone."""
        texts = requests[0].continuations
        longest = max(self.count_tokens(text) for text in texts) + 1
        found: dict[int, Scored] = {}
        prompts: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            try:
                prompts[index] = self._fitting_ids(request.request, self.get_max_context_length(longest))
            except BadRequest as error:
                found[index] = Scored.failed(error)
        if prompts:
            wanted = [self._continuation_ids(requests[index], ids) for index, ids in prompts.items()]
            scores = self.score_ids(list(prompts.values()), wanted)
            for (index, ids), logprobs, own in zip(prompts.items(), scores, wanted, strict=True):
                found[index] = Scored(tuple(logprobs), tuple(map(len, own)), prompt_tokens=len(ids))
        return [found[index] for index in range(len(requests))]

    def score_ids(self, prompts: list[list[int]], continuations: list[list[list[int]]]) -> list[list[float]]:
        """Returns the log-probability of each continuation of each prompt, all as token ids that fit the context."""
        from .hf_score import score

        return score(self.model, self.tokenizer, prompts, continuations)

    def _continuation_ids(self, request: ScoreRequest, prompt: list[int]) -> list[list[int]]:
        alone = self.tokenizer(list(request.continuations), add_special_tokens=False, verbose=False)["input_ids"]
        if self.takes_chat or not isinstance(request.prompt, str) or self.config.is_encoder_decoder:
            return list(alone)
        # SentencePiece puts a blank before a text by itself, but not before one that continues another.
        text, begins = self._text(request.request)
        whole = [text + continuation for continuation in request.continuations]
        joined = self.tokenizer(whole, add_special_tokens=not begins, verbose=False)["input_ids"]
        start = len(prompt)
        return [ids[start:] if ids[:start] == prompt else own for ids, own in zip(joined, alone, strict=True)]

    def _text(self, request: Request) -> tuple[str, bool]:
        """Returns the text that the model sees, and whether it has the token that starts a text."""
        if isinstance(request.prompt, str) and not self.takes_chat:
            text = plain_prompt(self.chat_prompt_template, request.prompt, self.system_prompt)
            return text, bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        messages = openai_messages(with_texts_only(request.messages(self.system_prompt)), as_text=False)
        tools = {"tools": openai_tools(request.tools)} if request.tools else {}
        template = self.tokenizer.apply_chat_template
        return template(messages, tokenize=False, add_generation_prompt=True, **tools), True

    def _ids(self, request: Request) -> list[int]:
        tokenizer: Any = self.tokenizer
        text, begins = self._text(request)
        ids = tokenizer(text, add_special_tokens=not begins, verbose=False)["input_ids"]
        # An empty prompt without special tokens still needs one token to start from.
        start = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]
        if not ids and not start:
            raise BadRequest(f"The prompt is empty, and {self._source.name} has no token that starts a text.")
        return list(ids) or start

    @property
    def _context_length(self) -> int:
        return model_max_length(self.config, self.tokenizer)

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text."""
        return len(self.tokenizer(value, add_special_tokens=False, verbose=False)["input_ids"])

    def final_count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text as a whole prompt, with the chat template's own tokens."""
        return len(self._ids(Request(value, Sampling())))

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the maximum number of prompt tokens; an encoder's input does not share its room with the answer."""
        return self._context_length - (0 if self.config.is_encoder_decoder else max_new_tokens or 0)

    def unload_model(self) -> None:
        """Frees the model's memory; it is loaded again when it is needed."""
        self.__dict__.pop("tokenizer", None)
        if self.__dict__.pop("model", None) is not None:
            free_memory()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("model", "tokenizer", "config")}
