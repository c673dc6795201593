"""Takes the secrets of a client out of texts, in any form in which a server may quote them."""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_MASK = "..."
# A part of a secret that is at least so long is one: servers cut keys, or hide their middle.
_PART = 8
# Shorter secrets, and placeholders such as "none" or "EMPTY", occur in texts by chance.
_SHORTEST = 6
# What servers write instead of the middle of a key; as few characters as these around it give the key away.
_HIDDEN = re.compile(r"\*{2,}|\.{3,}|…|•{2,}|[xX]{4,}|\[[A-Za-z]{1,20}\]|<[A-Za-z]{1,20}>")
_LEFT, _RIGHT = re.compile(r"[\w+/=\-]+\Z"), re.compile(r"[\w+/=\-]+")
_REACH = 100
_SHOWN = 3

_SECRET_NAME = re.compile(r"auth|key|token|secret|passw|pass\b|credential|cookie|session|signature|\bsig\b", re.I)
_SCHEME = re.compile(r"(?i)(bearer|basic|token|apikey|api-key)\s+")
# Keys that no client here may know, such as a gateway's own.
_FOREIGN = re.compile(r"\b(sk|pk|gsk|xai|org|tgp|Bearer|Basic)[-_ ][\w*.\-+/=]{6,}")


class Secrets:
    """The secrets of one client."""

    def __init__(self, secrets: Iterable[str | None]) -> None:
        forms = {form.lower() for secret in secrets if secret for form in _forms(secret)}
        self._whole = [form for form in forms if _SHORTEST <= len(form) < _PART and not form.isalpha()]
        long = {form for form in forms if len(form) >= _PART}
        self._parts = {form[i : i + _PART] for form in long for i in range(len(form) - _PART + 1)}
        self._starts = {form[:_SHOWN] for form in (*long, *self._whole)}
        self._ends = {form[-_SHOWN:] for form in (*long, *self._whole)}

    def taken_out_of(self, text: str) -> str:
        """Returns a text with "..." instead of each secret, of each longer part of one, and of foreign keys."""
        if self._parts or self._whole:
            hide = bytearray(len(text))
            for start, end in self._found(text):
                hide[start:end] = b"\1" * (end - start)
            text = re.sub("\0+", _MASK, "".join("\0" if hidden else c for c, hidden in zip(text, hide, strict=True)))
        return _FOREIGN.sub(rf"\1-{_MASK}", text)

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        lower = text.lower()
        if len(lower) != len(text):  # in few scripts
            lower = text
        for start in range(len(text) - _PART + 1):
            if lower[start : start + _PART] in self._parts:
                yield start, start + _PART
        for form in self._whole:
            yield from (found.span() for found in re.finditer(re.escape(form), lower))
        for found in _HIDDEN.finditer(lower):
            start, end = found.span()
            left = _LEFT.search(lower[max(0, start - _REACH) : start])
            right = _RIGHT.match(lower[end : end + _REACH])
            before, after = left.group() if left else "", right.group() if right else ""
            if before[:_SHOWN] in self._starts or after[-_SHOWN:] in self._ends:
                yield start - len(before), end + len(after)


class _Hiding(logging.Filter):
    """Takes the secrets of all clients out of the records of a logger."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: weakref.WeakSet[Secrets] = weakref.WeakSet()

    def filter(self, record: logging.LogRecord) -> bool:
        said = hidden = record.getMessage()
        for secrets in list(self.secrets):
            hidden = secrets.taken_out_of(hidden)
        if hidden != said:
            record.msg, record.args = hidden, ()
        return True


_hiding = _Hiding()


def hide_in_logs(secrets: Secrets, *loggers: str) -> None:
    """Takes secrets out of what the named loggers of other packages say, as long as `secrets` is in use."""
    _hiding.secrets.add(secrets)
    for name in loggers:
        logging.getLogger(name).addFilter(_hiding)


def secrets_in(address: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yields the secrets in an address, in the options of an SDK's client, and in the environment's proxies."""
    proxies = [value for name, value in os.environ.items() if name.lower().endswith("_proxy")]
    for url in (address, *proxies, *(str(value) for value in options.values() if "://" in str(value)[:200])):
        with suppress(ValueError):
            parts = urlsplit(url)
            user, password = unquote(parts.username or ""), unquote(parts.password or "")
            if password:
                yield password
                yield f"{user}:{password}"
            elif user:
                yield user
            yield from (value for name, value in parse_qsl(parts.query) if _SECRET_NAME.search(name))
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _named_secrets(value)
        else:
            yield from _named_secrets({name: value})


def _named_secrets(values: Mapping[Any, Any]) -> Iterator[str]:
    for name, value in values.items():
        if not isinstance(value, str):
            continue
        bare = _SCHEME.sub("", value, count=1).strip()
        if bare != value.strip() or _SECRET_NAME.search(str(name)):
            yield bare
            with suppress(ValueError):
                decoded = base64.b64decode(bare, validate=True).decode()
                if ":" in decoded:  # of basic authentication
                    yield decoded
                    yield decoded.partition(":")[2]
        elif _is_random(value):
            yield value


def _is_random(value: str) -> bool:
    """Whether a value of a header with an unsuspicious name looks like a key: long, with digits, without blanks."""
    return len(value) >= 16 and not re.search(r"\s|://", value) and bool(re.search(r"\d", value))


def _forms(secret: str) -> Iterator[str]:
    secret = secret.strip()
    yield secret
    yield quote(secret, safe="")
    yield quote(quote(secret, safe=""), safe="")
    yield json.dumps(secret)[1:-1]
    yield json.dumps(json.dumps(secret)[1:-1])[1:-1]
    yield html.escape(secret)
    yield repr(secret)[1:-1]
    raw = secret.encode("utf-8", "surrogatepass")
    yield raw.hex()
    # Within other text, such as `user:key`, base64 has one of three forms, the ends of which depend on the neighbours.
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            coded = encode(b"\0" * before + raw).decode().rstrip("=")
            yield coded[{0: 0, 1: 2, 2: 3}[before] : len(coded) - (1 if (before + len(raw)) % 3 else 0)]
