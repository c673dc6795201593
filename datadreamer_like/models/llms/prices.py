"""What tokens cost: a dated table of published prices, prices that a script gives, and the cost of one request."""

from __future__ import annotations

import functools
import logging
import math
import numbers
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from datadreamer_like.errors import DataError, DefinitionError, MissingFile, did_you_mean
from datadreamer_like.graph.session import current_session

logger = logging.getLogger("datadreamer_like")


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of one model, in US dollars for a million tokens.

    Attributes:
        input: Tokens of a prompt.
        output: Tokens of an answer, thoughts included.
        cached_input: Tokens of a prompt that the provider finds in its prompt cache; as `input` unless given.
        cache_write: Tokens of a prompt that it writes into that cache; as `input` unless given.
        cache_write_1h: The same for entries that are kept for an hour; as `cache_write` unless given.
        up_to: The longest prompt, in tokens, that these prices hold for; None for any.
        max_output: The most tokens that the model writes in one answer, thoughts included; None if unknown.
        batch: The share of these prices that requests in a batch cost (`batch=True`); half unless given.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    cache_write_1h: float | None = None
    up_to: int | None = None
    max_output: int | None = None
    batch: float | None = None

    def cost(
        self, prompt_tokens: int, completion_tokens: int, *, cached: int = 0, written: int = 0, written_1h: int = 0
    ) -> float | None:
        """Returns the US dollars of one request; None where the price is not known.

        `prompt_tokens` are all tokens of the prompt, including those that were read from the provider's cache
        (`cached`), and those written into it, for the usual time (`written`) or for an hour (`written_1h`).

        Example:
            >>> Prices(input=2.0, output=10.0, cached_input=0.2).cost(1_000_000, 100_000, cached=500_000)
            2.1
        """
        if self.up_to is not None and prompt_tokens > self.up_to:
            return None
        write = self.input if self.cache_write is None else self.cache_write
        dollars = (
            # Some servers count what was cached apart.
            max(0, prompt_tokens - cached - written - written_1h) * self.input
            + cached * (self.input if self.cached_input is None else self.cached_input)
            + written * write
            + written_1h * (write if self.cache_write_1h is None else self.cache_write_1h)
            + completion_tokens * self.output
        )
        return dollars / 1_000_000

    def in_batches(self) -> Prices:
        """Returns the prices of requests in a batch.

        Example:
            >>> Prices(input=2.0, output=10.0).in_batches().output
            5.0
        """
        names = ("input", "output", "cached_input", "cache_write", "cache_write_1h")
        prices = {name: getattr(self, name) for name in names}
        share = 0.5 if self.batch is None else self.batch
        scaled = {name: price * share for name, price in prices.items() if price is not None}
        return replace(self, **scaled, batch=1.0)

    def most(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Returns the most that a request with so many tokens costs, cached or not."""
        write = [price for price in (self.cache_write, self.cache_write_1h, self.cached_input) if price is not None]
        return (prompt_tokens * max(self.input, *write, 0) + completion_tokens * self.output) / 1_000_000


# Of one request; what a server says beyond that is a fault of it.
_MOST_TOKENS = 10**9

PRICES_VARIABLE = "DATADREAMER_LIKE_PRICES"

_EXAMPLE = (
    'A provider is a section, [openai.models], and a model a line: "gpt-5-mini" = { input = 0.25, output = 2.0 }.'
)


class Usage(NamedTuple):
    """Tokens of one request, None where the server does not give their number.

    Those that were cached or written into a cache are among those of the prompt.
    """

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cached: int = 0
    written: int = 0
    written_1h: int = 0


def token_count(usage: object, name: str) -> int | None:
    """Returns a number of tokens as a server's usage has it; None if it is missing or cannot be one."""
    count = getattr(usage, name, None)
    return int(count) if isinstance(count, int | float) and 0 <= count < _MOST_TOKENS else None


def counted(usages: Sequence[Usage], prices: Prices | None) -> dict[str, Any]:
    """Returns the tokens and the cost of requests as attributes of an `Answer`; a cost with an unknown part is None."""
    costs = [cost_of(usage, prices) for usage in usages]
    return {
        "prompt_tokens": sum(usage.prompt_tokens or 0 for usage in usages),
        "completion_tokens": sum(usage.completion_tokens or 0 for usage in usages),
        "cached_tokens": sum(usage.cached for usage in usages),
        "cost": None if None in costs else sum(cost for cost in costs if cost is not None),
    }


def cost_of(usage: Usage, prices: Prices | None) -> float | None:
    """Returns the cost of a request in US dollars; None without prices, or where a number of tokens is not known."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prices is None or prompt is None or completion is None or not any(usage):
        return None
    return prices.cost(prompt, completion, cached=usage.cached, written=usage.written, written_1h=usage.written_1h)


def known_prices(provider: str, model_name: str) -> Prices | None:
    """Returns the prices of a model by its exact name: those in the prices file of the script, else published ones.

    The script's file is the session's `prices`, or that in the environment variable `DATADREAMER_LIKE_PRICES`. It is
    written like `prices.toml`; the name of a section is that of a provider, or a server's address.
    """
    session = current_session()
    file = (session and session.prices) or os.environ.get(PRICES_VARIABLE)
    own = {} if not file else _prices_in(str(file), Path(file).stat().st_mtime_ns if Path(file).is_file() else 0)
    _check_sections(str(file), frozenset(section for section, _ in own), provider)
    return own.get((provider, model_name)) or _published().get((provider, model_name))


@functools.lru_cache(maxsize=64)
def _check_sections(path: str, sections: frozenset[str], provider: str) -> None:
    """Refuses a section that is nearly the name of a provider, whose prices would never be used."""
    # All names are known without loading the classes; an address has a dot or a colon.
    rooms = sys.modules[__package__.rpartition(".")[0]]
    known = {provider, *(of for of, _ in _published()), *(name.lower() for name in dir(rooms))}
    for section in sorted(sections - known):
        if "." in section or ":" in section:
            continue
        if meant := did_you_mean(section, known):
            raise DataError(f'The prices file {path} has the section "{section}", which is no provider.{meant}')
        words = 'The prices file %s has the section "%s", which is no provider of this package.'
        logger.warning(words, path, section)


@functools.cache
def _published() -> Mapping[tuple[str, str], Prices]:
    return _prices_in(str(Path(__file__).with_name("prices.toml")), 0)


@functools.lru_cache(maxsize=8)
def _prices_in(path: str, changed_at: int) -> Mapping[tuple[str, str], Prices]:
    """Returns the prices in a file, by provider and model."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MissingFile(
            f"There is no prices file {path}. Give the path of one as prices=... of the session, or in "
            f"{PRICES_VARIABLE}."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"The prices file {path} is not TOML: {error}. {_EXAMPLE}") from error
    except OSError as error:
        raise DataError(f"The prices file {path} cannot be read: {error.strerror}.") from error
    found = {}
    for provider, section in table.items():
        if provider == "as_of":
            continue
        models = section.get("models") if isinstance(section, Mapping) else None
        if not isinstance(models, Mapping):
            raise DataError(f'The prices file {path} has no table "models" in "{provider}". {_EXAMPLE}')
        for name, values in models.items():
            try:
                prices = given_prices(values)
            except DefinitionError as error:
                raise DataError(f'The prices file {path}, model "{name}" of "{provider}": {error}') from error
            assert prices is not None
            # An address has a slash, and may end in one.
            section_of = provider.rstrip("/") if "/" in provider else provider.lower()
            found[section_of, name] = prices
    return found


def given_prices(prices: Prices | Mapping[str, Any] | None) -> Prices | None:
    """Returns the prices that a script gave; refuses unknown names, missing ones, and values that are no price."""
    if prices is None:
        return None
    if isinstance(prices, Prices):
        prices = asdict(prices)
    names = [field.name for field in fields(Prices)]
    example = 'expected US dollars for a million tokens, as in {"input": 0.25, "output": 2.0}'
    if not isinstance(prices, Mapping):
        raise DefinitionError(f"prices cannot be {prices!r}; {example}.")
    for name, value in prices.items():
        if name not in names:
            raise DefinitionError(f'prices have no "{name}".{did_you_mean(name, names)} They are: {", ".join(names)}.')
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 <= float(value) < math.inf):
            raise DefinitionError(f'The price "{name}" cannot be {value!r}; {example}.')
        if value is not None and name in ("up_to", "max_output") and (value < 1 or value != int(value)):
            raise DefinitionError(f'In prices, "{name}" cannot be {value!r}; expected a number of tokens, at least 1.')
        if value is not None and name == "batch" and value > 1:
            raise DefinitionError(
                f'In prices, "batch" cannot be {value!r}; it is the share of the other prices that requests in a batch '
                "cost, from 0 to 1."
            )
    if prices.get("input") is None or prices.get("output") is None:
        raise DefinitionError(f"prices need both input and output; {example}.")
    return Prices(**prices)
