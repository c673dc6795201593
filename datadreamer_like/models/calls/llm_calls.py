"""Calls of LLMs: keys, seeds, repetitions and the stored form of answers."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from json.encoder import encode_basestring
from typing import Any, NamedTuple

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, RejectedAnswer
from datadreamer_like.graph.fingerprint import fingerprint

from ..llms.generation import Answer, Prompt, Request, Sampling, TokenLogprob, ToolPrompt
from ..llms.schema_check import schema_check
from ..llms.tool_calls import answer_words, check_tools, checked_calls
from ..llms.tools import Tool
from .calls import Calls
from .failures import Rejected

_RECENT_AT_LEAST = 65_536
# New hashes are counted in a dict, fast but large, until they are this share of the sorted arrays, which are compact.
_RECENT_SHARE = 1 / 8

_CHARACTERS_PER_TOKEN = 4

# One value of format 1: a JSON list [texts, prompt tokens, completion tokens, finish reasons] and, where there are any,
# log-probabilities (or null), thoughts (or null) and calls of tools. surrogatepass keeps lone surrogates, which a JSON
# answer may contain.
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_reasons_json = functools.cache(_dumps)


class Repeated(NamedTuple):
    """A prompt with the number of its repetition, for a run that sees only some of the prompts."""

    prompt: Prompt | ToolPrompt
    times_before: int
    """How often the same prompt came before, among all prompts."""


class LLMCalls(Calls[Prompt | ToolPrompt | Repeated, Request, Answer]):
    """Calls of one LLM with one set of sampling options.

    A key is a hash of the LLM's identity, the sampling options and the prompt. With random sampling it includes how
    often the prompt came before in this run: sending a prompt five times gives five samples, and a rerun finds all
    five. The key of a follow-up is a hash of the previous key and the conversation.

    `identity` is a hash of everything that determines the LLM's answers, except sampling options and prompt.
    `follow_up` returns the prompt of a follow-up, from the request, its answer and the reason for its rejection.
    `find_paid` returns the answers that a log of paid calls has, from requests and how often each came before.
    `check_tools` refuses tools of a prompt that the LLM does not take.
    """

    def __init__(
        self,
        identity: str,
        sampling: Sampling,
        follow_up: Callable[[Request, Answer, str], Prompt],
        find_paid: Callable[[Sequence[Request], Sequence[int]], Sequence[Answer | None]] | None = None,
        check_tools: Callable[[Sequence[Tool]], None] = lambda tools: None,
    ) -> None:
        self._sampling = sampling
        self._check_tools = check_tools
        self._fits_schema = None if sampling.schema is None else schema_check(sampling.schema)
        self._may_call = bool(sampling.tools)
        self._known_tools: set[str] = set()
        self.checks = self._may_call or self._fits_schema is not None
        self._find_paid = find_paid
        self.has_paid = find_paid is not None
        # Of prompts whose answers may be in a log of paid calls.
        self._times_before: dict[bytes, int] = {}
        self._follow_up = follow_up
        decided_by = f"{identity}\0{sampling.key_material()}\0"
        self._prefix = hashlib.blake2b(decided_by.encode("utf-8", "surrogatepass"), digest_size=16)
        self._repetitions = None if sampling.deterministic else Repetitions()

    @classmethod
    def of(cls, llm: Any, sampling: Sampling) -> LLMCalls:
        """Returns the calls of an `LLM`."""
        find_paid = None if llm.paid is None else partial(llm.paid.find, llm)
        checked = partial(check_tools, llm, sampling)
        checked(sampling.tools)
        return cls(fingerprint(llm), sampling, llm.follow_up, find_paid, checked)

    def admit(self, prompts: Sequence[Prompt | ToolPrompt | Repeated]) -> tuple[list[bytes], list[Request]]:
        """Returns keys and requests; with a seed, each repetition gets a different seed.

        Raises:
            DefinitionError: A prompt has tools that the LLM does not take.
        """
        sampling = self._sampling
        seed = sampling.seed
        given: dict[int, int] = {}
        own = 0
        keys: list[bytes] = []
        requests: list[Request] = []
        for prompt in prompts:
            if isinstance(prompt, Repeated):
                given[len(keys)] = prompt.times_before
                prompt = prompt.prompt
            if isinstance(prompt, ToolPrompt):
                own += 1
                if prompt.tools == sampling.tools:
                    prompt = prompt.prompt  # the same question as without tools of its own
            hasher = self._prefix.copy()
            hasher.update(prompt.encode("utf-8", "surrogatepass") if type(prompt) is str else prompt_bytes(prompt))
            keys.append(hasher.digest())
            if isinstance(prompt, ToolPrompt):
                requests.append(self._with_tools(prompt))
            else:
                requests.append(Request(prompt, sampling, seed, sampling.tools))
        if sampling.tool_choice not in (None, "auto", "none") and not sampling.tools and own < len(prompts):
            raise DefinitionError(f'tool_choice="{sampling.tool_choice}" needs tools. Pass tools=[...].')
        if self._repetitions is not None:
            times = self._repetitions.count([int.from_bytes(key[:8], "little") for key in keys])
            for row, counted in enumerate(times):
                times_before = given.get(row, counted)
                if times_before:
                    keys[row] = hashlib.blake2b(keys[row] + b"%d" % times_before, digest_size=16).digest()
                    if self.has_paid:
                        self._times_before[keys[row]] = times_before
                    if seed is not None:
                        # The n answers of a request have consecutive seeds, so a repetition starts n later.
                        requests[row] = requests[row]._replace(seed=seed + times_before * sampling.n)
        return keys, requests

    def _with_tools(self, prompt: ToolPrompt) -> Request:
        tools: Any = prompt.tools  # in neutral form, by the prompt itself
        if tools and (written := json.dumps(tools)) not in self._known_tools:
            self._check_tools(tools)
            self._known_tools.add(written)
            self._may_call = self.checks = True
        return Request(prompt.prompt, self._sampling, self._sampling.seed, tools)

    def checked(self, request: Request, answer: Answer) -> Answer | Rejected:
        """Returns the answer, or why it is rejected: it does not fit the schema, or the parameters of a tool."""
        if self._fits_schema is not None:
            return self._fits_schema(answer)
        return checked_calls(request, answer) if self._may_call else answer

    def paid(self, keys: Sequence[bytes], requests: Sequence[Request]) -> Sequence[Answer | None]:
        """Returns for each request its answer in the log of paid calls, if there is one."""
        times_before = [self._times_before.pop(key, 0) for key in keys]
        return [None] * len(keys) if self._find_paid is None else self._find_paid(requests, times_before)

    def size(self, request: Request) -> int:
        """Returns the number of characters of the prompt and, about, of the longest answer, which take memory alike."""
        prompt, answer = request.prompt, _CHARACTERS_PER_TOKEN * (self._sampling.max_new_tokens or 0)
        if isinstance(prompt, str) and not request.tools:
            return len(prompt) + answer
        answer += len(str(request.tools)) if request.tools else 0
        if isinstance(prompt, str):
            return len(prompt) + answer
        return sum(len(str(message.get("content"))) for message in prompt) + answer

    @staticmethod
    def encode(answer: Answer) -> bytes:
        """Returns the stored form of an answer."""
        # Assembled by hand: calling the JSON encoder per row takes four times as long.
        texts = ",".join(["null" if text is None else encode_basestring(text) for text in answer.texts])
        reasons = _reasons_json(tuple(answer.finish_reasons))
        rest = ""
        if answer.logprobs is not None or answer.reasoning is not None or answer.tool_calls is not None:
            rest = f",{_dumps(answer.logprobs)}"
            if answer.reasoning is not None or answer.tool_calls is not None:
                rest += f",{_dumps(answer.reasoning)}"
            if answer.tool_calls is not None:
                rest += f",{_dumps(answer.tool_calls)}"
        value = f"[[{texts}],{answer.prompt_tokens},{answer.completion_tokens},{reasons}{rest}]"
        return value.encode("utf-8", "surrogatepass")

    @staticmethod
    def decode(value: bytes) -> Answer:
        """Restores an answer of `encode`."""
        stored = json.loads(value.decode("utf-8", "surrogatepass"))
        texts, prompt_tokens, completion_tokens, finish_reasons, *rest = stored
        logprobs = None
        if rest and rest[0] is not None:
            logprobs = [
                [TokenLogprob(token, logprob, tuple((t, p) for t, p in top)) for token, logprob, top in tokens]
                for tokens in rest[0]
            ]
        reasoning = rest[1] if len(rest) > 1 else None
        calls = rest[2] if len(rest) > 2 else None
        return Answer(
            texts, prompt_tokens, completion_tokens, finish_reasons, logprobs, reasoning, cost=0.0, tool_calls=calls
        )

    def failed(self, error: ModelError) -> Answer:
        """Returns the answer of a failed row."""
        return Answer.failed(error)

    def follow_up(self, key: bytes, request: Request, answer: Answer, reason: str) -> tuple[bytes, Request]:
        """Returns the key and the request of a follow-up, with the rejected answer and the reason."""
        prompt = self._follow_up(request, answer, reason)
        next_key = hashlib.blake2b(key + b"\0" + prompt_bytes(prompt), digest_size=16).digest()
        return next_key, request._replace(prompt=prompt)

    def rejected(self, answer: Answer, reason: str, cause: ModelError | None) -> Answer:
        """Returns the rejected answer, its texts kept, with the error of its row."""
        return replace(answer, error=RejectedAnswer.of(answer_words(answer), reason, cause))


class Repetitions:
    """Counts how often each prompt came before in a run, in a few bytes per prompt."""

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._hashes = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.uint32)

    def number(self, prompts: Iterable[Prompt | ToolPrompt]) -> list[Repeated]:
        """Returns prompts with the number of times that each came before, in this call or an earlier one."""
        given = list(prompts)
        digests = [hashlib.blake2b(prompt_bytes(prompt), digest_size=8).digest() for prompt in given]
        times = self.count([int.from_bytes(digest, "little") for digest in digests])
        return [Repeated(prompt, count) for prompt, count in zip(given, times, strict=True)]

    def count(self, hashes: Sequence[int]) -> list[int]:
        """Returns for each hash how often it came before, in this call or an earlier one."""
        recent = self._recent
        before = [0] * len(hashes)
        if len(self._hashes):
            wanted = np.array(hashes, np.uint64)
            places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
            before = np.where(self._hashes[places] == wanted, self._counts[places], 0).tolist()
        for position, key in enumerate(hashes):
            seen = recent.get(key, 0)
            recent[key] = seen + 1
            before[position] += seen
        if len(recent) >= max(_RECENT_AT_LEAST, _RECENT_SHARE * len(self._hashes)):
            self._compact()
        return before

    def _compact(self) -> None:
        size = len(self._recent)
        hashes = np.concatenate([self._hashes, np.fromiter(self._recent.keys(), np.uint64, size)])
        counts = np.concatenate([self._counts, np.fromiter(self._recent.values(), np.uint32, size)])
        self._recent.clear()
        self._hashes, places = np.unique(hashes, return_inverse=True)
        self._counts = np.bincount(places, counts).astype(np.uint32)


def prompt_bytes(prompt: Prompt | ToolPrompt) -> bytes:
    """Returns what of a prompt decides a key; raises `ArgumentTypeError` for a value that is no prompt."""
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass")
    if isinstance(prompt, ToolPrompt):
        # No text has this byte, so the key differs from that of a prompt without tools.
        return prompt_bytes(prompt.prompt) + b"\xfe" + json.dumps(prompt.tools).encode()
    if isinstance(prompt, Sequence) and prompt and all(isinstance(message, Mapping) for message in prompt):
        try:
            # A text never starts with this byte, so the keys of chats and texts differ.
            messages = [dict(message) for message in prompt if isinstance(message, Mapping)]
            return b"\xff" + json.dumps(messages, sort_keys=True, separators=(",", ":")).encode()
        except TypeError:
            pass
    raise ArgumentTypeError(
        f"A prompt must be a text or a list of chat messages of plain values, not {repr(prompt)[:200]}."
    )
