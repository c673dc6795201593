"""The answers in a log, found by the request that they answer."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.storage.answers import AnswerStore

from ..calls.llm_calls import LLMCalls, Repetitions
from ..llms.generation import Answer, Request
from ..llms.schema import ANSWER_FIELD, object_schema, with_schema
from .call_log import CallLog
from .logged_call import LoggedCall, canonical_schema, plain_messages, sampling_options

T = TypeVar("T")

logger = logging.getLogger("datadreamer_like")

_AT_ONCE = 4_096


class Asked(Protocol):
    """What of an LLM decides its requests."""

    model_name: str

    @property
    def display_name(self) -> str:
        """Class and model, for display."""


class PaidAnswers:
    """Serves the answers of a log to an LLM's requests; see `LLM.reuse`.

    A request is found by its messages and options, and only among calls of the model. Of several answers to the same
    request that are not greedy, each is served once, in the log's order. The log is read when the first request is
    looked up. What the log does not have is looked up in those that were given `before`.
    """

    def __init__(
        self,
        llm: Asked,
        log: CallLog,
        model_names: Sequence[str],
        ignore: Sequence[str],
        before: PaidAnswers | None = None,
    ) -> None:
        if not isinstance(log, CallLog):
            raise ArgumentTypeError(f'reuse takes a CallLog, as in reuse(CallLog("calls.jsonl")), not {log!r:.100}.')
        for name, given in (("model_names", model_names), ("ignore", ignore)):
            if isinstance(given, str) or not all(isinstance(each, str) for each in given):
                raise ArgumentTypeError(f"{name} must be a list of texts, not {given!r:.100}.")
        self._before = before
        self._log = log
        self._names = {llm.model_name, *model_names}
        self._ignore = frozenset(ignore)
        self._lock = threading.Lock()
        self._store: AnswerStore | None = None
        self.served = 0
        self.misses: Counter[str] = Counter()
        log.check()

    def find(self, llm: Asked, requests: Sequence[Request], times_before: Sequence[int]) -> list[Answer | None]:
        """Returns the answer to each request that was paid for; the `times_before` of equal requests get others."""
        if self._before is None:
            return self._find(llm, requests, times_before)
        found = self._before.find(llm, requests, times_before)
        missing = [index for index, answer in enumerate(found) if answer is None]
        # Of random answers, those in the logs before were served first.
        left = [times_before[i] - self._before.served_of(llm, requests[i], times_before[i]) for i in missing]
        for index, answer in zip(missing, self._find(llm, [requests[i] for i in missing], left), strict=True):
            found[index] = answer
        return found

    def served_of(self, llm: Asked, request: Request, times: int) -> int:
        """Returns for how many of so many equal requests there are answers."""
        if not times:
            return 0
        answers = self.find(llm, [request] * times, range(times))
        return sum(answer is not None for answer in answers)

    def _find(self, llm: Asked, requests: Sequence[Request], times_before: Sequence[int]) -> list[Answer | None]:
        with self._lock:
            store = self._store = self._store or self._read(llm)
        keys: list[bytes] = []
        looked_up: list[tuple[dict[str, Any], int]] = []
        for request, before in zip(requests, times_before, strict=True):
            messages, options = self._asked(llm, request)
            place = 0 if request.sampling.deterministic or request.seed is not None else before
            asked = _digest(messages)
            keys += [_key(asked, options, place), asked]
            looked_up.append((options, place))
        values = store.get_many(keys)
        answers: list[Answer | None] = []
        for request, (options, place), value, other in zip(requests, looked_up, values[::2], values[1::2], strict=True):
            answer = None if value is None else _unwrapped(LLMCalls.decode(value), request)
            if answer is None:
                self._miss(options, other, place)
            elif lack := _lack(answer, request):
                self.misses[lack] += 1
                answer = None
            answers.append(answer)
        self.served += sum(answer is not None for answer in answers)
        return answers

    def said_at_end(self, answers: Iterable[T], llm: Asked) -> Iterator[T]:
        """Yields answers, and then logs how many came from the log, and why others that look alike did not."""
        served, misses = self.served, Counter(self.misses)
        try:
            yield from answers if self._before is None else self._before.said_at_end(answers, llm)
        finally:
            if self.served > served:
                logger.info(
                    "%s: %s answers are from the log of paid calls.", llm.display_name, f"{self.served - served:,}"
                )
            for reason, count in (self.misses - misses).most_common(5):
                logger.warning(
                    "%s: %s prompts are in the log of paid calls, but %s; they are asked again.",
                    llm.display_name,
                    f"{count:,}",
                    reason,
                )

    def _miss(self, options: dict[str, Any], other: bytes | None, place: int) -> None:
        if other is None:
            return
        logged = json.loads(other)
        names = sorted(name for name in {*options, *logged} if options.get(name) != logged.get(name))
        if names:
            wrong = ", ".join(f"{n} ({_shown(logged.get(n))} there, {_shown(options.get(n))} here)" for n in names)
            self.misses[f"with other options: {wrong}"] += 1
        elif place:
            self.misses["not as often as they are asked"] += 1

    def _asked(self, llm: Any, request: Request) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Returns the messages and the options that the LLM sends, in the form of a `LoggedCall`'s."""
        sampling = request.sampling
        messages = request.messages(getattr(llm, "system_prompt", None))
        tools = [*map(dict, getattr(llm, "tools", ())), *request.tools]
        options = sampling_options(sampling, request.seed, getattr(llm, "default_new_tokens", None), tools)
        quirks = getattr(llm, "quirks", None)
        if quirks is not None:
            if sampling.schema is not None and quirks.response_format == "json_object":
                messages = with_schema(messages, sampling.schema)
                options["schema"] = canonical_schema({"type": "object"})
            penalty = options.pop("repetition_penalty", None)
            options |= dict.fromkeys(quirks.penalty_names, penalty) if penalty is not None else {}
            if quirks.seed_name is None:
                options.pop("seed", None)
            for name in getattr(llm, "unsupported_options", ()):
                options.pop(name, None)
        return plain_messages(messages), self._compared(options)

    def _compared(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name not in self._ignore}

    def _read(self, llm: Asked) -> AnswerStore:
        store = AnswerStore("")
        weakref.finalize(self, store.close)
        repetitions = Repetitions()
        others: Counter[str] = Counter()
        failed = kept = 0

        def usable() -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
            nonlocal failed, kept
            for call in self._log:
                if not self._names & {call.model, *call.other_names}:
                    others[str(call.model)] += 1
                elif call.answer.error is not None or _lacks_text(call.answer):
                    failed += 1
                else:
                    kept += 1
                    yield self._entry(call)

        for part in _parts(usable(), _AT_ONCE):
            times = repetitions.count([int.from_bytes(first[:8], "little") for first, *_ in part])
            items = [(_again(first, count), value) for (first, value, *_), count in zip(part, times, strict=True)] + [
                (asked, options) for _, _, asked, options in part
            ]
            store.put_many(items)
        named = ", ".join(f"{name} {count:,}" for name, count in others.most_common(5))
        logger.log(
            logging.INFO if kept else logging.WARNING,
            "%s: %s calls in the log can answer its prompts%s%s.",
            llm.display_name,
            f"{kept:,}",
            f"; {failed:,} failed" if failed else "",
            f"; {others.total():,} are of other models ({named})" if others else "",
        )
        return store

    def _entry(self, call: LoggedCall) -> tuple[bytes, bytes, bytes, bytes]:
        options = self._compared(call.options)
        asked = _digest(call.messages)
        shown = json.dumps(options, default=str).encode("utf-8", "surrogatepass")
        return _key(asked, options, 0), LLMCalls.encode(call.answer), asked, shown

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_store", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _store=None, _lock=threading.Lock())


def _lacks_text(answer: Answer) -> bool:
    calls = answer.tool_calls or [() for _ in answer.texts]
    return any(not text and not own for text, own in zip(answer.texts, calls, strict=True))


def _digest(value: object, start: bytes = b"") -> bytes:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(start + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _key(asked: bytes, options: Mapping[str, Any], place: int) -> bytes:
    return _again(_digest(options, asked), place)


def _again(key: bytes, place: int) -> bytes:
    return hashlib.blake2b(key + b"%d" % place, digest_size=16).digest() if place else key


def _shown(value: object) -> str:
    return "not given" if value is None else f"{value!r:.60}"


def _lack(answer: Answer, request: Request) -> str:
    """Returns what a logged answer lacks that the request asks for; "" if nothing."""
    if len(answer.texts) != request.sampling.n:
        return f"with {len(answer.texts)} of {request.sampling.n} answers"
    if request.sampling.top_logprobs is not None and answer.logprobs is None:
        return "without log-probabilities"
    return ""


def _unwrapped(answer: Answer, request: Request) -> Answer:
    """Takes the answer out of the object that a schema which is none was wrapped in."""
    if request.sampling.schema is None or not object_schema(request.sampling.schema)[1]:
        return answer
    texts: list[str | None] = []
    for text in answer.texts:
        try:
            value = json.loads(text or "")
        except ValueError:
            value = None
        wrapped = isinstance(value, dict) and value.keys() == {ANSWER_FIELD}
        texts.append(json.dumps(value[ANSWER_FIELD], ensure_ascii=False) if wrapped else text)
    return replace(answer, texts=texts)


def _parts(values: Iterable[T], size: int) -> Iterator[list[T]]:
    part: list[T] = []
    for value in values:
        part.append(value)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
