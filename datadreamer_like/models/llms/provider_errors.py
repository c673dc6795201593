"""Maps exceptions of the providers' SDKs to this package's errors, which retry, fail the row or end the run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from datadreamer_like.errors import (
    AuthenticationFailed,
    BadRequest,
    DefinitionError,
    MalformedAnswer,
    ModelError,
    PromptTooLong,
    RateLimited,
    Unavailable,
    UnknownModel,
)

_CLASSES: dict[type[ModelError], str] = {
    AuthenticationFailed: """
        AuthenticationError PermissionDeniedError
        OAuthError SubjectTokenProviderError
        PaymentRequiredError ContractSpendLimitReachedError EnforcedSpendLimitReachedError OrganizationOnHoldError
        CMEKKeyDisabledError CredentialsError WorkloadIdentityError MutuallyExclusiveAuthError
    """,
    UnknownModel: "NotFoundError",
    PromptTooLong: "ContentTooLargeError",
    BadRequest: """
        BadRequestError UnprocessableEntityError
        ContentFilterFinishReasonError LengthFinishReasonError
        PreconditionFailedError RequestHeaderFieldsTooLargeError
    """,
    RateLimited: "RateLimitError",
    Unavailable: """
        ConflictError InternalServerError APIConnectionError APITimeoutError
        WebSocketConnectionClosedError WebSocketQueueFullError
        RequestTimeoutError ClientClosedRequestError OverloadedError RetryableError
    """,
    MalformedAnswer: "APIResponseValidationError",
    ModelError: """
        APIStatusError APIError
        OpenAIError InvalidWebhookSignatureError
        AnthropicError APIWebhookValidationError ToolsetUsageError StreamAlreadyConsumed MissingDependencyError
    """,
}
ERRORS_BY_CLASS = {name: kind for kind, names in _CLASSES.items() for name in names.split()}
"""SDK exception classes by name, so that no SDK is imported; the nearest base class with an entry applies."""

# HTTP statuses with the same meaning in every API
_STATUSES: dict[type[ModelError], tuple[int, ...]] = {
    AuthenticationFailed: (401, 402, 403),
    UnknownModel: (404,),
    PromptTooLong: (413,),
    RateLimited: (429,),
    Unavailable: (408, 409, 425, 499, *range(500, 600)),
}

_NO_CREDIT_CODES = {
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error",
    "contract_spend_limit_reached", "enforced_spend_limit_reached",
}  # fmt: skip
_NO_CREDIT = re.compile(
    r"(credit balance|credits?) (is|are) too low|insufficient (credits?|balance|funds)|out of credits", re.I
)
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_TOO_LONG = re.compile(
    r"context (length|size|window)|maximum (context|model) length|max_model_len|(prompt|input) is too long", re.I
)
_SENTENCES: dict[type[ModelError], str] = {
    AuthenticationFailed: "{address} refuses the key: {words} Pass the right api_key, or set it in the environment. "
    'The key must be allowed to use "{model_name}".',
    UnknownModel: '{address} has no model "{model_name}": {words} Check model_name and base_url.',
    PromptTooLong: "The prompt does not fit the context window: {words}",
    RateLimited: "{address} asks to slow down: {words}",
    Unavailable: "{address} did not answer: {words}",
    MalformedAnswer: "{address} sent an invalid answer: {words}",
}
_KEY = re.compile(r"\b(sk|pk|gsk|xai|org|tgp|Bearer)[-_ ][\w*.\-]{6,}")
_UNSUPPORTED_CODES = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}
# Such messages may name a parameter, but other prompts may succeed: fail the row, not the run.
_ABOUT_THE_PROMPT = re.compile(r"\b(prompts?|messages|your input|tokens)\b", re.I)
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unknown|unrecognized|unexpected|deprecated|not (permitted|allowed|accepted|available)"
    r"|cannot (both )?be (used|specified|set)|no longer|extra (fields|inputs)",
    re.I,
)


def provider_error(
    error: Exception, model_name: str, address: str, refused: tuple[str, bool] | None = None
) -> ModelError | DefinitionError:
    """Returns this package's error for an exception of an SDK.

    It is a `DefinitionError`, which ends the run, if `refused`, which `refused_parameter` found, names a parameter that
    is the same in every request. The server's `address` is for the message.
    """
    kind, words = _kind(error), server_words(error)
    sentence = _SENTENCES.get(kind, "{address} refuses the request: {words}")
    if kind is AuthenticationFailed and (
        _status(error) == 402 or _codes(error) & _NO_CREDIT_CODES or _NO_CREDIT.search(words)
    ):
        sentence = "The account at {address} has no credit left: {words} Add credit there, and run again."
    elif isinstance(error, UnicodeError):
        sentence = "The prompt is not valid text, so it cannot be sent: {words}"
    elif isinstance(error, TypeError) and kind is BadRequest:
        sentence = "The prompt cannot be written as JSON: {words}"
    message = sentence.format(address=address, model_name=model_name, words=words)
    if kind is RateLimited or kind is Unavailable:
        return kind(message, retry_after=retry_after(getattr(error, "response", None)))
    if kind is BadRequest and refused is not None and refused[0] != "n":
        return DefinitionError(f'{message} It is about "{refused[0]}", which every request has.')
    return kind(message)


def retry_after(response: Any) -> float | None:
    """Returns the seconds to wait according to a response's headers.

    Retry-After is a number or a date (RFC 9110); without it, the time until an exhausted rate limit is renewed.
    """
    if response is None:
        return None
    headers = response.headers
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        with suppress(ValueError):
            return max(0.0, float(value) / divisor)
        with suppress(ValueError):
            return _seconds_until(parsedate_to_datetime(value))
    return seconds_until_renewed(headers)


def seconds_until_renewed(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds until all exhausted rate limits are renewed; None if none is exhausted.

    Anthropic sends a timestamp, OpenAI a duration such as "6m0.5s".
    """
    waits = []
    for name, left in headers.items():
        if "ratelimit" not in name.lower() or "remaining" not in name.lower() or left.strip() != "0":
            continue
        reset = headers.get(name.lower().replace("remaining", "reset"), "").strip()
        if match := _DURATION.fullmatch(reset):
            hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
            waits.append(3600 * hours + 60 * minutes + seconds + milliseconds / 1000)
        else:
            with suppress(ValueError):
                waits.append(_seconds_until(datetime.fromisoformat(reset)))
    return max(waits, default=None)


_DURATION = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?")


def _seconds_until(time: datetime) -> float:
    return max(0.0, (time.replace(tzinfo=time.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def refused_parameter(error: Exception, sent: Collection[str]) -> tuple[str, bool] | None:
    """Returns the parameter among the `sent` ones that a 400 or 422 response complains about, or None.

    Servers name it in `param`, in FastAPI's `detail`, or only in the message. With it comes whether the parameter is
    not supported at all (True) or only its value is refused (False).
    """
    if _status(error) not in (400, 422):
        return None
    words = server_words(error)
    unsupported = bool(_codes(error) & _UNSUPPORTED_CODES or _UNSUPPORTED.search(words))
    body = getattr(error, "body", None)
    detail = body.get("detail") if isinstance(body, Mapping) else None
    invalid = [each.get("loc", ()) for each in detail if isinstance(each, Mapping)] if isinstance(detail, list) else []
    places = [getattr(error, "param", None) or "", *itertools.chain(*invalid)]
    named = [name for name in (str(place).partition(".")[0] for place in places) if name]
    if named or _ABOUT_THE_PROMPT.search(words):
        found = [name for name in named if name in sent]
    else:
        # Quoted, or used as a parameter name; a message may also repeat the prompt, which does not count.
        around = r"['\"`]{0}['\"`]|^{0}\b|\b(parameters?|arguments?|options?|fields?):? {0}\b|\b{0}: ".format
        found = [name for name in sent if re.search(around(re.escape(name)), words)]
    return (found[0], unsupported) if found else None


def server_words(error: Exception) -> str:
    """Returns the server's message from any form of body, on one line and without API keys."""
    text = _message(getattr(error, "body", None)) or str(getattr(error, "message", None) or error)
    if type(error).__name__ == "APIConnectionError" and str(error.__cause__ or ""):
        text = f"{text} ({error.__cause__})"
    text = text or type(error).__name__
    # Servers quote the key, or parts of it, in their messages.
    text = _KEY.sub(r"\1-...", " ".join(text.split())[:500])
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _message(body: object) -> str | None:
    """Finds the message in a body: a text, `{"message"}`, `{"error": ...}`, `{"detail": [{"loc", "msg"}]}` ..."""
    if isinstance(body, str):
        # Strip the tags of an HTML page.
        return re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", body, flags=re.S).strip() or None
    if isinstance(body, Mapping):
        for name in ("message", "msg", "error_description", "error", "detail", "errors", "title"):
            if text := _message(body.get(name)):
                place = body.get("loc") if name == "msg" else None
                return f"{'.'.join(map(str, place))}: {text}" if isinstance(place, Sequence) else text
        return None
    if isinstance(body, Sequence):
        return "; ".join(text for text in map(_message, body) if text) or None
    return None


def _kind(error: Exception) -> type[ModelError]:
    status, codes, words = _status(error), _codes(error), server_words(error)
    if codes & _NO_CREDIT_CODES or (status is not None and status < 500 and _NO_CREDIT.search(words)):
        return AuthenticationFailed
    if "model_not_found" in codes:
        return UnknownModel
    if status in (400, 422) and (codes & _TOO_LONG_CODES or _TOO_LONG.search(words)):
        return PromptTooLong
    if isinstance(error, UnicodeError) or (isinstance(error, TypeError) and "serializable" in words):
        # Raised while encoding the request: the same prompt would fail again.
        return BadRequest
    kinds = [ERRORS_BY_CLASS[base.__name__] for base in type(error).__mro__ if base.__name__ in ERRORS_BY_CLASS]
    if kinds and kinds[0] is not ModelError:
        return kinds[0]
    if status is not None and status >= 400:
        return next((kind for kind, statuses in _STATUSES.items() if status in statuses), ModelError)
    # Errors that no SDK defines, such as ValueError: the SDK could not parse the answer.
    return ModelError if kinds else MalformedAnswer


def _status(error: Exception) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _codes(error: Exception) -> set[str]:
    names = (getattr(error, name, None) for name in ("code", "type", "error_code"))
    return {name for name in names if isinstance(name, str)}
