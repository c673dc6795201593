"""An answer as the answers' store keeps it: one JSON list."""

from __future__ import annotations

import functools
import json
from json.encoder import encode_basestring

from ..llms.generation import Answer, TokenLogprob

# One value of format 1: a JSON list [texts, prompt tokens, completion tokens, finish reasons] and, where there are any,
# log-probabilities (or null) and thoughts. Lone surrogates, which a JSON answer may carry, survive by surrogatepass.
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_reasons_json = functools.cache(_dumps)


def encode_answer(answer: Answer) -> bytes:
    """Returns an answer as the answers' store keeps it."""
    # Put together by hand: an encoder that is called for each of a million rows takes four times as long.
    texts = ",".join(["null" if text is None else encode_basestring(text) for text in answer.texts])
    reasons = _reasons_json(tuple(answer.finish_reasons))
    rest = ""
    if answer.logprobs is not None or answer.reasoning is not None:
        rest = f",{_dumps(answer.logprobs)}"
        if answer.reasoning is not None:
            rest += f",{_dumps(answer.reasoning)}"
    value = f"[[{texts}],{answer.prompt_tokens},{answer.completion_tokens},{reasons}{rest}]"
    return value.encode("utf-8", "surrogatepass")


def decode_answer(value: bytes) -> Answer:
    """Reads what `encode_answer` wrote."""
    texts, prompt_tokens, completion_tokens, finish_reasons, *rest = json.loads(value.decode("utf-8", "surrogatepass"))
    logprobs = None
    if rest and rest[0] is not None:
        logprobs = [
            [TokenLogprob(token, logprob, tuple((t, p) for t, p in top)) for token, logprob, top in tokens]
            for tokens in rest[0]
        ]
    reasoning = rest[1] if len(rest) > 1 else None
    return Answer(texts, prompt_tokens, completion_tokens, finish_reasons, logprobs, reasoning, cost=0.0)
