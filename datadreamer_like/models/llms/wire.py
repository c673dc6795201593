"""JSON requests over aiohttp, with the address, headers and credentials that an SDK's client has.

An SDK takes several times as long per request as the request itself: it checks parameters, copies them, and builds
objects of each answer.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .endpoint import shown_address

logger = logging.getLogger("datadreamer_like")

# Options of the SDK's clients whose effects are in the client's address, headers and query.
_UNDERSTOOD = {"organization", "project", "default_headers", "default_query"}
_HTTP_PROXIES = ("http", "https")


class Fields(dict[str, Any]):
    """A JSON object whose fields are attributes too; a missing one is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


class Refused(Exception):
    """A reply with the status of an error, with the attributes of the SDKs' exceptions."""

    def __init__(self, response: Any, text: str) -> None:
        super().__init__(text)
        self.response, self.status_code = response, response.status
        self.body: Any = text
        with suppress(ValueError):
            self.body = json.loads(text)
        if isinstance(self.body, Mapping):
            self.body = self.body.get("error", self.body)
        said = self.body if isinstance(self.body, Mapping) else {}
        self.code, self.type, self.param = said.get("code"), said.get("type"), said.get("param")


# Made once: `json.dumps` and `json.loads` make one for each call with options.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(object_hook=Fields)


def read_answer(text: str) -> Fields:
    """Returns the object in a reply; raises ValueError for a reply of another form."""
    answer = _decoded(text)
    if not isinstance(answer, Fields):
        raise ValueError(f"it is not a JSON object: {text[:100]!r}")
    return answer


def read_models(text: str) -> list[Fields]:
    """Returns a server's list of models, as OpenAI or Together writes it; raises ValueError if it is not JSON."""
    answer = _decoded(text)
    listed = answer.get("data") if isinstance(answer, Fields) else answer
    return [model for model in listed if isinstance(model, Fields)] if isinstance(listed, list) else []


def _decoded(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error}): {text[:100]!r}" if text.strip() else "it is empty") from error


class Wire:
    """The connections of one event loop to a server.

    Args:
        client: The SDK's client, whose `base_url`, `auth_headers`, `default_headers` and `default_query` are those of
            each request.
    """

    def __init__(self, client: Any) -> None:
        import aiohttp

        self._client = client
        self._address = f"{str(client.base_url).rstrip('/')}/"
        self._proxy = _proxy_of(self._address)
        self._warned = False
        secure = urlsplit(self._address).scheme == "https"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_trusted() if secure else True),
            # The caller limits the time until the whole answer.
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    @staticmethod
    def suits(address: str, options: Mapping[str, Any]) -> bool:
        """Whether requests can be sent here; else the SDK has to: with other credentials, its own client, or SOCKS."""
        proxy = _proxy_of(address)
        proxied = proxy is None or urlsplit(proxy).scheme in _HTTP_PROXIES
        return options.keys() <= _UNDERSTOOD and proxied and urlsplit(address).username is None

    async def post(self, path: str, parameters: Mapping[str, Any]) -> tuple[Fields | None, Mapping[str, str]]:
        """Sends a request, and returns its answer and the reply's headers; no answer if the server redirects.

        Args:
            path: Relative to the client's address.
            parameters: The body; the fields of `extra_body` are added to it.

        Raises:
            Refused: The reply has the status of an error.
            ValueError: The reply is not a JSON object, or a parameter cannot be written as JSON.
        """
        client = self._client
        body = {name: value for name, value in parameters.items() if name != "extra_body"}
        body |= parameters.get("extra_body", {})
        content = _ENCODER.encode(body).encode()
        defaults = client.default_headers
        given = {name.lower() for name in defaults}
        headers = {name: value for name, value in client.auth_headers.items() if name.lower() not in given}
        headers |= {name: value for name, value in defaults.items() if isinstance(value, str)}
        async with self._session.post(
            self._address + path,
            data=content,
            headers=headers,
            params={name: str(value) for name, value in client.default_query.items()} or None,
            proxy=self._proxy,
            # It might lead to another host, which must not get the key.
            allow_redirects=False,
        ) as response:
            text = self._text_of(await response.read(), response.charset)
            if response.status >= 400:
                raise Refused(response, text)
            return (None if response.status >= 300 else read_answer(text)), response.headers

    def _text_of(self, raw: bytes, charset: str | None) -> str:
        """Returns the text of a reply: in UTF-8, or as it begins; a few servers write JSON in another `charset`."""
        for encoding in (json.detect_encoding(raw), charset):
            with suppress(UnicodeDecodeError, LookupError):
                return raw.decode(encoding or "utf-8")
        if not self._warned:
            self._warned = True
            text = "%s sends answers that are not in UTF-8; what cannot be read of them is replaced by \ufffd."
            logger.warning(text, shown_address(self._address))
        return raw.decode(errors="replace")

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()


def _proxy_of(address: str) -> str | None:
    parts = urlsplit(address)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _trusted() -> ssl.SSLContext:
    """Returns what the SDK trusts: the system's certificates, or those in SSL_CERT_FILE or SSL_CERT_DIR."""
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            trusted: ssl.SSLContext = import_module(name).create_ssl_context()
            return trusted
    return ssl.create_default_context()
