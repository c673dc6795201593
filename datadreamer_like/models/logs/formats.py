"""The formats of call logs, each found by looking at a record."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from datadreamer_like.storage.answers import AnswerStore

from ..llms.answer_text import AnswerText, answer_of, answer_text
from .bodies import body_in, call_of, chat_answer, responses_answer
from .logged_call import (
    LoggedCall,
    between,
    count_of,
    failed,
    options_of,
    plain_messages,
    time_of,
)
from .spans import calls_in_spans, has_spans

Record = Mapping[str, Any]

Read = Iterator[LoggedCall | str]
"""The calls in a record, and for each part of it that is none the reason."""


class Format(NamedTuple):
    """A format: its name, whether a record has it, and how its calls are read."""

    name: str
    has: Callable[[Record], bool]
    read: Callable[[Record, AnswerStore], Read]


def is_batch_request(record: object) -> bool:
    """Whether a record is a line of a batch's input file."""
    return isinstance(record, Mapping) and "custom_id" in record and bool({"body", "params"} & record.keys())


def calls_in(record: Record, requests: AnswerStore) -> tuple[str, Read] | None:
    """Returns the name of a record's format and its calls; None if no format is known for it.

    `requests` keeps those of batches, which are in another file than their responses.
    """
    for known in FORMATS:
        if known.has(record):
            return known.name, known.read(record, requests)
    return None


# Batches of OpenAI, Anthropic and Mistral

_SEVERAL = b"several"  # instead of a request: there are several with this id


def _id(record: Record) -> bytes:
    return hashlib.blake2b(str(record["custom_id"]).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _batch_request(record: Record, requests: AnswerStore) -> Read:
    request = json.dumps(record.get("body", record.get("params")), sort_keys=True).encode()
    (other,) = requests.get_many([_id(record)])
    # An id is unique within its batch; those of several batches are often the same ("request-1").
    requests.put_many([(_id(record), request if other in (None, request) else _SEVERAL)])
    return iter(())


def _batch_result(record: Record, requests: AnswerStore) -> Read:
    (stored,) = requests.get_many([_id(record)])
    if stored is None:
        yield "results of a batch whose requests are in no file (give the batch's input file too)"
        return
    if stored == _SEVERAL:
        yield "results of batches that use the same custom_id for different requests (read each batch by itself)"
        return
    error = record.get("error")
    if "result" in record:
        result = record["result"] if isinstance(record["result"], Mapping) else {}
        response = result.get("message")
        if response is None:
            error = result.get("error") or f"the batch's request was {result.get('type')}"
    else:
        response, status = body_in(record.get("response"))
        if status is not None and status >= 400 and not error:
            error = (response or {}).get("error") or f"HTTP status {status}"
    request = json.loads(stored)
    if "model" not in request and isinstance(response, Mapping):  # Mistral's is that of the job
        request["model"] = response.get("model")
    yield call_of(request, response, error, priced=False)


# LiteLLM: https://docs.litellm.ai/docs/proxy/logging_spec


def _litellm_payload(record: Record) -> Record | None:
    for inside in (record, record.get("kwargs")):
        if isinstance(inside, Mapping) and isinstance(inside.get("standard_logging_object"), Mapping):
            return dict(inside["standard_logging_object"])
    return record if {"call_type", "messages", "model_parameters"} <= record.keys() else None


def _litellm(record: Record, requests: AnswerStore) -> Read:
    payload = _litellm_payload(record) or {}
    kind = str(payload.get("call_type") or "completion").removeprefix("a")
    if kind not in ("completion", "text_completion", "responses"):
        yield f"LiteLLM's calls of type {payload.get('call_type')}"
        return
    names = [str(payload[name]) for name in ("model", "model_group") if payload.get(name)]
    provider = payload.get("custom_llm_provider")
    bare = [name.split("/", 1)[1] for name in names if "/" in name and name.split("/", 1)[0] == provider]
    request = {**(payload.get("model_parameters") or {}), "messages": payload["messages"]}
    response, _ = body_in(payload.get("response"))
    error = payload.get("error_str") if payload.get("status") == "failure" or not response else None
    call = call_of({**request, "model": names[0] if names else None}, response, error, priced=False)
    if kind == "text_completion":
        call.options["text_completion"] = True
    answer = call.answer
    answer.prompt_tokens = answer.prompt_tokens or count_of(payload.get("prompt_tokens"))
    answer.completion_tokens = answer.completion_tokens or count_of(payload.get("completion_tokens"))
    cost = payload.get("response_cost")
    answer.cost = float(cost) if isinstance(cost, int | float) and answer.error is None else None
    call.format, call.other_names = "LiteLLM", [*names[1:], *bare]
    call.started_at = time_of(payload.get("startTime"))
    call.seconds = between(payload.get("startTime"), payload.get("endTime"))
    yield call


# Langfuse: https://api.reference.langfuse.com (observations)

_OBSERVATIONS = {
    "GENERATION", "SPAN", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL",
}  # fmt: skip


def _is_langfuse(record: Record) -> bool:
    inside = record.get("data", record.get("observations"))
    if isinstance(inside, list) and inside and isinstance(inside[0], Mapping):
        return _is_langfuse(inside[0])
    return record.get("type") in _OBSERVATIONS and bool({"traceId", "trace_id"} & record.keys())


def _langfuse(record: Record, requests: AnswerStore) -> Read:
    inside = record.get("data", record.get("observations"))
    if isinstance(inside, list):
        for each in inside:
            yield from _langfuse(each, requests)
        return
    # The web export has names with underscores.
    found = {name.replace("_", "").lower(): value for name, value in record.items()}
    if record.get("type") != "GENERATION":
        yield f"Langfuse's observations of type {record.get('type')}"
        return
    parameters, messages, output = (_unpacked(found.get(name)) for name in ("modelparameters", "input", "output"))
    options = options_of(_numbers(parameters if isinstance(parameters, Mapping) else {}))
    usage = found.get("usagedetails") or found.get("usage") or {}
    if not isinstance(usage, Mapping):
        usage = {}
    tokens = {
        "prompt_tokens": count_of(usage.get("input"), usage.get("prompt_tokens"), found.get("prompttokens")),
        "completion_tokens": count_of(
            usage.get("output"), usage.get("completion_tokens"), found.get("completiontokens")
        ),
    }
    if found.get("level") == "ERROR" or output is None:
        answer = failed(found.get("statusmessage"), "there is no output")
    elif isinstance(output, Mapping) and isinstance(output.get("choices"), list):
        answer = chat_answer(output["choices"], tokens, options)
    elif _is_each(output, "type") and {each["type"] for each in output} & {"message", "function_call"}:
        answer = responses_answer({"output": output, "usage": tokens}, options)
    elif _is_each(output, "role"):
        answer = chat_answer([{"message": each} for each in output], tokens, options)
    else:
        message = output if isinstance(output, Mapping) else {"content": output}
        answer = chat_answer([{"message": message}], tokens, options)
    if isinstance(messages, Mapping) and "messages" in messages:
        options |= options_of(messages)
    costs = found.get("costdetails")
    cost = costs.get("total") if isinstance(costs, Mapping) else None
    if cost is None:
        cost = next((found[name] for name in ("calculatedtotalcost", "totalcost") if found.get(name) is not None), None)
    answer.cost = float(cost) if cost is not None and answer.error is None else None
    start, end = found.get("starttime"), found.get("endtime")
    model = found.get("model") or found.get("providedmodelname")
    yield LoggedCall("Langfuse", model, plain_messages(messages), options, answer, time_of(start), between(start, end))


def _is_each(value: object, name: str) -> bool:
    """Whether a value is a list of objects that all have a field."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) and name in each for each in value)


def _unpacked(value: object) -> Any:
    """Returns a value that an export may have as JSON in a text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    return value


def _numbers(parameters: Record) -> dict[str, Any]:
    """Returns parameters, with numbers and lists that are written as texts."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        value = _unpacked(value)
        if isinstance(value, str):
            try:
                number = float(value)
                value = int(number) if number.is_integer() and "." not in value else number
            except ValueError:
                value = None if value in ("null", "None") else value
        found[name] = None if isinstance(value, float) and math.isinf(value) else value
    return found


# distilabel: rows of its datasets and of its cached batches, with what its tasks keep of their LLM


_OF_TASK = re.compile("raw_input_|raw_output_|statistics_")


def _is_distilabel(record: Record) -> bool:
    return "distilabel_metadata" in record or {"seq_no", "step_name", "data"} <= record.keys()


def _distilabel(record: Record, requests: AnswerStore, step: object = None) -> Read:
    if "distilabel_metadata" not in record:
        for row in [row for part in record["data"] for row in part]:
            if isinstance(row, Mapping) and "distilabel_metadata" in row:
                yield from _distilabel(row, requests, record.get("step_name"))
        return
    kept = _unpacked(record["distilabel_metadata"])
    tasks = [name.removeprefix("raw_input_") for name in kept or () if name.startswith("raw_input_")]
    # The column with the model's name is that of the last task.
    several = len({_OF_TASK.sub("", name) for name in kept or () if _OF_TASK.match(name)}) > 1
    if not tasks:
        yield "distilabel's rows without the inputs of their LLM (add_raw_input=False)"
    for task in tasks:
        messages, output = _unpacked(kept[f"raw_input_{task}"]), kept.get(f"raw_output_{task}")
        if not messages:
            yield "distilabel's rows without the inputs of their LLM"
            continue
        usage = kept.get(f"statistics_{task}") or {}
        texts = [answer_text(output, None)] if isinstance(output, str) else [AnswerText(None)]
        answer = (
            answer_of(
                texts,
                prompt_tokens=count_of(usage.get("input_tokens")),
                completion_tokens=count_of(usage.get("output_tokens")),
            )
            if isinstance(output, str)
            else failed(None, "there is no output")
        )
        model = None if several and task != step else record.get("model_name")
        yield LoggedCall("distilabel", model, plain_messages(messages), {}, answer)


# Pairs of a request and its response, as a proxy or a few lines around a client write them

_REQUESTS = ("request", "request_body", "kwargs")
_RESPONSES = ("response", "response_body", "error")


def _request_in(record: Record) -> Record | None:
    for name in _REQUESTS:
        body, _ = body_in(record.get(name))
        if body is not None and bool({"messages", "input", "prompt"} & body.keys()):
            return body
    return None


def _pair(record: Record, requests: AnswerStore) -> Read:
    request = _request_in(record) or {}
    response, status = next(
        ((body, code) for body, code in map(body_in, map(record.get, _RESPONSES[:2])) if body is not None), (None, None)
    )
    error = record.get("error")
    if status is not None and status >= 400 and not error:
        error = (response or {}).get("error") or f"HTTP status {status}"
    call = call_of(request, response, error)
    started = next((record[n] for n in ("started_at", "start_time", "timestamp", "created_at") if record.get(n)), None)
    call.started_at = time_of(started) or call.started_at
    seconds = next((record[n] for n in ("seconds", "duration", "latency", "elapsed") if record.get(n)), None)
    call.seconds = float(seconds) if isinstance(seconds, int | float) else None
    yield call


FORMATS = (
    Format("batch requests", is_batch_request, _batch_request),
    Format("batch results", lambda record: "custom_id" in record and bool({"response", "result"} & record.keys()),
           _batch_result),
    Format("OpenTelemetry", has_spans, lambda record, _: calls_in_spans(record)),
    Format("LiteLLM", lambda record: _litellm_payload(record) is not None, _litellm),
    Format("Langfuse", _is_langfuse, _langfuse),
    Format("distilabel", _is_distilabel, _distilabel),
    Format(
        "requests with responses",
        lambda record: bool(record.keys() & {*_RESPONSES}) and _request_in(record) is not None,
        _pair,
    ),
)  # fmt: skip
