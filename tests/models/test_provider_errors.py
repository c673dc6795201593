from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import anthropic
import botocore.exceptions
import httpx2
import openai
import pytest

from datadreamer_like.errors import (
    AuthenticationFailed,
    BadRequest,
    ModelError,
    PromptTooLong,
    RateLimited,
    Unavailable,
    UnknownModel,
)
from datadreamer_like.models.llms.provider_errors import (
    ERRORS_BY_CLASS,
    provider_error,
    refused_parameter,
    server_words,
)
from datadreamer_like.models.llms.rate_headers import reported_limits, retry_after, seconds_until_renewed

CATCH_ALLS = {"OpenAIError", "AnthropicError", "APIError", "APIStatusError"}


def status_error(status: int, body: Any, sdk: Any = openai) -> Exception:
    """Makes the exception as the SDK's own client makes it from a response."""
    response = httpx2.Response(status, json=body, request=httpx2.Request("POST", "http://a"))
    kind = sdk.OpenAI if sdk is openai else sdk.Anthropic
    return kind(api_key="k")._make_status_error_from_response(response)  # type: ignore[no-any-return]


def exceptions_of(sdk: Any) -> set[type[Exception]]:
    modules = [sdk, *(getattr(sdk, name) for name in ("_exceptions", "_error_classes") if hasattr(sdk, name))]
    found = {member for module in modules for member in list(vars(module).values()) if inspect.isclass(member)}
    waiting = [kind for kind in found if issubclass(kind, Exception) and kind.__module__.startswith(sdk.__name__)]
    found = set()
    while waiting:
        kind = waiting.pop()
        found.add(kind)
        waiting += [below for below in kind.__subclasses__() if below not in found]
    # Requests for messages and chat completions never get into these parts of the SDKs.
    elsewhere = (".lib.beta.", "._old_api")
    return {
        kind
        for kind in found
        if kind.__module__.startswith(sdk.__name__)
        and not kind.__name__.startswith("_")
        and not any(part in kind.__module__ for part in elsewhere)
    }


@pytest.mark.parametrize("sdk", [openai, anthropic])
def test_every_exception_of_the_sdk_is_mapped_by_its_name_or_by_a_base_that_means_something(sdk: Any) -> None:
    classes = exceptions_of(sdk)
    assert len(classes) > 20
    unmapped = []
    for kind in classes:
        nearest = next((base.__name__ for base in kind.__mro__ if base.__name__ in ERRORS_BY_CLASS), None)
        if nearest is None or (nearest in CATCH_ALLS and kind.__name__ not in CATCH_ALLS):
            unmapped.append(kind.__name__)
    assert not unmapped


def test_every_failure_of_the_connection_is_temporary() -> None:
    kinds = [kind for kind in vars(aiohttp).values() if inspect.isclass(kind) and issubclass(kind, aiohttp.ClientError)]
    # Addresses are checked before a request is made.
    of_addresses = (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, aiohttp.RedirectClientError)
    wanted = [kind for kind in kinds if kind is not aiohttp.ClientError and not issubclass(kind, of_addresses)]
    assert len(wanted) > 10
    for kind in wanted:
        mapped = [ERRORS_BY_CLASS[base.__name__] for base in kind.__mro__ if base.__name__ in ERRORS_BY_CLASS]
        assert issubclass(kind, OSError) or mapped[0] is Unavailable, kind


def test_every_entry_is_a_class_of_one_of_the_sdks() -> None:
    names = {kind.__name__ for sdk in (openai, anthropic) for kind in exceptions_of(sdk)}
    names |= vars(botocore.exceptions).keys() | vars(aiohttp).keys()
    assert set(ERRORS_BY_CLASS) <= names


@pytest.mark.parametrize("sdk", [openai, anthropic])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest), (401, AuthenticationFailed), (402, AuthenticationFailed), (403, AuthenticationFailed),
        (404, UnknownModel), (408, Unavailable), (409, Unavailable), (413, PromptTooLong), (422, BadRequest),
        (429, RateLimited), (500, Unavailable), (503, Unavailable), (529, Unavailable),
    ],
)  # fmt: skip
def test_a_status_means_the_same_in_every_sdk(sdk: Any, status: int, kind: type[ModelError]) -> None:
    mapped = provider_error(status_error(status, {"error": {"type": "x", "message": "hm"}}, sdk), "m", "http://a")
    assert type(mapped) is kind
    assert "hm." in str(mapped)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "Insufficient credits", "code": 402}},
        {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}},
        {"type": "error", "error": {"type": "billing_error", "message": "pay"}},
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "Your credit balance is too low"},
        },
    ],
)
def test_an_account_without_credit_ends_the_run_whatever_the_status(body: Any) -> None:
    for sdk in (openai, anthropic):
        mapped = provider_error(status_error(402 if "credits" in str(body) else 400, body, sdk), "m", "http://a")
        assert isinstance(mapped, AuthenticationFailed) or "code" in str(body)
    assert "no credit left" in str(provider_error(status_error(402, body), "m", "http://a"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "too warm"}}, "too warm."),
        ({"error": "too warm"}, "too warm."),
        ({"message": "too warm"}, "too warm."),
        ({"detail": "too warm"}, "too warm."),
        (
            {"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}]},
            "body.seed: extra fields not permitted.",
        ),
        ({"errors": [{"message": "one"}, {"message": "two"}]}, "one; two."),
        ({"title": "Bad", "status": 400}, "Bad."),
        ({"error": {"code": 1, "details": {"reason": "too warm"}}}, "too warm."),
        ({"code": 4001, "info": "too warm"}, '{"code": 4001, "info": "too warm"}.'),
        ({"fault": {"key": "sk-abcdefghij"}}, '{"fault": {"key": "sk-..."}}.'),
        ("plain words", "plain words."),
        ({"error": {"message": "no key sk-abcdefghij here"}}, "no key sk-... here."),
    ],
)
def test_the_servers_own_words_are_shown_for_any_body(body: Any, words: str) -> None:
    assert server_words(status_error(400, body)) == words


def test_of_an_html_page_only_the_words_are_shown() -> None:
    page = "<html><style>b {}</style><body><h1>Bad   Gateway</h1></body></html>"
    response = httpx2.Response(502, text=page, request=httpx2.Request("POST", "http://a"))
    error = openai.OpenAI(api_key="k")._make_status_error_from_response(response)
    assert server_words(error) == "Bad Gateway."


SENT = ["temperature", "seed", "max_tokens", "response_format", "top_p"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "x", "param": "seed", "code": "unsupported_parameter"}}, ("seed", True)),
        ({"error": {"message": "at most 2", "param": "temperature", "code": "invalid"}}, ("temperature", False)),
        ({"error": {"message": "bad", "param": "response_format.json_schema"}}, ("response_format", False)),
        ({"error": {"message": "Unsupported value: 'temperature' does not support 0.0."}}, ("temperature", True)),
        ({"error": {"message": "`temperature` is deprecated for this model."}}, ("temperature", True)),
        ({"error": {"message": "temperature: Extra inputs are not permitted"}}, ("temperature", True)),
        ({"error": {"message": "Unknown parameter top_p"}}, ("top_p", True)),
        ({"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}]}, ("seed", True)),
        ({"error": {"message": "The word temperature is not allowed in poems"}}, None),
        ({"error": {"message": "'messages' must contain 'json' to use 'response_format'", "param": "messages"}}, None),
        ({"error": {"message": "Your prompt and 'max_tokens' together are too long"}}, None),
        ({"error": {"message": "bad"}}, None),
    ],
)  # fmt: skip
def test_the_parameter_that_a_400_is_about_is_found_in_any_form(body: Any, expected: Any) -> None:
    assert refused_parameter(status_error(400, body), SENT) == expected
    assert refused_parameter(status_error(500, body), SENT) is None


def test_retry_after_is_read_as_seconds_milliseconds_and_date() -> None:
    class Response:
        def __init__(self, **headers: str) -> None:
            self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    assert retry_after(Response(retry_after="7")) == 7.0
    assert retry_after(Response(retry_after_ms="250")) == 0.25
    soon = retry_after(Response(retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)))
    assert soon is not None
    assert 28 < soon <= 30
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert retry_after(Response(retry_after=past)) == 0.0
    assert retry_after(Response(retry_after="tomorrow")) is None
    assert retry_after(Response()) is None
    assert retry_after(None) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0.5s"}, 360.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "250ms"}, 0.25),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2m3s"}, 3723.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "55"}, 55.0),  # Azure's
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        ({"x-ratelimit-remaining-requests": "0"}, None),
    ],
)
def test_a_used_up_limit_is_waited_for(headers: dict[str, str], seconds: float | None) -> None:
    assert seconds_until_renewed(httpx2.Headers(headers)) == seconds
    assert retry_after(httpx2.Response(429, headers=headers)) == seconds


def test_of_several_used_up_limits_the_last_one_counts() -> None:
    soon, later = (datetime.now(UTC) + timedelta(seconds=wait) for wait in (5, 40))
    name = "anthropic-ratelimit-{}-{}".format
    headers = {name("requests", "remaining"): "0", name("requests", "reset"): later.isoformat()}
    headers |= {name("tokens", "remaining"): "0", name("tokens", "reset"): soon.strftime("%Y-%m-%dT%H:%M:%SZ")}
    seconds = seconds_until_renewed(httpx2.Headers(headers))
    assert seconds is not None
    assert 38 < seconds <= 40


def test_times_are_read_against_the_clock_of_the_server() -> None:
    its_clock = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
    headers = {
        "date": format_datetime(its_clock, usegmt=True),
        "retry-after": format_datetime(its_clock + timedelta(seconds=7), usegmt=True),
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "20",
        "anthropic-ratelimit-requests-reset": (its_clock + timedelta(seconds=9)).isoformat(),
    }
    assert retry_after(httpx2.Response(429, headers=headers)) == 7.0
    assert list(reported_limits(httpx2.Headers(headers)).values()) == [(50.0, 20.0, 9.0)]


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "reported"),
    [
        ("10000", "9990", "60ms", (10_000.0, 9_990.0, 0.06)),
        (None, "0", "2s", (1.0, 0.0, 2.0)),  # Azure's: used up, of unknown size
        ("0", "0", "0s", None),  # no limit
        ("10", "12", "1s", None),
        ("10", "-1", "1s", None),
        ("10", "many", "1s", None),
        ("10", "5", "1741305600000", None),  # OpenRouter's, in milliseconds since 1970
        ("10", "5", "1741305600", None),
        ("10", "5", "20261127", None),
        ("10", "5", None, None),
        ("100", "95", "1.5", (100.0, 95.0, 1.5)),  # Cerebras's, in seconds
        ("-1", "-1", "0", None),  # Azure's where it does not say
        ("inf", "5", "1s", None),
    ],
)
def test_a_limit_is_read_if_it_is_one(limit: Any, remaining: Any, reset: Any, reported: Any) -> None:
    given = {"limit": limit, "remaining": remaining, "reset": reset}
    headers = {f"X-RateLimit-{name}-Requests": value for name, value in given.items() if value is not None}
    assert list(reported_limits(httpx2.Headers(headers)).values()) == ([] if reported is None else [reported])


def test_a_limit_of_tokens_without_its_size_is_left_out() -> None:
    names = ("x-ratelimit-remaining-tokens", "anthropic-ratelimit-output-tokens-remaining")
    for name in names:
        for left in ("0", "5000"):
            headers = {name: left, name.replace("remaining", "reset"): "2s"}
            assert reported_limits(httpx2.Headers(headers)) == {}


def test_a_limit_without_a_reset_is_read_if_its_name_says_the_window() -> None:
    names = {"tokens": (5_000_000, 2_500_000), "req": (720, 717)}  # Mistral's
    headers = {"x-ratelimit-tokens-query-cost": "52", "x-ratelimit-limit-tokens-month": "9"}
    headers |= {"x-ratelimit-remaining-tokens-month": "5"}
    for name, (limit, remaining) in names.items():
        headers |= {
            f"x-ratelimit-limit-{name}-minute": str(limit),
            f"x-ratelimit-remaining-{name}-minute": str(remaining),
        }
    reported = reported_limits(httpx2.Headers(headers))
    assert reported == {
        "x-ratelimit-remaining-tokens-minute": (5e6, 2.5e6, 30.0),
        "x-ratelimit-remaining-req-minute": (720.0, 717.0, 0.25),
    }


@pytest.mark.parametrize("sdk", [openai, anthropic])
def test_a_rate_limit_carries_the_time_to_wait(sdk: Any) -> None:
    response = httpx2.Response(429, headers={"retry-after": "9"}, request=httpx2.Request("POST", "http://a"))
    mapped = provider_error(sdk.RateLimitError("slow", response=response, body=None), "m", "http://a")
    assert isinstance(mapped, RateLimited)
    assert mapped.retry_after == 9.0


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        # About the account, the place or the model: every row would meet it.
        (402, "Insufficient Balance", AuthenticationFailed),
        (403, "Your team has either used all available credits or reached its spending limit", AuthenticationFailed),
        (400, "Budget has been exceeded! Current cost: 10.1, max budget: 10.0", AuthenticationFailed),
        (429, "You exceeded your current quota, please check your plan and billing details.", AuthenticationFailed),
        (400, "User location is not supported for the API use.", AuthenticationFailed),
        (403, "Country, region, or territory not supported", AuthenticationFailed),
        (400, "This organization has been disabled.", AuthenticationFailed),
        (400, "API key not valid. Please pass a valid API key.", AuthenticationFailed),
        (451, "not here", AuthenticationFailed),
        (400, "The model `llama3-8b` has been decommissioned and is no longer supported.", UnknownModel),
        (400, "gpt-9 is not a valid model ID", UnknownModel),
        (404, "No endpoints found for a/b.", UnknownModel),
        (410, "gone", UnknownModel),
        (405, "Method Not Allowed", UnknownModel),
        # About one row.
        (403, "Your chosen model requires moderation and your input was flagged", BadRequest),
        (400, "The response was filtered due to the content management policy.", BadRequest),
        (400, "The image could not be read", BadRequest),
        (429, "Request too large for m on tokens per min: Limit 30000, Requested 33000.", PromptTooLong),
        # Will pass.
        (429, "Rate limit reached for requests", RateLimited),
        (503, "The model is overloaded and not available right now", Unavailable),
    ],
)
def test_what_a_refusal_is_about_decides_its_error(status: int, said: str, kind: type[ModelError]) -> None:
    for body in ({"error": {"message": said}}, {"detail": said}, {"error": said}):
        assert type(provider_error(status_error(status, body), "m", "http://a")) is kind


@pytest.mark.parametrize(
    ("status", "error", "lasting"),
    [
        (400, {"message": "Filtered.", "code": "content_filter"}, True),
        (400, {"message": "Your request was rejected by our safety system."}, True),
        (403, {"message": "Your input was flagged."}, True),
        (400, {"message": "Content Exists Risk"}, True),
        (400, {"message": "Your account has been flagged."}, False),
        (400, {"message": "The image could not be read."}, False),
        (500, {"message": "The moderation service is down."}, False),
    ],
)
def test_a_prompt_that_a_filter_refuses_is_not_sent_again_by_a_rerun(
    status: int, error: dict[str, str], lasting: bool
) -> None:
    assert provider_error(status_error(status, {"error": error}), "m", "http://a").lasting is lasting


@pytest.mark.parametrize("status", [400, 404, 429, 500])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"error": {"message": "too warm"}}', "too warm."),
        (b'{"error": null, "message": "too warm"}', "too warm."),
        (b'[{"error": {"code": 7, "message": "too warm"}}]', "too warm."),
        (b'{"error": {"message": ["too", "warm"]}}', "too; warm."),
        (b"too warm", "too warm."),
        (b"too warm \xff\xfe", "too warm"),
        (b"<html><head><style>p {}</style></head><body><h1>too warm</h1></body></html>", "too warm."),
        (b"<style" * 100_000 + b"too warm", "..."),
        (b'{"error": {"message": "too warm ' + b"x" * 1_000_000 + b'"}}', "too warm "),
        (b"[" * 50_000, "[["),
        (b"", "HTTP status "),
        (b"null", "HTTP status "),
        (b"{}", "HTTP status "),
    ],
)  # fmt: skip
def test_a_body_of_any_shape_gives_the_servers_words_shortened(status: int, content: bytes, words: str) -> None:
    response = httpx2.Response(status, content=content, request=httpx2.Request("POST", "http://a"))
    error = openai.OpenAI(api_key="k")._make_status_error_from_response(response)
    said = server_words(error)
    assert words in said
    assert len(said) < 600
    assert len(str(provider_error(error, "m", "http://a"))) < 800
