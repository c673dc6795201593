"""llama.cpp's server inside this process: started, asked, and given back."""

from __future__ import annotations

import ctypes
import http.client
import importlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datadreamer_like.errors import BadRequest, DataError, ModelError, PromptTooLong, Unavailable

_LOOPBACK_SECONDS = 60

# The process that first used llama.cpp; another one that finds it set is a fork of it.
_first_pid: int | None = None


@dataclass(frozen=True)
class ServerOptions:
    """How to start the server.

    Attributes:
        path: The GGUF file.
        context_length: Tokens that one slot holds, prompt and answer together.
        slots: Requests that are answered at once.
        threads: CPU threads; None takes all cores, or those that are free where waiting threads cannot sleep.
        gpu_layers: Layers to keep on the GPU; None leaves it to llama.cpp.
        chat_template: Jinja code to use in place of the model's own.
        parameters: Further attributes of `xllamacpp.CommonParams`.
    """

    path: Path
    context_length: int
    slots: int
    threads: int | None = None
    gpu_layers: int | None = None
    chat_template: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Completion:
    """One generated text, as the server told it piece by piece."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens: list[dict[str, Any]] = field(default_factory=list)


class LlamaServer:
    """A loaded model with its slots. Threads may ask at the same time: that is what keeps the slots busy.

    Raises:
        DataError: llama.cpp cannot load the file.
    """

    def __init__(self, options: ServerOptions) -> None:
        global _first_pid
        xllamacpp, patient = _xllamacpp()
        self._key = secrets.token_hex(16)
        try:
            self._server = xllamacpp.Server(_parameters(xllamacpp, options, self._key, patient))
        except RuntimeError as error:
            # No ModelError: it would fail one row after the other, each after an attempt to load.
            raise DataError(
                f"llama.cpp (xllamacpp {xllamacpp.__version__}) cannot load {options.path}. The file may be cut off, "
                f"of an architecture that this release does not know, or too large for the memory with "
                f"{options.slots} slots of {options.context_length} tokens."
            ) from error
        _first_pid = _first_pid or os.getpid()
        if _first_pid != os.getpid():
            # llama.cpp has threads for the whole process too, and a fork inherits none: freeing would wait for them.
            self.abandon()

    def abandon(self) -> None:
        """Keeps the server from being freed, for a process that does not have the threads behind it."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))

    def complete(self, body: Mapping[str, Any], stopped: threading.Event) -> Completion:
        """Answers one request, blocking.

        Args:
            body: As llama.cpp's HTTP interface takes it; with `messages` for a chat, or else with `prompt`.
            stopped: Frees the slot within a token when it is set.

        Raises:
            PromptTooLong: The prompt alone is longer than a slot.
            BadRequest: llama.cpp refuses the request.
            ModelError: llama.cpp failed.
        """
        completion = Completion()
        refused: list[Mapping[str, Any]] = []

        def take(chunk: Mapping[str, Any]) -> bool:
            if "error" in chunk:
                refused.append(chunk["error"])
            else:
                _add(completion, chunk)
            return stopped.is_set()

        ask: Callable[..., Any] = (
            self._server.handle_chat_completions if "messages" in body else self._server.handle_completions
        )
        # Streaming is what lets a request be given up before it has used all its tokens.
        request = {**body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            returned = ask(request, take)
        except ValueError as error:
            raise BadRequest(f"llama.cpp refuses the request: {error}") from error
        except RuntimeError as error:
            kind = BadRequest if "parse_error" in str(error) else ModelError
            raise kind(f"llama.cpp failed on the request: {error}") from error
        if isinstance(returned, Mapping) and "error" in returned:
            refused.append(returned["error"])
        if refused:
            raise _refusal(refused[0])
        return completion

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Returns a text's token ids.

        Args:
            text: Any text.
            special: Whether special tokens are read as such and the begin token is added, as in a whole prompt.
        """
        ids: list[int] = self._post("/tokenize", content=text, add_special=special, parse_special=special)["tokens"]
        return ids

    def apply_template(self, messages: list[dict[str, Any]]) -> str:
        """Returns the text that the model sees for chat messages."""
        return str(self._post("/apply-template", messages=messages)["prompt"])

    def _post(self, path: str, **body: Any) -> Any:
        # Not urllib: it would send even loopback requests to a proxy that the environment names.
        connection = http.client.HTTPConnection(
            urlsplit(self._server.listening_address).netloc, timeout=_LOOPBACK_SECONDS
        )
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except OSError as error:
            raise Unavailable(f"llama.cpp's server in this process does not answer: {error}") from error
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise _refusal(answer.get("error", {}))
        return answer


def _xllamacpp() -> tuple[Any, bool]:
    """Imports xllamacpp, and tells whether its threads sleep where they wait for each other.

    They meet after every operation, and spin until all are there. A thread that shares its core with another process
    holds up all of them: on two busy cores, two spinning threads were measured at a tenth of the speed of one, and two
    that sleep a fifth above it. OpenMP's runtime decides this once, when it is loaded, by the environment.
    """
    patient = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ or _openmp_is_loaded():
        return importlib.import_module("xllamacpp"), patient
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        return importlib.import_module("xllamacpp"), True
    finally:
        # Processes that this one starts decide for themselves.
        del os.environ["OMP_WAIT_POLICY"]


def _openmp_is_loaded() -> bool:
    try:
        # Under this very name xllamacpp asks for it; torch brings it too, others bring it under names of their own.
        return "/libgomp.so.1" in Path("/proc/self/maps").read_text()
    except OSError:
        return False


def _threads(patient: bool) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") and not patient else 0.0
    return max(1, cores - round(load))


def _parameters(xllamacpp: Any, options: ServerOptions, key: str, patient: bool) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(options.path)
    params.n_ctx = options.context_length * options.slots
    params.n_parallel = options.slots
    threads = options.threads or _threads(patient)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if options.gpu_layers is not None:
        params.n_gpu_layers = options.gpu_layers
    if options.chat_template is not None:
        params.chat_template = options.chat_template
    params.verbosity = 0
    params.warmup = False
    # The server keeps up to 8 GiB of finished prompts otherwise.
    params.cache_ram_mib = 0
    # The server listens on the loopback device whether asked or not; nobody else on this machine is to use it.
    params.api_keys = [key]
    params.ui = params.endpoint_slots = False
    for name, value in options.parameters.items():
        setattr(params, name, value)
    return params


def _add(completion: Completion, chunk: Mapping[str, Any]) -> None:
    for choice in chunk.get("choices", ()):
        # A chat tells a delta, a plain completion a text.
        delta = choice.get("delta") or {}
        completion.text += choice.get("text") or delta.get("content") or ""
        completion.reasoning += delta.get("reasoning_content") or ""
        completion.tokens += (choice.get("logprobs") or {}).get("content") or []
        completion.finish_reason = choice.get("finish_reason") or completion.finish_reason
    if usage := chunk.get("usage"):
        completion.prompt_tokens = usage["prompt_tokens"]
        completion.completion_tokens = usage["completion_tokens"]


def _refusal(error: Mapping[str, Any]) -> ModelError:
    message = str(error.get("message", error))
    if error.get("type") == "exceed_context_size_error":
        return PromptTooLong(
            f"The prompt has {error.get('n_prompt_tokens')} tokens and a slot holds {error.get('n_ctx')}. "
            "Shorten it, or give LlamaCPP a larger context_length."
        )
    if int(error.get("code", 500)) < 500:
        return BadRequest(f"llama.cpp refuses the request: {message}")
    return ModelError(f"llama.cpp failed on the request: {message}")
