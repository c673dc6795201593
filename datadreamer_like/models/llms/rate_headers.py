"""Reads the headers with which providers say how much may be sent, and when."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ..calls.pace import Reported

# The window of a limit, where its name says it: Mistral's names end in "-minute", and it sends no reset.
_WINDOWS = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": 86_400.0}
# Above it, a number is a time since 1970 (OpenRouter's), not a duration.
_LONGEST_RESET_SECONDS = 1e7
# OpenAI's and Groq's form: "6m0.5s", "8ms"
_DURATION = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+\.?\d*)s)?(?:(\d+\.?\d*)ms)?")


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
            seconds = float(value) / divisor
            if math.isfinite(seconds):
                return max(0.0, seconds)
        with suppress(ValueError):
            return _seconds_until(parsedate_to_datetime(value), headers)
    return seconds_until_renewed(headers)


def seconds_until_renewed(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds until all exhausted rate limits are renewed; None if none is exhausted."""
    remaining = {name: left for name, left in _remaining(headers).items() if left.strip() == "0"}
    resets = [_reset(headers, name) for name in remaining]
    return max((reset for reset in resets if reset is not None), default=None)


def reported_limits(headers: Mapping[str, str]) -> dict[str, Reported]:
    """Returns the limits in a reply's headers, by the name of what is left: OpenAI's form, Anthropic's, or Mistral's.

    The rate follows from the time in which a limit that is partly used is whole again, or from the window that the
    limit's name says. Limits without either, and of tokens without their size (Azure's), are left out.
    """
    found = {}
    for name, left in _remaining(headers).items():
        reset = _reset(headers, name)
        with suppress(ValueError):
            size = headers.get(name.replace("remaining", "limit"))
            if size is None and "token" in name:
                continue
            limit = max(float(left), 1.0) if size is None else float(size)
            if reset is None and (window := _WINDOWS.get(name.rpartition("-")[2])) is not None and limit > 0:
                reset = window * (limit - float(left)) / limit
            # Some servers send zeros where there is no limit.
            if reset is not None and 0 <= float(left) <= limit and 1 <= limit < math.inf:
                found[name] = Reported(limit, float(left), reset)
    return found


def _remaining(headers: Mapping[str, str]) -> dict[str, str]:
    names = {name.lower(): left for name, left in headers.items() if "ratelimit" in name.lower()}
    return {name: left for name, left in names.items() if "remaining" in name}


def _reset(headers: Mapping[str, str], remaining: str) -> float | None:
    """Returns the seconds until a limit is renewed.

    Anthropic sends a timestamp, OpenAI a duration such as "6m0.5s", Azure and Cerebras a number of seconds.
    """
    reset = headers.get(remaining.replace("remaining", "reset"), "").strip()
    if match := _DURATION.fullmatch(reset):
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
        return 3600 * hours + 60 * minutes + seconds + milliseconds / 1000
    with suppress(ValueError):
        seconds = float(reset)
        return seconds if 0 <= seconds <= _LONGEST_RESET_SECONDS else None
    with suppress(ValueError):
        return _seconds_until(datetime.fromisoformat(reset), headers)
    return None


def _seconds_until(time: datetime, headers: Mapping[str, str]) -> float:
    # Against the server's clock: this machine's may be wrong.
    now = datetime.now(UTC)
    with suppress(ValueError):
        now = parsedate_to_datetime(headers.get("date", ""))
    return max(0.0, (time.replace(tzinfo=time.tzinfo or UTC) - now.replace(tzinfo=now.tzinfo or UTC)).total_seconds())
