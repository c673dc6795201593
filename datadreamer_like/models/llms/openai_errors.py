"""Each exception of the OpenAI SDK as an error of this package, which says whether to retry, fail a row or stop."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from datadreamer_like.errors import (
    AuthenticationFailed,
    BadRequest,
    MalformedAnswer,
    ModelError,
    PromptTooLong,
    RateLimited,
    Unavailable,
    UnknownModel,
)

# By name: the SDK is not imported to be looked at. The most special class that has an entry decides.
ERRORS_BY_CLASS: dict[str, type[ModelError]] = {
    "AuthenticationError": AuthenticationFailed,
    "OAuthError": AuthenticationFailed,
    "PermissionDeniedError": AuthenticationFailed,
    "SubjectTokenProviderError": AuthenticationFailed,
    "NotFoundError": UnknownModel,
    "BadRequestError": BadRequest,
    "UnprocessableEntityError": BadRequest,
    "ContentFilterFinishReasonError": BadRequest,
    "LengthFinishReasonError": BadRequest,
    "RateLimitError": RateLimited,
    "ConflictError": Unavailable,
    "InternalServerError": Unavailable,
    "APIConnectionError": Unavailable,
    "APITimeoutError": Unavailable,
    "WebSocketConnectionClosedError": Unavailable,
    "WebSocketQueueFullError": Unavailable,
    "APIResponseValidationError": MalformedAnswer,
    "InvalidWebhookSignatureError": ModelError,
    "APIStatusError": ModelError,
    "APIError": ModelError,
    "OpenAIError": ModelError,
}

_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_TOO_LONG = re.compile(
    r"context (length|size|window)|maximum (context|model) length|max_model_len|(prompt|input) is too long",
    re.IGNORECASE,
)
_NO_CREDIT_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_KEY = re.compile(r"\b(sk|pk|gsk|xai|org|Bearer)[-_ ][\w*.\-]{6,}")


def model_error(error: Exception, model_name: str, address: str) -> ModelError:
    """Returns this package's error for an exception of the SDK.

    Args:
        error: What the SDK raised.
        model_name: For the message.
        address: The server's address, for the message.
    """
    status = getattr(error, "status_code", None)
    kind = _kind(error, status)
    said = _said(error)
    if kind is AuthenticationFailed:
        if _codes(error) & _NO_CREDIT_CODES:
            return kind(f"The account at {address} has no credit left: {said} Add credit there, and run again.")
        return kind(
            f"{address} refuses the key: {said} Pass the right api_key, or set it in the environment, and check that "
            f'it may use "{model_name}".'
        )
    if kind is UnknownModel:
        return kind(f'{address} does not know "{model_name}": {said} Check model_name and base_url.')
    if kind is PromptTooLong:
        return PromptTooLong(f"The prompt does not fit the context window: {said}")
    if kind is RateLimited or kind is Unavailable:
        what = "asks to slow down" if kind is RateLimited else "did not answer"
        return kind(f"{address} {what}: {said}", retry_after=retry_after(getattr(error, "response", None)))
    if kind is MalformedAnswer:
        return kind(f"{address} sent what is no answer: {said}")
    return kind(f"{address} refuses the request: {said}")


def retry_after(response: Any) -> float | None:
    """Returns the seconds that a response's Retry-After header asks to wait: a number, or a date (RFC 9110)."""
    if response is None:
        return None
    headers = response.headers
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) / divisor)
        except ValueError:
            pass
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            continue
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None


def refused_parameter(error: Exception) -> str | None:
    """Returns the name of the parameter that a 400 says this model does not take, or None."""
    if getattr(error, "status_code", None) not in (400, 422):
        return None
    parameter = getattr(error, "param", None)
    if not parameter or not _codes(error) & {"unsupported_parameter", "unsupported_value", "unknown_parameter"}:
        return None
    return str(parameter)


def _kind(error: Exception, status: int | None) -> type[ModelError]:
    codes = _codes(error)
    if codes & _NO_CREDIT_CODES:
        return AuthenticationFailed
    if "model_not_found" in codes:
        return UnknownModel
    if status in (400, 413, 422) and (status == 413 or codes & _TOO_LONG_CODES or _TOO_LONG.search(str(error))):
        return PromptTooLong
    if status == 408 or (status is not None and status >= 500):
        return Unavailable
    for base in type(error).__mro__:
        if base.__name__ in ERRORS_BY_CLASS:
            return ERRORS_BY_CLASS[base.__name__]
    # What reading an answer raises (ValueError, AttributeError ...): the answer is not what it should be.
    return MalformedAnswer


def _codes(error: Exception) -> set[str]:
    return {str(getattr(error, name, None) or "") for name in ("code", "type")} - {""}


def _said(error: Exception) -> str:
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, dict) else None
    text = str(text or getattr(error, "message", None) or error or type(error).__name__)
    cause = error.__cause__
    if cause is not None and str(cause) and type(error).__name__ == "APIConnectionError":
        text = f"{text} ({cause})"
    # Servers quote the key, or parts of it, in what they say.
    text = _KEY.sub(r"\1-...", " ".join(text.split())[:500])
    return text if text.endswith((".", "!", "?")) else f"{text}."
