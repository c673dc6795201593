"""Runs llama.cpp's server inside this process."""

from __future__ import annotations

import ctypes
import http.client
import importlib
import json
import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datadreamer_like.errors import BadRequest, DataError, ModelError, PromptTooLong, Unavailable

# The process that first used llama.cpp; a process with another id that finds this set is a fork.
_first_pid: int | None = None


@dataclass
class Completion:
    """One generated text, collected from the server's stream."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    tokens: list[dict[str, Any]] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)


class LlamaServer:
    """A loaded model with its slots; thread-safe, since concurrent requests keep the slots busy.

    The arguments are those of `LlamaCPP`; without `threads`, all cores are used, or the idle ones if waiting threads
    spin instead of sleeping. `parameters` are further attributes of `xllamacpp.CommonParams`; None keeps its default.
    """

    def __init__(
        self, path: Path, context_length: int, slots: int, threads: int | None, parameters: Mapping[str, Any]
    ) -> None:
        global _first_pid
        xllamacpp, patient = _xllamacpp()
        self._key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel = context_length * slots, slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or _idle_cores(patient)
        params.verbosity = 0
        params.warmup = params.ui = params.endpoint_slots = False
        params.endpoint_metrics = True
        # By default the server caches up to 8 GiB of finished prompts.
        params.cache_ram_mib = 0
        # The server always listens on the loopback device; a key keeps other users of this machine out.
        params.api_keys = [self._key]
        for name, value in parameters.items():
            if value is not None:
                setattr(params, name, value)
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            # Not a ModelError, which would fail row after row, each with another attempt to load.
            raise DataError(
                f"llama.cpp (xllamacpp {xllamacpp.__version__}) cannot load {path}. The file may be cut off, of an "
                f"architecture that this release does not know, or too large for the memory with {slots} slots of "
                f"{context_length} tokens."
            ) from error
        _first_pid = _first_pid or os.getpid()
        if _first_pid != os.getpid():
            # A fork lacks llama.cpp's process-wide threads, and freeing the server would wait for them.
            self.abandon()
        else:
            # Its queue answers: freeing a server whose queue has not begun to run would wait for it forever.
            self._server.handle_metrics()

    def abandon(self) -> None:
        """Keeps the server from being freed, in a forked process that does not have its threads."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))

    def complete(self, body: Mapping[str, Any], stopped: threading.Event) -> Completion:
        """Answers a body of llama.cpp's HTTP API, with `messages` or a `prompt`; `stopped` frees the slot at once."""
        completion = Completion()
        refused: list[Mapping[str, Any]] = []

        def take(chunk: Mapping[str, Any]) -> bool:
            if "error" in chunk:
                refused.append(chunk["error"])
            for choice in chunk.get("choices", ()):
                # Chats send `delta`, plain completions `text`.
                delta = choice.get("delta") or {}
                completion.text += choice.get("text") or delta.get("content") or ""
                completion.reasoning += delta.get("reasoning_content") or ""
                for part in delta.get("tool_calls") or ():
                    call = completion.calls.setdefault(part.get("index", 0), {"id": "", "name": "", "arguments": ""})
                    call["id"] = part.get("id") or call["id"]
                    function = part.get("function") or {}
                    call["name"] = function.get("name") or call["name"]
                    call["arguments"] += function.get("arguments") or ""
                completion.tokens += (choice.get("logprobs") or {}).get("content") or []
                completion.finish_reason = choice.get("finish_reason") or completion.finish_reason
            if usage := chunk.get("usage"):
                completion.prompt_tokens = usage["prompt_tokens"]
                completion.completion_tokens = usage["completion_tokens"]
                completion.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            return stopped.is_set()

        ask = getattr(self._server, "handle_chat_completions" if "messages" in body else "handle_completions")
        # Only a streaming request can be stopped early.
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
        """Returns a text's token ids; `special` parses special tokens and adds the BOS token, as in a whole prompt."""
        ids: list[int] = self._post("/tokenize", content=text, add_special=special, parse_special=special)["tokens"]
        return ids

    def partial_tokens(self, text: str) -> set[int]:
        """Returns the tokens of a text that are no whole characters."""
        tokens = self._post("/tokenize", content=text, add_special=False, parse_special=False, with_pieces=True)
        return {token["id"] for token in tokens["tokens"] if not isinstance(token["piece"], str)}

    def apply_template(self, messages: list[dict[str, Any]]) -> str:
        """Returns the text that the model sees for chat messages."""
        return str(self._post("/apply-template", messages=messages)["prompt"])

    def next_token_probs(self, slot: int, **body: Any) -> list[dict[str, Any]]:
        """Returns llama.cpp's `completion_probabilities`: for each token written, itself and the likeliest.

        Unlike in a stream, tokens that end within a character are not left out.
        """
        # A long prompt of a large model takes minutes.
        found = self._post("/completion", seconds=3600.0, id_slot=slot, cache_prompt=True, **body)
        return list(found.get("completion_probabilities") or ())

    def _post(self, path: str, seconds: float = 60.0, **body: Any) -> Any:
        address = urlsplit(self._server.listening_address).netloc
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        # Not urllib, which would send even loopback requests to a proxy from the environment.
        with closing(http.client.HTTPConnection(address, timeout=seconds)) as connection:
            try:
                connection.request("POST", path, json.dumps(body), headers)
                response = connection.getresponse()
                answer = json.load(response)
            except OSError as error:
                raise Unavailable(f"llama.cpp's server in this process does not answer: {error}") from error
        if response.status != http.HTTPStatus.OK:
            raise _refusal(answer.get("error", {}))
        return answer


def _xllamacpp() -> tuple[Any, bool]:
    """Imports xllamacpp, and returns whether its threads sleep while they wait for each other.

    They synchronise after every operation, by default with a spin lock. A thread that shares its core with another
    process then delays all of them: on two busy cores, two spinning threads ran at a tenth of the speed of one, two
    sleeping threads a fifth faster than one. OpenMP reads this setting from the environment when it is loaded.
    """
    patient = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    try:
        # xllamacpp links to this name, as does torch; other packages bundle it under different names.
        loaded = b"/libgomp.so.1" in Path("/proc/self/maps").read_bytes()
    except OSError:  # another system, or one that hides it
        loaded = False
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ or loaded:
        return importlib.import_module("xllamacpp"), patient
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        return importlib.import_module("xllamacpp"), True
    finally:
        # Child processes must not inherit it.
        del os.environ["OMP_WAIT_POLICY"]


def _idle_cores(patient: bool) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") and not patient else 0.0
    return max(1, cores - round(load))


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
