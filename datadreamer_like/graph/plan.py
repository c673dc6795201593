"""The plan of a session: which nodes are cached, which would run and why, and what that takes; nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from datadreamer_like.errors import NotMade, NotTrained

from .progress import duration

if TYPE_CHECKING:
    from .manifest import Manifest
    from .results import Kept

_WIDTH = 34


@dataclass(frozen=True)
class Forecast:
    """What running a node takes, as far as it is known.

    Attributes:
        rows: Rows of the result; None if unknown.
        stored: Prompts whose answers are stored, so that they are not sent.
        requests: Prompts to send; None if unknown, 0 for a node that asks no model.
        cost: US dollars expected; None if unknown.
        most_cost: US dollars if every request costs its worst case, retries and follow-ups left out; None if unknown.
        seconds: Time expected, from an earlier result; None if unknown.
        unknown: Why something of it is unknown; "" if all is known.
        over: The budget that the worst case, with those of earlier nodes of the plan, would pass; "" if none.
        shared: Prompts that an earlier node of the plan asks, so that they are not sent again.
    """

    rows: int | None = None
    stored: int = 0
    requests: int | None = 0
    cost: float | None = 0.0
    most_cost: float | None = 0.0
    seconds: float | None = None
    unknown: str = ""
    over: str = ""
    shared: int = 0

    def text(self) -> str:
        """Returns it in words."""
        parts = [] if self.rows is None else [f"{self.rows:,} rows"]
        if self.requests is None:
            parts.append("unknown number of requests")
        elif self.requests or self.stored or self.shared:
            shared = f", {self.shared:,} prompts of earlier steps" if self.shared else ""
            parts.append(f"{self.stored:,} answers stored{shared}, {self.requests:,} requests to send")
        if self.requests != 0:
            parts.append(_money(self.cost, self.most_cost))
        if self.over:
            parts.append(f"which may pass {self.over}")
        if self.seconds is not None:
            parts.append(f"about {duration(self.seconds)}")
        return ", ".join([*parts, *([self.unknown] if self.unknown else [])])


class Plannable(Protocol):
    """What of a node a plan needs."""

    name: str
    force: bool

    @property
    def kind(self) -> str:
        """What it is: "step", "trainer" or "stage"."""

    @property
    def keeps_failed_rows(self) -> bool:
        """Whether rows that failed are left as they are."""

    @property
    def previous(self) -> Manifest | None:
        """The manifest of the result that the name links to."""

    @property
    def parts(self) -> dict[str, str]:
        """The fingerprint of each part that determines the result."""

    def forecast(self) -> Forecast:
        """Returns what running it takes."""


@dataclass(frozen=True)
class PlannedNode:
    """One node of a plan.

    Attributes:
        state: "cached" if its result is used; "new" if none of its name exists; "changed" if it would be made again;
            "unknown" if its construction needs what does not exist yet.
        why: What changed: "argument instruction changed".
        rows: Rows of the result that is used; None if it has none.
        failed_rows: Rows of it that failed; those of them that a run requests again are `retried_rows`.
    """

    name: str
    kind: str
    state: Literal["cached", "new", "changed", "unknown"]
    why: str = ""
    rows: int | None = None
    failed_rows: int = 0
    retried_rows: int = 0
    forecast: Forecast = field(default_factory=Forecast)

    def text(self) -> str:
        """Returns it as one line."""
        parts = [self.state + (f" ({self.why})" if self.why else "")]
        if self.state == "cached":
            parts += [] if self.rows is None else [f"{self.rows:,} rows"]
            if self.failed_rows:
                parts.append(f"{self.failed_rows:,} failed, {self.retried_rows:,} of them to be requested again")
        elif words := self.forecast.text():
            parts.append(words)
        return f"{self.name:{_WIDTH}} {', '.join(parts)}"


@dataclass
class Plan:
    """What a script would do in a session's folder: print it, or read its `nodes`.

    What is unknown is said, never guessed: answers that differ in length, follow-ups of rejected answers, retries, and
    what depends on rows or models that do not exist yet.

    Attributes:
        folder: The session's folder.
        nodes: The nodes in the order of the script.
        ends_at: Why the plan ends before the script does; "" if it does not.
    """

    folder: Path
    nodes: list[PlannedNode] = field(default_factory=list)
    ends_at: str = ""
    _waiting: dict[str, str] = field(default_factory=dict, repr=False)  # kinds by name
    _asked: dict[str, set[bytes]] = field(default_factory=dict, repr=False)  # keys by the file of their answers
    _planned: dict[tuple[str, str | None], float] = field(default_factory=dict, repr=False)  # US dollars by budget

    @property
    def requests(self) -> int | None:
        """Prompts to send, those of failed rows too; None if that of some node is unknown."""
        counts = [node.forecast.requests for node in self._to_run()] + [node.retried_rows for node in self.nodes]
        return None if None in counts or self.ends_at else sum(count for count in counts if count is not None)

    @property
    def cost(self) -> float | None:
        """US dollars expected; None if those of some node are unknown, as those of failed rows are."""
        return None if self.ends_at else self._sum_of("cost")

    @property
    def most_cost(self) -> float | None:
        """US dollars if every request costs its worst case; None if that of some node is unknown."""
        return None if self.ends_at else self._sum_of("most_cost")

    @property
    def unknown(self) -> list[str]:
        """Names of the nodes of which something is unknown."""
        return [n.name for n in self.nodes if n.state == "unknown" or (n.state != "cached" and n.forecast.unknown)]

    def __str__(self) -> str:
        lines = [f"Plan of {self.folder}; nothing was sent, trained or saved."]
        lines += [f"  {node.text()}" for node in self.nodes]
        if self.ends_at:
            lines.append(f"The plan ends here: {self.ends_at}")
        known = [node.forecast for node in self._to_run()]
        cached = sum(node.state == "cached" for node in self.nodes)
        retried = sum(node.retried_rows for node in self.nodes)
        requests = sum(each.requests or 0 for each in known) + retried
        total = f"{cached} of {len(self.nodes)} nodes are cached. {requests:,} requests to send"
        total += " up to where the plan ends" if self.ends_at else ""
        if retried or any(each.requests != 0 for each in known):
            total += f", {_money(self._sum_of('cost'), self._sum_of('most_cost'))}"
        names = ", ".join(f'"{name}"' for name in self.unknown)
        return "\n".join([*lines, f"{total}{f'; and what is unknown of {names}' if names else ''}."])

    # For nodes and sessions

    def constructed(self, node: Plannable) -> None:
        """Notes a node that is being constructed; it is unknown until `add` is called."""
        self._waiting[node.name] = node.kind

    def leave_out(self, node: Plannable) -> None:
        """Notes that a node needs no line."""
        self._waiting.pop(node.name, None)

    def ask(self, file: str, key: bytes) -> bool:
        """Notes a prompt without a stored answer; returns whether no earlier node asks for it."""
        asked = self._asked.setdefault(file, set())
        before = len(asked)
        asked.add(key)
        return len(asked) > before

    def spend(self, budget: tuple[str, str | None], most: float) -> float:
        """Notes the US dollars of a node's worst case under a budget; returns those of earlier nodes."""
        before = self._planned.get(budget, 0.0)
        self._planned[budget] = before + most
        return before

    def add(self, node: Plannable, found: Kept | None, damage: str | None) -> bool:
        """Adds a node, given its result, if any, and the damage that it has; returns whether the result is used."""
        self._waiting.pop(node.name, None)
        self.nodes.append(planned(node, found, damage))
        return self.nodes[-1].state == "cached"

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Ends the block, without an error, where it needs what does not exist yet."""
        error: BaseException | None = None
        try:
            yield
        except (NotMade, NotTrained) as raised:
            error = raised
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Notes that the script ends, because of `error` or as it is written."""
        self.ends_at = self.ends_at or (str(error) if error is not None else "")
        for name, kind in self._waiting.items():
            self.nodes.append(PlannedNode(name, kind, "unknown"))
        self._waiting.clear()

    def _sum_of(self, costs: Literal["cost", "most_cost"]) -> float | None:
        failed = [None for node in self.nodes if node.retried_rows]
        return _sum([*(getattr(node.forecast, costs) for node in self._to_run()), *failed])

    def _to_run(self) -> list[PlannedNode]:
        return [node for node in self.nodes if node.state != "cached"]


_plans: list[Plan] | None = None


@contextmanager
def planning() -> Iterator[list[Plan]]:
    """Plans the sessions that are started in the block instead of running them; yields the plans."""
    global _plans
    before, _plans = _plans, []
    try:
        yield _plans
    finally:
        _plans = before


def started_plan(folder: Path) -> Plan | None:
    """Returns the plan of a session that starts; None if it is to run."""
    if _plans is None:
        return None
    _plans.append(Plan(folder))
    return _plans[-1]


def planned(node: Plannable, found: Kept | None, damage: str | None) -> PlannedNode:
    """Returns what a run would do with a node, given its result, if any, and the damage that it has."""
    if found is not None and not node.force:
        manifest = found.manifest
        again = 0 if node.keeps_failed_rows else manifest.retriable_rows
        return PlannedNode(node.name, node.kind, "cached", "", manifest.rows, len(manifest.failed), again)
    previous = node.previous
    if found is not None:
        why = "force=True"
    elif damage:
        why = "its result is damaged"
    else:
        why = "" if previous is None else previous.difference(node.parts)
    try:
        forecast = node.forecast()
    except (NotMade, NotTrained) as error:
        forecast = Forecast(None, 0, None, None, None, None, f"unknown: {error}")
    return PlannedNode(node.name, node.kind, "changed" if why else "new", why, forecast=forecast)


def _money(cost: float | None, most: float | None) -> str:
    named = {"about": cost, "at most": most}
    known = [f"{word} {value:,.{2 if value >= 1 else 6}f} USD" for word, value in named.items() if value is not None]
    return ", ".join(known) or "cost unknown"


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
