"""What a prompting step would send, for a plan: its prompts, those whose answers are stored, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from datadreamer_like.errors import DefinitionError, ModelError, NotMade
from datadreamer_like.graph.manifest import Manifest
from datadreamer_like.graph.plan import Forecast
from datadreamer_like.graph.session import current_session
from datadreamer_like.models.calls.budget import check_budget, worst_case
from datadreamer_like.models.calls.llm_calls import LLMCalls
from datadreamer_like.models.calls.pipeline import answers_file
from datadreamer_like.models.llms.api_model import APIModel
from datadreamer_like.models.llms.generation import Answer, Generation, Request
from datadreamer_like.models.llms.llm import LLM, overrides_only_run
from datadreamer_like.storage.answers import AnswerStore
from datadreamer_like.storage.ledger import LEDGER_NAME, Ledger, budget_of, in_dollars

from ..base.row_answers import Questions, is_sent

_AT_ONCE = 1_000
# Stored answers whose lengths foretell those of the others.
_SAMPLE = 1_000
# Parts of a step's fingerprint that decide how long the answers to a prompt are, all together.
_DECIDE_LENGTHS = ("argument n", "argument max_new_tokens")


class Prompting(Protocol):
    """What of a prompting step a forecast needs."""

    @property
    def args(self) -> dict[str, Any]:
        """The arguments by name."""

    @property
    def previous(self) -> Manifest | None:
        """The manifest of the step's earlier result."""

    @property
    def parts(self) -> dict[str, str]:
        """The fingerprint of each part that determines the result."""

    def run_options(self) -> dict[str, Any]:
        """Returns the options for the LLM."""

    def questions(self) -> Iterator[Questions]:
        """Yields prompts with their rows."""

    def num_prompts(self) -> int | None:
        """Returns the number of rows, if known."""


def forecast_prompts(step: Prompting) -> Forecast:
    """Returns what running a prompting step takes.

    Prompts are made as in a run, and looked up in the answer store; what an earlier step of the plan asks is not sent
    again. Lengths are foretold by stored answers to other prompts of the step, else by its earlier result, unless that
    had another `n` or `max_new_tokens`; without either, only the worst case is known.
    """
    previous = step.previous
    alike = previous is not None and all(previous.parts.get(name) == step.parts.get(name) for name in _DECIDE_LENGTHS)
    earlier = previous.card if previous is not None and alike else {}
    if overrides_only_run(step.args["llm"]):
        return Forecast(None, 0, None, None, None, None, "the LLM has a run of its own, which a plan does not know")
    try:
        counted = _counted(step)
    except NotMade as error:
        return Forecast(_rows(step), 0, None, None, None, None, f"unknown: {error}")
    tokens = counted.lengths.mean() or _mean_of(earlier)
    requests = counted.new
    cost, most, unknown = _costs(step.args["llm"], counted, tokens)
    seconds = None
    if earlier.get("rows") and earlier.get("completion_tokens"):
        seconds = earlier["seconds"] * requests / earlier["rows"]
    over = _budget_passed(step.args["llm"], most)
    seconds = seconds if requests else 0.0
    return Forecast(counted.rows, counted.stored, requests, cost, most, seconds, unknown, over, counted.shared)


@dataclass
class _Lengths:
    """Sums over stored answers."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def mean(self) -> tuple[float, float] | None:
        """Returns the mean tokens of a prompt and of its answer."""
        return (self.prompt_tokens / self.answers, self.completion_tokens / self.answers) if self.answers else None


@dataclass
class _Counted:
    """Counts of a step's prompts; `worst` is the sum of the worst cases of new ones, None where one is unknown."""

    lengths: _Lengths
    rows: int = 0
    stored: int = 0
    shared: int = 0
    new: int = 0
    worst: int | None = 0
    why_unknown: str = ""


def _counted(step: Prompting) -> _Counted:
    llm: LLM = step.args["llm"]
    options = llm.translated(step.run_options())  # type: ignore[arg-type]
    sampling = Generation.from_options(options, llm.extra_options).sampling
    calls = LLMCalls.of(llm, sampling)
    counted = _Counted(_Lengths())
    file = answers_file(llm)
    session = current_session()
    plan = None if session is None else session.planned
    seen: set[bytes] = set()
    with AnswerStore(file) if isinstance(file, Path) and file.exists() else nullcontext() as store:
        prompts = _prompts(step, counted)
        while part := list(islice(prompts, _AT_ONCE)):
            keys, requests = calls.admit(part)
            force = step.args.get("force")
            values = [None] * len(keys) if store is None or force else store.get_many(keys)
            answers = [None if value is None else calls.decode(value) for value in values]
            if calls.has_paid and not force:
                paid = calls.paid(keys, requests)
                answers = [known or found for known, found in zip(answers, paid, strict=True)]
            for key, request, known in zip(keys, requests, answers, strict=True):
                if known is not None:
                    counted.stored += 1
                    _measure(counted.lengths, known)
                elif key not in seen:
                    seen.add(key)
                    is_first = plan is None or plan.ask(str(file), key)
                    if is_first or force:
                        counted.new += 1
                        _add_worst(counted, llm, request)
                    else:
                        counted.shared += 1
    return counted


def _prompts(step: Prompting, counted: _Counted) -> Iterator[Any]:
    for questions in step.questions():
        counted.rows += len(questions.values)
        yield from (prompt for prompt in questions.values if is_sent(prompt))


def _measure(lengths: _Lengths, answer: Answer) -> None:
    if lengths.answers < _SAMPLE:
        lengths.answers += 1
        lengths.prompt_tokens += answer.prompt_tokens
        lengths.completion_tokens += answer.completion_tokens


def _add_worst(counted: _Counted, llm: LLM, request: Request) -> None:
    if not isinstance(llm, APIModel) or llm.prices is None or counted.worst is None:
        return
    try:
        counted.worst += worst_case(llm, request)
    except DefinitionError as error:
        counted.worst, counted.why_unknown = None, f"worst case unknown: {error}"
    except ModelError:  # this prompt would not be sent
        pass


def _costs(llm: LLM, counted: _Counted, tokens: tuple[float, float] | None) -> tuple[float | None, float | None, str]:
    """Returns the dollars expected, those of the worst case, and why one of them is unknown."""
    if not isinstance(llm, APIModel) or not counted.new:
        return 0.0, 0.0, ""
    if llm.prices is None:
        return None, None, f"the prices of {llm.account} are unknown"
    most = None if counted.worst is None else counted.worst / 1e9
    if tokens is None:
        return None, most, counted.why_unknown or "how long answers are is unknown"
    whole = replace(llm.prices, up_to=None)
    cost = whole.cost(round(tokens[0] * counted.new), round(tokens[1] * counted.new))
    return cost, most, counted.why_unknown


def _budget_passed(llm: LLM, most: float | None) -> str:
    """Returns the budget that has less left than the worst case, that of earlier steps of the plan included.

    "" if there is none, or the worst case is unknown.
    """
    session = current_session()
    if most is None or not isinstance(llm, APIModel) or not check_budget(llm):
        return ""
    own, whole = budget_of(llm.budget), None if session is None else budget_of(session.budget)
    folder = None if session is None else session.cache_folder
    limits = [
        ("the budget", own, llm.cache_folder_path or folder, llm.account),
        ("the session's budget", whole, folder, None),
    ]
    plan, passed = None if session is None else session.planned, ""
    for what, limit, place, account in limits:
        if limit is None:
            continue
        spent = _spent(place, account)
        before = 0.0 if plan is None else plan.spend((str(place), account), most)
        if spent + (before + most) * 1e9 > limit and not passed:
            of = [f"{in_dollars(spent)} are spent"] if spent else []
            of += [f"earlier steps may spend {in_dollars(round(before * 1e9))}"] if before else []
            passed = f"{what} of {in_dollars(limit)}{', of which ' if of else ''}{' and '.join(of)}"
    return passed


def _spent(folder: str | Path | None, account: str | None) -> int:
    file = None if folder is None else Path(folder) / LEDGER_NAME
    if file is None or not file.exists():
        return 0
    ledger = Ledger(file)
    try:
        return ledger.spent(account)
    finally:
        ledger.close()


def _mean_of(card: dict[str, Any]) -> tuple[float, float] | None:
    rows = card.get("rows")
    if not rows or not card.get("completion_tokens"):
        return None
    return card["prompt_tokens"] / rows, card["completion_tokens"] / rows


def _rows(step: Prompting) -> int | None:
    try:
        return step.num_prompts()
    except NotMade:
        return None
