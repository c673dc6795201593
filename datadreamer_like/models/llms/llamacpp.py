"""LLMs in GGUF files, run in this process by llama.cpp, without a key, a server or a GPU."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datadreamer_like.errors import DefinitionError, PromptTooLong, require_extra
from datadreamer_like.storage.digests import file_digest

from ..exports.report import check_export
from ..known_options import options_of_run, refuse_unknown
from .answer_text import AnswerText, answer_of, answer_text
from .chat_template import AUTO, Auto, checked, given_text, is_text_template, plain_prompt
from .generation import Answer, GenerationOptions, Prompt, Request, Sampling, TokenLogprob
from .gguf import find_gguf, read_gguf_header
from .llamacpp_score import score
from .llamacpp_server import Completion, LlamaServer
from .llamacpp_slots import SlotPool
from .llm import LLM
from .schema import check_llamacpp_schema
from .scoring import Scored, ScoreRequest
from .tool_calls import tool_call
from .tool_messages import openai_messages, openai_tools

_WAITING_PER_SLOT = 4

# What an argument of LlamaCPP sets, by its name in llama.cpp.
_OWN_NAMES = {
    "chat_template": "chat_prompt_template", "model": "model_name", "n_ctx": "context_length", "n_parallel": "slots",
    "cpuparams": "threads", "cpuparams_batch": "threads", "n_gpu_layers": "gpu_layers",
}  # fmt: skip


class LlamaCPP(LLM):
    """Any LLM in a GGUF file, run by llama.cpp in this process, several prompts at a time.

    The model is loaded at its first use and can be freed with `unload_model`. `max_new_tokens=None` lets an answer grow
    to the end of the context. An answer that reaches the end of the context before its `max_new_tokens` is a failed row
    (`PromptTooLong`), not a shorter text. Prompts that start alike follow each other in a slot, which computes their
    common start once.

    Args:
        model_name: Path of a `.gguf` file or of a folder with one, or a repository of the Hugging Face Hub.
        model_file: The file in that folder or repository, if it has several.
        chat_prompt_template, system_prompt: See `HFTransformers`.
        context_length: Maximum number of tokens of a prompt and its answer together; by default 2048, or the model's
            trained length if that is less. Memory is allocated for `slots` times as many.
        slots: Prompts processed concurrently. On two cores, eight slots gave 1.5 times the tokens per second of one; on
            one core the number makes no difference.
        threads: CPU threads; by default the number of idle cores when the model is loaded.
        gpu_layers: Layers to keep on the GPU, if xllamacpp was built for one; None leaves it to llama.cpp.
        revision, cache_folder_path: Of the Hub's repository; where answers are cached outside a session.
        **kwargs: Further attributes of `xllamacpp.CommonParams`, such as `rope_freq_base`.

    Raises:
        MissingExtra, UnknownModel: xllamacpp is not installed; there is no such file, folder or repository.
        DataError: The file is not a GGUF file, is truncated, or has an unknown version.
        StorageError: The folder is an export, and was changed after it.
        DefinitionError: An option is unknown or out of its range, or there are several files to choose from.
        HubError: The Hub cannot be reached, and the file is not in its cache.

    Example:
        >>> llm = LlamaCPP("SmolLM2-135M-Instruct.Q4_1.gguf")  # doctest: +SKIP
        >>> llm.run(["Name three colours."], max_new_tokens=20)  # doctest: +SKIP
        ['Red, blue and green.']
    """

    enforces_schemas = True
    extra_options = frozenset({
        "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "grammar", "json_schema",
    })  # fmt: skip
    """llama.cpp's own names: `json_schema` is `schema`, `grammar` a grammar in its notation."""

    # The name of a tool is ignored as well.
    tool_choices = frozenset({"auto", "none", "required"})

    def __init__(
        self,
        model_name: str,
        model_file: str | None = None,
        chat_prompt_template: str | Auto | None = AUTO,
        system_prompt: str | Auto | None = AUTO,
        context_length: int | None = None,
        slots: int = 8,
        threads: int | None = None,
        gpu_layers: int | None = None,
        revision: str | None = None,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(cache_folder_path)
        require_extra("llamacpp", "xllamacpp", what=type(self).__name__)
        for name, value in {"context_length": context_length, "slots": slots, "threads": threads}.items():
            if value is not None and value < 1:
                raise DefinitionError(f"LlamaCPP's {name} cannot be {value}; give a whole number of at least 1.")
        if kwargs:
            import xllamacpp

            known = [name for name in dir(xllamacpp.CommonParams) if not name.startswith("_")]
            renamed = {old: f"Give {own} instead." for old, own in _OWN_NAMES.items()}
            instead = options_of_run(GenerationOptions) | renamed
            refuse_unknown(type(self), kwargs, known, "xllamacpp.CommonParams", instead)
        self._parameters = kwargs
        self.model_name = str(model_name)
        self.chat_prompt_template = checked("chat_prompt_template", chat_prompt_template)
        self.system_prompt = given_text(checked("system_prompt", system_prompt))
        self.path, repo_id = find_gguf(self.model_name, model_file, revision)
        check_export(self.path.parent)
        self.header = self._source = read_gguf_header(self.path)
        if repo_id is not None:
            self.header["general.source.url"] = f"https://huggingface.co/{repo_id}"
        template = given_text(self.chat_prompt_template) or self.header.get("tokenizer.chat_template")
        if not self.takes_chat or "tools" not in str(template):
            self.tool_choices = frozenset()  # llama.cpp ignores tools for which the template has no place
        wanted = context_length or 2048
        self.context_length = min(wanted, self.header.context_length or wanted)
        self.slots = slots
        # Some wait for a slot, so that the next one can be chosen by what it shares with the last.
        self.default_concurrency = _WAITING_PER_SLOT * slots
        self.threads = threads
        self.gpu_layers = gpu_layers
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._server: LlamaServer | None = None
        self._workers = self._new_workers()
        self._pid = os.getpid()

    def _new_workers(self) -> SlotPool:
        workers = SlotPool(self.slots)
        weakref.finalize(self, workers.shutdown)
        return workers

    @property
    def server(self) -> LlamaServer:
        """The server with the model; loads it if necessary."""
        self._reset_after_fork()
        with self._lock:
            if self._server is None:
                template = self.chat_prompt_template
                jinja = None if is_text_template(template) else given_text(template)
                parameters = {"n_gpu_layers": self.gpu_layers, "chat_template": jinja, **self._parameters}
                self._server = LlamaServer(self.path, self.context_length, self.slots, self.threads, parameters)
            return self._server

    def _reset_after_fork(self) -> None:
        # A forked process has the objects but not their threads: using or freeing them would wait forever.
        if self._pid != os.getpid():
            if self._server is not None:
                self._server.abandon()
            self._start()

    def identity(self) -> dict[str, Any]:
        """Returns the file's content and all options that decide an answer."""
        return {
            # The content, not the path, so that a file may be moved or downloaded again.
            "model": file_digest(self.path),
            "chat_prompt_template": self.chat_prompt_template,
            "system_prompt": self.system_prompt,
            "context_length": self.context_length,
            "parameters": self._parameters,
        }

    def check(self, sampling: Sampling) -> None:
        """Refuses what a slot has no room for or grammars cannot enforce, and tokens that the model does not have."""
        if sampling.schema is not None:
            if "grammar" in sampling.extra:
                raise DefinitionError('Give "schema" or "grammar", not both: each constrains the whole answer.')
            check_llamacpp_schema(sampling.schema)
        if self.header.vocabulary_size is not None:
            sampling.check_tokens(self.header.vocabulary_size, self.display_name)
        self.check_room(sampling, self.context_length)

    async def answer(self, request: Request) -> Answer:
        """Answers one request; `n` texts are `n` completions with different seeds."""
        self._reset_after_fork()
        stopped = threading.Event()
        text = _text(request.prompt)
        try:
            tasks = [
                asyncio.wrap_future(self._workers.submit(text, partial(self._complete, request, index, stopped)))
                for index in range(request.sampling.n)
            ]
            return _answer(await asyncio.gather(*tasks), request.sampling)
        finally:
            # After a failure or cancellation, stop the request's other completions.
            stopped.set()

    def _complete(self, request: Request, index: int, stopped: threading.Event, slot: int) -> Completion:
        if stopped.is_set():
            return Completion()
        body = _sampling_body(request, index, self.context_length) | self._prompt_body(request)
        completion = self.server.complete({**body, "id_slot": slot}, stopped)
        wanted = request.sampling.max_new_tokens
        if wanted is not None and completion.finish_reason == "length" and completion.completion_tokens < wanted:
            raise PromptTooLong(
                f"The prompt has {completion.prompt_tokens} tokens, and with {wanted} new ones it does not fit the "
                f"context of {self.context_length}. Shorten it, lower max_new_tokens, or give LlamaCPP a larger "
                "context_length."
            )
        return completion

    async def score_one(self, request: ScoreRequest) -> Scored:
        """Scores continuations one after the other, as a tree of tokens in one slot, which keeps the prompt."""
        self._reset_after_fork()
        return await asyncio.wrap_future(self._workers.submit(_text(request.prompt), partial(self._score, request)))

    def _score(self, request: ScoreRequest, slot: int) -> Scored:
        server = self.server
        plain = isinstance(request.prompt, str) and not self.takes_chat
        body = self._prompt_body(request.request)
        text = body["prompt"] if plain else server.apply_template(body["messages"])
        prompt, texts = server.tokenize(text, special=True), request.continuations
        wanted, start = [server.tokenize(continuation) for continuation in texts], len(prompt)
        if plain:
            # SentencePiece puts a blank before a text by itself, but not before one that continues another.
            joined = [server.tokenize(text + continuation, special=True) for continuation in texts]
            wanted = [ids[start:] if ids[:start] == prompt else own for ids, own in zip(joined, wanted, strict=True)]
        if len(prompt) + max(map(len, wanted)) > self.context_length:
            raise PromptTooLong(
                f"The prompt has {len(prompt)} tokens, and with a continuation of {max(map(len, wanted))} it does not "
                f"fit the context of {self.context_length}. Shorten it, or give LlamaCPP a larger context_length."
            )
        within = set().union(*(server.partial_tokens(each) for each in texts if not each.isascii()))
        logprobs = score(server, slot, prompt, wanted, within)
        return Scored(tuple(logprobs), tuple(map(len, wanted)), prompt_tokens=len(prompt))

    def _prompt_body(self, request: Request) -> dict[str, Any]:
        schema = request.sampling.schema
        if isinstance(request.prompt, str) and not self.takes_chat:
            text = plain_prompt(self.chat_prompt_template, request.prompt, self.system_prompt)
            return {"prompt": text} | ({"json_schema": schema} if schema is not None else {})
        shape = {"type": "json_schema", "json_schema": {"schema": schema}}
        body: dict[str, Any] = {"messages": openai_messages(request.messages(self.system_prompt))}
        if request.tools:
            body |= {"tools": openai_tools(request.tools), "tool_choice": request.sampling.tool_choice or "auto"}
        return body | ({"response_format": shape} if schema is not None else {})

    @property
    def takes_chat(self) -> bool:
        """Whether a chat template is applied to a text."""
        template = self.chat_prompt_template
        if isinstance(template, Auto):
            return "tokenizer.chat_template" in self.header
        return template is not None and not is_text_template(template)

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text; loads the model if necessary."""
        return len(self.server.tokenize(value)) if value else 0

    def final_count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text as a whole prompt, with the chat template's own tokens."""
        body = self._prompt_body(Request(value, Sampling()))
        text = body["prompt"] if "prompt" in body else self.server.apply_template(body["messages"])
        return len(self.server.tokenize(text, special=True))

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the maximum number of prompt tokens that leaves room for `max_new_tokens`."""
        return self.context_length - (max_new_tokens or 0)

    def unload_model(self) -> None:
        """Frees the model after the requests in flight have ended; it is loaded again when needed."""
        self._reset_after_fork()
        with self._lock:
            workers, self._workers = self._workers, self._new_workers()
        workers.shutdown(cancel=True)
        workers.join()
        with self._lock:
            self._server = None

    def __getstate__(self) -> dict[str, Any]:
        live = ("_lock", "_server", "_workers", "_pid")
        return {name: value for name, value in self.__dict__.items() if name not in live}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(list(map(dict, prompt)))


def _sampling_body(request: Request, index: int, context_length: int) -> dict[str, Any]:
    sampling, seed = request.sampling, request.seed
    body: dict[str, Any] = {
        "max_tokens": -1 if sampling.max_new_tokens is None else sampling.max_new_tokens,
        "stop": list(sampling.stop),
        # llama.cpp's defaults truncate the distribution (top_k=40, min_p=0.05) and apply the temperature last; other
        # engines do not truncate it, and apply the temperature before top_p.
        "temperature": 0.0 if sampling.deterministic else sampling.temperature,
        "top_p": 1.0 if sampling.deterministic else sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "samplers": ["penalties", "temperature", "top_k", "typ_p", "top_p", "min_p"],
    }
    if sampling.repetition_penalty is not None:
        body |= {"repeat_penalty": sampling.repetition_penalty, "repeat_last_n": context_length}
    if sampling.logit_bias:
        body["logit_bias"] = list(map(list, sampling.logit_bias.items()))
    if seed is not None:
        body["seed"] = (seed + index) % 0xFFFFFFFF  # the largest value stands for a random seed
    if sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": max(1, sampling.top_logprobs)}
    return {**body, **sampling.extra}


def _answer(completions: list[Completion], sampling: Sampling) -> Answer:
    shaped = sampling.schema is not None

    def logprob_of(token: Mapping[str, Any]) -> TokenLogprob:
        top = token.get("top_logprobs", ())[: sampling.top_logprobs]
        return TokenLogprob(token["token"], token["logprob"], tuple((each["token"], each["logprob"]) for each in top))

    def text_of(each: Completion) -> AnswerText:
        calls = [tool_call(**call, index=index) for index, call in each.calls.items()]
        return answer_text(each.text, each.finish_reason, reasoning=each.reasoning, shaped=shaped, calls=calls)

    return answer_of(
        [text_of(each) for each in completions],
        prompt_tokens=completions[0].prompt_tokens,
        completion_tokens=sum(each.completion_tokens for each in completions),
        cached_tokens=completions[0].cached_tokens,
        cost=0.0,
        finish_reasons=[each.finish_reason for each in completions],
        logprobs=None if sampling.top_logprobs is None else [[*map(logprob_of, each.tokens)] for each in completions],
    )
