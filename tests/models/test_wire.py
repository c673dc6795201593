"""Chat over `Wire`: where requests, headers and keys go."""

from __future__ import annotations

import http.server
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, completion

from datadreamer_like.errors import MalformedAnswer, Unavailable
from datadreamer_like.models import OpenAI, OpenAIResponses
from datadreamer_like.models.llms.wire import Fields, Wire, read_answer

SECRET = "sk-S3cr3tK3y-0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_a_request_has_the_headers_and_the_query_of_the_sdks_client(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "default_headers": {"X-Team": "blue", "authorization": "Bearer of-a-gateway-12345"},
        "default_query": {"region": "eu"},
        "organization": "org-1",
    }
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path, **options)
        assert llm.run(["hello"], extra_body={"top_k": 3}, max_new_tokens=4) == ["echo: hello"]
    (headers,) = server.headers
    assert (headers["x-team"], headers["openai-organization"]) == ("blue", "org-1")
    assert headers["authorization"] == "Bearer of-a-gateway-12345"
    assert server.paths == ["/v1/chat/completions?region=eu"]
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.0, "max_tokens": 4}
    assert server.requests == [{**body, "top_k": 3}]


def test_a_proxy_of_the_environment_is_used_except_for_hosts_that_need_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FlakyServer() as proxy, FlakyServer() as server:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        far = OpenAI("m", base_url="http://provider.invalid/v1", api_key=SECRET, cache_folder_path=tmp_path)
        assert far.run(["hello"]) == ["echo: hello"]
        assert proxy.paths == ["http://provider.invalid/v1/chat/completions"]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        near = OpenAI("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path)
        assert near.run(["hello"]) == ["echo: hello"]
    assert (len(proxy.paths), len(server.paths)) == (1, 1)


def test_a_redirect_to_another_host_does_not_bring_it_the_key(tmp_path: Path) -> None:
    with FlakyServer() as other:
        away = Reply(status=307, headers={"location": f"{other.url}/chat/completions"}, body=b"")
        with FlakyServer(lambda body, before: away) as server:
            llm = OpenAI("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path)
            assert llm.run(["hello"]) == ["echo: hello"]
    assert SECRET not in str(other.headers)
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    ("address", "options", "proxy", "suits"),
    [
        ("https://a/v1", {}, None, True),
        ("https://a/v1", {"organization": "o"}, "http://proxy:3128", True),
        ("https://a/v1", {}, "socks5://proxy:1080", False),
        ("https://user:password@a/v1", {}, None, False),
        ("https://a/v1", {"http_client": object()}, None, False),
        ("https://a/v1", {"azure_ad_token_provider": object()}, None, False),
    ],
)
def test_the_sdk_sends_what_only_it_can(
    address: str, options: dict[str, Any], proxy: str | None, suits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if proxy is not None:
        monkeypatch.setenv("all_proxy", proxy)
    assert Wire.suits(address, options) is suits


def test_a_client_that_the_script_gives_sends_the_requests(tmp_path: Path) -> None:
    import httpx2

    seen: list[str] = []

    async def note(request: httpx2.Request) -> None:
        seen.append(request.headers["authorization"])

    with FlakyServer() as server:
        given = httpx2.AsyncClient(event_hooks={"request": [note]})
        llm = OpenAI("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path, http_client=given)
        assert llm.run(["hello"]) == ["echo: hello"]
    assert seen == [f"Bearer {SECRET}"]


def test_an_answer_is_read_with_missing_fields_as_none() -> None:
    answer = read_answer('{"choices": [{"message": {"content": "x"}}], "usage": null}')
    assert answer.choices[0].message.content == "x"
    assert (answer.choices[0].message.refusal, answer.usage, answer.error) == (None, None, None)
    for text in ("[1]", '"x"', "null", ""):
        with pytest.raises(ValueError, match="JSON|empty"):
            read_answer(text)
    assert isinstance(answer, Fields)


@pytest.fixture
def own_certificate(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server with HTTPS, and its certificate, which no system trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            content = json.dumps(completion(Reply("secret"), body)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}/v1", certificate
    server.shutdown()
    server.server_close()


def test_a_certificate_of_ones_own_is_trusted_if_the_environment_names_it(
    own_certificate: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = own_certificate
    llm = OpenAI("m", base_url=url, api_key=SECRET, cache_folder_path=tmp_path, retry_on_fail=False)
    with pytest.raises(Unavailable, match=r"(?i)certificate"):
        llm.run(["hello"])
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert llm.run(["hello"]) == ["secret"]


@pytest.mark.parametrize(
    ("encoding", "charset", "text"),
    [
        ("utf-8-sig", "", "é"),
        ("utf-16", "", "é"),
        ("latin-1", "; charset=iso-8859-1", "é"),
        ("utf-8", "; charset=iso-8859-1", "é"),  # a wrong default of the server
        ("utf-8", "; charset=klingon", "é"),
        ("latin-1", "", "\ufffd"),
    ],
)
def test_an_answer_is_read_in_the_encoding_that_it_has(
    encoding: str, charset: str, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps(completion(Reply("é"), {}), ensure_ascii=False).encode(encoding)
    reply = Reply(body=body, headers={"content-type": f"application/json{charset}"})
    with FlakyServer(lambda body, before: reply) as server:
        llm = OpenAI("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path)
        assert llm.run(["a", "b"]) == [text] * 2
        assert len(server.requests) == 2
    assert caplog.text.count("not in UTF-8") == (text == "\ufffd")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html><title>Log in</title></html>", "it is not JSON .*<title>Log in</title>"),
        (b" ", "it is empty"),
        (b"[1]", "it is not a JSON object"),
        (b'{"choices": [{"index": 0,', "it is not JSON .*choices"),
    ],
)
@pytest.mark.parametrize("model", [OpenAI, OpenAIResponses])
def test_a_reply_that_is_no_answer_is_quoted(body: bytes, words: str, model: Any, tmp_path: Path) -> None:
    with FlakyServer(lambda _, before: Reply(body=body, headers={"content-type": "text/html"})) as server:
        llm = model("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path, retry_on_fail=False)
        with pytest.raises(MalformedAnswer, match=words if model is OpenAI else "has no output: .*"):
            llm.run(["a"])


def test_several_answers_are_in_the_order_of_their_index(tmp_path: Path) -> None:
    def reply(body: dict[str, Any], before: int) -> Reply:
        found = completion(Reply(), {"n": 3})
        for choice, index in zip(found["choices"], (2, 0, 1), strict=True):
            choice["index"], choice["message"]["content"] = index, "abc"[index]
        return Reply(body=json.dumps(found).encode())

    with FlakyServer(reply) as server:
        llm = OpenAI("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path)
        assert llm.run(["a"], n=3, top_p=1.0) == [["a", "b", "c"]]
