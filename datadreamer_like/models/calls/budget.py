"""Budgets: the worst case of a request is reserved in a ledger before it is sent, and replaced by its cost after it.

The cost is in the ledger before the answer is in the answer store. So a stored answer is always paid for in the ledger,
and a kill in between loses an answer that was in flight, never its cost.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

from datadreamer_like.errors import BadRequest, DefinitionError, OverBudget
from datadreamer_like.graph.session import current_session
from datadreamer_like.storage.ledger import LEDGER_NAME, Ledger, budget_of, in_dollars, nanodollars

from ..llms.prices import Prices

logger = logging.getLogger("datadreamer_like")

Ask = Callable[[Any], Awaitable[Any]]

# Other processes' requests end without a notice.
_LOOK_AGAIN_SECONDS = 0.25
# Service tiers with the published prices; others cost more or less.
_STANDARD_TIERS = {None, "auto", "default", "standard", "standard_only"}
# Tokens that a provider adds: around a message, and for tools or a schema that it sends as a tool.
_TOKENS_AROUND_A_MESSAGE = 16
_TOKENS_FOR_A_SCHEMA = 1_000
# Statuses of failures for which no provider bills: refusals, overload, its own errors. Behind a gateway's time-out the
# answer may still be written.
_UNBILLED = {*range(400, 500), 500, 503, 529} - {408, 499}
_NEVER_SENT = {
    "ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol",
    "ClientConnectorError", "ClientConnectorDNSError", "ClientConnectorSSLError", "ClientConnectorCertificateError",
    "ClientProxyConnectionError",
}  # fmt: skip


class Paid(Protocol):
    """What of a model a budget needs: an `APIModel` has it."""

    model_name: str
    budget: str | None
    prices: Prices | None
    system_prompt: str | None
    cache_folder_path: str | Path | None
    max_context_length: int | None
    default_new_tokens: ClassVar[int | None]

    @property
    def account(self) -> str:
        """What its costs are counted under."""

    @property
    def display_name(self) -> str:
        """Class and model, for display."""

    def purse(self) -> Purse:
        """Returns the budgets of the run whose event loop this is called in."""


@dataclass
class Hold:
    """What is reserved for a request; `sent` counts what was sent for it and may be billed."""

    amount: int
    sent: int = 0


_current: ContextVar[Hold | None] = ContextVar("datadreamer_like_hold", default=None)
_in_memory: WeakKeyDictionary[Any, Ledger] = WeakKeyDictionary()


@contextmanager
def sending() -> Iterator[None]:
    """Notes that what is sent in the block may be billed, unless the provider refuses it."""
    hold = _current.get()
    if hold is None:
        yield
        return
    hold.sent += 1
    try:
        yield
    except Exception as error:
        if _is_unbilled(error):
            hold.sent -= 1
        raise


def _is_unbilled(error: Exception) -> bool:
    # An answer with the status of a success has no response here, even if it holds an error.
    if getattr(error, "response", None) is not None:
        return getattr(error, "status_code", None) in _UNBILLED
    return type(error.__cause__).__name__ in _NEVER_SENT or type(error).__name__ in _NEVER_SENT


@dataclass(frozen=True)
class Limit:
    """A budget: that of a model, for its `account`, or that of a session, for all accounts of its ledger."""

    what: str
    most: int
    ledger: Ledger
    of_all: bool

    def spent(self, account: str) -> int:
        """Returns what of it is spent."""
        return self.ledger.spent(None if self.of_all else account)

    def reserved(self, account: str) -> int:
        """Returns what of it living processes have reserved."""
        return self.ledger.reserved(None if self.of_all else account)


class Purse:
    """The budgets that one run of a model must keep; used in the run's event loop."""

    def __init__(self, model: Paid) -> None:
        self.account = model.account
        self.in_flight = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._opened: dict[str, Ledger] = {}
        session = current_session()
        self.limits: list[Limit] = []
        session_folder = None if session is None else session.cache_folder
        memory = session.in_memory_answers if session is not None and session.in_memory else None
        own, whole = budget_of(model.budget), None if session is None else budget_of(session.budget)
        if own is not None:
            ledger = self._ledger(model.cache_folder_path or session_folder, model, memory)
            self.limits.append(Limit(f'"{model.model_name}"', own, ledger, False))
        if whole is not None:
            ledger = self._ledger(session_folder, model, memory)
            self.limits.append(Limit("the session", whole, ledger, True))

    def _ledger(self, folder: str | Path | None, model: Paid, memory: dict[Any, Any] | None) -> Ledger:
        if folder is None:
            kept: MutableMapping[Any, Ledger] = _in_memory if memory is None else memory
            key: Any = model if memory is None else LEDGER_NAME
            if key not in kept:
                kept[key] = Ledger(":memory:")
            return kept[key]
        path = str(Path(folder) / LEDGER_NAME)
        if path not in self._opened:
            self._opened[path] = Ledger(path)
        return self._opened[path]

    def most(self, model: Paid, request: Any) -> int:
        """Returns the most that a request can cost.

        Raises:
            BadRequest: It is its prompt by which it passes a whole budget, so that others may fit.
        """
        amount = worst_case(model, request)
        for limit in self.limits:
            if amount > limit.most >= worst_case(model, request._replace(prompt="")):
                raise BadRequest(
                    f"The prompt is so long that its request may cost up to {in_dollars(amount)}, more than the whole "
                    f"budget of {in_dollars(limit.most)} for {limit.what}, so it is not sent. Shorten it, or raise the "
                    "budget."
                )
        return amount

    async def reserve(self, amount: int) -> Hold:
        """Reserves an amount; waits while requests in flight may turn out cheaper than their worst case.

        Raises:
            OverBudget: Nothing is in flight, and the amount does not fit.
        """
        async with self._turn:  # in the order in which they came
            while (short := self.short_of(amount)) is not None:
                self._changed.clear()
                hopeless = short.spent(self.account) + amount > short.most
                # What is in flight is paid for, so its answers are awaited.
                if not self.in_flight and (hopeless or not short.reserved(self.account)):
                    raise self.over(short, amount)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _LOOK_AGAIN_SECONDS)
            self.in_flight += 1
            return Hold(amount)

    def pay(self, hold: Hold, cost: int) -> None:
        """Replaces a reservation by what it cost."""
        self.in_flight -= 1
        for ledger in self.ledgers():
            ledger.pay(self.account, hold.amount, cost)
        self._changed.set()

    def close(self) -> None:
        """Closes the ledgers; those in memory are kept for the next run."""
        for ledger in self._opened.values():
            ledger.close()

    def ledgers(self) -> list[Ledger]:
        """Returns the ledgers of the budgets."""
        return list({id(limit.ledger): limit.ledger for limit in self.limits}.values())

    def short_of(self, amount: int, holder: str | None = None) -> Limit | None:
        """Reserves an amount in all ledgers, for this process or for a `holder`, or returns a limit that it passes."""
        taken: list[Ledger] = []
        for ledger in self.ledgers():
            of = {limit.of_all: limit for limit in self.limits if limit.ledger is ledger}
            most = {of_all: limit.most for of_all, limit in of.items()}
            if ledger.reserve(self.account, amount, most.get(False), most.get(True), holder):
                taken.append(ledger)
                continue
            for each in taken:
                each.pay(self.account, amount, 0, holder)
            return min(of.values(), key=lambda limit: limit.most - limit.spent(self.account))
        return None

    def over(self, limit: Limit, amount: int) -> OverBudget:
        """Returns the error of an amount that a limit has no room for."""
        most, next_one = in_dollars(limit.most), in_dollars(amount)
        if amount > limit.most:
            return OverBudget(
                f"The budget of {most} for {limit.what} is too small for one request, which may cost up to {next_one}. "
                "Raise the budget, or lower max_new_tokens."
            )
        spent = in_dollars(limit.spent(self.account))
        return OverBudget(
            f"The budget of {most} for {limit.what} is used up: {spent} are spent, and the next request may cost up to "
            f"{next_one}. All answers that were paid for are kept: raise the budget and run again, and it continues."
        )


def within_budget(ask: Ask, model: Paid) -> Ask:
    """Returns `ask`, or if there is a budget a function that reserves the worst case of each request before it."""
    if not check_budget(model):
        return ask

    async def ask_within(request: Any) -> Any:
        purse = model.purse()
        hold = await purse.reserve(purse.most(model, request))
        token = _current.set(hold)
        cost: int | None = None
        try:
            answer = await ask(request)
            if answer.cost is not None and (answer.error is None or answer.prompt_tokens):
                cost = nanodollars(answer.cost)
                if cost > hold.amount:
                    text = (
                        "%s: a request cost %s, more than its worst case of %s; the budget may be passed by that much"
                    )
                    logger.warning(text, model.display_name, in_dollars(cost), in_dollars(hold.amount))
            return answer
        finally:
            _current.reset(token)
            # Where the cost is not known, the worst case counts; what was not sent, or refused, costs nothing.
            purse.pay(hold, cost if cost is not None else hold.amount if hold.sent else 0)

    return ask_within


def check_budget(model: Paid) -> bool:
    """Returns whether a model has a budget, its own or the session's; refuses one if its prices are not known."""
    session = current_session()
    if budget_of(model.budget) is None and (session is None or session.budget is None):
        return False
    if model.prices is None:
        raise DefinitionError(
            f"A budget needs prices, and those of {model.account} are not known. Pass "
            'prices={"input": 0.25, "output": 2.0} (US dollars for a million tokens; 0 for a server of your own), or '
            "add them to a prices file."
        )
    return True


def worst_case(model: Paid, request: Any) -> int:
    """Returns the most that a request can cost, in dollars of 10⁻⁹.

    No tokenizer in use makes more tokens than a text has bytes.
    """
    prices, sampling = model.prices, getattr(request, "sampling", None)
    assert prices is not None
    if sampling is None:
        prompts = [f"{model.system_prompt or ''}{request.prompt}{each}" for each in request.continuations]
        return nanodollars(prices.most(sum(len(text.encode()) + 16 for text in prompts), len(prompts)))
    if sampling.extra.get("service_tier") not in _STANDARD_TIERS:
        raise DefinitionError(
            f"The prices of service_tier={sampling.extra['service_tier']!r} are not known, and there is a budget. "
            "Leave the option out, or the budget."
        )
    new_tokens = sampling.max_new_tokens or model.default_new_tokens or prices.max_output
    if new_tokens is None:
        raise DefinitionError(
            f"With a budget, {model.display_name} needs max_new_tokens: without it an answer may have any length, and "
            "cost anything. Pass max_new_tokens=..., or the model's own limit as max_output in its prices."
        )
    prompt_tokens = _most_prompt_tokens(model, request)
    if prices.up_to is not None and prompt_tokens > prices.up_to:
        raise BadRequest(
            f"The prompt may have more than {prices.up_to:,} tokens, and the price of such prompts is not known, so it "
            "is not sent under a budget. Shorten it."
        )
    return nanodollars(sampling.n * prices.most(prompt_tokens, new_tokens))


def _most_prompt_tokens(model: Paid, request: Any) -> int:
    messages = request.messages(model.system_prompt)
    if not all(_is_text(message.get("content")) for message in messages):
        if model.max_context_length is None:
            raise DefinitionError(
                f"A prompt of {model.display_name} has parts that are not text, whose tokens cannot be bounded, and "
                "there is a budget. Pass max_context_length=... to the model: the most tokens that a prompt can have."
            )
        return model.max_context_length
    sampling = request.sampling
    rest = json.dumps([sampling.schema, sampling.extra, request.tools], ensure_ascii=False, default=str)
    text = json.dumps(messages, ensure_ascii=False, default=str) + rest
    schema = 0 if sampling.schema is None and not request.tools else _TOKENS_FOR_A_SCHEMA + len(rest)
    return len(text.encode("utf-8", "surrogatepass")) + _TOKENS_AROUND_A_MESSAGE * (len(messages) + 1) + schema


def _is_text(content: object) -> bool:
    if isinstance(content, list | tuple):
        return all(isinstance(part, Mapping) and part.get("type", "text") == "text" for part in content)
    return content is None or isinstance(content, str)
