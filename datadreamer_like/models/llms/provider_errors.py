"""Maps exceptions of the providers' SDKs to this package's errors, which retry, fail the row or end the run."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from inspect import iscoroutinefunction

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

from .rate_headers import retry_after
from .secrets import Secrets

_CLASSES: dict[type[ModelError], str] = {
    AuthenticationFailed: """
        AuthenticationError PermissionDeniedError
        OAuthError SubjectTokenProviderError
        PaymentRequiredError ContractSpendLimitReachedError EnforcedSpendLimitReachedError OrganizationOnHoldError
        CMEKKeyDisabledError CredentialsError WorkloadIdentityError MutuallyExclusiveAuthError
        NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError SSOError
    """,
    UnknownModel: "NotFoundError",
    PromptTooLong: "ContentTooLargeError",
    BadRequest: """
        BadRequestError UnprocessableEntityError
        ContentFilterFinishReasonError LengthFinishReasonError ParamValidationError
        PreconditionFailedError RequestHeaderFieldsTooLargeError
    """,
    RateLimited: "RateLimitError",
    Unavailable: """
        ConflictError InternalServerError APIConnectionError APITimeoutError
        WebSocketConnectionClosedError WebSocketQueueFullError
        RequestTimeoutError ClientClosedRequestError OverloadedError RetryableError
        HTTPClientError ConnectionError
        ClientConnectionError ClientPayloadError ClientResponseError UploadAbortedError
    """,
    MalformedAnswer: "APIResponseValidationError",
    ModelError: """
        APIStatusError APIError
        OpenAIError InvalidWebhookSignatureError
        AnthropicError APIWebhookValidationError ToolsetUsageError StreamAlreadyConsumed MissingDependencyError
        BotoCoreError
    """,
}
ERRORS_BY_CLASS = {name: kind for kind, names in _CLASSES.items() for name in names.split()}
"""SDK exception classes by name, so that no SDK is imported; the nearest base class with an entry applies."""

# HTTP statuses with the same meaning in every API
_STATUSES: dict[type[ModelError], tuple[int, ...]] = {
    AuthenticationFailed: (401, 402, 403, 451),
    UnknownModel: (404, 405, 410, 501),
    PromptTooLong: (413,),
    BadRequest: (400, 422),
    RateLimited: (429,),
    Unavailable: (408, 409, 425, 499, *range(500, 600)),
}
# Those that decide where SDKs raise one class for all refusals
_OF_STATUS_ALONE = {**dict.fromkeys(_STATUSES[UnknownModel], UnknownModel), 451: AuthenticationFailed}

_NO_CREDIT_CODES = {
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error",
    "contract_spend_limit_reached", "enforced_spend_limit_reached", "budget_exceeded",
    "exceeded_current_quota_error", "Arrearage",
}  # fmt: skip
_NO_CREDIT = re.compile(
    r"(credit balance|credits?) (is|are) too low|(insufficient|not enough) (\w+ )?(credits?|balance|funds)"
    r"|out of credits?|(no|used all( your| available)*) credits|spending limit|budget (has been )?exceeded"
    r"|payment required|billing (is )?(not active|hard limit|inactive)|余额不足|欠费",
    re.I,
)
# Also said of a limit per minute; only without a time to wait does it mean credit.
_NO_QUOTA = re.compile(r"exceeded your (current|monthly|daily) quota|quota (is )?(exhausted|used up)", re.I)
# Refusals of an account or a model in words: every row would meet them.
_ACCOUNT = re.compile(
    r"(country|region|territory|location)\b.{0,40}\bnot (supported|available|allowed|permitted)"
    r"|not (supported|available|allowed|permitted) in your (country|region|territory|location)"
    r"|(organi[sz]ation|account|subscription|workspace|project|team)\b[^.]{0,40}"
    r"\b(disabled|deactivated|suspended|blocked|flagged|inactive|not active|terminated|banned|on hold)\b"
    r"|API key not valid",
    re.I,
)
_MODEL_CODES = {"model_not_found", "model_decommissioned", "invalid_model", "model_not_available", "ModelNotFound"}
_MODEL = re.compile(
    r"\bmodel\b[^.]{0,120}?\b(not found|(does not|doesn't) exist|decommissioned|deprecated|retired"
    r"|discontinued|shut down|no longer (available|supported|served)|not (available|supported|deployed))"
    r"|not a valid model|(invalid|unknown|unsupported|no such) model\b|no endpoints found",
    re.I,
)
# Refusals of one row with a status that otherwise means the key or the rate.
_MODERATED = re.compile(
    r"moderation|flagged|content (policy|filter|management|exists risk)|safety (system|filter|policy)"
    r"|inappropriate content",
    re.I,
)
_MODERATED_CODES = {
    "content_filter", "content_policy_violation", "moderation_blocked", "data_inspection_failed",
    "DataInspectionFailed",
}  # fmt: skip
_ROW_TOO_LARGE = re.compile(r"request too large|must be reduced", re.I)
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
_MOST_WORDS, _MOST_READ = 500, 10_000
_UNSUPPORTED_CODES = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}
# Such messages may name a parameter, but other prompts may succeed: fail the row, not the run.
_ABOUT_THE_PROMPT = re.compile(r"\b(prompts?|messages|your input|tokens)\b", re.I)
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unknown|unrecognized|unexpected|deprecated|not (permitted|allowed|accepted|available)"
    r"|cannot (both )?be (used|specified|set)|no longer|extra (fields|inputs)",
    re.I,
)


class ErrorInAnswer(Exception):
    """An answer with the status of a success that holds an error; `body` is what it says, else `lacks` is."""

    def __init__(self, body: object, lacks: str = "it has no choices") -> None:
        super().__init__(lacks)
        self.body = body
        code = body.get("code") if isinstance(body, Mapping) else None
        self.code = code if isinstance(code, str) else None
        self.status_code = int(str(code)) if re.fullmatch("[45][0-9][0-9]", str(code)) else None


def provider_error(
    error: Exception,
    model_name: str,
    address: str,
    refused: tuple[str, bool] | None = None,
    secrets: Secrets | None = None,
) -> ModelError | DefinitionError:
    """Returns this package's error for an exception of an SDK, without the client's `secrets`.

    That of a prompt which a filter refuses is lasting: a rerun does not send it again. It is a `DefinitionError`, which
    ends the run, if `refused`, which `refused_parameter` found, names a parameter that is the same in every request.
    The server's `address` is for the message.
    """
    kind, words = _kind(error), _words(error)
    sentence = _SENTENCES.get(kind, "{address} refuses the request: {words}")
    if kind is AuthenticationFailed:
        if _status(error) == 402 or _codes(error) & _NO_CREDIT_CODES or _NO_CREDIT.search(words) or _no_quota(error):
            sentence = "The account at {address} has no credit left: {words} Add credit there, and run again."
        elif _ACCOUNT.search(words) or _status(error) == 451:
            sentence = "{address} does not serve this account: {words} Contact the provider, then run again."
    message = sentence.format(address=address, model_name=model_name, words=server_words(error, secrets))
    if kind is RateLimited or kind is Unavailable:
        return kind(message, retry_after=retry_after(getattr(error, "response", None)))
    if kind is BadRequest and refused is not None and refused[0] != "n":
        return DefinitionError(f'{message} It is about "{refused[0]}", which every request has.')
    made = kind(message)
    # The provider's answer about this prompt, not a fault of the server or the script.
    made.lasting = made.lasting or (kind is BadRequest and _is_moderated(error) and not _ACCOUNT.search(words))
    return made


def refused_parameter(error: Exception, sent: Collection[str]) -> tuple[str, bool] | None:
    """Returns the parameter among the `sent` ones that a 400 or 422 response complains about, or None.

    Servers name it in `param`, in FastAPI's `detail`, or only in the message. With it comes whether the parameter is
    not supported at all (True) or only its value is refused (False).
    """
    if _status(error) not in (400, 422):
        return None
    words = _words(error)
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


def server_words(error: Exception, secrets: Secrets | None = None) -> str:
    """Returns the server's message from any form of body, on one line, shortened, and without keys."""
    words, body = _words(error), getattr(error, "body", None)
    if isinstance(body, Mapping | list) and body and _message(body) is None:  # in a form that is not known
        words = _sentence(json.dumps(body, ensure_ascii=False, default=str)[:_MOST_READ])
    words = (secrets or Secrets(())).taken_out_of(words)
    return _sentence(f"{words[:_MOST_WORDS]}..." if len(words) > _MOST_WORDS else words)


def _words(error: Exception) -> str:
    text = _message(getattr(error, "body", None))
    if not text and (response := getattr(error, "response", None)) is not None:
        with suppress(Exception):  # a body that cannot be read
            if not iscoroutinefunction(response.json):  # else `body` is all there is
                text = _message(response.json())
        if not text and _status(error) is not None:
            text = f"it gives no reason (HTTP status {_status(error)})"
    text = text or str(getattr(error, "message", None) or error)
    if type(error).__name__ == "APIConnectionError" and str(error.__cause__ or ""):
        text = f"{text} ({error.__cause__})"
    return _sentence(" ".join((text or type(error).__name__)[:_MOST_READ].split()))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


_NAMES = (
    "message", "msg", "error_description", "error", "detail", "errors", "title", "details", "reason", "description",
)  # fmt: skip


def _message(body: object) -> str | None:
    """Finds the message in a body: a text, `{"message"}`, `{"error": ...}`, `{"detail": [{"loc", "msg"}]}` ..."""
    if isinstance(body, str):
        # Strip the tags of an HTML page; it may be long, and the search for an end that is missing too.
        body = body[:_MOST_READ]
        return re.sub(r"<(style|script).{0,5000}?</\1>|<[^<>]*>", " ", body, flags=re.S | re.I).strip() or None
    if isinstance(body, Mapping):
        for name in _NAMES:
            if text := _message(body.get(name)):
                place = body.get("loc") if name == "msg" else None
                return f"{'.'.join(map(str, place))}: {text}" if isinstance(place, Sequence) else text
        return None
    if isinstance(body, Sequence):
        return "; ".join(text for text in map(_message, body) if text) or None
    return None


def _kind(error: Exception) -> type[ModelError]:
    status, codes, words = _status(error), _codes(error), _words(error)
    refused = status is not None and 400 <= status < 500 and status != 408
    if codes & _NO_CREDIT_CODES or (refused and _NO_CREDIT.search(words)) or _no_quota(error):
        return AuthenticationFailed
    if codes & _MODEL_CODES:
        return UnknownModel
    if status in (400, 422) and (codes & _TOO_LONG_CODES or _TOO_LONG.search(words)):
        return PromptTooLong
    if status in (413, 429) and _ROW_TOO_LARGE.search(words):
        return PromptTooLong
    if _is_moderated(error):
        return BadRequest
    if refused and status != 429 and _ACCOUNT.search(words):
        return AuthenticationFailed
    if status in (400, 422) and _MODEL.search(words):
        return UnknownModel
    if status in _OF_STATUS_ALONE:
        return _OF_STATUS_ALONE[status]
    if isinstance(error, OSError):
        return Unavailable
    kinds = [ERRORS_BY_CLASS[base.__name__] for base in type(error).__mro__ if base.__name__ in ERRORS_BY_CLASS]
    if kinds and kinds[0] is not ModelError:
        return kinds[0]
    if status is not None and status >= 400:
        return next((kind for kind, statuses in _STATUSES.items() if status in statuses), ModelError)
    # Errors that no SDK defines, such as ValueError: the SDK could not parse the answer.
    return ModelError if kinds else MalformedAnswer


def _is_moderated(error: Exception) -> bool:
    """Whether a provider's filter refuses the prompt."""
    moderated = _codes(error) & _MODERATED_CODES or _MODERATED.search(_words(error))
    return _status(error) in (400, 403) and bool(moderated)


def _status(error: Exception) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _no_quota(error: Exception) -> bool:
    limited = _status(error) in (400, 403, 429) and bool(_NO_QUOTA.search(_words(error)))
    return (
        limited
        and retry_after(getattr(error, "response", None)) is None
        and "retrydelay" not in str(getattr(error, "body", "")).lower()
    )


def _codes(error: Exception) -> set[str]:
    names = (getattr(error, name, None) for name in ("code", "type", "error_code"))
    return {name for name in names if isinstance(name, str)}
