"""The secrets of a client are in no text of ours, however a server quotes them."""

from __future__ import annotations

import base64
import html
import json
import logging
import time
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from anthropic_server import AnthropicServer, message
from flaky_server import FlakyServer, Reply, completion, error
from hypothesis import given, settings
from hypothesis import strategies as st

from datadreamer_like.errors import AuthenticationFailed, BadRequest, DataDreamerError, DefinitionError
from datadreamer_like.models import Anthropic, OpenAI
from datadreamer_like.models.llms.secrets import Secrets

KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
HARD = 'p@ss/"wörd+19<&'

FORMS: dict[str, Any] = {
    "plain": lambda key: key,
    "bearer": lambda key: f"Bearer {key}",
    "quoted for an address": lambda key: quote(key, safe=""),
    "JSON": json.dumps,
    "JSON in JSON": lambda key: json.dumps(json.dumps({"key": key})),
    "HTML": html.escape,
    "upper case": lambda key: key.upper() if key.isascii() else key,
    "basic authentication": lambda key: base64.b64encode(f"me:{key}".encode()).decode(),
    "its first half": lambda key: key[: len(key) // 2],
    "its second half": lambda key: key[len(key) // 2 :],
    "repr": repr,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", [KEY, HARD * 2])
def test_no_part_of_a_key_is_left(key: str, form: str) -> None:
    quoted = FORMS[form](key)
    said = Secrets([key]).taken_out_of(f"The key {quoted} is refused.")
    assert said.startswith("The key ")
    assert said.endswith(" is refused.")
    assert len(said) <= len("The key  is refused.") + 24


@pytest.mark.parametrize("hidden", ["****", "...", "…", "••••", "XXXXXXXX", "[REDACTED]"])
@pytest.mark.parametrize(("before", "after"), [(4, 4), (8, 0), (0, 4), (3, 3)])
def test_a_key_whose_middle_is_hidden_is_taken_out_whole(hidden: str, before: int, after: int) -> None:
    quoted = f"{KEY[:before]}{hidden}{KEY[len(KEY) - after :]}"
    said = Secrets([KEY]).taken_out_of(f"Incorrect key provided: {quoted} (401)")
    assert said == "Incorrect key provided: ... (401)"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=60), st.text(), st.text())
def test_no_eight_characters_of_any_key_are_left(key: str, before: str, after: str) -> None:
    said = Secrets([key]).taken_out_of(f"{before} {key} {after}")
    assert not any(key[i : i + 8] in said.replace("...", "\0") for i in range(len(key) - 7) if "..." not in key)


@pytest.mark.parametrize("key", ["none", "EMPTY", "x", "", "test"])
def test_a_placeholder_is_no_secret(key: str) -> None:
    said = "This test of an EMPTY key has none, that is x."
    assert Secrets([key]).taken_out_of(said) == said


def test_the_time_grows_with_the_length() -> None:
    secrets = Secrets([KEY])
    for piece in ("a", "*", "x", ".", "a*", "0f1e", "<"):
        started = time.process_time()
        secrets.taken_out_of(piece * 100_000)
        assert time.process_time() - started < 5


def told(raised: BaseException) -> str:
    """Everything that an exception and those that it came from say."""
    seen: list[str] = []
    waiting: list[BaseException | None] = [raised]
    while waiting:
        each = waiting.pop()
        if each is not None:
            seen += [str(each), repr(each), *getattr(each, "__notes__", ()), *traceback.format_exception(each)]
            waiting += [each.__cause__, each.__context__]
    return "\n".join(seen)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("form", FORMS)
def test_a_gateway_that_quotes_secrets(
    status: int, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    header, query, password = "hdr-5up3r-h1dden", "qry-5up3r-h1dden", "pwd-5up3r-h1dden"
    secrets = [KEY, header, query, password]
    message = " and ".join(FORMS[form](secret) for secret in secrets)
    with FlakyServer(lambda body, before: error(status, message)) as server:
        llm = OpenAI(
            "m",
            base_url=server.url.replace("http://", f"http://me:{password}@"),
            api_key=KEY,
            cache_folder_path=tmp_path,
            retry_on_fail=False,
            default_headers={"X-Api-Key": header},
            default_query={"key": query},
        )
        (answer,) = llm.answers(["one"]) if status == 400 else (None,)
        if answer is None:
            with pytest.raises(DataDreamerError) as caught:
                llm.run(["one"], on_error="raise")
            said = told(caught.value)
        else:
            assert answer.error is not None
            said = told(answer.error)
    said += caplog.text + repr(llm)
    for secret in secrets:
        assert secret not in said
        assert secret.upper() not in said
        assert quote(secret, safe="") not in said
        assert secret[: len(secret) // 2] not in said


@pytest.mark.parametrize("key", ["sk-one\nX-Other: 1", "sk-“typographic”", "\n", "sk-\x00"])
@pytest.mark.parametrize("kind", [OpenAI, Anthropic])
def test_a_key_that_no_header_can_hold_is_refused_at_once_and_not_quoted(kind: Any, key: str) -> None:
    with pytest.raises(AuthenticationFailed, match="line break") as caught:
        kind("m", api_key=key)
    assert "sk-" not in str(caught.value)


def test_a_key_from_a_file_may_end_with_a_line_break(tmp_path: Path) -> None:
    with FlakyServer() as server:
        OpenAI("m", base_url=server.url, api_key=f"{KEY}\n", cache_folder_path=tmp_path).run(["one"])
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"tiemout": 5}, 'Did you mean "timeout"'),
        ({"default_headers": {"X-A": "a\nb"}}, 'header "X-A"'),
    ],
)
def test_options_of_the_client_are_checked_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        OpenAI("m", base_url="http://a/v1", **options)


def test_rows_refused_in_the_same_words_from_the_start_end_the_run(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: error(400, "The gate is shut (request 17)")) as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path)
        with pytest.raises(BadRequest, match="The gate is shut"):
            llm.run([f"prompt {i}" for i in range(500)])
        assert sum(server.seen.values()) < 100
        assert llm.run(["one", "two"]) == [None, None]


def test_rows_refused_in_the_same_words_after_an_answer_fail_alone(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        return Reply("fine") if "prompt 0" in str(body) else error(400, "flagged")

    with FlakyServer(behave) as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path)
        assert llm.run(["prompt 1", "prompt 0"], concurrency=1) == [None, "fine"]
        got = llm.run(["prompt 0", *(f"prompt {i}" for i in range(1, 100))], concurrency=1)
        assert got == ["fine", *[None] * 99]


@pytest.mark.parametrize(
    "body",
    [{"error": {"code": 402, "message": "pay up"}}, {"error": {"code": "insufficient_quota", "message": "pay up"}}],
)
def test_an_error_with_the_status_of_a_success_is_an_error(body: Any, tmp_path: Path) -> None:
    with FlakyServer(lambda _, before: Reply(body=json.dumps(body).encode())) as server:
        with pytest.raises(AuthenticationFailed, match="pay up"):
            OpenAI("m", base_url=server.url, cache_folder_path=tmp_path).run(["one"])
        assert sum(server.seen.values()) == 1


@pytest.mark.parametrize("place", ["refusal", "part", "finish_reason"])
def test_a_refusal_that_quotes_the_key_does_not_give_it_away(place: str, tmp_path: Path) -> None:
    said = f"no, {KEY}"

    def behave(body: dict[str, Any], before: int) -> Reply:
        whole = completion(Reply(None), body)
        choice: dict[str, Any] = whole["choices"][0]
        if place == "refusal":
            choice["message"]["refusal"] = said
        elif place == "part":
            choice["message"]["content"] = [{"type": "refusal", "refusal": said}]
        else:
            choice["finish_reason"] = said
        return Reply(body=json.dumps(whole).encode())

    with FlakyServer(behave) as server:
        llm = OpenAI("m", base_url=server.url, api_key=KEY, retry_on_fail=False, cache_folder_path=tmp_path)
        [answer] = llm.answers(["x"])
    assert answer.error is not None
    assert "no, ..." in str(answer.error)


def test_a_refusal_of_anthropics_classifier_does_not_give_the_key_away(tmp_path: Path) -> None:
    details = {"type": "refusal", "category": None, "explanation": f"no, {KEY}"}
    with AnthropicServer(lambda body, before: message(stop_reason="refusal", stop_details=details)) as server:
        llm = Anthropic("claude-haiku-4-5", base_url=server.url, api_key=KEY, cache_folder_path=tmp_path)
        [answer] = llm.answers(["x"])
    assert answer.error is not None
    assert "no, ..." in str(answer.error)
